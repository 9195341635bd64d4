"""Station reports: a table of values with their places and times, to an observation of the video.

    read_stations -> Reports -> place -> {variable: Points} -> station_observation

The operator is bilinear in space and linear in time between frames, in physical units. 2m temperature is brought
from the model's orography to the station's elevation; 10m wind speed is that of the interpolated components;
precipitation is compared as log10(1000 tp + 1), as the prior keeps it. Everything that depends on the stations is
an array, so one compiled sampler serves all tables of one size.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from wind_jax.channels import Channel, index
from wind_jax.data.normalize import Statistics
from wind_jax.data.reports import COMPONENTS, SPEED, TEMPERATURE, Reports
from wind_jax.diffusion.likelihood import gaussian
from wind_jax.observations.observation import Observation, check_size, chosen_variance, observe, take
from wind_jax.physics import GRAVITY
from wind_jax.sphere import Grid, bilinear

RAIN = "total_precipitation_6hr"

LAPSE_RATE = 6.5e-3
"""Fall of 2m temperature with elevation in K m-1, that of the standard atmosphere (ISO 2533)."""

LAPSE_RATE_ERROR = 2e-3
"""Its uncertainty in K m-1: annual means in mountains are 3.9 to 5.2 K km-1 (Minder et al. 2010,
doi:10.1029/2009JD013493)."""

ERRORS = {
    TEMPERATURE: 2.5,
    SPEED: 3.5,
    **dict.fromkeys(COMPONENTS, 3.5),
    "mean_sea_level_pressure": 100.0,
    RAIN: 0.2,
    "temperature": 1.0,
}
"""Default standard deviations of error, instrument and representativeness on a grid of about 100 km.

K and m s-1 at the surface: defaults of NCAR's DART for land stations (its `prep_bufr` documentation); Pa and the K of
upper-air temperature: NCEP's global table `prepobs_errtable`. Precipitation: of log10(1000 tp + 1), a choice of ours.
"""

_CALM = 1e-2  # m2 s-2, rounds off the tip of the speed's cone; a tenth of the 1 m s-1 to which reports are rounded
# What is impossible below: temperatures in degrees Celsius, for one. A trace of rain is reported as -0.1 mm (BUFR, WMO
# No. 306).
_ABSOLUTE = (TEMPERATURE, SPEED, "temperature", "specific_humidity", "mean_sea_level_pressure", "surface_pressure")
_LEAST = {**dict.fromkeys(_ABSOLUTE, 0.0), RAIN: -1e-4}
_TELLING = 10  # reports of one variable before quality control takes mass rejection for wrong units


class Points(NamedTuple):
    """Reports of one variable seen from a window: arrays only, so that it may be an argument under `jax.jit`.

    Attributes:
        cells: (n, k, 8) positions in the flattened window, of k components (two for wind speed).
        weights: (n, k, 8) of the eight cells around the report in space and time.
        offset: (n,) added to the interpolated value: the correction of 2m temperature for elevation.
        y: (n,) observed values, in the operator's units.
        error: (n,) their standard deviations.
    """

    cells: Int[Array | np.ndarray, "n k 8"]
    weights: Float[Array | np.ndarray, "n k 8"]
    offset: Float[Array | np.ndarray, "n"]
    y: Float[Array | np.ndarray, "n"]
    error: Float[Array | np.ndarray, "n"]


class Rejected(NamedTuple):
    """A report that quality control rejects; values in the operator's units."""

    station: str
    time: np.datetime64
    variable: str
    value: float
    expected: float
    spread: float
    departure: float  # |value - expected| / sqrt(spread^2 + error^2)
    reason: str  # "impossible" or "departure"


def place(
    reports: Reports,
    grid: Grid,
    times: np.ndarray,
    channels: Sequence[Channel],
    surface_geopotential: Float[np.ndarray, "h w"],
    errors: Mapping[str, float] = ERRORS,
) -> dict[str, Points]:
    """Finds the reports in a window and gives each its error.

    The default error of 2m temperature grows by `LAPSE_RATE_ERROR` with the difference of elevation.

    Args:
        reports: to be placed; a subset in time is `reports.select(...)`.
        grid: of the window.
        times: (t,) datetime64 of its frames, ascending.
        channels: of its last axis.
        surface_geopotential: of the model's orography, m2 s-2.
        errors: standard deviation by variable, where the table has none; larger for coarser grids than 100 km.

    Returns:
        Points by variable, each in the order of the reports.

    Raises:
        ValueError: reports outside the window's times, without an error, or of channels that it does not have; or a
            window too large.
    """
    check_size((len(times), *grid.shape, len(channels)))
    times = np.asarray(times, "datetime64[ns]")
    outside = (reports.time < times[0]) | (reports.time > times[-1])
    if outside.any():
        raise ValueError(
            f"{int(outside.sum())} of {len(reports)} reports lie outside the window {times[0]} to {times[-1]}, the "
            f"first at {reports.time[outside][0]}: select those inside."
        )
    frame = np.maximum(np.searchsorted(times, reports.time, side="right") - 1, 0)
    later = np.minimum(frame + 1, times.size - 1)
    step = np.maximum(times[later] - times[frame], np.timedelta64(1, "ns"))
    fraction = ((reports.time - times[frame]) / step).astype(np.float32)

    def cells(component, rows):
        vector = component.endswith("component_of_wind")
        indices, weights = bilinear(grid, reports.latitude[rows], reports.longitude[rows], vector=vector)
        levels, which = np.unique(reports.level[rows], return_inverse=True)
        channel = np.array([index(channels, component, int(level) or None) for level in levels])[which]
        size, part = grid.shape[0] * grid.shape[1], fraction[rows, None]
        corners = np.concatenate([indices + size * frame[rows, None], indices + size * later[rows, None]], -1)
        return corners * len(channels) + channel[:, None], np.concatenate([(1 - part) * weights, part * weights], -1)

    def points(name):
        rows = reports.variable == name
        where, weights = zip(*(cells(component, rows) for component in (COMPONENTS if name == SPEED else (name,))))
        value, error, offset = reports.value[rows], reports.error[rows], np.zeros(rows.sum())
        default = errors.get(name, np.nan)
        if name == TEMPERATURE:
            indices, corner_weights = bilinear(grid, reports.latitude[rows], reports.longitude[rows])
            orography = (surface_geopotential.ravel()[indices] * corner_weights).sum(-1) / GRAVITY
            above = reports.elevation[rows] - orography
            offset, default = -LAPSE_RATE * above, np.hypot(default, LAPSE_RATE_ERROR * above)
        if name == RAIN:
            value = 1000 * np.maximum(value, 0) + 1
            value, error = np.log10(value), 1000 * error / (np.log(10) * value)
        error = np.where(np.isnan(error), default, error)
        if not (error > 0).all():
            raise ValueError(
                f"{int((~(error > 0)).sum())} reports of {name!r} have no positive error: give the table a column "
                f"`error`, or a default; there are defaults for {', '.join(errors)}."
            )
        reals = (offset, value, error)
        return Points(np.stack(where, 1).astype(np.int32), np.stack(weights, 1), *(a.astype(np.float32) for a in reals))

    return {name: points(name) for name in dict.fromkeys(reports.variable.tolist())}


def pad(placed: Mapping[str, Points], sizes: Mapping[str, int]) -> dict[str, Points]:
    """Points of the given number by variable, so that windows of different reports share one compiled sampler.

    Padding has no weight on the state and no residual: it leaves a nominal variance's posterior as it is (an
    adaptive variance would count it).

    Raises:
        ValueError: more points than a size, or a variable without one.
    """

    def padded(name, size):
        points = placed.get(name)
        n = 0 if points is None else points.y.size
        if n > size:
            raise ValueError(f"{n} reports of {name!r} do not fit into {size}.")
        k = 2 if name == SPEED else 1
        none = np.zeros((size - n, k, 8), np.float32)
        flat = np.zeros(size - n, np.float32)
        y = flat + np.float32(np.sqrt(_CALM)) if name == SPEED else flat  # what the operator gives for no weight
        empty = Points(none.astype(np.int32), none, flat, y, flat + 1)
        return empty if points is None else jax.tree.map(lambda a, b: np.concatenate([a, b]), points, empty)

    if missing := sorted(set(placed) - set(sizes)):
        raise ValueError(f"No size is given for {missing}.")
    return {name: padded(name, size) for name, size in sizes.items()}


def equivalents(placed: Mapping[str, Points]) -> Callable[[Float[Array, "t h w c"]], dict[str, Float[Array, "_"]]]:
    """The operator: what the stations would have reported of one member in physical units, by variable."""

    def operator(x):
        corners = take(x, {name: p.cells for name, p in placed.items()})
        return {
            name: _measured(name, (corners[name] * p.weights.astype(x.dtype)).sum(-1)) + p.offset.astype(x.dtype)
            for name, p in placed.items()
        }

    return operator


def _measured(name: str, components: Float[Array, "n k"]) -> Float[Array, "n"]:
    if name == SPEED:
        return jnp.sqrt((components**2).sum(-1) + _CALM)
    if name == RAIN:  # above -1 mm, where the prior's own transform ends
        return jnp.log10(jnp.maximum(1000 * components[:, 0] + 1, 1e-3))
    return components[:, 0]


def station_observation(
    placed: Mapping[str, Points], statistics: Statistics, variance: str = "nominal", log_likelihood: PyTree = gaussian
) -> Observation:
    """The observation of placed reports.

    Args:
        placed: from `place`, perhaps `pad`; numpy, jax or traced.
        statistics: of the prior.
        variance: "nominal", the square of each error, or "adaptive", the mean squared residual of each variable.
        log_likelihood: as in `Observation`; a Student t for gross errors that quality control leaves.

    Raises:
        ValueError: another `variance`.
    """
    y = {name: p.y for name, p in placed.items()}
    nominal = {name: p.error**2 for name, p in placed.items()}
    return observe(equivalents(placed), y, chosen_variance(variance, nominal), statistics, log_likelihood)


def quality_control(
    reports: Reports,
    placed: Mapping[str, Points],
    expected: Mapping[str, Float[np.ndarray | Array, "m _"]],
    threshold: float = 5.0,
) -> tuple[Bool[np.ndarray, "n"], list[Rejected]]:
    """Background check against the prior's own spread (Lorenc and Hammon 1988, QJRMS 114, 515-543).

    A report is rejected where |y - mean| > threshold * sqrt(spread^2 + error^2). Mean and spread are the prior's
    alone, so however many reports are bad, the rest are judged alike. What is checked for every variable besides is
    only that what cannot be negative is not.

    Args:
        reports: the table.
        placed: the same reports, by `place`.
        expected: `equivalents` of m free samples of the prior, or of m states at this time of year in independent
            weather: days in a row have too little spread, and reports too many departures.
        threshold: in standard deviations.

    Returns:
        Whether to keep each report, for `reports.select`, and those rejected, the worst departure first.

    Raises:
        ValueError: fewer than two members, or not finite, or a threshold that is not positive; or more than half of
            a variable rejected, which wrong units are likelier to cause than wrong stations.
    """
    if not threshold > 0:
        raise ValueError(f"The threshold of quality control must be positive, got {threshold}.")
    keep, rejected = np.ones(len(reports), bool), []
    for name, points in placed.items():
        rows = np.flatnonzero(reports.variable == name)
        members = np.asarray(expected[name], np.float64)
        if members.ndim != 2 or members.shape[0] < 2 or not np.isfinite(members).all():
            raise ValueError(
                f"Quality control needs two or more finite members of {name!r}, got an array of shape {members.shape}."
            )
        if not members.shape[1] == rows.size == points.y.size:
            raise ValueError(f"{rows.size} reports of {name!r} but equivalents of shape {members.shape}.")
        mean, spread = members.mean(0), members.std(0, ddof=1)
        departure = np.abs(points.y - mean) / np.hypot(spread, points.error)
        impossible = reports.value[rows] < _LEAST.get(name, -np.inf)
        wrong = impossible | (departure > threshold)
        if rows.size >= _TELLING and wrong.mean() > 0.5:
            raise ValueError(
                f"Quality control rejects {wrong.sum()} of {rows.size} reports of {name!r}: their median is "
                f"{np.median(points.y):.4g} where the prior expects {np.median(mean):.4g}. Are they in SI units?"
            )
        keep[rows[wrong]] = False
        for i in np.flatnonzero(wrong):
            numbers = (float(a[i]) for a in (points.y, mean, spread, departure))
            reason = "impossible" if impossible[i] else "departure"
            rejected.append(Rejected(str(reports.station[rows[i]]), reports.time[rows[i]], name, *numbers, reason))
    return keep, sorted(rejected, key=lambda report: -report.departure)
