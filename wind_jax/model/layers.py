"""Parts of the video U-ViT: padding on the sphere, convolutions, rotary positions, attention, the two blocks.

Arrays are `(b, t, h, w, c)`: batch, frame, latitude (south to north), longitude, channel. Parameters are
float32; products are taken in the compute type a module was built with (see `product`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

EPSILON = 1e-6
GROUPS = 32

ZEROS = nnx.initializers.zeros_init()
LECUN = nnx.initializers.lecun_normal()


def _sum_over(x_axes: Sequence[int], y_axes: Sequence[int], x: jax.Array, y: jax.Array, common: int) -> jax.Array:
    """Product in float32, summed over these axes, of all pairs of the others but the first `common`."""
    axes = ((x_axes, y_axes), (range(common), range(common)))
    return jax.lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product_on_cpu(
    x: Float[Array, "... k"], y: Float[Array, "... k n"], common: int, dtype: DTypeLike
) -> Float[Array, "... n"]:
    return _sum_over([x.ndim - 1], [common], x.astype(dtype), y.astype(dtype), common)


def _forward_on_cpu(x, y, common, dtype):
    left, right = x.value.astype(dtype), y.value.astype(dtype)
    kept = (left if y.perturbed else None, right if x.perturbed else None)
    return _sum_over([left.ndim - 1], [common], left, right, common), kept


def _backward_on_cpu(common, dtype, kept, cotangent):
    (left, right), cotangent = kept, cotangent.astype(dtype)
    of_left = of_right = None
    axes = cotangent.ndim
    if right is not None:
        of_left = _sum_over([axes - 1], [common + 1], cotangent, right, common)
    if left is not None:
        # XLA's CPU backend is fast where it sums over the last axes of the first operand; else it widens bfloat16. What
        # it has merged axes of counts as such an operand, a transposed matrix would not: hence an axis of length 1.
        left, cotangent = (jnp.expand_dims(a, common) for a in (left, cotangent))
        left = jnp.moveaxis(left, -1, common)
        of_right = _sum_over(range(common + 1, axes + 1), range(common, axes), left, cotangent, common)
    return of_left, of_right


_product_on_cpu.defvjp(_forward_on_cpu, _backward_on_cpu, symbolic_zeros=True)  # which tell what need not be kept


def product(x: Float[Array, "... k"], y: Float[Array, "... k n"], dtype: DTypeLike) -> Float[Array, "... n"]:
    """Matrix product of operands rounded to `dtype`. All but the last two axes of `y` are the first ones of `x`.

    On accelerators the result is of `dtype` as well. On CPU it is float32, and so are the sums of its gradient: XLA
    multiplies bfloat16 fast there where sums are float32, and is slow in all else that is done in bfloat16.
    """
    common = y.ndim - 2
    if jax.default_backend() == "cpu":
        return _product_on_cpu(x, y, common, dtype)
    axes = (((x.ndim - 1,), (common,)), (range(common), range(common)))
    return jax.lax.dot_general(x.astype(dtype), y.astype(dtype), axes)


class Linear(nnx.Linear):
    """Linear layer by `product`."""

    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... out"]:
        out = product(x, self.kernel[...], self.dtype)
        if self.bias is None:
            return out
        return out + jnp.expand_dims(self.bias[...].astype(out.dtype), range(out.ndim - 1))


class Mirror(NamedTuple):
    """The rows that show what lies across the poles of one level's grid.

    Row -1 of a level is row `south` seen half a turn away, row `h` is row `h - 1 - north`. On a grid of whole
    cells both are 0; where a grid has rows beyond the pole already, the mirror image lies further inside.
    """

    south: int
    north: int


def half_turn(x: Float[Array, "... w c"]) -> Float[Array, "... w c"]:
    """Turn rows by 180 degrees of longitude; between two columns (odd `w`) take the mean of both."""
    width = x.shape[-2]
    turned = jnp.roll(x, width // 2, axis=-2)
    if width % 2:
        turned = (turned + jnp.roll(x, width // 2 + 1, axis=-2)) / 2
    return turned


def pad_across_poles(
    x: Float[Array, "... h w c"], south: Sequence[int], north: Sequence[int]
) -> Float[Array, "... rows w c"]:
    """Continue a field over the poles by rows of its own, seen half a turn away.

    Args:
      x: the field.
      south: rows to put below row 0, in the order in which they come out, that is from the outermost inwards.
      north: rows to put above the last row, from the innermost outwards.

    Wind components change their sign across a pole. That is left to the network, which sees all rows alike.
    """
    # Slices, not `take`: its gradient is a scatter, on CPU slower than all convolutions together.
    across = lambda rows: [half_turn(x[..., row : row + 1, :, :]) for row in rows]
    return jnp.concatenate([*across(south), x, *across(north)], axis=-3)


def pad_rows(x: Float[Array, "... h w c"], mirror: Mirror | None) -> Float[Array, "... h2 w c"]:
    """One more row to the south and to the north: zeros where `mirror` is None, else what lies across the pole."""
    if mirror is None:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(1, 1), (0, 0), (0, 0)])
    return pad_across_poles(x, [mirror.south], [x.shape[-3] - 1 - mirror.north])


def pad_one(x: Float[Array, "... h w c"], mirror: Mirror | None) -> Float[Array, "... h2 w2 c"]:
    """One more row and column on every side: zeros where `mirror` is None, else what lies there."""
    x = pad_rows(x, mirror)
    if mirror is None:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(1, 1), (0, 0)])
    return jnp.concatenate([x[..., -1:, :], x, x[..., :1, :]], axis=-2)


def neighbours(x: Float[Array, "... w c"], periodic: bool) -> tuple[Float[Array, "... w c"], Float[Array, "... w c"]]:
    """For every column its western and its eastern neighbour: round the globe, or zeros beyond the edges."""
    beyond = (lambda edge: edge) if periodic else jnp.zeros_like
    first, later = jnp.split(x, [1], axis=-2)  # whose gradient is a concatenation, a slice's is a sum over the field
    earlier, last = jnp.split(x, [x.shape[-2] - 1], axis=-2)
    return jnp.concatenate([beyond(last), earlier], axis=-2), jnp.concatenate([later, beyond(first)], axis=-2)


def conv3x3(
    x: Float[Array, "b t h w c"], kernel: Float[Array, "3 3 c out"], mirror: Mirror | None, dtype: DTypeLike
) -> Float[Array, "b t h w out"]:
    """3 x 3 convolution of every frame, padded as by `pad_one`.

    On CPU as one matrix product, of three rows side by side with the kernel's three columns side by side, whose results
    are shifted and added. XLA's own convolution and a product of all nine shifted fields move more memory there: 43 and
    44 ms against 15, with gradients 103 and 90 against 59 (two cores, 20 frames of 16 x 32 cells, 96 channels), and
    inside a scan XLA leaves its fast path for the gradient of the kernel.
    """
    b, t, h, w, c = x.shape
    if jax.default_backend() == "cpu":
        padded = pad_rows(x, mirror)
        rows = jnp.concatenate([padded[..., i : i + h, :, :] for i in range(3)], axis=-1)
        columns = kernel.transpose(0, 2, 1, 3).reshape(3 * c, -1)
        west, here, east = jnp.split(product(rows, columns, dtype), 3, axis=-1)
        return neighbours(west, mirror is not None)[0] + here + neighbours(east, mirror is not None)[1]
    padded = pad_one(x.astype(dtype), mirror).reshape(b * t, h + 2, w + 2, c)
    form = ("NHWC", "HWIO", "NHWC")
    out = jax.lax.conv_general_dilated(padded, kernel.astype(dtype), (1, 1), "VALID", dimension_numbers=form)
    return out.reshape(b, t, h, w, -1)


class Conv3x3(nnx.Module):
    """3 x 3 convolution with bias; `mirror` chooses the padding (see `pad_one`)."""

    def __init__(
        self,
        features_in: int,
        features_out: int,
        *,
        mirror: Mirror | None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        kernel_init: Callable = LECUN,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (3, 3, features_in, features_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features_out,), jnp.float32))
        self.mirror = mirror
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w out"]:
        out = conv3x3(x, self.kernel[...], self.mirror, self.dtype)
        return out + self.bias[...].astype(out.dtype)[None, None, None, None, :]


class FrameConv(nnx.Module):
    """Convolution along the frame axis alone, zero beyond the window; starts as zero."""

    def __init__(self, features: int, size: int, *, dtype: jnp.dtype):
        self.kernel = nnx.Param(jnp.zeros((size, features, features), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        kernel = self.kernel[...]
        size, frames = kernel.shape[0], x.shape[1]
        padded = jnp.pad(x, [(0, 0), (size // 2, size // 2), (0, 0), (0, 0), (0, 0)])
        return sum(product(padded[:, k : k + frames], kernel[k], self.dtype) for k in range(size))


class GroupNorm(nnx.Module):
    """Group normalisation of each frame on its own; statistics in float32."""

    def __init__(self, features: int):
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        # Cells first, then channels of a group: fields with an axis of groups take XLA three times as long on CPU.
        def mean(x: jax.Array) -> jax.Array:
            """Of each frame and group, for every channel of it."""
            groups = x.mean(axis=(2, 3), keepdims=True).reshape(*x.shape[:2], 1, 1, GROUPS, -1)
            return jnp.broadcast_to(groups.mean(axis=-1, keepdims=True), groups.shape).reshape(*x.shape[:2], 1, 1, -1)

        full = x.astype(jnp.float32)
        deviation = full - mean(full)
        factor = jax.lax.rsqrt(mean(jnp.square(deviation)) + EPSILON) * self.scale[None, None, None, None, :]
        affine = deviation * factor + self.bias[None, None, None, None, :]
        return affine.astype(x.dtype)


class RMSNorm(nnx.Module):
    """Division by the root mean square of the last axis, in float32, and a scale."""

    def __init__(self, features: int):
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))

    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        full = x.astype(jnp.float32)
        normal = full * jax.lax.rsqrt(jnp.mean(jnp.square(full), axis=-1, keepdims=True) + EPSILON)
        return (normal * jnp.expand_dims(self.scale[...], range(x.ndim - 1))).astype(x.dtype)


def rotary_split(pairs: int) -> tuple[int, int, int]:
    """Pairs of a head's components given to (frame, row, column); a remainder of 1 goes to the frame."""
    third, rest = divmod(pairs, 3)
    return third + (rest == 1), third + (rest == 2), third + (rest == 2)


def wave_numbers(count: int, width: int) -> np.ndarray:
    """`count` whole wave numbers in 1 .. width / 2, spread geometrically, all different where possible."""
    largest = max(width // 2, 1)
    if count >= largest:
        return np.arange(count) % largest + 1
    waves = np.round(np.geomspace(1, largest, count)).astype(int)
    for i in range(1, count):
        waves[i] = max(waves[i], waves[i - 1] + 1)
    return waves


def rotary_angles(frames: int, height: int, width: int, head_width: int, geometry: str) -> list[np.ndarray]:
    """Angles by which pairs of components turn with the frame, the row and the column.

    In the published network every axis has the frequencies `10000^(-i / pairs)` per index. On the sphere the
    angle of a column is a whole multiple of its longitude, so attention does not see where longitudes begin,
    and the angle of a row a multiple of its latitude.

    Returns:
      radians: arrays `(frames, p0)`, `(height, p1)`, `(width, p2)` with `p0 + p1 + p2 = head_width / 2`.
    """
    split = rotary_split(head_width // 2)
    frequencies = [10000.0 ** (-np.arange(pairs) / max(pairs, 1)) for pairs in split]
    if geometry == "sphere":
        frequencies[1] = np.geomspace(1.0, max(height / 2, 1.0), split[1]) * np.pi / height
        frequencies[2] = wave_numbers(split[2], width) * 2 * np.pi / width
    return [np.outer(np.arange(n), f) for n, f in zip((frames, height, width), frequencies)]


def rotate(x: Float[Array, "b t h w heads d"], geometry: str) -> Float[Array, "b t h w heads d"]:
    """Rotary positions (Su et al. 2021) over three axes; components `2i` and `2i + 1` turn together."""
    _, t, h, w, _, d = x.shape
    angles = rotary_angles(t, h, w, d, geometry)

    def table(function: Callable) -> jax.Array:
        frame, row, column = (jnp.asarray(function(a), jnp.float32) for a in angles)
        parts = [frame[:, None, None, :], row[None, :, None, :], column[None, None, :, :]]
        return jnp.concatenate([jnp.broadcast_to(p, (t, h, w, p.shape[-1])) for p in parts], axis=-1)

    cos, sin = (table(f)[None, :, :, :, None, :] for f in (np.cos, np.sin))
    even, odd = x[..., 0::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape).astype(x.dtype)


def fuses(q: Float[Array, "b n heads d"]) -> bool:
    """Whether cuDNN's flash attention takes these, gradient included, on every NVIDIA GPU since Ampere.

    That is in bfloat16, an even number of tokens, heads a multiple of 8 and at most 128 wide. Those of the published
    network are 256 and 512 wide.
    """
    _, tokens, _, width = q.shape
    takes = q.dtype == jnp.bfloat16 and tokens % 2 == 0 and width % 8 == 0 and width <= 128
    return takes and jax.default_backend() == "gpu"


def attention(
    q: Float[Array, "b n heads d"], k: Float[Array, "b n heads d"], v: Float[Array, "b n heads d"], dtype: DTypeLike
) -> Float[Array, "b n heads d"]:
    """Softmax attention, softmax in float32.

    On accelerators `jax.nn.dot_product_attention`, which makes all scores but where cuDNN `fuses` them away; on CPU the
    same as matrix products with batch and head in front, which was measured four times as fast there at a head width
    of 32, and divided by the weights' sum last, where there is least to divide.
    """
    if jax.default_backend() != "cpu":
        q, k, v = (a.astype(dtype) for a in (q, k, v))
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn" if fuses(q) else "xla")
    q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q * q.shape[-1] ** -0.5, k, v))
    logits = product(q, jnp.swapaxes(k, 2, 3), dtype)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    return jnp.swapaxes(product(weights, v, dtype) / weights.sum(axis=-1, keepdims=True), 1, 2)


class ResBlock(nnx.Module):
    """Residual block of two 3 x 3 convolutions, the second scaled and shifted by the noise embedding.

    With `frame_kernel` above 1 a convolution along frames alone stands before the second one. It starts as
    zero, and lets the fine levels see motion, which in the published network only the transformer levels do.
    """

    def __init__(
        self,
        width: int,
        embedding: int,
        *,
        mirror: Mirror | None,
        frame_kernel: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.embed = Linear(embedding, 2 * width, dtype=dtype, kernel_init=ZEROS, rngs=rngs)
        self.in_norm = GroupNorm(width)
        self.in_conv = Conv3x3(width, width, mirror=mirror, dtype=dtype, rngs=rngs)
        self.out_norm = GroupNorm(width)
        self.frame_conv = FrameConv(width, frame_kernel, dtype=dtype) if frame_kernel > 1 else None
        self.out_conv = Conv3x3(width, width, mirror=mirror, dtype=dtype, rngs=rngs, kernel_init=ZEROS)

    def __call__(self, x: Float[Array, "b t h w c"], embedding: Float[Array, "be te e"]) -> Float[Array, "b t h w c"]:
        scale, shift = jnp.split(self.embed(embedding)[:, :, None, None, :], 2, axis=-1)
        y = self.in_conv(nnx.silu(self.in_norm(x)))
        y = nnx.silu(self.out_norm(y) * (1 + scale) + shift)
        if self.frame_conv is not None:
            y = y + self.frame_conv(y)
        return x + self.out_conv(y)


class TransformerBlock(nnx.Module):
    """Attention over all space-time tokens beside an MLP, from one normalisation and one input projection."""

    def __init__(self, width: int, embedding: int, *, heads: int, geometry: str, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.heads, self.geometry = heads, geometry
        self.norm = RMSNorm(width)
        self.embed = Linear(embedding, 2 * width, dtype=dtype, kernel_init=ZEROS, rngs=rngs)
        self.project = Linear(width, 7 * width, dtype=dtype, rngs=rngs)
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)
        self.attention_out = Linear(width, width, dtype=dtype, kernel_init=ZEROS, rngs=rngs)
        self.mlp_out = Linear(4 * width, width, dtype=dtype, kernel_init=ZEROS, rngs=rngs)

    def __call__(self, x: Float[Array, "b t h w c"], embedding: Float[Array, "be te e"]) -> Float[Array, "b t h w c"]:
        b, t, h, w, c = x.shape
        scale, shift = jnp.split(self.embed(embedding)[:, :, None, None, :], 2, axis=-1)
        projected = self.project(self.norm(x) * (1 + scale) + shift)
        qkv = projected[..., : 3 * c].reshape(b, t, h, w, 3, self.heads, c // self.heads)
        q = rotate(self.q_norm(qkv[..., 0, :, :]), self.geometry)
        k = rotate(self.k_norm(qkv[..., 1, :, :]), self.geometry)
        q, k, v = (a.reshape(b, t * h * w, self.heads, -1) for a in (q, k, qkv[..., 2, :, :]))
        attended = attention(q, k, v, self.attention_out.dtype).reshape(b, t, h, w, c)
        return x + self.attention_out(attended) + self.mlp_out(nnx.silu(projected[..., 3 * c :]))


def pixel_unshuffle(x: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 c4"]:
    """Fold 2 x 2 cells into channels; the channel varies slowest, then the row, then the column."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h // 2, 2, w // 2, 2, c)
    return x.transpose(0, 1, 2, 4, 6, 3, 5).reshape(b, t, h // 2, w // 2, 4 * c)


def pixel_shuffle(x: Float[Array, "b t h w c4"]) -> Float[Array, "b t h2 w2 c"]:
    """Undo `pixel_unshuffle`."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h, w, c // 4, 2, 2)
    return x.transpose(0, 1, 2, 5, 3, 6, 4).reshape(b, t, 2 * h, 2 * w, c // 4)


class Down(nnx.Module):
    """To half the resolution: convolution and pixel-unshuffle, plus means over groups of the unshuffled."""

    def __init__(self, width_in: int, width_out: int, *, mirror: Mirror | None, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv = Conv3x3(width_in, width_out // 4, mirror=mirror, dtype=dtype, rngs=rngs)
        self.width_out = width_out

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 out"]:
        folded = pixel_unshuffle(x)
        shortcut = folded.reshape(*folded.shape[:-1], self.width_out, -1).mean(axis=-1)
        return pixel_unshuffle(self.conv(x)) + shortcut


class Up(nnx.Module):
    """To twice the resolution: convolution and pixel-shuffle, plus the repeated channels shuffled."""

    def __init__(self, width_in: int, width_out: int, *, mirror: Mirror | None, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv = Conv3x3(width_in, 4 * width_out, mirror=mirror, dtype=dtype, rngs=rngs)
        self.repeats = 4 * width_out // width_in

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 out"]:
        return pixel_shuffle(self.conv(x) + jnp.repeat(x, self.repeats, axis=-1))
