"""The residual video U-ViT: the network of WIND (arXiv 2602.03924), and its form on the sphere.

Patch embedding, then levels of residual blocks (fine) and of transformer blocks over all space-time tokens
(coarse); pixel-unshuffle down, pixel-shuffle up, one skip a level. `geometry="paper"` equals the published
implementation; `geometry="sphere"` is exactly periodic in longitude and continues fields across the poles.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec, get_abstract_mesh
from jaxtyping import Array, Float

from wind_jax.model.layers import (
    GROUPS,
    LECUN,
    Down,
    Linear,
    Mirror,
    ResBlock,
    TransformerBlock,
    Up,
    pad_across_poles,
)

BLOCKS = ("res", "transformer")
GEOMETRIES = ("sphere", "paper")
KEPT = {"nothing": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
SMALL = nnx.initializers.variance_scaling(1e-4, "fan_in", "normal")
UNIT = nnx.initializers.normal(1.0)


@dataclass(frozen=True)
class UViTConfig:
    """Everything that fixes the network's parameters and its arithmetic.

    Attributes:
      channels: channels of the state.
      latitude: rows of the state's grid. An odd number is taken to include both poles.
      longitude: columns of the state's grid.
      forcings: inputs beside the state.
      patch: cells along each side of one patch.
      widths: channels of each level, fine to coarse; the last level is the middle.
      blocks: "res" or "transformer" for each level.
      depth: blocks a level, going down, going up and in the middle.
      heads: attention heads.
      embedding: width of the noise embedding.
      geometry: "sphere" or "paper".
      noise_conditioning: whether the network is told the diffusion time of each frame.
      frame_kernel: frames seen by each residual block; odd; 1 is the published network.
      remat: recompute each block in the backward pass instead of keeping its intermediate values.
      remat_keeps: what of these is kept nevertheless: "nothing", or "dots", the results of linear layers, though not of
        convolutions and attention.
      dtype: type of the products, "float32" or "bfloat16"; parameters and output are float32.

    Raises:
      ValueError: where no such network exists.
    """

    channels: int
    latitude: int
    longitude: int
    forcings: int = 10
    patch: int = 2
    widths: Sequence[int] = (256, 512, 1024, 2048)
    blocks: Sequence[str] = ("res", "res", "transformer", "transformer")
    depth: int = 4
    heads: int = 4
    embedding: int = 64
    geometry: str = "sphere"
    noise_conditioning: bool = False
    frame_kernel: int = 1
    remat: bool = True
    remat_keeps: str = "nothing"
    dtype: str = "float32"

    def __post_init__(self):
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "blocks", tuple(self.blocks))

        def check(good: bool, message: str):
            if not good:
                raise ValueError(message)

        for name in ("channels", "latitude", "longitude", "patch", "depth", "heads"):
            check(getattr(self, name) >= 1, f"{name} = {getattr(self, name)}: expected at least 1.")
        check(self.forcings >= 0, f"forcings = {self.forcings}: expected at least 0.")
        check(
            self.embedding >= 2 and self.embedding % 2 == 0,
            f"embedding = {self.embedding}: expected an even number.",
        )
        check(self.geometry in GEOMETRIES, f"geometry = {self.geometry!r}: expected one of {GEOMETRIES}.")
        check(self.remat_keeps in KEPT, f"remat_keeps = {self.remat_keeps!r}: expected one of {tuple(KEPT)}.")
        check(
            self.dtype in ("float32", "bfloat16"),
            f'dtype = {self.dtype!r}: expected "float32" or "bfloat16".',
        )
        check(
            self.frame_kernel >= 1 and self.frame_kernel % 2 == 1,
            f"frame_kernel = {self.frame_kernel}: expected an odd number of frames.",
        )
        check(
            len(self.widths) == len(self.blocks) >= 1,
            f"widths {self.widths} and blocks {self.blocks}: expected one of each for every level.",
        )
        for width, block in zip(self.widths, self.blocks):
            check(block in BLOCKS, f"block {block!r}: expected one of {BLOCKS}.")
            if block == "res":
                check(
                    width % GROUPS == 0,
                    f'width {width} of a "res" level: expected a multiple of {GROUPS}, its norm groups.',
                )
            else:
                check(
                    width % (2 * self.heads) == 0,
                    f'width {width} of a "transformer" level with {self.heads} heads: expected a multiple of '
                    f"{2 * self.heads}, so that heads have a whole and even width.",
                )
        for fine, coarse in zip(self.widths, self.widths[1:]):
            check(
                4 * fine % coarse == 0 and coarse % 4 == 0,
                f"widths {fine} and {coarse} of neighbouring levels: expected the coarse one to be a "
                "multiple of 4 that divides 4 times the fine one.",
            )
        if self.geometry == "sphere":
            cell = self.cell
            check(
                self.longitude % cell == 0,
                f"longitude = {self.longitude}: with patch {self.patch} and {len(self.widths)} levels the "
                f"coarsest cell spans {cell} columns, and on the sphere it must divide them. Use fewer "
                'levels, another patch, or geometry="paper".',
            )
            check(
                sum(self.halo) < self.latitude,
                f"latitude = {self.latitude}: with patch {self.patch} and {len(self.widths)} levels the "
                f"coarsest cell spans {cell} rows, too many for this grid.",
            )

    @property
    def cell(self) -> int:
        """Rows and columns of the state's grid in one cell of the coarsest level."""
        return self.patch * 2 ** (len(self.widths) - 1)

    @property
    def network_grid(self) -> tuple[int, int]:
        """Rows and columns the network works on: those of the state, rounded up to whole coarsest cells."""
        return tuple(math.ceil(n / self.cell) * self.cell for n in (self.latitude, self.longitude))

    @property
    def halo(self) -> tuple[int, int]:
        """Rows beyond the south and the north pole on the network grid (geometry "sphere")."""
        extra = self.network_grid[0] - self.latitude
        return extra // 2, extra - extra // 2

    def mirror(self, level: int) -> Mirror | None:
        """Rows across the poles at a level, or None for zero padding."""
        if self.geometry == "paper":
            return None
        # The mirror image of the row outside lies 2 * halo rows further in, one more with a row on the pole.
        pole_row = self.latitude % 2
        south, north = ((2 * rows + pole_row) // (self.patch * 2**level) for rows in self.halo)
        return Mirror(south, north)


def _stack(config: UViTConfig, level: int, rngs: nnx.Rngs) -> nnx.Module:
    """The `depth` blocks of a level as one, their parameters stacked along the leading axis."""

    def block(key: jax.Array) -> nnx.Module:
        common = {"dtype": jnp.dtype(config.dtype), "rngs": nnx.Rngs(key)}
        width = config.widths[level]
        if config.blocks[level] == "transformer":
            return TransformerBlock(width, config.embedding, heads=config.heads, geometry=config.geometry, **common)
        return ResBlock(
            width, config.embedding, mirror=config.mirror(level), frame_kernel=config.frame_kernel, **common
        )

    return jax.vmap(block)(jax.random.split(rngs.params(), config.depth))


def _whole(part: nnx.Module) -> nnx.Module:
    """A part of the network with its parameters whole on every device, where a mesh is set (`jax.set_mesh`).

    To be asked of each part when it is used. Without it the compiler splits activations the way parameters are split,
    and gathers those of the whole batch on every device, attention scores among them.
    """
    if get_abstract_mesh().empty:
        return part
    return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, PartitionSpec()), part)


def _run(stack: nnx.Module, x: jax.Array, embedding: jax.Array, config: UViTConfig) -> jax.Array:
    """Apply stacked blocks one after the other; traced once, whatever their number."""

    def body(x, block):
        return _whole(block)(x, embedding), None

    if config.remat:
        body = jax.checkpoint(body, prevent_cse=False, policy=KEPT[config.remat_keeps])
    return jax.lax.scan(body, x, stack)[0]


class Level(nnx.Module):
    """One level of resolution above the coarsest: blocks, the way down, the way back up, blocks."""

    def __init__(self, config: UViTConfig, level: int, *, rngs: nnx.Rngs):
        fine, coarse = config.widths[level : level + 2]
        dtype = jnp.dtype(config.dtype)
        self.down_blocks = _stack(config, level, rngs)
        self.down = Down(fine, coarse, mirror=config.mirror(level), dtype=dtype, rngs=rngs)
        self.up = Up(coarse, fine, mirror=config.mirror(level + 1), dtype=dtype, rngs=rngs)
        self.up_blocks = _stack(config, level, rngs)


class NoiseEmbedding(nnx.Module):
    """Diffusion time -> sinusoidal features -> two linear layers."""

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.width = width
        self.hidden = Linear(width, width, dtype=dtype, rngs=rngs)
        self.out = Linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, t: Float[Array, "b t"]) -> Float[Array, "b t e"]:
        frequencies = jnp.asarray(np.geomspace(1.0, 1000.0, self.width // 2), jnp.float32)
        angles = t.astype(jnp.float32)[..., None] * frequencies[None, None, :]
        features = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        return self.out(nnx.silu(self.hidden(features)))


class UViT(nnx.Module):
    """The network. A module is a pytree; outside it everything is pure:

        graphdef, params = nnx.split(UViT(config, rngs=nnx.Rngs(0)))
        apply = lambda params, x_t, t, forcings: nnx.merge(graphdef, params)(x_t, t, forcings)

    Blocks of a level are stacked along the leading axis of their parameters and run by one scan, so
    compilation does not grow with `depth`. At initialisation every block is the identity and the output is
    close to zero.
    """

    def __init__(self, config: UViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        patch, dtype = config.patch, jnp.dtype(config.dtype)
        inputs = config.channels + config.forcings
        if config.noise_conditioning:
            self.noise_embedding = NoiseEmbedding(config.embedding, dtype=dtype, rngs=rngs)
        else:
            self.noise_constant = nnx.Param(UNIT(rngs.params(), (1, 1, config.embedding), jnp.float32))
        self.patch_embed = Linear(patch**2 * inputs, config.widths[0], dtype=dtype, kernel_init=LECUN, rngs=rngs)
        coarsest = len(config.widths) - 1
        self.levels = nnx.Dict({str(i): Level(config, i, rngs=rngs) for i in range(coarsest)})
        self.mid_blocks = _stack(config, coarsest, rngs)
        self.patch_unembed = Linear(
            config.widths[0],
            patch**2 * config.channels,
            use_bias=False,
            dtype=dtype,
            kernel_init=SMALL,
            rngs=rngs,
        )
        self.output_bias = nnx.Param(jnp.zeros((config.channels,), jnp.float32))

    def __call__(
        self,
        x_t: Float[Array, "b t h w c"],
        t: Float[Array, "b t"],
        forcings: Float[Array, "b t h w f"],
    ) -> Float[Array, "b t h w c"]:
        """Evaluate the network.

        Args:
          x_t: noisy states in model units.
          t: diffusion time of every frame, 0 (clean) to 1; without effect unless `noise_conditioning`.
          forcings: inputs beside the state.

        Returns:
          the network's output in float32, shaped like `x_t`.

        Raises:
          ValueError: where shapes do not fit the configuration.
        """
        config = self.config
        state = (config.latitude, config.longitude, config.channels)
        if x_t.ndim != 5 or x_t.shape[2:] != state:
            raise ValueError(f"x_t has shape {x_t.shape}; expected (batch, frame, *{state}).")
        if forcings.shape != (*x_t.shape[:4], config.forcings):
            raise ValueError(f"forcings have shape {forcings.shape}; expected {(*x_t.shape[:4], config.forcings)}.")
        if config.noise_conditioning:
            if t.shape != x_t.shape[:2]:
                raise ValueError(f"t has shape {t.shape}; expected one time a frame, {x_t.shape[:2]}.")
            embedding = self.noise_embedding(t)
        else:
            embedding = self.noise_constant[...]

        x = self._embed_patches(self._to_network_grid(jnp.concatenate([x_t, forcings], axis=-1)))
        levels = [self.levels[str(i)] for i in range(len(config.widths) - 1)]
        skips = []
        for level in levels:
            fine = _run(level.down_blocks, x, embedding, config)
            x = _whole(level.down)(fine)
            skips.append((fine, x))
        x = _run(self.mid_blocks, x, embedding, config)
        for level, (fine, coarse) in zip(reversed(levels), reversed(skips)):
            x = _run(level.up_blocks, _whole(level.up)(x - coarse) + fine, embedding, config)
        return self._from_network_grid(self._unembed_patches(x).astype(jnp.float32))

    def _embed_patches(self, x: jax.Array) -> jax.Array:
        b, t, h, w, c = x.shape
        p = self.config.patch
        x = x.reshape(b, t, h // p, p, w // p, p, c).transpose(0, 1, 2, 4, 3, 5, 6)
        return _whole(self.patch_embed)(x.reshape(b, t, h // p, w // p, p * p * c))

    def _unembed_patches(self, x: jax.Array) -> jax.Array:
        b, t, h, w, _ = x.shape
        p, c = self.config.patch, self.config.channels
        x = _whole(self.patch_unembed)(x).reshape(b, t, h, w, p, p, c).transpose(0, 1, 2, 4, 3, 5, 6)
        bias = self.output_bias[...].astype(x.dtype)
        return x.reshape(b, t, h * p, w * p, c) + bias[None, None, None, None, :]

    def _to_network_grid(self, x: jax.Array) -> jax.Array:
        config = self.config
        if config.geometry == "paper":
            return _resize(x, config.network_grid)
        south, north = config.halo
        # Without a row on the pole the first row beyond it is the mirror image of the last row itself.
        first = config.latitude % 2
        last = config.latitude - 1 - first
        return pad_across_poles(x, range(first + south - 1, first - 1, -1), range(last, last - north, -1))

    def _from_network_grid(self, x: jax.Array) -> jax.Array:
        config = self.config
        if config.geometry == "paper":
            return _resize(x, (config.latitude, config.longitude))
        return x[:, :, config.halo[0] : config.halo[0] + config.latitude]


def _resize(x: Float[Array, "b t h w c"], grid: tuple[int, int]) -> Float[Array, "b t h2 w2 c"]:
    """Bilinear, half-pixel centres, no antialiasing."""
    shape = (*x.shape[:2], *grid, x.shape[-1])
    return x if shape == x.shape else jax.image.resize(x, shape, "bilinear", antialias=False)
