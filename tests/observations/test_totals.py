"""Conservation: the Earth's dry air weighs 5.13e18 kg, float32 resolves it, and the simple fix hits the target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

from wind_jax import physics
from wind_jax.channels import LEXICON, Channel, channels, stack
from wind_jax.columns import QUANTITIES, Columns, total
from wind_jax.data.normalize import Statistics
from wind_jax.data.store import open_store
from wind_jax.embedded import embedded
from wind_jax.observations.observation import check
from wind_jax.observations.totals import (
    amounts,
    conservation_operator,
    departures,
    rescale_dry_air_mass,
    totals_observation,
)
from wind_jax.sphere import Grid, area_weights

VARIABLES = ("temperature", "geopotential", "specific_humidity", "u_component_of_wind", "v_component_of_wind")
LEVELS = (250, 500, 700, 850)
CHANNELS = channels([*VARIABLES, "mean_sea_level_pressure"], LEVELS)


@pytest.fixture(scope="module")
def sample():
    """Columns and the first three frames of the packaged sample of SPEEDY."""
    store = open_store(embedded("sample.zarr"), CHANNELS)
    return Columns(CHANNELS, store.grid, store.static("geopotential_at_surface")), store.read(0, 3)


def isothermal_earth(q=0.0):
    """The Earth as a ball under 1000 hPa of air at 250 K, with humidity q at all levels; (1, h, w, c)."""
    chosen = channels(["geopotential", "specific_humidity"], [500, 850])
    grid = Grid(np.linspace(-80, 80, 9), np.arange(0, 360, 30.0))
    phi = physics.DRY_GAS_CONSTANT * 250 * np.log(1000 / np.array([500.0, 850.0]))
    x = np.broadcast_to(np.concatenate([phi, [q, q]]), (1, *grid.shape, 4)).astype(np.float32)
    return Columns(chosen, grid, np.zeros(grid.shape, np.float32)), x


def test_closed_forms_on_a_ball():
    columns, x = isothermal_earth(0.01)
    all_air = physics.EARTH_AREA * 1e5 / physics.GRAVITY
    np.testing.assert_allclose(total(x, columns), 0.99 * all_air, rtol=1e-6)
    np.testing.assert_allclose(total(x, columns, "total_water"), 0.01 * all_air, rtol=1e-6)
    operator = conservation_operator(columns, 0.9 * all_air)
    np.testing.assert_allclose(operator(jnp.asarray(x)), 0.1, rtol=1e-5)


def test_mass_is_an_integral_of_surface_pressure_where_that_is_a_channel():
    """Dry air is (1 - q) p / g of each column, whatever the geopotential says, and without any."""
    columns, x = isothermal_earth(0.01)
    given = (*columns.channels, Channel(LEXICON["surface_pressure"]))
    pressure = 9e4 + 5e3 * np.random.default_rng(0).normal(size=(*x.shape[:-1], 1))
    x = np.concatenate([x, pressure.astype(np.float32)], -1)
    weights = area_weights(columns.grid) / area_weights(columns.grid).mean()
    exact = 0.99 * physics.EARTH_AREA / physics.GRAVITY * (weights * x[0, ..., -1].astype(np.float64)).mean()

    def mass(some):
        return total(x[..., some], Columns([given[i] for i in some], columns.grid, columns.surface_geopotential))

    np.testing.assert_allclose(mass([0, 1, 2, 3, 4]), exact, rtol=1e-6)
    np.testing.assert_allclose(mass([2, 3, 4]), exact, rtol=1e-6)
    with pytest.raises(ValueError, match="the columns need surface_pressure, or geopotential"):
        mass([2, 3])


def test_dry_air_of_era5_is_that_of_the_earth(shared_data, sample):
    """ERA5 on the grid of the packaged sample, whose orography is the Earth's at the same resolution."""
    with xarray.open_dataset(shared_data("era5_state_19590102T00.nc")) as era5:
        era5 = era5.transpose("level", "latitude", "longitude").sortby("latitude").load()
    grid = Grid(era5.latitude.values, era5.longitude.values)
    assert grid == sample[0].grid
    for levels in ([int(level) for level in era5.level], (50, 100, 200, 300, 500, 700, 850, 925, 1000)):
        chosen = channels(["geopotential", "specific_humidity"], levels)
        x = stack(era5, chosen)[None]
        columns = Columns(chosen, grid, sample[0].surface_geopotential)
        mass = total(x, columns)[0]
        print(f"{len(levels)} levels: dry air {mass:.4e} kg, water {total(x, columns, 'total_water')[0]:.4e} kg")
        assert mass == pytest.approx(5.13e18, rel=0.01)
        assert 1.0e16 < total(x, columns, "total_water")[0] < 1.5e16


def test_the_sample_has_the_mass_water_and_energy_of_the_earth(sample):
    columns, x = sample
    mass = total(x, columns)
    print(f"sample: {mass} kg, water {total(x, columns, 'total_water')}, energy {total(x, columns, 'energy')}")
    np.testing.assert_allclose(mass, 5.13e18, rtol=0.01)
    assert np.ptp(mass) < 1e-3 * mass[0]
    np.testing.assert_allclose(total(x, columns, "total_water"), 1.3e16, rtol=0.2)
    np.testing.assert_allclose(total(x, columns, "energy"), 2.6e9, rtol=0.1)  # c_p of 250 K of 1e4 kg m-2


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_float32_resolves_a_millionth(sample, quantity):
    columns, x = sample
    exact = total(x, columns, quantity)
    target = exact * np.array([1.0, 1 + 1e-6, 0.99])
    departure = conservation_operator(columns, target, quantity)(jnp.asarray(x))
    assert departure.dtype == jnp.float32
    np.testing.assert_allclose(departure, exact / target - 1, atol=1e-7)


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_gradients_are_finite_and_agree_with_finite_differences(sample, quantity):
    columns, x = sample
    with jax.enable_x64(True):
        x = jnp.asarray(x, jnp.float64)
        operator = conservation_operator(columns, float(total(x, columns, quantity)[0]), quantity)
        direction = np.random.default_rng(0).normal(size=x.shape) * 1e-3 * np.asarray(x).std((0, 1, 2))

        @jax.jit
        def slopes(x):
            gradient = jax.grad(lambda x: operator(x).sum())(x)
            ahead, behind = (operator(x + s * direction).sum() for s in (1e-3, -1e-3))
            return (gradient * direction).sum(), (ahead - behind) / 2e-3

        np.testing.assert_allclose(*slopes(x), rtol=1e-4)


def test_observation_is_what_guidance_needs(sample):
    columns, x = sample
    c = len(CHANNELS)
    spread = x.std((0, 1, 2))
    statistics = Statistics(CHANNELS, x.mean((0, 1, 2)), spread, np.ones(c))
    known = {"dry_air_mass": physics.DRY_AIR_MASS}
    observation = totals_observation(columns, departures(known, known, 3), known, {"dry_air_mass": 1e-6}, statistics)
    check(observation, x.shape, statistics.normalize(x.copy()))
    assert observation.variance["dry_air_mass"] == pytest.approx(1e-12)
    departure = observation.operator(jnp.asarray(statistics.normalize(x.copy())))["dry_air_mass"]
    np.testing.assert_allclose(departure, total(x, columns) / physics.DRY_AIR_MASS - 1, atol=3e-7)


def test_a_target_is_met_by_the_state_that_it_is_of(sample):
    """Of several quantities at once, whatever their reference; frames have targets of their own."""
    columns, x = sample
    statistics = Statistics(CHANNELS, x.mean((0, 1, 2)), x.std((0, 1, 2)), np.ones(len(CHANNELS)))
    targets = amounts(x, columns, ("dry_air_mass", "total_water"))
    references = {name: 1.01 * float(values[0]) for name, values in targets.items()}
    y, error = departures(targets, references, 3), dict.fromkeys(targets, 1e-6)
    observation = totals_observation(columns, y, references, error, statistics)
    found = observation.operator(jnp.asarray(statistics.normalize(x.copy())))
    for name, values in found.items():
        np.testing.assert_allclose(values, y[name], atol=1e-6 if name == "dry_air_mass" else 1e-5)
        np.testing.assert_allclose(values[0], 1 / 1.01 - 1, rtol=2e-3)


@pytest.mark.parametrize("target", [5.0e18, np.array([5.1e18, 5.2e18, 5.3e18])], ids=["one", "each"])
def test_rescaling_hits_the_target_and_changes_nothing_else(sample, target):
    columns, x = sample
    fixed = np.asarray(rescale_dry_air_mass(jnp.asarray(x), columns, target))
    np.testing.assert_allclose(total(fixed, columns), target, rtol=3e-7)
    names = np.array([c.name for c in CHANNELS])
    unchanged = ~np.isin(names, ["geopotential", "mean_sea_level_pressure"])
    np.testing.assert_array_equal(fixed[..., unchanged], x[..., unchanged])
    raised = (fixed - x)[..., names == "geopotential"]
    np.testing.assert_allclose(raised, np.broadcast_to(raised[:, :1, :1, :1], raised.shape), atol=0.05)
    # What sea-level pressure changes by is what the ground's does, up to the temperature of its air.
    ratio = np.log(columns.surface_pressure(fixed) / columns.surface_pressure(x)).mean((1, 2))
    assert names[-1] == "mean_sea_level_pressure"
    at_sea = np.log(fixed[..., -1] / x[..., -1]).mean((1, 2))
    np.testing.assert_allclose(at_sea, ratio, rtol=0.1)


def test_rescaling_scales_a_given_surface_pressure(sample):
    columns, x = isothermal_earth(0.01)
    given = (*columns.channels, Channel(LEXICON["surface_pressure"]))
    columns = Columns(given, columns.grid, columns.surface_geopotential)
    pressure = 9e4 + 1e3 * np.random.default_rng(0).normal(size=(*x.shape[:-1], 1)).astype(np.float32)
    x = np.concatenate([x, pressure], -1)
    fixed = np.asarray(rescale_dry_air_mass(jnp.asarray(x), columns, 5.0e18))
    np.testing.assert_allclose(total(fixed, columns), 5.0e18, rtol=3e-7)
    ratio = fixed[..., -1] / x[..., -1]
    np.testing.assert_allclose(ratio, ratio.ravel()[0], rtol=1e-6)


@pytest.mark.parametrize("target", [0.0, -5e18, np.nan, np.inf, np.array([5e18, 0.0])])
def test_impossible_targets(sample, target):
    with pytest.raises(ValueError, match="target of dry_air_mass must be positive"):
        conservation_operator(sample[0], target)


def test_bad_input(sample):
    columns, x = sample
    grid, ground = columns.grid, columns.surface_geopotential
    statistics = Statistics(CHANNELS, *np.ones((3, len(CHANNELS))))
    with pytest.raises(ValueError, match="surface_pressure, or geopotential at two levels"):
        Columns(channels(["geopotential", "specific_humidity"], [500]), grid, ground)
    with pytest.raises(ValueError, match=r"grid's shape \(32, 64\), got \(32, 63\)"):
        Columns(CHANNELS, grid, ground[:, :-1])
    dry = Columns(channels(["geopotential"], LEVELS), grid, ground)
    with pytest.raises(ValueError, match="dry_air_mass needs specific_humidity"):
        conservation_operator(dry, 5.13e18)
    with pytest.raises(ValueError, match="energy needs temperature, specific_humidity, u_component_of_wind"):
        conservation_operator(dry, 2.6e9, "energy")
    with pytest.raises(ValueError, match="'momentum'"):
        total(x, columns, "momentum")
    with pytest.raises(ValueError, match="2 values, expected one or 3"):
        departures({"dry_air_mass": np.array([5e18, 5e18])}, {"dry_air_mass": 5e18}, 3)
    with pytest.raises(ValueError, match="must be positive and finite, one or one a frame; got 0"):
        departures({"dry_air_mass": 0.0}, {"dry_air_mass": 5e18}, 3)
    with pytest.raises(ValueError, match=r"relative errors .* got .*0\.0"):
        totals_observation(columns, {}, {}, {"dry_air_mass": 0.0}, statistics)
    with pytest.raises(ValueError, match=r"expected .t, h, w, c."):
        total(x[..., :-1], columns)
