"""Storylines: an observed event in a warmer world, and what a free or a guided run makes of it.

The event is shifted by dT at constant relative humidity, so that specific humidity follows Clausius-Clapeyron (about
7 %/K). Its large scale is the observation; the prior does the rest. What is left of the imposed signal at each lead,
and how precipitation answers, is the result (Shepherd et al. 2018, doi:10.1007/s10584-018-2317-9).

Surface pressure and winds are kept: each column has its mass and is hydrostatic as before, only thicker. Where dT is
uniform so is the thickening, up to orography and humidity, and winds stay near geostrophic balance. Mean sea level
pressure is kept too, as a reduction of the surface's.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wind_jax.channels import Channel, index, levels_of, positions
from wind_jax.data.normalize import Statistics
from wind_jax.observations.observation import Observation, chosen_variance, observe
from wind_jax.physics import clausius_clapeyron, surface_pressure, thickness, virtual_temperature
from wind_jax.sphere import Coarsening, Grid, area_weights, coarsen

LARGE_SCALE = ("temperature", "specific_humidity", "geopotential")
"""What is shifted on levels, and observed unless said otherwise."""

MAX_SHIFT = 20.0
"""K; a dT beyond is no storyline but an error of units."""

Warming = float | int | Mapping[int, float | int]
Edges = tuple[float | int, float | int]


def shift(
    x: Float[np.ndarray, "t h w c"],
    channels: Sequence[Channel],
    warming: Warming,
    surface_geopotential: Float[np.ndarray, "h w"] | None = None,
    mask: Float[np.ndarray, "h w"] | None = None,
) -> Float[np.ndarray, "t h w c"]:
    """The event shifted by dT.

    Temperature on levels and at 2 m rises by dT; specific humidity is multiplied by the ratio of saturation vapour
    pressures (relative humidity is kept to first order in e / p); geopotential follows from the hypsometric
    equation above the ground, at the surface pressure of `physics.surface_pressure`, which is kept exactly.

    Args:
        x: the event in physical units.
        channels: what its last axis holds.
        warming: dT in K, one number, or by level (hPa): then linear in ln p between the given levels and constant
            beyond them; at 2 m that of the prior's lowest level.
        surface_geopotential: m2 s-2; needed where geopotential is among the channels.
        mask: share of the warming at each place, 0 to 1; None for all of it. Smooth edges keep winds balanced.

    Raises:
        ValueError: a dT that is not finite or beyond `MAX_SHIFT`, a level that the prior does not have, a mask
            outside [0, 1], or channels without the temperature that humidity or geopotential needs.
    """
    levels = {name: levels_of(channels, name) for name in LARGE_SCALE}
    position = partial(index, channels)
    profile = _profile(warming, levels["temperature"])
    for name in LARGE_SCALE:
        if alone := sorted(set(levels[name]) - set(levels["temperature"])):
            raise ValueError(f"{name} at {alone} hPa cannot be shifted: the prior has no temperature there.")
    if levels["geopotential"] and surface_geopotential is None:
        raise ValueError("Shifting geopotential needs that of the ground, surface_geopotential.")
    if mask is not None and not ((mask >= 0) & (mask <= 1)).all():
        raise ValueError(f"The mask of a storyline must lie in [0, 1], got {np.min(mask):g} to {np.max(mask):g}.")

    share = np.broadcast_to(1.0 if mask is None else mask.astype(np.float64), x.shape[:3])
    before, out = x.astype(np.float64), x.astype(np.float64)
    if any(c.name == "2m_temperature" for c in channels):
        out[..., position("2m_temperature")] += share * profile[-1]
    for level, dT in zip(levels["temperature"], profile):
        temperature = position("temperature", level)
        out[..., temperature] += share * dT
        if level in levels["specific_humidity"]:
            ratio = clausius_clapeyron(before[..., temperature], share * dT)
            out[..., position("specific_humidity", level)] *= ratio
    if levels["geopotential"]:

        def virtual(x, level):
            temperature = x[..., position("temperature", level)]
            if level not in levels["specific_humidity"]:
                return temperature
            return virtual_temperature(temperature, x[..., position("specific_humidity", level)])

        columns = [position("geopotential", level) for level in levels["geopotential"]]
        warmer = np.stack([virtual(out, level) - virtual(before, level) for level in levels["geopotential"]], -1)
        ground = np.broadcast_to(surface_geopotential.astype(np.float64), x.shape[:3])
        pressure = surface_pressure(before[..., columns], levels["geopotential"], ground)
        out[..., columns] += _lift(warmer, levels["geopotential"], pressure)
    return out.astype(x.dtype)


def _profile(warming: Warming, levels: Sequence[int]) -> Float[np.ndarray, "l"]:
    """dT at each level; where there is none, at the surface alone."""
    by_level = isinstance(warming, Mapping)
    given = dict(warming) if by_level else {(levels or [1000])[-1]: warming}
    if by_level and (not given or not set(given) <= set(levels)):
        wrong = sorted(set(given) - set(levels)) or "no level"
        raise ValueError(f"The warming names {wrong}; the prior has temperature at {levels} hPa.")
    for dT in given.values():
        if not (math.isfinite(dT) and abs(dT) <= MAX_SHIFT):
            raise ValueError(f"A warming must be finite and within {MAX_SHIFT:g} K, got {dT}.")
    at = sorted(given)
    return np.interp(np.log(levels or at), np.log(at), [given[level] for level in at])


def _lift(
    warmer: Float[np.ndarray, "t h w l"], levels: Sequence[int], pressure: Float[np.ndarray, "t h w"]
) -> Float[np.ndarray, "t h w l"]:
    """Change of geopotential at each level for a change of virtual temperature, 0 at the surface pressure (Pa)."""
    layers = thickness(warmer, levels)
    above_lowest = np.cumsum(np.pad(layers, ((0, 0),) * 3 + ((0, 1),))[..., ::-1], axis=-1)[..., ::-1]
    # Linear in ln p within a layer, and the outer layers continued: so does surface_pressure, which thus stays.
    ln_p, ln_ground = np.log(np.asarray(levels) * 100.0), np.log(pressure)
    layer = np.clip(np.searchsorted(ln_p, ln_ground) - 1, 0, ln_p.size - 2)
    part = (ln_ground - ln_p[layer]) / np.diff(ln_p)[layer]
    top, bottom = (np.take_along_axis(above_lowest, (layer + i)[..., None], -1) for i in (0, 1))
    return above_lowest - (top + part[..., None] * (bottom - top))


def region(grid: Grid, latitude: Edges, longitude: Edges) -> Float[np.ndarray, "h w"]:
    """1 at the cells whose centre is in a box, 0 elsewhere.

    Args:
        grid: the grid.
        latitude: southern and northern edge in degrees.
        longitude: western and eastern edge in degrees, -180 to 360; the box reaches from west eastwards to east.

    Raises:
        ValueError: a box off the globe, or one that holds no cell.
    """
    (south, north), (west, east) = latitude, longitude
    if not (-90 <= south < north <= 90 and -180 <= west <= 360 and -180 <= east <= 360 and west != east):
        raise ValueError(
            f"No region has the latitudes {latitude} and longitudes {longitude}: expected (south, north) within "
            "[-90, 90] and (west, east) within [-180, 360] degrees."
        )
    width = (east - west) % 360 or 360
    rows = (grid.latitude >= south) & (grid.latitude <= north)
    inside = (rows[:, None] & ((grid.longitude - west) % 360 <= width)[None, :]).astype(np.float32)
    if not inside.any():
        raise ValueError(f"The region {latitude}, {longitude} holds no cell of the grid of {grid.shape}.")
    return inside


def large_scale_observation(
    shifted: Float[Array | np.ndarray, "t h w c"],
    coarsening: Coarsening,
    statistics: Statistics,
    variables: Sequence[str] = LARGE_SCALE,
    error: float | Mapping[str, float] = 0.1,
    mask: Float[np.ndarray, "h w"] | None = None,
    variance: str = "nominal",
) -> Observation:
    """The large scale of the shifted event: area means over coarse cells, in physical units.

    Args:
        shifted: from `shift`; may be traced.
        coarsening: to the coarse cells.
        statistics: of the prior.
        variables: those observed, at all of their levels.
        error: of the coarse means, as a share of each channel's standard deviation; one number, or by variable.
        mask: where it is observed: in coarse cells of which it covers half or more; None for everywhere.
        variance: "nominal", the square of the error, or "adaptive", the mean squared residual of each variable.

    Returns:
        An observation whose y is a dict by variable of (t, coarse cells, levels).

    Raises:
        ValueError: a variable that the prior does not have or keeps transformed (precipitation), an error that is
            missing or not positive, a mask that holds no coarse cell, or another `variance`.
    """
    kept = {
        name: where
        for name, where in positions(statistics.channels).items()
        if statistics.channels[where[0]].transform == "none"
    }
    if wrong := [name for name in variables if name not in kept]:
        raise ValueError(f"The large scale of {wrong} cannot be observed: the prior keeps no such field untransformed.")
    columns = {name: kept[name] for name in variables}
    shares = {name: error.get(name, math.nan) if isinstance(error, Mapping) else error for name in variables}
    if wrong := {name: share for name, share in shares.items() if not (math.isfinite(share) and share > 0)}:
        raise ValueError(f"The error of the large scale must be positive for each variable, got {wrong}.")
    cover = np.ones(shifted.shape[1:3], np.float32) if mask is None else mask.astype(np.float32)
    inside = np.flatnonzero(np.asarray(coarsen(cover[..., None], coarsening)) >= 0.5)
    if not inside.size:
        raise ValueError("The mask covers half of no coarse cell: widen it, or coarsen less.")

    def operator(x):
        def cells(where):
            coarse = coarsen(x[..., where], coarsening)
            return coarse.reshape(coarse.shape[0], -1, where.size)[:, inside]

        return {name: cells(where) for name, where in columns.items()}

    std = {name: statistics.std[where] for name, where in columns.items()}
    nominal = {name: (np.float32(shares[name]) * std[name]) ** 2 for name in variables}
    return observe(operator, operator(jnp.asarray(shifted)), chosen_variance(variance, nominal), statistics)


def signal_kept(
    guided: Float[np.ndarray, "*batch t h w c"],
    control: Float[np.ndarray, "*batch t h w c"],
    imposed: Float[np.ndarray, "t h w c"],
    grid: Grid,
    mask: Float[np.ndarray, "h w"] | None = None,
) -> Float[np.ndarray, "*batch t c"]:
    """How much of the imposed signal a run keeps: the area-weighted projection of (guided - control) on it.

    <guided - control, imposed> / <imposed, imposed>, by frame and channel: 1 if it is kept, 0 if it is lost.

    Args:
        guided: (..., t, h, w, c) of the run with the signal, guided or free, in physical units.
        control: of the run without.
        imposed: the shifted event less the event.
        grid: of the fields.
        mask: the region, as a weight; None for the globe.

    Returns:
        (..., t, c), NaN where nothing was imposed.

    Raises:
        ValueError: a mask that is 0 everywhere.
    """
    signal = imposed.astype(np.float64)
    weights = _weights(grid, mask)[..., None]
    kept = (weights * (guided.astype(np.float64) - control) * signal).sum((-3, -2))
    power = (weights * signal**2).sum((-3, -2))
    return np.divide(kept, power, out=np.full(kept.shape, np.nan), where=power > 0)


class PrecipitationScaling(NamedTuple):
    """Change of mean precipitation in % per K of warming.

    Attributes:
        by_lead: (..., t) at each frame; NaN where the control has none.
        total: (...) of the sum over the frames.
        clausius_clapeyron: the change of saturation vapour pressure at the control's mean 2m temperature, mean over
            frames.
    """

    by_lead: Float[np.ndarray, "*batch t"]
    total: Float[np.ndarray, "*batch"]
    clausius_clapeyron: float


def precipitation_scaling(
    guided: Float[np.ndarray, "*batch t h w c"],
    control: Float[np.ndarray, "*batch t h w c"],
    channels: Sequence[Channel],
    grid: Grid,
    warming: float | int,
    mask: Float[np.ndarray, "h w"] | None = None,
) -> PrecipitationScaling:
    """The change of precipitation against Clausius-Clapeyron.

    Extremes follow its 6 to 7 %/K or more, the global mean, held by the energy budget, 1 to 3 %/K (Held and Soden
    2006, doi:10.1175/JCLI3990.1).

    Args:
        guided: of the warmer run, in physical units; take means over members beforehand.
        control: of the run without warming.
        channels: what the last axis holds.
        grid: of the fields.
        warming: dT near the surface, K.
        mask: the region, as a weight; None for the globe.

    Raises:
        ValueError: a prior without precipitation or 2m temperature, or a warming that is 0 or absurd.
    """
    names = [c.name for c in channels]
    if missing := sorted({"2m_temperature", "total_precipitation_6hr"} - set(names)):
        raise ValueError(f"The scaling of precipitation needs {missing}, which the prior does not have.")
    if not 0 < abs(warming) <= MAX_SHIFT:
        raise ValueError(f"A scaling per K needs a warming other than 0 within {MAX_SHIFT:g} K, got {warming}.")
    weights = _weights(grid, mask)

    def mean(x, name):
        return (weights * np.asarray(x[..., names.index(name)], np.float64)).sum((-2, -1)) / weights.sum()

    def scaling(warm, cold):
        change = np.divide(warm - cold, cold, out=np.full(np.shape(cold), np.nan), where=np.asarray(cold) > 0)
        return 100 / warming * change

    warm, cold = (mean(x, "total_precipitation_6hr") for x in (guided, control))
    ratio = clausius_clapeyron(mean(control, "2m_temperature"), float(warming))
    expected = float(100 / warming * (ratio.mean() - 1))
    return PrecipitationScaling(scaling(warm, cold), scaling(warm.sum(-1), cold.sum(-1)), expected)


def _weights(grid: Grid, mask: Float[np.ndarray, "h w"] | None) -> Float[np.ndarray, "h w"]:
    weights = np.broadcast_to(area_weights(grid), grid.shape) * (1 if mask is None else mask)
    if not weights.sum() > 0:
        raise ValueError("The mask of the region is 0 everywhere.")
    return weights
