"""Constants and diagnostics of the atmosphere on pressure levels; of numpy or jax arrays, in their dtype.

Pressure levels are in hPa, ascending (highest level first), and lie on the last axis of a field (..., l); all
else is in ERA5's units: K, Pa, m2 s-2, kg kg-1, m s-1.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wind_jax.sphere import Grid

# The constants of ECMWF's IFS (documentation of cycle 41r2, part IV, chapter 12), but for the Earth's radius.
GRAVITY = 9.80665  # m s-2, the value that geopotential is defined with
EARTH_RADIUS = 6.371e6  # m, of the sphere of the Earth's volume; that of the IFS, 6.371229e6, has 0.007 % more area
ROTATION = 7.292115e-5  # s-1, the Earth's angular velocity
DRY_GAS_CONSTANT = 287.0597  # J kg-1 K-1
VAPOUR_GAS_CONSTANT = 461.5250  # J kg-1 K-1
HEAT_CAPACITY = 1004.709  # J kg-1 K-1, of dry air at constant pressure, 7/2 of its gas constant
LATENT_HEAT = 2.5008e6  # J kg-1, of vaporisation at 0 degrees Celsius

EARTH_AREA = 4 * np.pi * EARTH_RADIUS**2  # m2
DRY_AIR_MASS = 5.1352e18  # kg, of the Earth (Trenberth and Smith 2005, J. Climate 18, 864-875)

_COLDEST = 100.0  # K: no layer of an atmosphere is thinner than at this temperature

Field = Float[Array | np.ndarray, "*batch"]
Profile = Float[Array | np.ndarray, "*batch l"]


def surface_pressure(geopotential: Profile, levels: Sequence[int], surface_geopotential: Field) -> Field:
    """Pressure at the ground in Pa: that at which the geopotential of the column is the ground's.

    ln p is linear in geopotential between two levels, which is exact for an isothermal layer. Beyond the lowest
    level, and above the highest, the layer next to it is continued. Differentiable in both; no layer counts as
    thinner than at 100 K, so that a poor guess of the state has no infinite slope.

    Args:
        geopotential: (..., l) m2 s-2.
        levels: l pressures in hPa.
        surface_geopotential: (...) m2 s-2, of the ground.

    Raises:
        ValueError: fewer than two levels, levels that do not ascend or do not fit the field.
    """
    xp, pressure = _namespace(geopotential), _pressure(geopotential, levels, 2)
    layers = np.diff(np.log(pressure))
    upper, lower = geopotential[..., :-1], geopotential[..., 1:]
    thinnest = _last(xp, DRY_GAS_CONSTANT * _COLDEST * layers, upper)
    height = (surface_geopotential[..., None] - lower) / xp.maximum(upper - lower, thinnest)
    least, most = np.zeros(layers.size), np.ones(layers.size)
    least[-1], most[0] = -np.inf, np.inf
    height = xp.clip(height, _last(xp, least, height), _last(xp, most, height))
    # From the lowest level, not from ln p: float32 holds ln p of the ground to 0.1 Pa only.
    return float(pressure[-1]) * xp.exp(-(height * _last(xp, layers, height)).sum(-1))


def column_integral(field: Profile, levels: Sequence[int], surface_pressure: Field) -> Field:
    """Integral of a field over pressure, from the top of the atmosphere to the ground, in its units times Pa.

    The field is linear in p between levels, and constant above the highest and below the lowest; levels below
    the ground count in so far as the layer that the ground cuts takes its value at the ground from them.
    Differentiable, once continuously, in surface pressure.

    Args:
        field: (..., l).
        levels: l pressures in hPa.
        surface_pressure: (...) Pa.

    Raises:
        ValueError: levels that do not ascend or do not fit the field.
    """
    xp, pressure = _namespace(field), _pressure(field, levels, 1)
    tops = np.concatenate([[0.0], pressure])
    thickness = np.concatenate([np.diff(tops), [np.inf]])
    depth = xp.clip(surface_pressure[..., None] - _last(xp, tops, field), 0, _last(xp, thickness, field))
    top = xp.concatenate([field[..., :1], field], axis=-1)
    slope = xp.diff(xp.concatenate([top, field[..., -1:]], axis=-1), axis=-1) * _last(xp, 0.5 / thickness, field)
    return ((top + slope * depth) * depth).sum(-1)


def column_water(specific_humidity: Profile, levels: Sequence[int], surface_pressure: Field) -> Field:
    """Water vapour of the column, (1/g) * integral of q dp, in kg m-2."""
    return column_integral(specific_humidity, levels, surface_pressure) / GRAVITY


def column_dry_air(specific_humidity: Profile, levels: Sequence[int], surface_pressure: Field) -> Field:
    """Dry air of the column, (p_s - integral of q dp) / g, in kg m-2 (Trenberth and Smith 2005, J. Climate 18)."""
    return (surface_pressure - column_integral(specific_humidity, levels, surface_pressure)) / GRAVITY


def column_energy(
    temperature: Profile,
    specific_humidity: Profile,
    u: Profile,
    v: Profile,
    levels: Sequence[int],
    surface_pressure: Field,
    surface_geopotential: Field,
) -> Field:
    """Internal, potential, latent and kinetic energy of the column in J m-2.

    (1/g) * integral of (c_p T + L q + (u^2 + v^2) / 2) dp + p_s phi_s / g: by hydrostatic balance the sum of
    internal and potential energy is the integral of c_p T and a term of the ground (Trenberth and Solomon 1994,
    Clim. Dyn. 10, 107-134).
    """
    energy = HEAT_CAPACITY * temperature + LATENT_HEAT * specific_humidity + 0.5 * (u**2 + v**2)
    column = column_integral(energy, levels, surface_pressure) / GRAVITY
    return column + surface_pressure * (surface_geopotential / GRAVITY)


def virtual_temperature(temperature: Field, specific_humidity: Field) -> Field:
    """Temperature in K of dry air as light as the moist air."""
    return temperature * (1 + (VAPOUR_GAS_CONSTANT / DRY_GAS_CONSTANT - 1) * specific_humidity)


def thickness(virtual_temperature: Profile, levels: Sequence[int]) -> Float[Array | np.ndarray, "*batch layers"]:
    """Differences of geopotential between neighbouring levels, m2 s-2, by the hypsometric equation.

    Exact for virtual temperature that is linear in ln p between them.

    Raises:
        ValueError: fewer than two levels, levels that do not ascend or do not fit the field.
    """
    layers = np.diff(np.log(_pressure(virtual_temperature, levels, 2)))
    mean = 0.5 * (virtual_temperature[..., :-1] + virtual_temperature[..., 1:])
    return mean * _last(_namespace(mean), DRY_GAS_CONSTANT * layers, mean)


def saturation_vapour_pressure(temperature: Field) -> Field:
    """Over water, in Pa: Bolton (1980, Mon. Wea. Rev. 108, 1046-1053), equation 10; 0.1 % from -30 to 35 Celsius."""
    xp = _namespace(temperature)
    return 611.2 * xp.exp(17.67 * (temperature - 273.15) / (temperature - 29.65))


def saturation_specific_humidity(temperature: Field, pressure: Field) -> Field:
    """Of air saturated over water, kg kg-1; temperature in K, pressure in Pa."""
    ratio = DRY_GAS_CONSTANT / VAPOUR_GAS_CONSTANT
    vapour = saturation_vapour_pressure(temperature)
    return ratio * vapour / (pressure - (1 - ratio) * vapour)


def clausius_clapeyron(temperature: Field, warming: Field | float) -> Field:
    """Factor by which warming multiplies the humidity of air that keeps its relative humidity.

    The ratio of saturation vapour pressures (Bolton 1980), 6 to 7.5 % for each K near the ground.

    Args:
        temperature: K, before the warming.
        warming: K.

    >>> round(float(clausius_clapeyron(np.array([280.0]), 1.0)[0]), 3)
    1.071
    """
    return saturation_vapour_pressure(temperature + warming) / saturation_vapour_pressure(temperature)


def geostrophic_wind(
    geopotential: Float[Array | np.ndarray, "*batch h w"], grid: Grid, equator: float = 10.0
) -> tuple[Float[Array | np.ndarray, "*batch h w"], Float[Array | np.ndarray, "*batch h w"]]:
    """Wind in balance with the geopotential, by second-order differences.

    u_g = -d(phi)/d(latitude) / (f a),  v_g = d(phi)/d(longitude) / (f a cos(latitude)),  f = 2 Omega sin(latitude)

    Args:
        geopotential: (..., h, w) m2 s-2.
        grid: its grid, of three rows or more.
        equator: degrees; nearer to the equator there is no such balance.

    Returns:
        u_g and v_g, m s-1; NaN near the equator and, where there is no east, on the poles.

    Raises:
        ValueError: a field of another shape than the grid's.
    """
    if geopotential.shape[-2:] != grid.shape or grid.shape[0] < 3:
        raise ValueError(
            f"geostrophic wind needs a field (..., h, w) on a grid of at least three rows, got the shape "
            f"{geopotential.shape} and a grid of {grid.shape}"
        )
    xp = _namespace(geopotential)
    latitude = np.deg2rad(grid.latitude.astype(np.float64))
    north = (geopotential[..., 1:, :] - geopotential[..., :-1, :]) / _rows(xp, np.diff(latitude), geopotential)
    # Of the slopes to both sides, extrapolated at the ends: the parabola through three rows.
    weight = np.diff(latitude)[:-1] / (latitude[2:] - latitude[:-2])
    inner = north[..., :-1, :] + _rows(xp, weight, geopotential) * (north[..., 1:, :] - north[..., :-1, :])
    south_end, north_end = 2 * north[..., :1, :] - inner[..., :1, :], 2 * north[..., -1:, :] - inner[..., -1:, :]
    d_latitude = xp.concatenate([south_end, inner, north_end], axis=-2)
    east, west = xp.roll(geopotential, -1, axis=-1), xp.roll(geopotential, 1, axis=-1)
    d_longitude = (east - west) * (grid.shape[1] / (4 * np.pi))
    none = np.abs(grid.latitude) < equator
    scale = np.where(none, np.nan, 2 * ROTATION * EARTH_RADIUS * np.sin(latitude))
    eastward = np.where(np.abs(grid.latitude) < 90, scale * np.cos(latitude), np.nan)
    return -d_latitude / _rows(xp, scale, geopotential), d_longitude / _rows(xp, eastward, geopotential)


def _namespace(field):
    return jnp if isinstance(field, jax.Array) else np


def _last(xp, values: np.ndarray, like):
    """Values along the last axis of an array, to broadcast against it."""
    return xp.asarray(values, like.dtype).reshape((1,) * (like.ndim - 1) + values.shape)


def _rows(xp, values: np.ndarray, like):
    """Values along the last but one axis of an array, to broadcast against it."""
    return xp.asarray(values, like.dtype).reshape((1,) * (like.ndim - 2) + (values.size, 1))


def _pressure(field, levels: Sequence[int], fewest: int) -> np.ndarray:
    """Levels in Pa, float64."""
    pressure = np.asarray(levels, np.float64) * 100
    if pressure.ndim != 1 or pressure.size < fewest or (np.diff(pressure, prepend=0) <= 0).any():
        raise ValueError(f"expected {fewest} or more pressure levels in hPa that ascend, got {list(levels)}")
    if field.shape[-1:] != pressure.shape:
        raise ValueError(f"the last axis must hold {pressure.size} levels, got an array of shape {field.shape}")
    return pressure
