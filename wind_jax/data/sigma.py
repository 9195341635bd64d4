"""From sigma levels to pressure levels and to sea level; fields are `(..., level, lon, lat)`, as SPEEDY has them.

Vertical interpolation (sigma coordinates, `x = ln p`):

- between model levels every field is linear in x; geopotential has also the curvature that the hydrostatic
  equation `d phi / dx = -R T` gives it when T is linear in x;
- below the lowest model level temperature rises by 6.5 K/km and geopotential follows hydrostatically;
  humidity and wind keep the value of the lowest level;
- mean-sea-level pressure is reduced as in the ECMWF IFS (Trenberth, Berry and Buja 1993,
  NCAR/TN-396), which bounds the temperature under high terrain.
"""

import jax.numpy as jnp
from jax import Array

GRAVITY = 9.81  # m s-2, as in SPEEDY
GAS_CONSTANT = 287.0  # J kg-1 K-1, dry air
LAPSE_RATE = 6.5e-3  # K m-1
EXPONENT = GAS_CONSTANT * LAPSE_RATE / GRAVITY  # T ~ p**EXPONENT at that lapse rate


def _weights(sigma: Array, surface_pressure: Array, pressure: Array):
    """ln(p / ps), index of the level below, fraction towards it: each `(..., target, lon, lat)`."""
    log_ps = jnp.expand_dims(jnp.log(surface_pressure), -3)
    x = jnp.log(pressure).reshape((1,) * (log_ps.ndim - 3) + (-1, 1, 1)) - log_ps
    nodes = jnp.log(sigma)
    lower = jnp.clip(jnp.searchsorted(nodes, x), 1, sigma.shape[0] - 1)
    w = (x - nodes[lower - 1]) / (nodes[lower] - nodes[lower - 1])
    return x, lower, jnp.clip(w, 0.0, 1.0)


def _neighbours(field: Array, lower: Array) -> tuple[Array, Array]:
    return tuple(jnp.take_along_axis(field, level, axis=-3) for level in (lower - 1, lower))


def sigma_to_pressure(field: Array, sigma: Array, surface_pressure: Array, pressure: Array) -> Array:
    """Interpolate linearly in ln p; hold the end values above the top and below the lowest level.

    Args:
        field: Any field on sigma levels, `(..., level, lon, lat)`.
        sigma: p / ps of the levels, increasing (top first), `(level,)`.
        surface_pressure: Pa, `(..., lon, lat)`.
        pressure: Target levels in Pa, `(target,)`.

    Returns: the field at the targets, `(..., target, lon, lat)`.
    """
    _, lower, w = _weights(sigma, surface_pressure, pressure)
    above, below = _neighbours(field, lower)
    return above + w * (below - above)


def temperature_to_pressure(temperature: Array, sigma: Array, surface_pressure: Array, pressure: Array) -> Array:
    """Interpolate temperature (K); 6.5 K/km below the lowest level. Shapes as in `sigma_to_pressure`."""
    x = _weights(sigma, surface_pressure, pressure)[0]
    warming = jnp.exp(EXPONENT * jnp.maximum(x - jnp.log(sigma[-1]), 0.0))
    return warming * sigma_to_pressure(temperature, sigma, surface_pressure, pressure)


def geopotential_to_pressure(
    geopotential: Array, temperature: Array, sigma: Array, surface_pressure: Array, pressure: Array
) -> Array:
    """Interpolate geopotential (m2 s-2) hydrostatically. Shapes as in `sigma_to_pressure`.

    Exact for temperature that is linear in ln p between levels, for 6.5 K/km below the lowest level and for
    an isothermal layer above the top level.
    """
    x, lower, w = _weights(sigma, surface_pressure, pressure)
    nodes = jnp.log(sigma)
    t_above, t_below = _neighbours(temperature, lower)
    curvature = 0.5 * GAS_CONSTANT * (t_below - t_above) * (nodes[lower] - nodes[lower - 1]) * w * (1 - w)
    warming = jnp.expm1(EXPONENT * jnp.maximum(x - nodes[-1], 0.0))
    below_ground = GRAVITY / LAPSE_RATE * temperature[..., -1:, :, :] * warming
    above_top = GAS_CONSTANT * temperature[..., :1, :, :] * jnp.maximum(nodes[0] - x, 0.0)
    linear = sigma_to_pressure(geopotential, sigma, surface_pressure, pressure)
    return linear + curvature - below_ground + above_top


def mean_sea_level_pressure(
    lowest_temperature: Array,
    lowest_sigma: float | Array,
    surface_pressure: Array,
    surface_geopotential: Array,
) -> Array:
    """Reduce surface pressure to sea level as the ECMWF IFS does.

    The surface temperature T* is extrapolated by 6.5 K/km from the lowest level; the lapse rate under the
    terrain is cut where sea level would be warmer than 290.5 K, and T* below 255 K is pulled towards 255 K.

    Args:
        lowest_temperature: K at the lowest model level, whose p / ps is `lowest_sigma`; `(..., lon, lat)`.
        surface_pressure: Pa, `(..., lon, lat)`.
        surface_geopotential: m2 s-2, `(lon, lat)`.

    Returns: pressure at sea level in Pa, `(..., lon, lat)`.
    """
    phi = jnp.broadcast_to(surface_geopotential, surface_pressure.shape)
    t_star = lowest_temperature * (1 + EXPONENT * (1 / lowest_sigma - 1))
    t_sea = t_star + LAPSE_RATE / GRAVITY * phi
    warm = (t_sea > 290.5) & (phi > 0)
    t_star = jnp.where(warm & (t_star > 290.5), 0.5 * (290.5 + t_star), t_star)
    t_sea = jnp.where(warm, jnp.maximum(290.5, t_star), t_sea)
    warmer = jnp.maximum(0.5 * (255.0 - t_star), 0.0)
    t_star, t_sea = t_star + warmer, t_sea + warmer
    x = t_sea / t_star - 1
    return surface_pressure * jnp.exp(phi / (GAS_CONSTANT * t_star) * (1 - x / 2 + x**2 / 3))
