"""Padding against functions on the sphere, rotary positions against their invariances, attention against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wind_jax.model import layers
from wind_jax.model.flops import backward_bytes, matmul_flops
from wind_jax.model.layers import Mirror


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


def on_sphere(latitude, longitude):
    """Two smooth functions of a point of the sphere; beyond +-90 degrees the same formula gives the point across."""
    phi, lam = np.deg2rad(np.asarray(latitude))[:, None], np.deg2rad(np.asarray(longitude))[None, :]
    x, y, z = np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi) + 0 * lam
    return np.stack([x + 0.3 * z, x * y + z * x], axis=-1).astype(np.float32)


def test_pad_one_continues_fields_of_the_sphere():
    rows, columns = 6, 8
    step = 180 / rows
    latitude = -90 + step * (np.arange(-1, rows + 1) + 0.5)
    longitude = 360 / columns * np.arange(-1, columns + 1)
    full = on_sphere(latitude, longitude)
    padded = layers.pad_one(jnp.asarray(full[1:-1, 1:-1]), Mirror(0, 0))
    np.testing.assert_allclose(padded, full, atol=1e-6)


def test_mirror_reaches_over_rows_beyond_the_pole():
    latitude = np.arange(-90 - 3 * 15, 90 + 4 * 15 + 1, 15.0)  # 2 rows beyond the south pole, 3 beyond the north
    full = on_sphere(latitude, np.arange(0, 360, 30.0))
    inner = jnp.asarray(full[1:-1])
    padded = layers.pad_one(inner, Mirror(2 * 2 + 1, 2 * 3 + 1))
    np.testing.assert_allclose(padded[:, 1:-1], full, atol=1e-6)


def test_half_turn_of_an_odd_circle_is_periodic_and_symmetric():
    x = normal(0, 5, 2)
    turned = layers.half_turn(x)
    np.testing.assert_allclose(layers.half_turn(jnp.roll(x, 1, 0)), jnp.roll(turned, 1, 0), rtol=1e-6)
    np.testing.assert_allclose(layers.half_turn(x[::-1]), turned[::-1], rtol=1e-6)
    np.testing.assert_allclose(turned[0], (x[2] + x[3]) / 2, rtol=1e-6)


def test_zero_padding():
    padded = layers.pad_one(jnp.ones((1, 2, 3, 4, 5)), None)
    assert padded.shape == (1, 2, 5, 6, 5)
    assert float(padded.sum()) == 2 * 3 * 4 * 5


def with_gradient(dtype, x, y):
    """The product of `x` and `y`, and the gradients of a sum of it that is not linear."""
    loss = lambda x, y: jnp.sum(jnp.sin(layers.product(x, y, dtype)))
    return layers.product(x, y, dtype), *jax.grad(loss, (0, 1))(x, y)


SHAPES = [((2, 3, 5, 8), (8, 6)), ((2, 3, 5, 8), (2, 3, 8, 6)), ((1, 8), (8, 1))]


@pytest.mark.parametrize(("x", "y"), SHAPES)
def test_product_in_bfloat16_is_that_in_float32_of_rounded_operands(x, y):
    x, y = (jax.lax.reduce_precision(normal(i, *shape), 8, 7) for i, shape in enumerate((x, y)))
    expected, *gradients = with_gradient(jnp.float32, x, y)
    np.testing.assert_allclose(expected, np.matmul(*(np.asarray(a, np.float64) for a in (x, y))), atol=1e-5)
    rounded, *of_rounded = with_gradient(jnp.bfloat16, x, y)
    np.testing.assert_allclose(rounded, expected, rtol=1e-6, atol=1e-6)
    for ours, exact in zip(of_rounded, gradients):  # whose cotangents are rounded
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, exact, atol=2**-8 * float(jnp.abs(exact).max()))


@pytest.mark.parametrize("leading", [(), (2, 3)])
def test_products_in_bfloat16_have_float32_sums(leading):
    """257 is no number of bfloat16."""
    x, y = jnp.ones((*leading, 257, 257)), jnp.ones((*leading, 257, 257))
    assert (layers.product(x, y, jnp.bfloat16) == 257).all()
    for gradient in jax.grad(lambda x, y: layers.product(x, y, jnp.bfloat16).sum(), (0, 1))(x, y):
        assert (gradient == 257).all()


@pytest.mark.parametrize(("x", "y"), SHAPES)
def test_products_in_bfloat16_are_of_bfloat16_forward_and_back(x, y):
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x, y)]
    program = jax.jit(lambda x, y: with_gradient(jnp.bfloat16, x, y)[1:]).trace(*shapes).jaxpr
    products = [e for e in program.eqns if e.primitive.name == "dot_general"]
    assert len(products) == 3
    assert all(v.aval.dtype == jnp.bfloat16 for e in products for v in e.invars)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("which", [0, 1])
def test_a_product_keeps_and_runs_what_its_gradient_needs(dtype, which):
    x, y = normal(0, 5, 7), normal(1, 7, 3)
    loss = lambda *both: layers.product(*(jnp.sin(a) for a in both), dtype).sum()
    assert matmul_flops(jax.grad(loss, (0, 1)), x, y) == 3 * matmul_flops(loss, x, y)
    of_one = lambda a: loss(*((a, y) if which == 0 else (x, a)))
    assert matmul_flops(jax.grad(of_one), (x, y)[which]) == 2 * matmul_flops(loss, x, y)
    other = (x, y)[1 - which].size * jnp.dtype(dtype).itemsize
    cosine = 4 * (x, y)[which].size
    assert backward_bytes(of_one, (x, y)[which])[0] == other + cosine


@pytest.mark.parametrize("mirror", [None, Mirror(0, 0)])
def test_conv3x3_is_the_same_on_every_backend(monkeypatch, mirror):
    x, kernel = normal(0, 2, 2, 4, 6, 3), normal(1, 3, 3, 3, 5)
    on_cpu = layers.conv3x3(x, kernel, mirror, jnp.float32)
    padded = np.asarray(layers.pad_one(x, mirror), np.float64)
    direct = sum(
        padded[..., i : i + 4, j : j + 6, :] @ np.asarray(kernel[i, j], np.float64) for i in range(3) for j in range(3)
    )
    monkeypatch.setattr(layers.jax, "default_backend", lambda: "gpu")
    np.testing.assert_allclose(on_cpu, direct, atol=1e-4)
    np.testing.assert_allclose(layers.conv3x3(x, kernel, mirror, jnp.float32), direct, atol=1e-4)


def test_attention_is_the_same_on_every_backend(monkeypatch):
    q, k, v = (normal(i, 2, 7, 3, 4) for i in range(3))
    logits = np.einsum("bqhd,bkhd->bhqk", *(np.asarray(a, np.float64) for a in (q, k))) / 2
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.einsum("bhqk,bkhd->bqhd", weights, np.asarray(v, np.float64))
    np.testing.assert_allclose(layers.attention(q, k, v, jnp.float32), expected, atol=1e-5)
    monkeypatch.setattr(layers.jax, "default_backend", lambda: "gpu")
    np.testing.assert_allclose(layers.attention(q, k, v, jnp.float32), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("backend", "tokens", "width", "dtype", "fused"),
    [
        ("gpu", 10, 64, jnp.bfloat16, True),
        ("gpu", 10, 128, jnp.bfloat16, True),
        ("gpu", 10, 256, jnp.bfloat16, False),
        ("gpu", 10, 36, jnp.bfloat16, False),
        ("gpu", 9, 64, jnp.bfloat16, False),
        ("gpu", 10, 64, jnp.float32, False),
        ("tpu", 10, 64, jnp.bfloat16, False),
    ],
)
def test_attention_is_fused_where_cudnn_takes_it(monkeypatch, backend, tokens, width, dtype, fused):
    """And its products are counted alike."""
    monkeypatch.setattr(layers.jax, "default_backend", lambda: backend)
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    q = jnp.zeros((2, tokens, 4, width), dtype)
    loss = lambda q: layers.attention(q, q, q, dtype).astype(jnp.float32).sum()
    with jax.numpy_dtype_promotion("standard"):  # JAX's own attention promotes
        assert ("dot_product_attention_" in str(jax.make_jaxpr(loss)(q))) == fused
        assert matmul_flops(loss, q) == 2 * 2 * 2 * 4 * tokens**2 * width
        assert matmul_flops(jax.grad(loss), q) == 3 * matmul_flops(loss, q)


@pytest.mark.parametrize(("pairs", "split"), [(9, (3, 3, 3)), (16, (6, 5, 5)), (8, (2, 3, 3)), (1, (1, 0, 0))])
def test_rotary_split(pairs, split):
    assert layers.rotary_split(pairs) == split


@pytest.mark.parametrize(("count", "width"), [(5, 48), (10, 24), (40, 240), (12, 24), (20, 8), (3, 1)])
def test_wave_numbers_are_whole_resolved_and_different(count, width):
    waves = layers.wave_numbers(count, width)
    assert waves.shape == (count,)
    assert waves.min() == 1
    assert waves.max() <= max(width // 2, 1)
    assert len(set(waves.tolist())) == min(count, max(width // 2, 1))


def similarities(geometry, q, k, h, w):
    """q . k between all positions of two (1, h, w) grids that hold one vector everywhere."""
    fill = lambda a: jnp.broadcast_to(a, (1, 1, h, w, 1, a.shape[-1]))
    turned = (np.asarray(layers.rotate(fill(a), geometry))[0, 0, :, :, 0] for a in (q, k))
    return np.einsum("ijd,kld->ijkl", *turned)


@pytest.mark.parametrize("geometry", ["sphere", "paper"])
def test_rotary_positions_are_relative(geometry):
    q, k = normal(0, 24), normal(1, 24)
    dots = similarities(geometry, q, k, 4, 8)
    np.testing.assert_allclose(dots[0, 0, 1, 2], dots[2, 3, 3, 5], rtol=1e-4)
    assert abs(dots[0, 0, 1, 2] - dots[0, 0, 2, 2]) > 1e-3
    around = dots[0, 7, 0, 0] - dots[0, 0, 0, 1]  # one step east, over the edge of the map or not
    assert (abs(around) < 1e-4) == (geometry == "sphere")


def test_rotation_keeps_norms_and_starts_at_the_identity():
    x = normal(0, 2, 2, 3, 4, 2, 12)
    turned = layers.rotate(x, "sphere")
    np.testing.assert_allclose(turned[:, 0, 0, 0], x[:, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)


def test_pixel_shuffle_orders_channel_row_column():
    x = jnp.arange(2 * 2 * 3).reshape(1, 1, 2, 2, 3).astype(jnp.float32)  # value = 6 row + 3 column + channel
    folded = layers.pixel_unshuffle(x)
    assert folded[0, 0, 0, 0].tolist() == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]
    assert (layers.pixel_shuffle(folded) == x).all()


def test_frame_convolution_shifts_frames_and_sees_zeros_outside():
    conv = layers.FrameConv(3, 3, dtype=jnp.dtype("float32"))
    x = normal(0, 1, 4, 2, 2, 3)
    assert not conv(x).any()
    conv.kernel[...] = jnp.zeros((3, 3, 3)).at[0].set(jnp.eye(3))
    np.testing.assert_allclose(conv(x)[:, 1:], x[:, :-1], rtol=1e-6)
    assert not conv(x)[:, 0].any()


def test_group_norm_looks_at_one_frame_alone():
    norm = layers.GroupNorm(64)
    x = 3 + 2 * normal(0, 2, 3, 4, 5, 64)
    y = norm(x)
    groups = np.asarray(y).reshape(2, 3, 20, 32, 2)
    np.testing.assert_allclose(groups.mean((2, 4)), 0, atol=1e-5)
    np.testing.assert_allclose(groups.var((2, 4)), 1, atol=1e-3)
    np.testing.assert_allclose(norm(x.at[:, 1].set(7.0))[:, 0], y[:, 0], rtol=1e-6)
