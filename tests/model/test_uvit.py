"""The network against the published implementation and against the symmetries of the sphere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wind_jax.model.convert import convert_parameters, infer_config
from wind_jax.model.flops import backward_bytes
from wind_jax.model.uvit import UViT, UViTConfig

SMALL = UViTConfig(
    channels=2,
    latitude=8,
    longitude=12,
    forcings=3,
    widths=(32, 32),
    blocks=("res", "transformer"),
    depth=1,
    heads=2,
    embedding=8,
)
FULL = UViTConfig(channels=70, latitude=121, longitude=240, geometry="paper")


def replace(**changes):
    return dataclasses.replace(SMALL, **changes)


def build(config, noise=0.1):
    """Pure form of a network whose parameters, zeros included, have been moved by noise."""
    graphdef, params = nnx.split(UViT(config, rngs=nnx.Rngs(0)))
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    moved = [leaf + noise * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.jit(lambda p, x_t, t, f: nnx.merge(graphdef, p)(x_t, t, f)), structure.unflatten(moved)


def inputs(config, frames=2):
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape).astype(np.float32))
    grid = (1, frames, config.latitude, config.longitude)
    return draw(*grid, config.channels), jnp.full((1, frames), 0.5), draw(*grid, config.forcings)


def test_equals_the_published_network(reference):
    data = np.load(reference("uvit_parity.npz"))
    published = {name[6:]: data[name] for name in data.files if name.startswith("param/")}
    config = infer_config(published, 31, 48)
    apply, _ = build(config)
    x_t, forcings = (jnp.asarray(data[name].transpose(0, 1, 3, 4, 2)) for name in ("x", "additional_inputs"))
    params = nnx.State(convert_parameters(published, config))
    y = apply(params, x_t, jnp.zeros((2, 3)), forcings)
    np.testing.assert_allclose(np.asarray(y).transpose(0, 1, 4, 2, 3), data["y"], rtol=0, atol=1e-4)


def test_full_size_has_457_8_million_parameters():
    shapes = nnx.eval_shape(lambda: nnx.state(UViT(FULL, rngs=nnx.Rngs(0))))
    assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6, 1) == 457.8


@pytest.mark.parametrize("changes", [{}, {"latitude": 7, "longitude": 16, "frame_kernel": 3}])
def test_rolling_the_input_in_longitude_rolls_the_output(changes):
    config = replace(**changes)
    apply, params = build(config)
    x_t, t, forcings = inputs(config)
    y = apply(params, x_t, t, forcings)
    for columns in (config.cell, -config.cell):
        roll = lambda a: jnp.roll(a, columns, axis=3)  # noqa: B023
        np.testing.assert_allclose(apply(params, roll(x_t), t, roll(forcings)), roll(y), atol=1e-4)
    assert float(jnp.abs(roll(y) - y).max()) > 0.1


def test_paper_geometry_is_not_periodic():
    config = replace(geometry="paper")
    apply, params = build(config)
    x_t, t, forcings = inputs(config)
    roll = lambda a: jnp.roll(a, config.cell, axis=3)
    difference = apply(params, roll(x_t), t, roll(forcings)) - roll(apply(params, x_t, t, forcings))
    assert float(jnp.abs(difference).max()) > 1e-2


@pytest.mark.parametrize("latitude", [13, 14, 16])
def test_network_grid_continues_a_field_across_the_poles(latitude):
    config = replace(latitude=latitude)
    model = UViT(config, rngs=nnx.Rngs(0))
    step = 180 / (latitude - 1 if latitude % 2 else latitude)
    first = -90 + (0 if latitude % 2 else step / 2)
    rows, columns = config.network_grid
    phi = np.deg2rad(first + step * (np.arange(rows) - config.halo[0]))[:, None]
    field = (np.cos(phi) * np.cos(2 * np.pi * np.arange(columns) / columns)).astype(np.float32)[None, None, ..., None]
    native = jnp.asarray(field[:, :, config.halo[0] : config.halo[0] + latitude])
    extended = model._to_network_grid(native)
    np.testing.assert_allclose(extended, field, atol=1e-6)
    np.testing.assert_array_equal(model._from_network_grid(extended), native)


def test_program_does_not_grow_with_depth():
    def equations(depth):
        config = replace(depth=depth)
        graphdef, params = nnx.split(nnx.eval_shape(lambda: UViT(config, rngs=nnx.Rngs(0))))
        loss = lambda p, *args: jnp.sum(nnx.merge(graphdef, p)(*args))
        return str(jax.make_jaxpr(jax.grad(loss))(params, *inputs(config))).count(" = ")

    assert equations(2) == equations(8) > 100


def test_starts_close_to_zero():
    apply, params = build(SMALL, noise=0.0)
    y = apply(params, *inputs(SMALL))
    assert 0 < float(jnp.abs(y).max()) < 0.1


@pytest.mark.parametrize("changes", [{}, {"noise_conditioning": True, "frame_kernel": 3, "remat": False}])
def test_every_parameter_has_a_finite_gradient_that_is_not_zero(changes):
    config = replace(**changes)
    apply, params = build(config)
    gradient = jax.jit(jax.grad(lambda p: jnp.mean(jnp.square(apply(p, *inputs(config))))))(params)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        largest = float(jnp.abs(leaf).max())
        assert np.isfinite(largest), path
        assert largest > 0, path


def test_what_is_recomputed_is_not_kept():
    def kept(**changes):
        config = replace(depth=2, blocks=("res", "transformer"), **changes)
        graphdef, params = nnx.split(nnx.eval_shape(lambda: UViT(config, rngs=nnx.Rngs(0))))
        return backward_bytes(lambda p: nnx.merge(graphdef, p)(*inputs(config)).sum(), params)[0]

    assert kept(remat=True) < kept(remat=True, remat_keeps="dots") < kept(remat=False)


def test_blind_network_does_not_see_the_diffusion_time():
    apply, params = build(SMALL)
    x_t, t, forcings = inputs(SMALL)
    np.testing.assert_array_equal(apply(params, x_t, t, forcings), apply(params, x_t, 0 * t, forcings))


def test_each_frame_is_told_its_own_diffusion_time():
    config = replace(noise_conditioning=True, widths=(32,), blocks=("res",))
    apply, params = build(config)
    x_t, t, forcings = inputs(config)
    moved = jnp.abs(apply(params, x_t, t.at[0, 1].set(0.1), forcings) - apply(params, x_t, t, forcings))
    assert float(moved[:, 0].max()) == 0
    assert float(moved[:, 1].max()) > 1e-3


@pytest.mark.parametrize("frame_kernel", [1, 3])
def test_residual_levels_see_neighbouring_frames_by_the_frame_kernel_alone(frame_kernel):
    config = replace(widths=(32,), blocks=("res",), frame_kernel=frame_kernel)
    apply, params = build(config)
    names = {str(part) for path, _ in nnx.to_flat_state(params) for part in path}
    assert ("frame_conv" in names) == (frame_kernel > 1)
    x_t, t, forcings = inputs(config, frames=3)
    moved = jnp.abs(apply(params, x_t.at[:, 0].set(x_t[:, 0, ::-1]), t, forcings) - apply(params, x_t, t, forcings))
    assert float(moved[:, 0].max()) > 1e-3
    assert (float(moved[:, 1].max()) > 1e-3) == (frame_kernel > 1)
    assert float(moved[:, 2].max()) == 0


@pytest.mark.parametrize("changes", [{}, {"noise_conditioning": True, "frame_kernel": 3, "remat": False}])
def test_bfloat16_stays_close_and_gives_float32(changes):
    """The output, and the gradient of every parameter."""
    args = inputs(replace(**changes))

    def run(dtype):
        apply, params = build(replace(dtype=dtype, **changes))
        gradient = jax.jit(jax.grad(lambda p: jnp.mean(jnp.square(apply(p, *args)))))(params)
        return apply(params, *args), gradient

    norm = lambda a: float(jnp.linalg.norm(jnp.ravel(a)))
    (coarse, of_coarse), (y, gradient) = run("bfloat16"), run("float32")
    assert coarse.dtype == jnp.float32
    assert 1e-5 < norm(coarse - y) / norm(y) < 0.02
    for (path, ours), exact in zip(jax.tree.leaves_with_path(of_coarse), jax.tree.leaves(gradient)):
        assert ours.dtype == jnp.float32
        # What a norm of one channel a group takes away, the bias before it, has a gradient of rounding errors alone.
        assert norm(ours - exact) < 0.05 * norm(exact) + 1e-6, path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (32, 32, 32)}, r"widths \(32, 32, 32\) and blocks"),
        ({"blocks": ("res", "attention")}, "'attention'"),
        ({"widths": (48, 48)}, "width 48"),
        ({"remat_keeps": "all"}, "remat_keeps = 'all'"),
        ({"heads": 3}, "width 32 .* 3 heads"),
        ({"widths": (32, 256)}, "widths 32 and 256"),
        ({"longitude": 10}, "longitude = 10: .* 4 columns"),
        ({"latitude": 1}, "latitude = 1"),
        ({"geometry": "torus"}, "'torus'"),
        ({"frame_kernel": 2}, "frame_kernel = 2"),
        ({"dtype": "float16"}, "'float16'"),
        ({"depth": 0}, "depth = 0"),
        ({"embedding": 7}, "embedding = 7"),
        ({"forcings": -1}, "forcings = -1"),
    ],
)
def test_a_network_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(**changes)


def test_inputs_of_the_wrong_shape_are_refused():
    model = nnx.eval_shape(lambda: UViT(replace(noise_conditioning=True), rngs=nnx.Rngs(0)))
    x_t, t, forcings = inputs(SMALL)
    with pytest.raises(ValueError, match=r"x_t has shape \(1, 2, 8, 12, 1\)"):
        model(x_t[..., :1], t, forcings)
    with pytest.raises(ValueError, match=r"forcings have shape \(1, 2, 8, 12, 2\)"):
        model(x_t, t, forcings[..., :2])
