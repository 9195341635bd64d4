"""Vertical interpolation and reduction to sea level against closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from wind_jax.data import sigma

G, R, GAMMA = sigma.GRAVITY, sigma.GAS_CONSTANT, sigma.LAPSE_RATE
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
    got = sigma.sigma_to_pressure(field, SIGMA, PS, PRESSURE)
    want = 3.0 + 2.0 * jnp.log(jnp.clip(targets(), model_pressure()[:1], model_pressure()[-1:]))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert not bool(inside().all())  # the case does reach beyond both ends


def test_leading_dimensions_are_kept():
    field = jnp.log(model_pressure())[None] * jnp.arange(1.0, 4.0)[:, None, None, None]
    ps = jnp.stack([PS] * 3)
    got = sigma.sigma_to_pressure(field, SIGMA, ps, PRESSURE)
    assert got.shape == (3, PRESSURE.size, 2, 2)
    np.testing.assert_allclose(got[2], 3 * got[0], rtol=1e-5)


def test_temperature_below_the_lowest_level_follows_the_lapse_rate():
    temperature, _ = lapse_rate_atmosphere(model_pressure())
    got = sigma.temperature_to_pressure(temperature, SIGMA, PS, PRESSURE)
    want, _ = lapse_rate_atmosphere(targets())
    below = targets() > model_pressure()[-1:]
    assert int(below.sum()) > 4
    np.testing.assert_allclose(got[below], want[below], rtol=2e-6)


def test_geopotential_below_the_lowest_level_is_hydrostatic():
    temperature, geopotential = lapse_rate_atmosphere(model_pressure())
    got = sigma.geopotential_to_pressure(geopotential, temperature, SIGMA, PS, PRESSURE)
    _, want = lapse_rate_atmosphere(targets())
    below = targets() > model_pressure()[-1:]
    np.testing.assert_allclose(got[below], want[below], atol=0.2)


def test_geopotential_between_levels_is_exact_for_temperature_linear_in_log_pressure():
    temperature, geopotential = log_linear_atmosphere(model_pressure())
    got = sigma.geopotential_to_pressure(geopotential, temperature, SIGMA, PS, PRESSURE)
    _, want = log_linear_atmosphere(targets())
    np.testing.assert_allclose(got[inside()], want[inside()], atol=0.3)
    linear = sigma.sigma_to_pressure(geopotential, SIGMA, PS, PRESSURE)
    assert float(jnp.abs(linear - want)[inside()].max()) > 200.0  # what the curvature is for: 20 m and more


def test_geopotential_of_an_isothermal_atmosphere_is_exact_up_to_above_the_top():
    temperature = jnp.full(model_pressure().shape, 250.0)
    geopotential = -R * 250.0 * jnp.log(model_pressure() / 1e5)
    got = sigma.geopotential_to_pressure(geopotential, temperature, SIGMA, PS, PRESSURE)
    want = -R * 250.0 * jnp.log(targets() / 1e5)
    above_ground = targets() <= model_pressure()[-1:]
    assert bool((targets() < model_pressure()[0:1]).any())
    np.testing.assert_allclose(got[above_ground], want[above_ground], rtol=1e-5, atol=0.3)


@pytest.mark.parametrize("height", [0.0, 200.0, 1000.0])
def test_sea_level_pressure_of_a_lapse_rate_atmosphere(height):
    p_0, t_0 = 101325.0, 285.0  # below 290.5 K at sea level and above 255 K: no bound acts
    ps = jnp.asarray(p_0 * (1 - GAMMA * height / t_0) ** (G / (R * GAMMA)))
    lowest, _ = lapse_rate_atmosphere(0.95 * ps, t_0, p_0)
    got = sigma.mean_sea_level_pressure(lowest, 0.95, ps, jnp.asarray(G * height))
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
    got = sigma.mean_sea_level_pressure(lowest, 0.95, ps, jnp.asarray(G * height))
    mean_temperature = G * height / (R * jnp.log(got / ps))  # of the layer that the reduction implies
    assert mean_low < float(mean_temperature) < mean_high


def test_sea_level_pressure_is_surface_pressure_at_sea_level():
    temperature = jnp.array([[220.0, 260.0], [285.0, 310.0]])
    got = sigma.mean_sea_level_pressure(temperature, 0.95, PS, jnp.zeros((2, 2)))
    np.testing.assert_allclose(got, PS)
