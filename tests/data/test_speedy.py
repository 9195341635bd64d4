"""Vertical interpolation against closed forms; the archive and resuming with the model itself (slow)."""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from wind_jax.data import speedy

G, R, GAMMA = speedy.GRAVITY, speedy.GAS_CONSTANT, speedy.LAPSE_RATE
SIGMA = jnp.array([0.025, 0.095, 0.2, 0.34, 0.51, 0.685, 0.835, 0.95])
PRESSURE = 100.0 * jnp.array([10.0, 100.0, 250.0, 500.0, 700.0, 850.0, 925.0, 1000.0])
PS = jnp.array([[1.02e5, 0.99e5], [0.75e5, 0.55e5]])  # two columns at sea level, two on mountains


def model_pressure():
    return SIGMA[:, None, None] * PS[None]


def lapse_rate_atmosphere(pressure, t_0=288.0, p_0=101325.0):
    """Temperature and geopotential where temperature falls by 6.5 K/km from `t_0` at `p_0`."""
    temperature = t_0 * (pressure / p_0) ** (R * GAMMA / G)
    return temperature, G / GAMMA * (t_0 - temperature)


def log_linear_atmosphere(pressure, t_0=290.0, slope=55.0, p_0=1e5):
    """Temperature linear in ln p, and its exact hydrostatic geopotential."""
    x = jnp.log(pressure / p_0)
    return t_0 + slope * x, -R * (t_0 * x + slope * x**2 / 2)


def targets():
    return jnp.broadcast_to(PRESSURE[:, None, None], (PRESSURE.size, *PS.shape))


def inside():
    """Targets between the top and the lowest model level."""
    p = model_pressure()
    return (targets() >= p[0:1]) & (targets() <= p[-1:])


def test_linear_in_log_pressure_is_exact_and_ends_are_held():
    field = 3.0 + 2.0 * jnp.log(model_pressure())
    got = speedy.sigma_to_pressure(field, SIGMA, PS, PRESSURE)
    want = 3.0 + 2.0 * jnp.log(jnp.clip(targets(), model_pressure()[:1], model_pressure()[-1:]))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert not bool(inside().all())  # the case does reach beyond both ends


def test_leading_dimensions_are_kept():
    field = jnp.log(model_pressure())[None] * jnp.arange(1.0, 4.0)[:, None, None, None]
    ps = jnp.stack([PS] * 3)
    got = speedy.sigma_to_pressure(field, SIGMA, ps, PRESSURE)
    assert got.shape == (3, PRESSURE.size, 2, 2)
    np.testing.assert_allclose(got[2], 3 * got[0], rtol=1e-5)


def test_temperature_below_the_lowest_level_follows_the_lapse_rate():
    temperature, _ = lapse_rate_atmosphere(model_pressure())
    got = speedy.temperature_to_pressure(temperature, SIGMA, PS, PRESSURE)
    want, _ = lapse_rate_atmosphere(targets())
    below = targets() > model_pressure()[-1:]
    assert int(below.sum()) > 4
    np.testing.assert_allclose(got[below], want[below], rtol=2e-6)


def test_geopotential_below_the_lowest_level_is_hydrostatic():
    temperature, geopotential = lapse_rate_atmosphere(model_pressure())
    got = speedy.geopotential_to_pressure(geopotential, temperature, SIGMA, PS, PRESSURE)
    _, want = lapse_rate_atmosphere(targets())
    below = targets() > model_pressure()[-1:]
    np.testing.assert_allclose(got[below], want[below], atol=0.2)


def test_geopotential_between_levels_is_exact_for_temperature_linear_in_log_pressure():
    temperature, geopotential = log_linear_atmosphere(model_pressure())
    got = speedy.geopotential_to_pressure(geopotential, temperature, SIGMA, PS, PRESSURE)
    _, want = log_linear_atmosphere(targets())
    np.testing.assert_allclose(got[inside()], want[inside()], atol=0.3)
    linear = speedy.sigma_to_pressure(geopotential, SIGMA, PS, PRESSURE)
    assert float(jnp.abs(linear - want)[inside()].max()) > 200.0  # what the curvature is for: 20 m and more


def test_geopotential_of_an_isothermal_atmosphere_is_exact_up_to_above_the_top():
    temperature = jnp.full(model_pressure().shape, 250.0)
    geopotential = -R * 250.0 * jnp.log(model_pressure() / 1e5)
    got = speedy.geopotential_to_pressure(geopotential, temperature, SIGMA, PS, PRESSURE)
    want = -R * 250.0 * jnp.log(targets() / 1e5)
    above_ground = targets() <= model_pressure()[-1:]
    assert bool((targets() < model_pressure()[0:1]).any())
    np.testing.assert_allclose(got[above_ground], want[above_ground], rtol=1e-5, atol=0.3)


@pytest.mark.parametrize("height", [0.0, 200.0, 1000.0])
def test_sea_level_pressure_of_a_lapse_rate_atmosphere(height):
    p_0, t_0 = 101325.0, 285.0  # below 290.5 K at sea level and above 255 K: no bound acts
    ps = jnp.asarray(p_0 * (1 - GAMMA * height / t_0) ** (G / (R * GAMMA)))
    lowest, _ = lapse_rate_atmosphere(0.95 * ps, t_0, p_0)
    got = speedy.mean_sea_level_pressure(lowest, 0.95, ps, jnp.asarray(G * height))
    np.testing.assert_allclose(got, p_0, rtol=1.5e-4)


@pytest.mark.parametrize(
    ("surface_temperature", "height", "mean_low", "mean_high"),
    [
        (305.0, 4500.0, 290.5, 305.0),  # hot plateau: no lapse rate, halfway to 290.5 K
        (285.0, 4500.0, 285.0, 290.5),  # warm plateau: sea level at 290.5 K, not 314 K
        (225.0, 3500.0, 240.0, 265.0),  # cold ice sheet: pulled halfway to 255 K
    ],
)
def test_sea_level_pressure_bounds_the_temperature_under_high_terrain(surface_temperature, height, mean_low, mean_high):
    ps = jnp.asarray(6e4)
    lowest = jnp.asarray(surface_temperature / (1 + R * GAMMA / G * (1 / 0.95 - 1)))
    got = speedy.mean_sea_level_pressure(lowest, 0.95, ps, jnp.asarray(G * height))
    mean_temperature = G * height / (R * jnp.log(got / ps))  # of the layer that the reduction implies
    assert mean_low < float(mean_temperature) < mean_high


def test_sea_level_pressure_is_surface_pressure_at_sea_level():
    temperature = jnp.array([[220.0, 260.0], [285.0, 310.0]])
    got = speedy.mean_sea_level_pressure(temperature, 0.95, PS, jnp.zeros((2, 2)))
    np.testing.assert_allclose(got, PS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"truncation": 42}, "truncation 42: expected 21 or 31"),
        ({"days": 0}, "days 0"),
        ({"chunk_days": 0}, "chunk_days 0"),
        ({"spinup_days": -1}, "spinup_days -1"),
        ({"levels": (500, 100)}, r"levels \(500, 100\)"),
        ({"start": "2000-13-01"}, "start '2000-13-01'"),
        ({"start": "2261-01-01", "days": 3650}, "2261-01-01, days 3650"),
    ],
)
def test_bad_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        speedy.Settings(**({"days": 1} | wrong))


def test_folder_that_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match="existing folder"):
        speedy.simulate(tmp_path / "no" / "a.zarr", speedy.Settings(days=1))


def test_missing_jcm_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jcm", None)
    with pytest.raises(ImportError, match=r"pip install wind_jax\[speedy\]"):
        speedy.simulate(tmp_path / "a.zarr", speedy.Settings(days=1))


def test_archive_without_restart_file_is_not_overwritten(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(ValueError, match="restart"):
        speedy.simulate(tmp_path / "a.zarr", speedy.Settings(days=1))


def test_resuming_with_other_arguments_names_both(tmp_path):
    out = tmp_path / "a.zarr"
    speedy._save_restart(out, {"x": np.zeros(3)}, 4, speedy.Settings(days=10, seed=1))
    with pytest.raises(ValueError, match=r"seed=2 \(stored 1\)"):
        speedy.simulate(out, speedy.Settings(days=10, seed=2))


def test_restart_file_returns_leaves_in_order(tmp_path):
    settings = speedy.Settings(days=10)
    leaves = [np.full(2, i) for i in range(12)]
    speedy._save_restart(tmp_path / "a.zarr", leaves, 8, settings)
    stored, states = speedy._load_restart(tmp_path / "a.zarr", settings)
    assert states == 8
    np.testing.assert_array_equal(stored, leaves)


class ToySpeedy(speedy.Speedy):
    """One number x that becomes 0.9 x + seed every 6 h stands for the model."""

    longitude, latitude = np.arange(4, dtype=np.float32), np.arange(3, dtype=np.float32)
    static = dict.fromkeys(("land_sea_mask", "soil_type", "geopotential_at_surface"), np.ones((4, 3), np.float32))

    def __init__(self, settings):
        self.settings = settings

    def initial_state(self):
        return {"x": jnp.float32(0.0)}

    def advance(self, state, states):
        x = np.asarray(state["x"])
        values = np.empty(states, np.float32)
        for i in range(states):
            x = values[i] = np.float32(0.9) * x + np.float32(self.settings.seed)
        levels = len(self.settings.levels)
        on_levels = {"temperature", "geopotential", "specific_humidity"} | {f"{c}_component_of_wind" for c in "uv"}
        fields = {}
        for name in speedy.UNITS.keys() - self.static.keys():
            shape = (states, levels, 4, 3) if name in on_levels else (states, 4, 3)
            fields[name] = np.broadcast_to(values.reshape(-1, *[1] * (len(shape) - 1)), shape)
        return {"x": jnp.asarray(x)}, fields


class KilledError(Exception):
    pass


def run_and_kill(out, settings, at, whole):
    """Stop between the writing of the chunk that ends with state `at` and its restart file.

    With `whole` states given the process may clean up (an interrupt); with None it may not (a hard kill).
    """
    save = speedy._save_restart

    def save_or_die(out, state, states, settings):
        if states == at:
            raise KilledError
        save(out, state, states, settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speedy, "_save_restart", save_or_die)
        if whole is None:
            patch.setattr(speedy, "_seal", lambda *_: None)
        with pytest.raises(KilledError):
            speedy.simulate(out, settings)
    with xr.open_zarr(out) as ds:
        assert ds.sizes["time"] == (at if whole is None else whole)
        assert ds.attrs["complete"] is False


def assert_whole_and_equal(one, other, settings):
    with xr.open_zarr(one) as a, xr.open_zarr(other) as b:
        xr.testing.assert_allclose(a.load(), b.load(), rtol=1e-6)
        states = settings.days * speedy.STATES_PER_DAY
        expected = np.datetime64(settings.start) + 6 * np.arange(states).astype("timedelta64[h]")
        np.testing.assert_array_equal(a.time.values, expected.astype("datetime64[ns]"))
        assert set(a.data_vars) == set(speedy.UNITS)
        assert a.temperature.dims == ("time", "level", "longitude", "latitude")
        assert a["2m_temperature"].dims == ("time", "longitude", "latitude")
        assert a.land_sea_mask.dims == ("longitude", "latitude")
        np.testing.assert_array_equal(a.level, settings.levels)
        for name, variable in a.data_vars.items():
            assert variable.dtype == np.float32, name
            assert variable.attrs["units"] == speedy.UNITS[name]
            assert bool(np.isfinite(variable).all()), name
        for ds in (a, b):
            assert ds.attrs["complete"] is True
            assert json.loads(ds.attrs["settings"])["start"] == settings.start


# killed in the first chunk, the second, the last and shorter one; interrupted in the second, the last
@pytest.mark.parametrize(("at", "whole"), [(8, None), (16, None), (20, None), (16, 8), (20, 16)])
def test_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch, at, whole):
    monkeypatch.setattr(speedy, "Speedy", ToySpeedy)
    settings = speedy.Settings(days=5, chunk_days=2, spinup_days=1, levels=(500, 1000), seed=3)
    speedy.simulate(tmp_path / "whole.zarr", settings)
    run_and_kill(tmp_path / "cut.zarr", settings, at, whole)
    speedy.simulate(tmp_path / "cut.zarr", settings)
    speedy.simulate(tmp_path / "cut.zarr", settings)  # a complete archive is left as it is
    assert_whole_and_equal(tmp_path / "whole.zarr", tmp_path / "cut.zarr", settings)


def test_values_that_are_not_finite_stop_the_run(tmp_path, monkeypatch):
    class Unstable(ToySpeedy):
        def advance(self, state, states):
            state, fields = super().advance(state, states)
            return state, fields | {"temperature": fields["temperature"] * np.float32(np.nan)}

    monkeypatch.setattr(speedy, "Speedy", Unstable)
    with pytest.raises(FloatingPointError, match="temperature is not finite in states 0 to 3"):
        speedy.simulate(tmp_path / "a.zarr", speedy.Settings(days=1, spinup_days=0))


@pytest.fixture
def as_jcm_likes_it():
    """jcm promotes ranks and dtypes freely."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("as_jcm_likes_it")
@pytest.mark.filterwarnings("default")  # jcm and what it imports warn
def test_resumed_run_of_the_model_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    pytest.importorskip("jcm")
    monkeypatch.setattr(speedy, "Speedy", functools.cache(speedy.Speedy))  # compile once
    settings = speedy.Settings(days=2, chunk_days=1, spinup_days=0, levels=(500, 1000), start="2000-06-01")
    speedy.simulate(tmp_path / "whole.zarr", settings)
    run_and_kill(tmp_path / "cut.zarr", settings, at=8, whole=4)
    speedy.simulate(tmp_path / "cut.zarr", settings)
    assert_whole_and_equal(tmp_path / "whole.zarr", tmp_path / "cut.zarr", settings)
    with xr.open_zarr(tmp_path / "whole.zarr") as ds:
        mean = float(ds.surface_pressure.weighted(np.cos(np.deg2rad(ds.latitude))).mean())
    assert 9.80e4 < mean < 9.90e4  # Pa: 985 hPa on Earth, 1002 hPa where jcm starts
