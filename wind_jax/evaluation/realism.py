"""Physical realism of a state, without a truth: what the atmosphere's equations leave over, and its global budgets.

Of numpy or jax arrays in physical units, in their dtype (budgets of numpy arrays in float64). No number here is
zero for a real atmosphere: it has ageostrophic wind, curved profiles between levels, evaporation. Read a forecast's
beside the same number of the truth on the same grid and levels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from wind_jax import physics
from wind_jax.channels import Channel, index, levels_of
from wind_jax.columns import Columns, total
from wind_jax.sphere import Grid, area_mean

Field = Float[Array | np.ndarray, "*batch h w"]
Profile = Float[Array | np.ndarray, "*batch h w l"]
State = Float[Array | np.ndarray, "*batch t h w c"]
Score = Float[ArrayLike, "..."]  # numpy or jax like the fields; a numpy scalar of one field

_WIND = ("u_component_of_wind", "v_component_of_wind")
_UNITS = {"hydrostatic_residual": "K", "dry_air_mass": "kg", "implied_evaporation": "kg m-2 day-1"}
_RAIN, _RAIN_HOURS = "total_precipitation_6hr", 6
_WATER_DENSITY = 1000.0  # kg m-3: a metre of precipitation in kg m-2


def geostrophic_imbalance(geopotential: Field, u: Field, v: Field, grid: Grid, equator: float = 20.0) -> Score:
    """Root mean square of the ageostrophic wind over that of the wind, |V - V_g| / |V|, outside the tropics.

    0.2 to 0.25 from 200 to 700 hPa of ERA5 at 5.6 degrees, up to 0.7 near the ground where friction acts. Wind and
    mass fields that do not belong together have more; a forecast that has lost its fast, unbalanced motion has less
    (Bonavita 2024, Geophys. Res. Lett. 51, e2023GL107377, on what learned forecasts do to this balance).

    Args:
        geopotential: (..., h, w) m2 s-2, at one pressure level.
        u: m s-1.
        v: m s-1.
        grid: of the fields.
        equator: degrees; rows nearer to the equator, and the poles, do not count.

    Raises:
        ValueError: fields of another shape than the grid's.
    """
    xp = _namespace(geopotential)
    u_g, v_g = physics.geostrophic_wind(geopotential, grid, equator)
    counts = (np.abs(grid.latitude) >= equator) & (np.abs(grid.latitude) < 90)
    counts = xp.asarray(counts.reshape((1,) * (u.ndim - 2) + (-1, 1)))
    ageostrophic, wind = (area_mean(xp.where(counts, a**2 + b**2, 0), grid) for a, b in ((u - u_g, v - v_g), (u, v)))
    return xp.sqrt(ageostrophic / wind)


def hydrostatic_residual(
    geopotential: Profile,
    temperature: Profile,
    specific_humidity: Profile,
    levels: Sequence[int],
    grid: Grid,
    surface_geopotential: Float[np.ndarray, "h w"],
) -> Score:
    """Root mean square of the hydrostatic imbalance of each layer, as a virtual temperature in K.

    The mean virtual temperature that the geopotential between two levels asks for, minus the mean of the two levels'
    own. Zero where virtual temperature is linear in ln p; the curvature of real profiles in thick layers is in it.
    Layers whose lower level is below the ground do not count.

    Args:
        geopotential: (..., h, w, l) m2 s-2.
        temperature: K.
        specific_humidity: kg kg-1.
        levels: l pressures in hPa, ascending.
        grid: of the fields.
        surface_geopotential: (h, w) m2 s-2.

    Returns:
        (..., l - 1): from the highest layer down; NaN for a layer that is nowhere above the ground.

    Raises:
        ValueError: fewer than two levels, levels that do not ascend or do not fit the fields.
    """
    xp, last = _namespace(geopotential), (1,) * (geopotential.ndim - 1)
    thickness = physics.thickness(physics.virtual_temperature(temperature, specific_humidity), levels)
    kelvin = physics.DRY_GAS_CONSTANT * np.diff(np.log(np.asarray(levels, np.float64)))
    kelvin = xp.asarray(kelvin.reshape(*last, -1), thickness.dtype)
    residual = (-xp.diff(geopotential, axis=-1) - thickness) / kelvin
    ground = xp.asarray(surface_geopotential, geopotential.dtype).reshape(*last[2:], *grid.shape, 1)
    counts = ~(geopotential[..., 1:] < ground)
    share = area_mean(counts.astype(residual.dtype), grid, axis=(-3, -2))
    squares = area_mean(xp.where(counts, residual**2, 0), grid, axis=(-3, -2))
    return xp.sqrt(squares / xp.where(share > 0, share, np.nan))


def negative_share(field: Field, grid: Grid) -> Score:
    """Share of the Earth's area where a field is below 0; NaN for a field with missing values."""
    xp = _namespace(field)
    return area_mean(xp.where(xp.isnan(field), field, (field < 0).astype(field.dtype)), grid)


def implied_evaporation(x: State, columns: Columns) -> Float[Array | np.ndarray, "*batch t"]:
    """Evaporation that closes the Earth's water budget over each frame, E = d(W)/dt + P, kg m-2 day-1.

    W is the global mean of column water vapour, P that of precipitation over the 6 hours since the frame before. The
    transport by the wind has no global mean; cloud water (0.1 kg m-2) is neglected. What the surface evaporates is not
    in the state, so the budget of one column, which needs it and the transport, cannot be closed. The Earth evaporates
    about 2.6 (Trenberth et al. 2007, J. Hydrometeor. 8, 758-769) and steadily so, SPEEDY's from 2.46 to 2.58 in a week:
    another number, or one that jumps from frame to frame, is water made or lost.

    Args:
        x: (..., t, h, w, c), frames 6 h apart.
        columns: of the state, with `total_precipitation_6hr` among its channels.

    Returns:
        (..., t): NaN in the first frame.

    Raises:
        ValueError: channels that lack humidity, or precipitation.
    """
    names = [c.name for c in columns.channels]
    if _RAIN not in names:
        raise ValueError(
            f"the water budget needs {_RAIN}; the channels are {', '.join(c.key for c in columns.channels)}"
        )
    xp = _namespace(x)
    water = _total(x, columns, "total_water") / physics.EARTH_AREA
    rain = area_mean(x[..., 1:, :, :, names.index(_RAIN)], columns.grid) * _WATER_DENSITY
    evaporation = (xp.diff(water, axis=-1) + rain) * (24 / _RAIN_HOURS)
    return xp.concatenate([xp.full_like(water[..., :1], np.nan), evaporation], axis=-1)


def units(name: str) -> str:
    """Units of a diagnostic of `realism`."""
    return _UNITS.get(name, "1")


def realism(
    x: State,
    channels: Sequence[Channel],
    grid: Grid,
    surface_geopotential: Float[np.ndarray, "_ _"] | None,
    hours: float = 6.0,
    before: Float[Array | np.ndarray, "*#batch h w c"] | None = None,
) -> dict[tuple[str, int | None], Float[Array | np.ndarray, "*batch t"]]:
    """All diagnostics that the channels allow, of each frame of each member.

    Args:
        x: (..., t, h, w, c) physical units; any axes for members, cases.
        channels: what the last axis holds.
        grid: of the state.
        surface_geopotential: (h, w) m2 s-2; None leaves out what needs the ground: the hydrostatic residual, the mass
            of dry air and the water budget.
        hours: between frames; the water budget is left out unless 6, the hours that precipitation is summed over.
        before: the frame before the first, such as the last known one of a forecast; broadcast over members and cases.

    Returns:
        (name, level) -> (..., t), in `units(name)`. Level is None for the whole atmosphere, and for a layer its lower
        level. Names: "geostrophic_imbalance", "hydrostatic_residual", "negative_specific_humidity" and the like for
        every variable that cannot be negative (`negative_share`), "dry_air_mass" of the Earth, "dry_air_mass_drift",
        its relative departure from `before`, or from the first frame of x, and "implied_evaporation", which the first
        frame has only with `before`.

    Raises:
        ValueError: a state or a ground that does not fit the channels and the grid.
    """
    if x.shape[-3:] != (*grid.shape, len(channels)):
        raise ValueError(f"expected (..., t, h, w, c) = (..., t, {grid.shape}, {len(channels)}), got {x.shape}")
    if surface_geopotential is not None and surface_geopotential.shape != grid.shape:
        raise ValueError(
            f"surface geopotential has shape {surface_geopotential.shape}, expected {grid.shape} of the grid"
        )
    if before is not None:
        xp = _namespace(x)
        first = xp.broadcast_to(before, (*x.shape[:-4], *x.shape[-3:]))[..., None, :, :, :]
        found = realism(xp.concatenate([first, x], axis=-4), channels, grid, surface_geopotential, hours)
        return {key: value[..., 1:] for key, value in found.items()}
    shared = lambda *names: sorted(set.intersection(*(set(levels_of(channels, name)) for name in names)))
    names = {c.name for c in channels}
    out = {}
    for level in shared("geopotential", *_WIND):
        fields = (x[..., index(channels, name, level)] for name in ("geopotential", *_WIND))
        out["geostrophic_imbalance", level] = geostrophic_imbalance(*fields, grid)
    for i, c in enumerate(channels):
        if c.non_negative:
            out[f"negative_{c.name}", c.level] = negative_share(x[..., i], grid)
    if surface_geopotential is None:
        return out
    profiles = ("geopotential", "temperature", "specific_humidity")
    if len(levels := shared(*profiles)) > 1:
        fields = (x[..., np.array([index(channels, name, level) for level in levels])] for name in profiles)
        residual = hydrostatic_residual(*fields, levels, grid, surface_geopotential)
        out |= {("hydrostatic_residual", level): residual[..., i] for i, level in enumerate(levels[1:])}
    if shared("specific_humidity") and (len(shared("geopotential")) > 1 or "surface_pressure" in names):
        columns = Columns(channels, grid, surface_geopotential)
        mass = out["dry_air_mass", None] = _total(x, columns, "dry_air_mass")
        out["dry_air_mass_drift", None] = mass / mass[..., :1] - 1
        if _RAIN in names and hours == _RAIN_HOURS:
            out["implied_evaporation", None] = implied_evaporation(x, columns)
    return out


def _total(x: State, columns: Columns, quantity: str) -> Float[Array | np.ndarray, "*batch t"]:
    """`total` of every frame of every member."""
    return total(x.reshape(-1, *x.shape[-3:]), columns, quantity).reshape(x.shape[:-3])


def _namespace(field):
    return jnp if isinstance(field, jax.Array) else np
