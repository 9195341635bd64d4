"""Statistics agree with brute force over the whole archive; the change of units is invertible and smooth."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic

from wind_jax.channels import channels
from wind_jax.data.normalize import Statistics, compute_statistics
from wind_jax.data.store import open_store
from wind_jax.sphere import cell_area

CHANNELS = channels(["temperature", "geopotential", "total_precipitation_6hr"], [500, 850])
STATISTICS = Statistics(
    CHANNELS,
    np.array([260, 270, 5e4, 1e4, 0.3]),
    np.array([10, 12, 3e3, 1e3, 0.4]),
    np.array([2, 2, 300, 90, 0.2]),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Thirty times with a gap of a day after the tenth."""
    times = synthetic.times(30)
    times[10:] += np.timedelta64(1, "D")
    path = tmp_path_factory.mktemp("archive") / "a.zarr"
    synthetic.write_archive(path, times, time_chunk=7)
    return path


def brute_force(store, inside):
    x = store.read(0, len(store)).astype(np.float64)[inside]
    x[..., -1] = np.log10(1000 * x[..., -1] + 1)
    times = store.times[inside]
    difference = np.diff(x, axis=0)[np.diff(times) == np.timedelta64(6, "h")]
    area = np.broadcast_to(cell_area(store.grid)[:, None, None], x.shape[1:])

    def mean(values):
        return np.average(values, axis=(0, 1, 2), weights=np.broadcast_to(area, values.shape))

    def std(values):
        return np.sqrt(mean((values - mean(values)) ** 2))

    return mean(x), std(x), std(difference)


@pytest.mark.parametrize("block_bytes", [1, 2000, 10**9])
@pytest.mark.parametrize("period", [None, ("2000-01-02", "2000-01-05")])
def test_one_pass_agrees_with_brute_force(path, period, block_bytes, monkeypatch):
    monkeypatch.setattr("wind_jax.data.store._BLOCK_BYTES", block_bytes)
    store = open_store(path, CHANNELS)
    statistics = compute_statistics(store, period)
    days = store.times.astype("datetime64[D]")
    inside = (
        np.ones(30, bool) if period is None else (days >= np.datetime64(period[0])) & (days <= np.datetime64(period[1]))
    )
    mean, std, difference_std = brute_force(store, inside)
    np.testing.assert_allclose(statistics.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(statistics.std, std, rtol=1e-5)
    np.testing.assert_allclose(statistics.difference_std, difference_std, rtol=1e-5)


def test_constant_channel_and_lone_times_are_refused(tmp_path):
    dataset = synthetic.fields(synthetic.times(6))
    dataset["2m_temperature"][:] = 280.0
    path = synthetic.write(dataset, tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="std of '2m_temperature' is 0"):
        compute_statistics(open_store(path, channels(["2m_temperature"])))
    path = synthetic.write(dataset.isel(time=slice(None, None, 2)), tmp_path / "b.zarr")
    with pytest.raises(ValueError, match="no two consecutive times 6 h apart"):
        compute_statistics(open_store(path, CHANNELS))


def physical(shape=(2, 3, 4)):
    x = np.random.default_rng(0).normal(size=(*shape, 5))
    x = x * [10, 12, 3e3, 1e3, 0] + [260, 270, 5e4, 1e4, 0]
    x[..., 4] = np.abs(np.random.default_rng(1).normal(size=shape)) * 5e-3
    return x.astype(np.float32)


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_round_trip(xp):
    x = xp.asarray(physical())
    z = STATISTICS.normalize(x)
    assert isinstance(z, jax.Array) == (xp is jnp)
    assert z.dtype == np.float32
    np.testing.assert_allclose(z[..., 0], (physical()[..., 0] - 260) / 10, atol=1e-5)
    np.testing.assert_allclose(z[..., 4], (np.log10(1000 * physical()[..., 4] + 1) - 0.3) / 0.4, atol=1e-5)
    np.testing.assert_allclose(STATISTICS.denormalize(z), physical(), rtol=2e-5, atol=1e-8)
    np.testing.assert_array_equal(x, physical())  # the argument is left alone


def test_negative_precipitation_counts_as_none_and_gradients_are_finite():
    x = physical()
    x[..., 4] = -1.0
    dry = x.copy()
    dry[..., 4] = 0.0
    np.testing.assert_array_equal(STATISTICS.normalize(x), STATISTICS.normalize(dry))
    z = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32) * 6
    gradient = jax.jit(jax.grad(lambda z: STATISTICS.denormalize(z).sum()))(z)
    expected = np.broadcast_to(STATISTICS.std, (3, 5)).copy()
    expected[:, 4] = 0.4 * np.log(10) * 10 ** (0.4 * np.asarray(z)[:, 4] + 0.3) / 1000
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)
    assert np.isfinite(jax.grad(lambda x: STATISTICS.normalize(x).sum())(jnp.asarray(x))).all()


def test_in_place():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    expected = np.stack([STATISTICS.normalize(cell) for cell in x.reshape(-1, 5)]).reshape(x.shape)
    np.testing.assert_array_equal(STATISTICS.normalize(x), expected)
    assert STATISTICS.normalize(x, out=x) is x
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_what_operators_see_and_files_hold_is_never_negative(xp):
    """Rain below 0 counts as 0; its derivative is that of the rain itself, and other channels are as they are."""
    z = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32) * 3 - 1
    expected = STATISTICS.denormalize(z)
    assert (expected[:, 4] < 0).any()
    expected[:, 4] = np.maximum(expected[:, 4], 0)
    np.testing.assert_allclose(STATISTICS.physical(xp.asarray(z)), expected, rtol=1e-6)
    derivative = lambda to_units: jax.grad(lambda z: (to_units(z) * np.arange(5.0, dtype=np.float32)[None]).sum())
    of = [derivative(f)(jnp.asarray(z)) for f in (STATISTICS.physical, STATISTICS.denormalize)]
    np.testing.assert_array_equal(*of)


def test_files(tmp_path):
    STATISTICS.save(tmp_path / "s.json")
    for copy in (
        Statistics.load(tmp_path / "s.json"),
        Statistics.from_dict(json.loads(json.dumps(STATISTICS.to_dict()))),
    ):
        assert copy.channels == CHANNELS
        for name in ("mean", "std", "difference_std"):
            np.testing.assert_array_equal(getattr(copy, name), getattr(STATISTICS, name))
    with pytest.raises(ValueError, match="no statistics file"):
        Statistics.load(tmp_path / "t.json")
    with pytest.raises(ValueError, match=r"lack \['std'\]"):
        Statistics.from_dict({k: v for k, v in STATISTICS.to_dict().items() if k != "std"})


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="last axis must hold 5 channels"):
        STATISTICS.normalize(np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match="mean must have one value for each of 5"):
        Statistics(CHANNELS, np.zeros(4), np.ones(5), np.ones(5))
    with pytest.raises(ValueError, match="difference_std of 'temperature_500' is -1"):
        Statistics(CHANNELS, np.zeros(5), np.ones(5), -np.ones(5))
