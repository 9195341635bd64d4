"""A warmed state of SPEEDY against the perturbation's definition; branches of the model itself (slow)."""

import dataclasses

import jax
import numpy as np
import pytest
import xarray as xr

from wind_jax.data import speedy
from wind_jax.data.speedy_warming import WarmedSpeedy, branch
from wind_jax.physics import saturation_vapour_pressure

pytestmark = pytest.mark.filterwarnings("default")  # jcm and what it imports warn
SETTINGS = speedy.Settings(days=2, chunk_days=1, spinup_days=1, levels=(500, 850, 1000), start="2000-06-01")


@pytest.fixture(autouse=True)
def _as_jcm_likes_it():
    """jcm promotes ranks and dtypes freely."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("jcm")
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return WarmedSpeedy(SETTINGS, 2.0)


@pytest.fixture(scope="module")
def control():
    pytest.importorskip("jcm")
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return WarmedSpeedy(SETTINGS, 0.0)


def on_the_grid(model, state):
    return jax.tree.map(np.asarray, model._model.dycore.to_physics_state(state.dynamics))


def moist(model):
    """A smooth moist atmosphere: 290 K and 1 % of vapour at the ground of the equator, less towards poles and top."""
    grid, state = model._model.coords.horizontal, model.initial_state()  # at rest, dry and of 288 K
    across = np.broadcast_to(np.cos(np.deg2rad(model.latitude)) ** 2, grid.nodal_shape)
    height = np.arange(7, -1, -1)[:, None, None]
    change = grid.to_modal((2 - 9 * height - 20 * (1 - across)).astype(np.float32))
    vapour = grid.to_modal((0.01 * 0.6**height * (0.3 + 0.7 * across)).astype(np.float32))
    air = dataclasses.replace(
        state.dynamics,
        temperature_variation=state.dynamics.temperature_variation + change,
        tracers={"specific_humidity": vapour},
    )
    return dataclasses.replace(state, dynamics=air)


def test_the_air_is_warmer_at_constant_relative_humidity(model):
    state = moist(model)
    before, after = (on_the_grid(model, s) for s in (state, model.warmed(state)))
    np.testing.assert_allclose(after.temperature - before.temperature, 2.0, atol=2e-4)
    relative = [s.specific_humidity / saturation_vapour_pressure(s.temperature) for s in (before, after)]
    np.testing.assert_allclose(relative[1], relative[0], rtol=1e-3)
    assert np.ptp(before.temperature) > 60
    assert (after.specific_humidity > 1.1 * before.specific_humidity).all()


def test_mass_and_wind_stay_and_so_do_clock_and_physics(model):
    state = moist(model)
    warmed = model.warmed(state)
    for name in ("vorticity", "divergence", "log_surface_pressure"):
        np.testing.assert_array_equal(getattr(warmed.dynamics, name), getattr(state.dynamics, name))
    for part in ("physics", "time", "step"):
        assert jax.tree.all(jax.tree.map(np.array_equal, getattr(warmed, part), getattr(state, part)))


def test_the_sea_is_warmer_and_nothing_else(model, control):
    pytest.importorskip("jcm")
    both = jax.tree_util.tree_leaves_with_path(control._forcing), jax.tree.leaves(model._forcing)
    changed = {}
    for (path, old), new in zip(*both, strict=True):
        if not np.array_equal(old, new):
            changed[jax.tree_util.keystr(path)] = np.unique(np.round(np.asarray(new) - np.asarray(old), 3))
    assert [list(difference) for difference in changed.values()] == [[2.0]]
    series = model._forcing.sea_surface_temperature.values
    np.testing.assert_allclose(series - control._forcing.sea_surface_temperature.values, 2.0, atol=1e-4)


def test_no_warming_changes_no_bit(control):
    state = moist(control)
    assert jax.tree.all(jax.tree.map(np.array_equal, control.warmed(state), state))
    plain = speedy.Speedy(SETTINGS)._forcing
    assert jax.tree.all(jax.tree.map(np.array_equal, control._forcing, plain))


@pytest.mark.parametrize("kelvin", [float("nan"), 12.0])
def test_a_warming_that_is_none(kelvin):
    with pytest.raises(ValueError, match=f"kelvin {kelvin}"):
        WarmedSpeedy(SETTINGS, kelvin)


def test_a_state_that_was_not_kept_is_named(tmp_path, model):
    with pytest.raises(ValueError, match="after 4 states; it keeps none"):
        branch(tmp_path / "warm.zarr", model, tmp_path / "a.zarr", 4)
    kept = speedy.kept_state(tmp_path / "a.zarr", 8)
    kept.parent.mkdir()
    speedy.save_state(kept, {"x": np.zeros(3)}, 8, speedy.Settings(days=2, seed=7))
    with pytest.raises(ValueError, match=r"it keeps \[8\]"):
        branch(tmp_path / "warm.zarr", model, tmp_path / "a.zarr", 4)
    with pytest.raises(ValueError, match=r"seed=0 \(stored 7\)"):
        branch(tmp_path / "warm.zarr", model, tmp_path / "a.zarr", 8)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_control_branch_is_the_archive_and_the_warm_one_is_warm(tmp_path, model, control):
    archive = tmp_path / "a.zarr"
    speedy.simulate(archive, SETTINGS, keep_states=True)
    branch(tmp_path / "control.zarr", control, archive, 4)
    branch(tmp_path / "warm.zarr", model, archive, 4)
    names = sorted(speedy.UNITS.keys() - model.static.keys())
    with xr.open_zarr(archive) as a, xr.open_zarr(tmp_path / "control.zarr") as b:
        xr.testing.assert_identical(a[names].isel(time=slice(4, 8)).load().drop_attrs(), b[names].load().drop_attrs())
        event = b[names].load()
    with xr.open_zarr(tmp_path / "warm.zarr") as warm:
        weights = np.cos(np.deg2rad(event.latitude))
        change = (warm[names] - event).weighted(weights).mean(("latitude", "longitude")).load()
    assert 1.7 < float(change.temperature.sel(level=500)[0]) < 2.3
    assert abs(float(change.surface_pressure[0])) < 50  # Pa: the mass of the air stays, that of its vapour does not
    assert float(change.specific_humidity.sel(level=850)[0]) > 0
