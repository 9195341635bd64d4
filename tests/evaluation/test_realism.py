"""Balanced flows, isothermal columns and closed budgets leave nothing over; what is put in on purpose comes out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

from wind_jax import physics
from wind_jax.channels import LEVELS, LEXICON, channels, stack
from wind_jax.columns import Columns
from wind_jax.evaluation import realism
from wind_jax.sphere import Grid

GRID = Grid(np.linspace(-90, 90, 19), np.arange(0, 360, 20.0))
LEVEL = (250, 500, 850, 1000)
CHANNELS = channels(levels=LEVEL)
R = physics.DRY_GAS_CONSTANT


def place(x, values, name, level=None):
    """Sets one channel of a state."""
    x[..., [(c.name, c.level) for c in CHANNELS].index((name, level))] = values


@pytest.fixture
def state():
    """(m, t, h, w, c) float64: isothermal at 280 K over a surface pressure that varies, moist, windy, raining."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, *GRID.shape, len(CHANNELS)))
    wave = 1e3 * np.cos(np.deg2rad(GRID.latitude.astype(float)))[:, None] * np.cos(np.deg2rad(3 * GRID.longitude))[None]
    for level in LEVEL:
        place(x, 280.0, "temperature", level)
        place(x, R * 280 * np.log(1010 / level) + wave, "geopotential", level)
        place(x, 5e-3 * rng.random(x.shape[:-1]), "specific_humidity", level)
    place(x, 1e-3 * rng.random(x.shape[:-1]), "total_precipitation_6hr")
    return x


def flat():
    return np.zeros(GRID.shape)


def zonal_jet(rows):
    """Geopotential and wind in exact balance outside the tropics: u = 30 cos(latitude) and a wave."""
    grid = Grid(np.linspace(-90, 90, rows), np.arange(2 * rows - 2) * 180 / (rows - 1))
    phi, lam = np.deg2rad(np.meshgrid(grid.latitude.astype(float), grid.longitude.astype(float), indexing="ij"))
    f_a = 2 * physics.ROTATION * physics.EARTH_RADIUS
    away = np.where(np.abs(phi) < 0.1, 1, np.sin(phi))
    geopotential = f_a * (-30 * np.sin(phi) ** 2 / 2 + 5 * np.sin(phi) * np.cos(phi) * np.cos(lam))
    return grid, geopotential, 30 * np.cos(phi) - 5 * np.cos(2 * phi) / away * np.cos(lam), -5 * np.sin(lam)


def test_a_balanced_flow_has_no_imbalance_but_the_grid_s():
    """To second order in the grid's step."""
    coarse, fine = (realism.geostrophic_imbalance(*fields[1:], fields[0]) for fields in map(zonal_jet, (37, 73)))
    assert fine < 0.005
    assert np.log2(coarse / fine) == pytest.approx(2, abs=0.2)


def test_imbalance_is_the_share_of_the_wind_that_geopotential_does_not_explain():
    """By a loop over the rows that count; the tropics hold any wind."""
    grid, geopotential, *_ = zonal_jet(37)
    u_g, v_g = (np.nan_to_num(wind) for wind in physics.geostrophic_wind(geopotential, grid, 20.0))
    np.testing.assert_allclose(realism.geostrophic_imbalance(geopotential, u_g, v_g, grid), 0, atol=1e-15)
    np.testing.assert_allclose(realism.geostrophic_imbalance(geopotential, 1.25 * u_g, 1.25 * v_g, grid), 0.2)
    u, v = np.random.default_rng(1).normal(size=(2, 4, *grid.shape)) * 10
    tropics = np.abs(grid.latitude) < 20
    exact = []
    for case in range(4):
        error = wind = 0.0
        for row in np.flatnonzero(~tropics)[1:-1]:
            # A cell's area goes with the difference of the sines of its edges.
            area = np.diff(np.sin(np.deg2rad(grid.latitude[row] + np.array([-2.5, 2.5]))))[0]
            error += area * ((u[case, row] - u_g[row]) ** 2 + (v[case, row] - v_g[row]) ** 2).sum()
            wind += area * (u[case, row] ** 2 + v[case, row] ** 2).sum()
        exact.append(np.sqrt(error / wind))
    every = np.broadcast_to(geopotential, u.shape)
    np.testing.assert_allclose(realism.geostrophic_imbalance(every, u, v, grid), exact, rtol=1e-6)
    u[:, tropics] = np.inf
    np.testing.assert_allclose(realism.geostrophic_imbalance(every, u, v, grid), exact, rtol=1e-6)


def profiles(x, *names):
    return [x[..., np.array([i for i, c in enumerate(CHANNELS) if c.name == name])] for name in names]


def test_an_isothermal_dry_atmosphere_is_hydrostatic_and_one_kelvin_is_one_kelvin(state):
    geopotential, temperature = profiles(state, "geopotential", "temperature")
    residual = lambda t, q: realism.hydrostatic_residual(geopotential, t, q, LEVEL, GRID, flat() - 1e5)
    assert residual(temperature, 0 * temperature).shape == (2, 3, 3)
    np.testing.assert_allclose(residual(temperature, 0 * temperature), 0, atol=1e-9)
    np.testing.assert_allclose(residual(temperature + 1, 0 * temperature), 1, rtol=1e-9)
    moist = residual(temperature, 0 * temperature + 0.01)
    np.testing.assert_allclose(moist, 280 * 0.01 * (physics.VAPOUR_GAS_CONSTANT / R - 1), rtol=1e-9)
    lower = temperature + np.array([0.0, 0.0, 0.0, 2.0])  # the lowest level alone: half of it in the lowest layer
    np.testing.assert_allclose(residual(lower, 0 * temperature)[..., -1], 1, rtol=1e-9)
    np.testing.assert_allclose(residual(lower, 0 * temperature)[..., :-1], 0, atol=1e-9)


def test_levels_below_the_ground_are_not_held_against_a_state(state):
    """Half of the columns are mountains above 850 hPa, with anything below; unless missing values are in it."""
    geopotential, temperature = profiles(state, "geopotential", "temperature")
    ground = np.where(np.arange(GRID.shape[1])[None, :] % 2 == 0, R * 280 * np.log(1010 / 700), -1e5) + flat()
    geopotential[..., ::2, 2:] -= 1e4
    residual = realism.hydrostatic_residual(geopotential, temperature, 0 * temperature, LEVEL, GRID, ground)
    np.testing.assert_allclose(residual, 0, atol=1e-9)
    everywhere = realism.hydrostatic_residual(geopotential, temperature, 0 * temperature, LEVEL, GRID, flat() + 1e6)
    assert np.isnan(everywhere).all()
    geopotential[0, 0, 3, 3, 1] = np.nan
    residual = realism.hydrostatic_residual(geopotential, temperature, 0 * temperature, LEVEL, GRID, ground)
    assert np.isnan(residual[0, 0, 0])
    assert np.isfinite(residual[1]).all()


def test_negative_share_is_the_area_of_a_cap():
    """South of 25 S a grid's cells cover (1 - sin 25) / 2 of the Earth; -0 is not negative."""
    field = np.broadcast_to(np.where(GRID.latitude < -25, -1e-9, -0.0)[:, None], (2, *GRID.shape))
    np.testing.assert_allclose(realism.negative_share(field, GRID), (1 - np.sin(np.deg2rad(25))) / 2, rtol=1e-6)
    assert np.isnan(realism.negative_share(np.where(field < 0, np.nan, field), GRID)).all()


def test_dry_mass_of_an_isothermal_atmosphere_and_its_drift(state):
    """Pressure raised by 0.1 and 0.3 %: so much more mass."""
    state[1:] = state[:1]
    drift = np.array([0, 1e-3, 3e-3])
    for level in LEVEL:
        geopotential = np.broadcast_to(
            R * (280 * (np.log(1010 / level) + np.log1p(drift)))[:, None, None], (3, *GRID.shape)
        )
        place(state, geopotential, "geopotential", level)
        place(state, 0.0, "specific_humidity", level)
    out = realism.realism(state, CHANNELS, GRID, flat())
    np.testing.assert_allclose(
        out["dry_air_mass", None][:, 0], physics.EARTH_AREA * 101000 / physics.GRAVITY, rtol=1e-12
    )
    np.testing.assert_allclose(out["dry_air_mass_drift", None], np.broadcast_to(drift, (2, 3)), atol=1e-12)


def test_a_forecast_drifts_from_its_last_known_frame(state):
    """That frame is one for all members; what is returned is of the others, as if it had been among them."""
    state[:, 0] = state[0, 0]
    whole = realism.realism(state, CHANNELS, GRID, flat())
    after = realism.realism(state[:, 1:], CHANNELS, GRID, flat(), before=state[0, 0])
    assert after.keys() == whole.keys()
    for key, value in whole.items():
        np.testing.assert_array_equal(after[key], value[:, 1:], err_msg=str(key))
    alone = realism.realism(state[:, 1:], CHANNELS, GRID, flat())
    assert (alone["dry_air_mass_drift", None][:, 0] == 0).all()
    assert (after["dry_air_mass_drift", None][:, 0] != 0).all()
    assert np.isnan(alone["implied_evaporation", None][:, 0]).all()
    assert np.isfinite(after["implied_evaporation", None]).all()


def test_water_that_stays_in_the_air_or_falls_has_evaporated(state):
    """1 mm of rain and 1e-4 kg/kg more vapour in 6 hours, over a surface pressure of 1010 hPa."""
    columns = Columns(CHANNELS, GRID, flat())
    for level in LEVEL:
        place(state, R * 280 * np.log(1010 / level), "geopotential", level)
        place(state, (5e-3 + 1e-4 * np.arange(3))[:, None, None], "specific_humidity", level)
    place(state, np.array([7.0, 1e-3, 0.0])[:, None, None], "total_precipitation_6hr")
    vapour = 1e-4 * 101000 / physics.GRAVITY
    exact = np.broadcast_to([np.nan, 4 * (vapour + 1), 4 * vapour], (2, 3))
    np.testing.assert_allclose(realism.implied_evaporation(state, columns), exact, rtol=1e-9)
    # Rain put from one column into others is the wind's work, and no budget of the Earth's.
    moved = state.copy()
    moved[..., -1] += 1e-4 * np.cos(np.arange(18) * 2 * np.pi / 18)[None, None, None, :]
    np.testing.assert_allclose(realism.implied_evaporation(moved, columns), exact, rtol=1e-9)
    dry = [c for c in CHANNELS if c.name != "total_precipitation_6hr"]
    with pytest.raises(ValueError, match="needs total_precipitation_6hr"):
        realism.implied_evaporation(state[..., : len(dry)], Columns(dry, GRID, flat()))


def test_realism_names_units_and_every_member_by_itself(state):
    """Numpy or jax, one frame or a batch, wherever the date line is: the same numbers."""
    out = realism.realism(state, CHANNELS, GRID, flat())
    assert {name: realism.units(name) for name, _ in out} == {
        "geostrophic_imbalance": "1",
        "hydrostatic_residual": "K",
        "negative_specific_humidity": "1",
        "negative_total_precipitation_6hr": "1",
        "dry_air_mass": "kg",
        "dry_air_mass_drift": "1",
        "implied_evaporation": "kg m-2 day-1",
    }
    assert {level for name, level in out if name == "geostrophic_imbalance"} == set(LEVEL)
    assert {level for name, level in out if name == "hydrostatic_residual"} == set(LEVEL[1:])
    assert all(value.shape == (2, 3) for value in out.values())
    rolled = realism.realism(np.roll(state, 5, axis=-2), CHANNELS, GRID, flat())
    single = jax.jit(lambda x: realism.realism(x, CHANNELS, GRID, flat()))(jnp.asarray(state, jnp.float32))
    one = realism.realism(state[1], CHANNELS, GRID, flat())
    for key, value in out.items():
        np.testing.assert_allclose(rolled[key], value, rtol=1e-9, atol=1e-12, err_msg=str(key))
        np.testing.assert_allclose(one[key], value[1], rtol=1e-12, err_msg=str(key))
        assert single[key].dtype == jnp.float32
        np.testing.assert_allclose(single[key], value, rtol=1e-3, atol=1e-6, err_msg=str(key))


def test_realism_leaves_out_what_the_channels_do_not_allow(state):
    names = lambda x, chosen, ground, hours=6.0: {n for n, _ in realism.realism(x, chosen, GRID, ground, hours)}
    budget = {"dry_air_mass", "dry_air_mass_drift"}
    aloft = {"geostrophic_imbalance", "negative_specific_humidity", "negative_total_precipitation_6hr"}
    assert names(state, CHANNELS, None) == aloft
    assert names(state, CHANNELS, flat(), hours=24.0) == aloft | budget | {"hydrostatic_residual"}
    some = [i for i, c in enumerate(CHANNELS) if c.name in ("geopotential", "specific_humidity")]
    assert names(state[..., some], [CHANNELS[i] for i in some], flat()) == budget | {"negative_specific_humidity"}
    assert names(state[..., -1:], CHANNELS[-1:], flat()) == {"negative_total_precipitation_6hr"}
    assert names(state[..., :1], CHANNELS[:1], flat()) == set()


def test_bad_input(state):
    with pytest.raises(ValueError, match=r"expected .*\(19, 18\), 25\)"):
        realism.realism(state[..., 1:], CHANNELS, GRID, flat())
    with pytest.raises(ValueError, match=r"surface geopotential has shape \(18, 18\), expected \(19, 18\)"):
        realism.realism(state, CHANNELS, GRID, flat()[1:])


def test_era5_is_balanced_and_a_state_put_together_from_two_places_is_not(shared_data):
    """What meteorologists know of a reanalysis at 5.6 degrees; wind or temperature 90 degrees further east break it."""
    with xarray.open_dataset(shared_data("era5_state_19590102T00.nc")) as data:
        data = data.transpose("level", "latitude", "longitude")
        grid = Grid(data["latitude"].values, data["longitude"].values)
        chosen = channels([name for name, variable in LEXICON.items() if variable.on_levels], LEVELS)
        x = stack(data, chosen)[None]
    out = realism.realism(x, chosen, grid, np.zeros(grid.shape, np.float32))
    for level in (200, 250, 300, 400, 500, 600, 700):
        assert 0.1 < out["geostrophic_imbalance", level] < 0.3
        assert out["hydrostatic_residual", level] < 0.6
    assert out["dry_air_mass", None] == pytest.approx(physics.DRY_AIR_MASS, rel=0.03)  # the file has no orography
    assert (out["negative_specific_humidity", 500] == 0).all()
    for moved, name, least in (
        ("component_of_wind", "geostrophic_imbalance", 3),
        ("temperature", "hydrostatic_residual", 5),
    ):
        mixed = x.copy()
        where = np.array([moved in c.name for c in chosen])
        mixed[..., where] = np.roll(x[..., where], grid.shape[1] // 4, axis=-2)
        assert (
            realism.realism(mixed, chosen, grid, np.zeros(grid.shape, np.float32))[name, 500] > least * out[name, 500]
        )
