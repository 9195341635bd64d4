"""Storylines: the shift against hydrostatics and Clausius-Clapeyron, what is observed, and what is reported."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from wind_jax import physics
from wind_jax.channels import channels
from wind_jax.data.normalize import Statistics
from wind_jax.observations.observation import check, likelihood_grad
from wind_jax.sphere import Grid, area_mean, coarsening
from wind_jax.tasks.warming import large_scale_observation, precipitation_scaling, region, shift, signal_kept

GRID = Grid(np.linspace(-90, 90, 13), np.arange(0, 360, 15.0))
LEVELS = (250, 500, 850, 1000)
CHANNELS = channels(levels=LEVELS)
COLUMN = {c.key: i for i, c in enumerate(CHANNELS)}
NAMES = np.array([c.name for c in CHANNELS])
R = physics.DRY_GAS_CONSTANT


def event(humidity=0.0, ground=0.0):
    """A hydrostatic atmosphere of 270 K, isothermal; ground is at geopotential `ground`, 1000 hPa at 0."""
    x = np.random.default_rng(0).uniform(1, 2, (2, *GRID.shape, len(CHANNELS))).astype(np.float32)
    x[..., NAMES == "temperature"] = 270
    x[..., NAMES == "specific_humidity"] = humidity
    x[..., NAMES == "2m_temperature"] = 271
    x[..., NAMES == "geopotential"] = -R * 270 * (1 + 0.6077667 * humidity) * np.log(np.array(LEVELS) / 1000)
    return x, np.full(GRID.shape, ground, np.float32)


def of(x, name):
    return x[..., name == NAMES]


def test_a_uniform_shift_thickens_dry_air_by_the_hypsometric_equation():
    """The ground lies at exp(-ground / (R T)) of 1000 hPa; geopotential changes by R dT ln(p_s / p)."""
    x, ground = event(ground=9000.0)
    shifted = shift(x, CHANNELS, 2.0, ground)
    np.testing.assert_allclose(of(shifted - x, "temperature"), 2.0, atol=1e-4)
    np.testing.assert_allclose(of(shifted - x, "2m_temperature"), 2.0, atol=1e-4)
    ln_ps = np.log(1000) - 9000 / (R * 270)
    expected = np.broadcast_to(R * 2.0 * (ln_ps - np.log(LEVELS)), of(x, "geopotential").shape)
    np.testing.assert_allclose(of(shifted - x, "geopotential"), expected, atol=0.02)
    kept = ~np.isin(NAMES, ["temperature", "2m_temperature", "geopotential"])
    np.testing.assert_array_equal(shifted[..., kept], x[..., kept])


@pytest.mark.parametrize("ground", [-800.0, 0.0, 3000.0, 20000.0])
def test_the_shift_keeps_surface_pressure_and_hydrostatic_balance(ground):
    x, ground = event(humidity=0.004, ground=ground)
    shifted = shift(x, CHANNELS, {500: 3.0, 1000: 1.0}, ground)
    pressure = lambda x: physics.surface_pressure(of(x, "geopotential"), LEVELS, np.broadcast_to(ground, x.shape[:3]))
    np.testing.assert_allclose(pressure(shifted), pressure(x), rtol=2e-6)
    virtual = physics.virtual_temperature(of(shifted, "temperature"), of(shifted, "specific_humidity"))
    layers = -np.diff(of(shifted, "geopotential"), axis=-1)
    np.testing.assert_allclose(layers, physics.thickness(virtual, LEVELS), rtol=3e-5)


def test_humidity_follows_saturation():
    """Relative humidity is kept: q / q_sat is the same before and after, but for terms of e / p."""
    x, ground = event(humidity=1e-3)
    shifted = shift(x, CHANNELS, 2.0, ground)
    pressure = np.broadcast_to(np.array(LEVELS) * 100.0, of(x, "temperature").shape)
    relative = [
        of(v, "specific_humidity") / physics.saturation_specific_humidity(of(v, "temperature").astype(float), pressure)
        for v in (x, shifted)
    ]
    np.testing.assert_allclose(*relative, rtol=5e-3)
    growth = (of(shifted, "specific_humidity") / of(x, "specific_humidity")) ** 0.5 - 1
    assert ((growth > 0.06) & (growth < 0.09)).all()


def test_a_profile_is_linear_in_ln_p():
    x, ground = event()
    shifted = shift(x, CHANNELS, {250: 4.0, 850: 1.0}, ground)
    between = 1 + 3 * np.log(850 / 500) / np.log(850 / 250)
    found = of(shifted - x, "temperature")
    np.testing.assert_allclose(found, np.broadcast_to([4.0, between, 1.0, 1.0], found.shape), atol=1e-4)
    np.testing.assert_allclose(of(shifted - x, "2m_temperature"), 1.0, atol=1e-4)


def test_a_masked_shift_stays_in_its_region():
    x, ground = event(humidity=1e-3)
    mask = 0.5 * region(GRID, (30, 60), (-20, 40))
    changed = shift(x, CHANNELS, 2.0, ground, mask) - x
    np.testing.assert_allclose(changed[..., COLUMN["temperature_500"]], np.broadcast_to(mask * 2, changed.shape[:3]))
    assert not changed[:, mask == 0].any()


def test_a_region_may_cross_greenwich_and_be_the_globe():
    inside = region(GRID, (30, 60), (-20, 40)) > 0
    assert GRID.longitude[inside.any(0)].tolist() == [0, 15, 30, 345]
    assert GRID.latitude[inside.any(1)].tolist() == [30, 45, 60]
    assert region(GRID, (-90, 90), (-180, 180)).all()
    assert region(GRID, (-90, 90), (0, 360)).all()


@pytest.fixture
def statistics():
    x, _ = event(humidity=2e-3)
    std = np.where(NAMES == "specific_humidity", 1e-3, np.where(NAMES == "geopotential", 500, 2.0))
    return Statistics(CHANNELS, x.mean((0, 1, 2)), std, std)


def test_the_shifted_event_observes_itself(statistics):
    x, ground = event(humidity=2e-3)
    shifted = shift(x, CHANNELS, 2.0, ground)
    observation = large_scale_observation(shifted, coarsening(GRID, 3), statistics, error=0.1)
    check(observation, x.shape)
    assert list(observation.y) == ["temperature", "specific_humidity", "geopotential"]
    np.testing.assert_allclose(observation.y["temperature"], 272.0, rtol=1e-6)
    np.testing.assert_allclose(observation.variance["specific_humidity"], (0.1 * 1e-3) ** 2, rtol=1e-5)
    found = observation.operator(jnp.asarray(statistics.normalize(shifted)))
    for name, value in observation.y.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4)


def test_the_gradient_warms_the_event_and_only_its_region(statistics):
    x, ground = event(humidity=2e-3)
    mask = region(GRID, (0, 90), (0, 180))
    shifted = shift(x, CHANNELS, 2.0, ground)
    coarse = coarsening(GRID, 3)
    observation = large_scale_observation(shifted, coarse, statistics, ["temperature"], {"temperature": 0.5}, mask)
    state = jnp.asarray(statistics.normalize(x))
    check_grads(observation.operator, (state,), 1, ("rev",), atol=1e-1, rtol=1e-2, eps=1e-1)
    gradient = np.asarray(likelihood_grad(observation)(state))
    assert (of(gradient, "temperature")[:, 8:11, 4:10] > 0).all()
    assert not gradient[:, :4].any()
    assert not of(gradient, "geopotential").any()


def test_signal_kept_of_half_the_signal_and_noise_orthogonal_to_it():
    x, ground = event(humidity=2e-3)
    imposed = shift(x, CHANNELS, 2.0, ground) - x
    noise = np.where(np.arange(GRID.shape[1]) % 2, 1.0, -1.0)[None, None, :, None] * imposed
    guided = np.stack([x + imposed, x + np.array([0.5, 0.25])[:, None, None, None] * imposed + noise]).astype(
        np.float32
    )
    kept = signal_kept(guided, np.stack([x, x]), imposed, GRID)
    assert kept.shape == (2, 2, len(CHANNELS))
    told = np.isin(NAMES, ["temperature", "specific_humidity", "2m_temperature"])
    np.testing.assert_allclose(kept[0][:, told], 1.0, atol=1e-3)
    np.testing.assert_allclose(kept[1][:, told], np.broadcast_to([[0.5], [0.25]], kept[1][:, told].shape), atol=2e-3)
    assert np.isnan(kept[..., NAMES == "u_component_of_wind"]).all()


def test_signal_kept_weighs_by_area():
    """A run that keeps the signal north of 30 degrees alone keeps a quarter of it: (1 - sin 30) / 2."""
    grid = Grid(np.arange(-87, 88, 6.0), np.arange(0, 360, 15.0))  # 30 degrees is an edge of cells
    imposed = np.ones((1, *grid.shape, 1), np.float32)
    guided = imposed * (grid.latitude > 30)[None, :, None, None].astype(np.float32)
    np.testing.assert_allclose(signal_kept(guided, 0 * guided, imposed, grid), 0.25, atol=1e-6)
    north = region(grid, (0, 90), (0, 360))
    np.testing.assert_allclose(signal_kept(guided, 0 * guided, imposed, grid, north), 0.5, atol=1e-6)


def test_precipitation_scaling():
    """5 % more rain for 2 K is 2.5 %/K; leads without rain have no scaling; Clausius-Clapeyron by its own formula."""
    x, _ = event()
    rain = COLUMN["total_precipitation_6hr"]
    x[1, ..., rain] = 0
    warm = x.copy()
    warm[..., rain] *= 1.05
    found = precipitation_scaling(warm, x, CHANNELS, GRID, 2.0)
    np.testing.assert_allclose(found.by_lead, [2.5, np.nan], rtol=1e-4)
    np.testing.assert_allclose(found.total, 2.5, rtol=1e-4)
    slope = 17.67 * 243.5 / (271 - 29.65) ** 2  # d ln e_s / dT of Bolton (1980) at 271 K
    np.testing.assert_allclose(found.clausius_clapeyron, 100 * slope, rtol=0.1)
    warm[0, GRID.latitude > 0, :, rain] *= 1.1
    north = precipitation_scaling(warm, x, CHANNELS, GRID, 2.0, region(GRID, (1, 90), (0, 360)))
    np.testing.assert_allclose(north.total, 100 * (1.05 * 1.1 - 1) / 2, rtol=1e-4)
    between = precipitation_scaling(warm, x, CHANNELS, GRID, 2.0).total
    expected = area_mean(warm[0, ..., rain], GRID) / area_mean(x[0, ..., rain], GRID) - 1
    np.testing.assert_allclose(between, 50 * expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("warming", "message"),
    [
        (float("nan"), "finite and within 20 K, got nan"),
        (25.0, "got 25"),
        ({500: 2.0, 850: float("inf")}, "got inf"),
        ({700: 2.0}, r"names \[700\]; the prior has temperature at \[250, 500, 850, 1000\]"),
        ({}, "names no level"),
    ],
)
def test_bad_warming(warming, message):
    x, ground = event()
    with pytest.raises(ValueError, match=message):
        shift(x, CHANNELS, warming, ground)


def test_bad_shift():
    x, ground = event()
    with pytest.raises(ValueError, match="surface_geopotential"):
        shift(x, CHANNELS, 2.0)
    with pytest.raises(ValueError, match=r"lie in \[0, 1\], got 0 to 2"):
        shift(x, CHANNELS, 2.0, ground, 2 * region(GRID, (0, 90), (0, 90)))
    moist = channels(["specific_humidity"], [850])
    with pytest.raises(ValueError, match=r"specific_humidity at \[850\] hPa cannot be shifted"):
        shift(x[..., :1], moist, 2.0)


@pytest.mark.parametrize(
    ("latitude", "longitude"),
    [((-91, 0), (0, 10)), ((10, 0), (0, 10)), ((0, 10), (0, 400)), ((0, 10), (5, 5)), ((0, float("nan")), (0, 10))],
)
def test_region_off_the_globe(latitude, longitude):
    with pytest.raises(ValueError, match="No region"):
        region(GRID, latitude, longitude)


def test_region_between_cells():
    with pytest.raises(ValueError, match="holds no cell"):
        region(GRID, (1, 2), (1, 2))


def test_bad_observation(statistics):
    x, _ = event()
    coarse = coarsening(GRID, 3)
    with pytest.raises(ValueError, match=r"\['total_precipitation_6hr', 'ozone'\] cannot be observed"):
        large_scale_observation(x, coarse, statistics, ["total_precipitation_6hr", "ozone"])
    with pytest.raises(ValueError, match=r"positive for each variable, got {'geopotential': nan}"):
        large_scale_observation(x, coarse, statistics, error={"temperature": 0.1, "specific_humidity": 0.1})
    one = np.zeros(GRID.shape, np.float32)
    one[6, 6] = 1
    with pytest.raises(ValueError, match="half of no coarse cell"):
        large_scale_observation(x, coarse, statistics, mask=one)


def test_bad_report():
    x, _ = event()
    with pytest.raises(ValueError, match="0 everywhere"):
        signal_kept(x, x, x, GRID, np.zeros(GRID.shape, np.float32))
    with pytest.raises(ValueError, match="other than 0"):
        precipitation_scaling(x, x, CHANNELS, GRID, 0.0)
    with pytest.raises(ValueError, match=r"needs \['2m_temperature', 'total_precipitation_6hr'\]"):
        precipitation_scaling(x[..., :1], x[..., :1], CHANNELS[:1], GRID, 1.0)
