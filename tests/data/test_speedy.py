"""The archive and resuming, with a toy in the place of the model; with the model itself (slow)."""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from wind_jax.data import speedy


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
    speedy.save_state(tmp_path / "a.zarr.restart.npz", {"x": np.zeros(3)}, 4, speedy.Settings(days=10, seed=1))
    with pytest.raises(ValueError, match=r"seed=2 \(stored 1\)"):
        speedy.simulate(out, speedy.Settings(days=10, seed=2))


def test_a_stored_state_returns_its_leaves_in_order(tmp_path):
    settings = speedy.Settings(days=10)
    leaves = [np.full(2, i) for i in range(12)]
    speedy.save_state(tmp_path / "state.npz", leaves, 8, settings)
    stored, states = speedy.load_state(tmp_path / "state.npz", settings)
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
    save = speedy.save_state

    def save_or_die(path, state, states, settings):
        if states == at:
            raise KilledError
        save(path, state, states, settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speedy, "save_state", save_or_die)
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


def test_kept_states_start_the_model_again(tmp_path, monkeypatch):
    monkeypatch.setattr(speedy, "Speedy", ToySpeedy)
    settings = speedy.Settings(days=5, chunk_days=2, spinup_days=1, levels=(500, 1000), seed=3)
    out = tmp_path / "a.zarr"
    speedy.simulate(out, settings, keep_states=True)
    kept = sorted(path.name for path in speedy.kept_state(out, 0).parent.iterdir())
    assert kept == ["000000.npz", "000008.npz", "000016.npz", "000020.npz"]
    leaves, states = speedy.load_state(speedy.kept_state(out, 8), settings)
    model = ToySpeedy(settings)
    _, fields = model.advance(model.restore(leaves), 8)
    with xr.open_zarr(out) as ds:
        np.testing.assert_array_equal(ds.temperature[states : states + 8], fields["temperature"])


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
