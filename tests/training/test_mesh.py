"""The sharding rule, by shapes; the mesh, by its errors; and that what is computed does not depend on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from wind_jax import config as configuration
from wind_jax.diffusion.denoiser import make_denoiser
from wind_jax.diffusion.guidance import guide
from wind_jax.diffusion.loss import diffusion_forcing_loss
from wind_jax.diffusion.samplers import initial, member_keys, sample
from wind_jax.diffusion.schedule import rectified, time_grid
from wind_jax.model.uvit import UViTConfig
from wind_jax.observations.observation import Observation
from wind_jax.prior import apply, graph
from wind_jax.training.mesh import (
    batch_sharding,
    check_batch,
    device_bytes,
    make_mesh,
    parameter_sharding,
    process_rows,
    put_batch,
    put_flag,
)
from wind_jax.training.state import abstract_state, init_state, make_optimizer, state_sharding

OPTIMIZER = make_optimizer(1e-3, 1, 10)
TINY = UViTConfig(
    channels=3, latitude=8, longitude=32, forcings=2, widths=(64, 64), blocks=("res", "transformer"), depth=1, heads=2,
    remat=False, noise_conditioning=True,
)  # fmt: skip


def test_rule_splits_the_larger_of_the_last_two_axes_and_never_the_stacked_one():
    mesh = make_mesh(data=2, fsdp=4)
    tree = {
        "stacked": jax.ShapeDtypeStruct((64, 3, 3, 64, 256), jnp.float32),
        "rows": jax.ShapeDtypeStruct((512, 130), jnp.float32),
        "odd": jax.ShapeDtypeStruct((333, 333), jnp.float32),
        "bias": jax.ShapeDtypeStruct((2**20,), jnp.float32),
        "small": jax.ShapeDtypeStruct((16, 16), jnp.float32),
    }
    specs = jax.tree.map(lambda s: s.spec, parameter_sharding(mesh, tree))
    assert specs["stacked"] == P(None, None, None, None, "fsdp")
    assert specs["rows"] == P("fsdp", None)
    assert specs["bias"] == P("fsdp")
    assert all(axis is None for name in ("odd", "small") for axis in specs[name])


def test_sharded_bytes_fall_by_the_fsdp_factor():
    mesh = make_mesh(data=1, fsdp=8)
    array = jnp.zeros((256, 512))
    placed = jax.device_put(array, parameter_sharding(mesh, array))
    assert {shard.data.size for shard in placed.addressable_shards} == {array.size // 8}


def test_mesh_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="needs 12 devices; there are 8"):
        make_mesh(data=3, fsdp=4)
    for wrong in ({"fsdp": 0}, {"data": -2, "fsdp": -4}):
        with pytest.raises(ValueError, match=f"fsdp={wrong['fsdp']} .* there are 8"):
            make_mesh(**wrong)


@pytest.mark.parametrize(
    ("shape", "batch", "message"),
    [
        ((4, 2, 1), 6, "batch_size 6 does not divide over data x fsdp = 8"),
        ((1, 1, 8), 1, "100 longitudes do not divide over space = 8"),
    ],
)
def test_batch_that_does_not_divide_is_refused(shape, batch, message):
    with pytest.raises(ValueError, match=message):
        check_batch(make_mesh(*shape), batch, 100)


def test_batches_are_split_over_samples_and_longitudes():
    mesh, x = make_mesh(2, 2, 2), np.random.default_rng(0).normal(size=(16, 2, 5, 8, 3)).astype(np.float32)
    placed = put_batch(mesh, {"x": x}, 16)["x"]
    assert {shard.data.shape for shard in placed.addressable_shards} == {(4, 2, 5, 4, 3)}
    np.testing.assert_array_equal(placed, x)
    flags = put_flag(mesh, True)
    assert {shard.data.shape for shard in flags.addressable_shards} == {(1,)}
    np.testing.assert_array_equal(flags, np.ones(8, bool))


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 2, 4), (1, 1, 8)])
@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_processes_read_the_rows_that_their_devices_hold(shape, processes):
    """Each batch row is put together of what processes read, and read once where `space` stays inside a process."""
    mesh, each = make_mesh(*shape), 8 // processes
    x = np.arange(16 * 8).reshape(16, 1, 1, 8, 1)
    shards = jax.device_put(x, batch_sharding(mesh)).addressable_shards
    # Devices of a process are neighbours in the mesh, as on hosts.
    owner = {device: i // each for i, device in enumerate(mesh.devices.flat)}
    rows = [process_rows(mesh, 16, [d for d in owner if owner[d] == p]) for p in range(processes)]
    for shard in shards:
        mine = rows[owner[shard.device]]
        assert np.isin(np.arange(16)[shard.index[0]], mine).all()
    assert sum(map(len, rows)) == 16 * max(1, shape[2] // each)
    assert (np.unique(np.concatenate(rows)) == np.arange(16)).all()


@pytest.mark.parametrize("experiment", ["era5_1p5deg", "era5_0p25deg"])
def test_nothing_large_is_replicated(experiment):
    """Of the full models, with optimizer state and average; and no shard is a part of the stack of blocks."""
    c = configuration.read(experiment, "training")
    height, width = c.data.grid
    config = UViTConfig(channels=70, latitude=height, longitude=width, forcings=80, **c.model.to_dict())
    mesh = make_mesh(data=1, fsdp=8)
    state, shardings = abstract_state(config, OPTIMIZER), state_sharding(config, OPTIMIZER, mesh)
    whole = device_bytes(state_sharding(config, OPTIMIZER, make_mesh()), state)
    assert whole == pytest.approx(16 * sum(leaf.size for leaf in jax.tree.leaves(state.params)), rel=1e-6)
    assert device_bytes(shardings, state) < 1.01 * whole / 8
    for (path, leaf), sharding in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(shardings), strict=True):
        assert sharding.is_fully_replicated <= (leaf.size < 2**18), path
        if "blocks" in jax.tree_util.keystr(path):
            assert sharding.spec[0] is None, path


def test_fsdp_that_would_split_nothing_is_refused():
    config = UViTConfig(channels=3, latitude=8, longitude=32, widths=(256, 512), blocks=("res", "transformer"))
    mesh = make_mesh(data=2, fsdp=3, devices=jax.devices()[:6])
    with pytest.raises(ValueError, match=r"fsdp = 3 divides neither .* the largest of shape \(4, 512, 3584\)"):
        state_sharding(config, OPTIMIZER, mesh)


@functools.cache
def computed(shape):
    """Loss, its gradient and a sampled and guided ensemble of a small network, on a mesh."""
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    graphdef, schedule = graph(TINY), rectified()
    normal = np.random.default_rng(2).normal
    # Output layers start as zero, and with them most gradients: away from there.
    params = jax.tree.map(
        lambda leaf: jax.device_put(leaf + np.float32(0.1) * normal(size=leaf.shape).astype(np.float32), leaf.sharding),
        init_state(TINY, OPTIMIZER, mesh, seed=0).params,
    )
    draw = lambda seed, channels: np.random.default_rng(seed).normal(size=(8, 3, 8, 32, channels)).astype(np.float32)
    batch = put_batch(mesh, {"x": draw(0, 3), "inputs": draw(1, 2)}, 8)
    grid = time_grid(2, 3, known=(0,), start=0.5)  # above, guidance multiplies rounding by gamma = 50

    def compute(params, batch):
        network = lambda params: lambda x_t, t: apply(graphdef, params, x_t, t, batch["inputs"])
        loss = lambda params: diffusion_forcing_loss(
            network(params), batch["x"], jax.random.key(1), schedule, jnp.ones((8, 1, 3))
        )
        keys = member_keys(jax.random.key(2), 8)
        x_init = initial(keys, (3, 8, 32, 3), grid[0], schedule, known=batch["x"][0])
        coarse = Observation(lambda x: x.reshape(3, 8, 8, 4, 3).mean(3), jnp.ones((3, 8, 8, 3)), 1.0)
        guided = guide(make_denoiser(network(params), schedule), coarse, schedule, iterations=2)
        ensemble = sample(guided, x_init, grid, schedule)
        return jax.value_and_grad(loss)(params), ensemble

    shardings = (None, parameter_sharding(mesh, params)), batch_sharding(mesh)
    with jax.set_mesh(mesh):
        (loss, gradient), ensemble = jax.jit(compute, out_shardings=shardings)(params, batch)
    layout = [jax.tree.map(lambda leaf: leaf.sharding.spec, tree) for tree in (params, gradient)]
    assert layout[0] == layout[1]
    return loss, jax.device_get(gradient), jax.device_get(ensemble)


@pytest.mark.parametrize(
    "shape", [*(pytest.param(s, marks=pytest.mark.slow) for s in ((8, 1, 1), (2, 4, 1))), (2, 2, 2), (1, 1, 8)]
)
def test_what_is_computed_does_not_depend_on_the_mesh(shape):
    loss, gradient, ensemble = computed((1, 1, 1))
    other_loss, other_gradient, other_ensemble = computed(shape)
    assert other_loss == pytest.approx(float(loss), rel=1e-5)
    np.testing.assert_allclose(other_ensemble, ensemble, atol=1e-4)
    for (path, leaf), other in zip(jax.tree.leaves_with_path(gradient), jax.tree.leaves(other_gradient), strict=True):
        scale = np.abs(leaf).max()
        assert scale > 0, path
        np.testing.assert_allclose(other, leaf, rtol=0, atol=1e-5 * scale, err_msg=jax.tree_util.keystr(path))
