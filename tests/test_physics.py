"""Isothermal columns, the hypsometric equation, solid-body rotation, Clausius and Clapeyron in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wind_jax import physics
from wind_jax.sphere import Grid, area_mean

LEVELS = (50, 200, 500, 700, 850, 925, 1000)
R, G = physics.DRY_GAS_CONSTANT, physics.GRAVITY


def isothermal(temperature, sea_level, levels=LEVELS):
    """Geopotential (l,) of an isothermal atmosphere whose pressure is `sea_level` (Pa) at geopotential 0."""
    return R * temperature * np.log(sea_level / (100.0 * np.asarray(levels)))


@pytest.mark.parametrize("height", [-300.0, 0.0, 40.0, 1500.0, 5500.0, 25000.0])
def test_surface_pressure_of_an_isothermal_atmosphere_is_exact_within_and_beyond_the_levels(height):
    phi, ground = isothermal(260.0, 101325.0)[None], np.array([G * height])
    expected = 101325.0 * np.exp(-G * height / (R * 260.0))
    np.testing.assert_allclose(physics.surface_pressure(phi, LEVELS, ground), expected, rtol=1e-12)
    single = physics.surface_pressure(jnp.asarray(phi, jnp.float32), LEVELS, jnp.asarray(ground, jnp.float32))
    np.testing.assert_allclose(single, expected, rtol=1e-6)


def test_surface_pressure_is_that_of_a_level_on_the_ground():
    temperature = np.linspace(220.0, 290.0, len(LEVELS))
    phi = np.append(np.cumsum(physics.thickness(temperature, LEVELS)[::-1])[::-1], 0.0) + 150
    for level, ground in zip(LEVELS, phi):
        assert physics.surface_pressure(phi[None], LEVELS, np.array([ground])) == pytest.approx(100 * level, rel=1e-12)


def test_surface_pressure_survives_a_state_that_is_upside_down():
    phi = jnp.asarray(isothermal(260.0, 1e5)[None, ::-1].copy(), jnp.float32)
    value, slope = jax.value_and_grad(lambda phi: physics.surface_pressure(phi, LEVELS, jnp.zeros(1)).sum())(phi)
    assert jnp.isfinite(value)
    assert jnp.isfinite(slope).all()


@pytest.mark.parametrize("bottom", [30.0, 620.0, 925.0, 1040.0])
def test_column_integral_of_a_function_linear_in_pressure(bottom):
    """f = a + b p between the levels, constant beyond them: the antiderivative is known."""
    a, b, p_s = 2.0, 3e-5, 100 * bottom
    p = 100.0 * np.asarray(LEVELS)
    inner = np.clip(p_s, p[0], p[-1])
    expected = a * p_s + b * (p[0] * min(p_s, p[0]) + (inner**2 - p[0] ** 2) / 2 + p[-1] * max(p_s - p[-1], 0))
    np.testing.assert_allclose(
        physics.column_integral((a + b * p)[None], LEVELS, np.array([p_s])), expected, rtol=1e-12
    )


def test_gradients_agree_with_finite_differences(x64):
    rng = np.random.default_rng(0)
    phi = jnp.asarray(isothermal(260.0, 1.003e5) + 50 * rng.normal(size=(4, len(LEVELS))))
    q = jnp.asarray(rng.uniform(0, 0.02, phi.shape))
    ground = jnp.asarray([-200.0, 500.0, 14000.0, 33000.0])

    def dry_air(phi, q, ground):
        return physics.column_dry_air(q, LEVELS, physics.surface_pressure(phi, LEVELS, ground)).sum()

    arguments = (phi, q, ground)
    tangents = (1e-1 * jnp.ones_like(phi) + jnp.asarray(rng.normal(size=phi.shape)), q, jnp.ones_like(ground))
    _, slope = jax.jvp(dry_air, arguments, tangents)
    step = 1e-4
    ahead, behind = (dry_air(*(a + s * t for a, t in zip(arguments, tangents))) for s in (step, -step))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-6)
    gradient = jax.grad(dry_air, argnums=(0, 1, 2))(*arguments)
    np.testing.assert_allclose(sum((g * t).sum() for g, t in zip(gradient, tangents)), slope, rtol=1e-10)


def test_a_column_of_pure_vapour_has_no_dry_air_and_the_weight_of_its_pressure():
    pressure = np.array([98000.0, 40000.0])
    np.testing.assert_allclose(physics.column_dry_air(np.ones((2, 7)), LEVELS, pressure), 0, atol=1e-9)
    np.testing.assert_allclose(physics.column_water(np.ones((2, 7)), LEVELS, pressure), pressure / G, rtol=1e-12)


def test_energy_of_an_isothermal_resting_dry_column_is_its_enthalpy_by_hydrostatics():
    """Over flat ground: integral of c_v T + phi dp/g, with phi = R T ln(p_s / p), is c_p T p_s / g."""
    zero, pressure, ground = np.zeros((1, 7)), np.array([9e4]), np.array([8000.0])
    energy = physics.column_energy(zero + 250, zero, zero, zero, LEVELS, pressure, ground)
    np.testing.assert_allclose(energy, 9e4 / G * (physics.HEAT_CAPACITY * 250 + 8000), rtol=1e-12)
    more = physics.column_energy(zero + 250, zero + 0.01, zero + 30, zero - 40, LEVELS, pressure, ground)
    np.testing.assert_allclose(more - energy, 9e4 / G * (physics.LATENT_HEAT * 0.01 + 1250), rtol=1e-10)


def test_an_isothermal_atmosphere_on_a_flat_earth_has_the_known_mass():
    """5.27e18 kg under 1013.25 hPa: the area of the sphere times p_s / g."""
    grid = Grid(np.linspace(-90, 90, 19), np.arange(0, 360, 10.0))
    phi = np.broadcast_to(isothermal(288.0, 101325.0), (*grid.shape, 7))
    pressure = physics.surface_pressure(phi, LEVELS, np.zeros(grid.shape))
    mass = area_mean(physics.column_dry_air(0 * phi, LEVELS, pressure), grid) * physics.EARTH_AREA
    assert mass == pytest.approx(4 * np.pi * 6.371e6**2 * 101325 / 9.80665, rel=1e-12)
    assert mass == pytest.approx(5.27e18, rel=1e-3)


def test_thickness_is_exact_for_temperature_linear_in_log_pressure():
    log_p = np.log(np.asarray(LEVELS) / 1000)
    phi = -R * (280 * log_p + 25 * log_p**2 / 2)  # d(phi) = -R T d(ln p), T = 280 + 25 ln(p / 1000 hPa)
    np.testing.assert_allclose(physics.thickness(280 + 25 * log_p, LEVELS), -np.diff(phi), rtol=1e-12)
    moist = physics.virtual_temperature(np.array([300.0]), np.array([0.01]))
    np.testing.assert_allclose(moist - 300, 300 * 0.00608, rtol=2e-3)


@pytest.mark.parametrize(("temperature", "pressure"), [(273.15, 611.2), (293.15, 2339.0), (303.15, 4247.0)])
def test_saturation_vapour_pressure_of_the_tables(temperature, pressure):
    """Over water at 0, 20 and 30 degrees Celsius (World Meteorological Organization, Goff and Gratch)."""
    assert physics.saturation_vapour_pressure(np.array([temperature]))[0] == pytest.approx(pressure, rel=2e-3)


def test_saturated_air_holds_its_vapour_pressure():
    temperature, pressure = np.array([290.0]), np.array([95000.0])
    q = physics.saturation_specific_humidity(temperature, pressure)
    ratio = R / physics.VAPOUR_GAS_CONSTANT
    vapour = q * pressure / (ratio + (1 - ratio) * q)
    np.testing.assert_allclose(vapour, physics.saturation_vapour_pressure(temperature), rtol=1e-12)


@pytest.mark.parametrize("temperature", [273.15, 280.0, 290.0])
def test_clausius_clapeyron_is_seven_percent_a_kelvin_and_obeys_its_equation(temperature):
    t = np.array([temperature])
    assert 1.06 < physics.clausius_clapeyron(t, 1.0)[0] < 1.078
    # d(ln e_s)/dT = L / (R_v T^2), L at 0 degrees Celsius but for 2 % on the way to 290 K
    slope = (physics.clausius_clapeyron(t, 1e-4)[0] - 1) / 1e-4
    expected = (physics.LATENT_HEAT - 2340 * (temperature - 273.15)) / (physics.VAPOUR_GAS_CONSTANT * temperature**2)
    assert slope == pytest.approx(expected, rel=0.005)
    there_and_back = physics.clausius_clapeyron(t, 3.0) * physics.clausius_clapeyron(t + 3, -3.0)
    np.testing.assert_allclose(there_and_back, 1, rtol=1e-12)


def geostrophic_error(rows):
    """Largest error of the wind of u = U cos(latitude) plus a wave, v = -V sin(longitude), in m/s."""
    grid = Grid(np.linspace(-90, 90, rows), np.arange(2 * rows - 2) * 180 / (rows - 1))
    phi, lam = np.deg2rad(np.meshgrid(grid.latitude.astype(float), grid.longitude.astype(float), indexing="ij"))
    f_a = 2 * physics.ROTATION * physics.EARTH_RADIUS
    # Solid-body rotation at U balances -f_a U sin^2 / 2; the wave V sin(2 latitude) / 2 cos(longitude) f_a has
    # u = -V cos(2 latitude) / sin(latitude) cos(longitude).
    geopotential = f_a * (-20 * np.sin(phi) ** 2 / 2 + 5 * np.sin(phi) * np.cos(phi) * np.cos(lam))
    u, v = physics.geostrophic_wind(geopotential, grid)
    far = (np.abs(grid.latitude) >= 20) & (np.abs(grid.latitude) < 90)
    assert np.isnan(u[np.abs(grid.latitude) < 10]).all()
    assert np.isnan(v[0]).all()
    exact_u = 20 * np.cos(phi) - 5 * np.cos(2 * phi) / np.sin(np.where(phi == 0, 1, phi)) * np.cos(lam)
    return np.abs(u - exact_u)[far].max(), np.abs(v + 5 * np.sin(lam))[far].max()


def test_geostrophic_wind_of_solid_body_rotation_and_a_wave_converges_at_second_order():
    coarse, fine = np.array(geostrophic_error(37)), np.array(geostrophic_error(73))
    assert (fine < 0.05).all()
    np.testing.assert_allclose(np.log2(coarse / fine), 2, atol=0.2)


@pytest.mark.parametrize("levels", [(1000, 850), (500, 500), (0, 500), (500, 700, 850)])
def test_bad_levels(levels):
    with pytest.raises(ValueError, match=r"ascend|must hold 3 levels"):
        physics.surface_pressure(np.zeros((1, 2)), levels, np.zeros(1))


def test_bad_grid():
    with pytest.raises(ValueError, match=r"\(4, 8\)"):
        physics.geostrophic_wind(np.zeros((4, 8)), Grid(np.linspace(-90, 90, 7), np.arange(0, 360, 45.0)))
