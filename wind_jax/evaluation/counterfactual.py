"""Storylines against a model that was warmed for real: which storms, what changed by how much, how sure that is.

Each arm is a pair of runs of one event, the warm one and its control, as ensembles (m, t, h, w, c) in physical units; a
model's own run is an ensemble of one. Frames are 6 h apart and begin 6 h after the warming. What is measured comes as
flat records, one number each, of which `summary` makes means over the storms with their confidence intervals.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from wind_jax.columns import Columns, total
from wind_jax.evaluation.realism import realism
from wind_jax.sphere import Grid, area_weights, zonal_spectrum
from wind_jax.tasks.warming import precipitation_scaling, region, signal_kept

DAY = 4
"""Frames in 24 h."""

BANDS = {"1-3": slice(1, 4), "4-9": slice(4, 10), "10-21": slice(10, 22)}
"""Zonal wavenumbers: planetary, synoptic and the smallest that a model truncated at 21 has."""

Record = dict[str, str | int | float | None]
Ensemble = Float[np.ndarray, "m t h w c"]


class Storm(NamedTuple):
    """The heaviest rain of a branch at one place.

    Attributes:
        start: frames of the archive before the branch.
        frame: of the branch, the last of the 24 h.
        latitude: degrees, of the cell's centre.
        longitude: degrees.
        rain: mm in these 24 h.
    """

    start: int
    frame: int
    latitude: float
    longitude: float
    rain: float


class Pair(NamedTuple):
    """Runs of one event that differ in the warming alone."""

    warm: Ensemble
    control: Ensemble


def strongest_storms(
    rain: Float[np.ndarray, "time h w"],
    grid: Grid,
    starts: Sequence[int],
    frames: int,
    latitudes: tuple[float | int, float | int],
    count: int,
) -> list[Storm]:
    """The storms with the heaviest rain of 24 h in one cell, at most one a branch, strongest first.

    A storm's 24 h begin a day or more after its branch does and end within it: until then rain adjusts to the warming.

    Args:
        rain: m in 6 h, of the whole archive.
        grid: of the fields.
        starts: frames of the archive before each branch; branches must not overlap.
        frames: length of a branch.
        latitudes: least and greatest distance from the equator, degrees.
        count: how many.

    Raises:
        ValueError: a branch shorter than two days or beyond the archive, a belt without cells, or fewer branches
            than storms.
    """
    rows = np.flatnonzero((np.abs(grid.latitude) >= latitudes[0]) & (np.abs(grid.latitude) <= latitudes[1]))
    if not rows.size:
        raise ValueError(f"No row of the grid lies between {latitudes[0]} and {latitudes[1]} degrees from the equator.")
    if frames < 2 * DAY or any(not 0 <= start <= len(rain) - frames for start in starts):
        raise ValueError(
            f"Branches of {frames} frames must have 8 or more and lie within the archive's {len(rain)}, got the "
            f"starts {list(starts)}."
        )
    if count > len(starts):
        raise ValueError(f"{count} storms were asked for; there are {len(starts)} branches, each with one.")
    storms = []
    for start in starts:
        six_hours = rain[start + DAY : start + frames, rows].astype(np.float64)
        day = np.lib.stride_tricks.sliding_window_view(six_hours, DAY, axis=0).sum(-1)
        first, row, column = np.unravel_index(day.argmax(), day.shape)
        place = float(grid.latitude[rows[row]]), float(grid.longitude[column])
        storms.append(Storm(start, int(first) + 2 * DAY - 1, *place, 1e3 * float(day.max())))
    return sorted(storms, key=lambda storm: -storm.rain)[:count]


def box(storm: Storm, grid: Grid, height: float = 30.0, width: float = 45.0) -> Float[np.ndarray, "h w"]:
    """1 in the box of so many degrees about a storm, 0 elsewhere."""
    south, north = max(storm.latitude - height / 2, -90.0), min(storm.latitude + height / 2, 90.0)
    return region(grid, (south, north), ((storm.longitude - width / 2) % 360, (storm.longitude + width / 2) % 360))


def compare(
    arms: Mapping[str, Pair],
    imposed: Float[np.ndarray, "t h w c"],
    columns: Columns,
    kelvin: float | int,
    mask: Float[np.ndarray, "h w"],
) -> list[Record]:
    """What the warming did in each arm, over the globe and over the storm.

    Quantities, with their units:

        signal_kept             1; `tasks.warming.signal_kept` of ensemble means, by lead and warmed channel
        precipitation_mean      %/K; by lead, and of all leads together
        precipitation_p99       %/K; 99th percentile of the rain of 6 h over cells, leads and members
        precipitation_heaviest  %/K; heaviest rain of 24 h in a cell from the second day on, mean of the members
        clausius_clapeyron      %/K; of the control's 2 m temperature
        wind_speed              %/K; mean speed at each level, all leads
        column_water            %/K; global mean, all leads
        energy_change           1; zonal energy, warm over control, by band of wavenumbers
        energy_ratio            1; zonal energy of the warm run over that of the first arm's warm run
        others                  of `realism`, of the warm run and of the control: mean of leads and members

    Args:
        arms: by name; the first is the reference.
        imposed: the warming of each frame.
        columns: channels, grid and ground of the runs.
        kelvin: of the warming.
        mask: of the storm.

    Returns:
        Records with the keys arm, region, quantity, channel, lead_hours, value.

    Raises:
        ValueError: runs of other shapes than the imposed signal's.
    """
    for name, pair in arms.items():
        if wrong := [x.shape for x in pair if x.shape[1:] != imposed.shape]:
            raise ValueError(
                f"{name} has runs of shape {wrong[0]}; expected (m, {', '.join(map(str, imposed.shape))})."
            )
    everywhere = np.ones(columns.grid.shape, np.float32)
    reference = _energy(next(iter(arms.values())).warm, columns.grid)
    records: list[Record] = []
    for name, pair in arms.items():
        found = {
            "globe": _regional(pair, imposed, columns, kelvin, everywhere) + _global(pair, reference, columns, kelvin),
            "storm": _regional(pair, imposed, columns, kelvin, mask),
        }
        records += [{"arm": name, "region": where, **record} for where, some in found.items() for record in some]
    return records


def summary(cases: Sequence[Sequence[Record]], level: float = 0.95) -> list[Record]:
    """Mean over the cases of each number, with the confidence interval of Student's t.

    Args:
        cases: the records of each.
        level: of confidence.

    Returns:
        Records with mean, low, high and cases instead of value; low and high are None where fewer than two cases have
        a finite value.
    """
    values: dict[tuple, list[float]] = {}
    for records in cases:
        for record in records:
            key = tuple((k, v) for k, v in record.items() if k != "value")
            values.setdefault(key, []).append(record["value"])
    out = []
    for key, some in values.items():
        finite = np.array([value for value in some if np.isfinite(value)])
        n = finite.size
        mean = float(finite.mean()) if n else float("nan")
        half = stats.t.ppf((1 + level) / 2, n - 1) * finite.std(ddof=1) / np.sqrt(n) if n > 1 else None
        low, high = (None, None) if half is None else (mean - float(half), mean + float(half))
        out.append({**dict(key), "mean": mean, "low": low, "high": high, "cases": int(n)})
    return out


def _regional(
    pair: Pair,
    imposed: Float[np.ndarray, "t h w c"],
    columns: Columns,
    kelvin: float | int,
    mask: Float[np.ndarray, "h w"],
) -> list[Record]:
    channels, grid = columns.channels, columns.grid
    warm, control = (x.mean(0) for x in pair)
    hours = [6 * (frame + 1) for frame in range(len(imposed))]
    percent = lambda change: 100 / kelvin * (change[0] / change[1] - 1)

    kept = signal_kept(warm, control, imposed, grid, mask)
    told = [i for i in range(len(channels)) if np.isfinite(kept[:, i]).all()]
    out = [_record("signal_kept", kept[t, i], channels[i].key, hours[t]) for i in told for t in range(len(hours))]

    scaling = precipitation_scaling(warm, control, channels, grid, kelvin, mask)
    out += [_record("precipitation_mean", v, hours=h) for v, h in zip(scaling.by_lead, hours, strict=True)]
    out.append(_record("precipitation_mean", scaling.total))
    out.append(_record("clausius_clapeyron", scaling.clausius_clapeyron))
    position = {(c.name, c.level): i for i, c in enumerate(channels)}
    weights = np.broadcast_to(area_weights(grid), grid.shape) * mask
    rain = [x[..., position["total_precipitation_6hr", None]] for x in pair]
    out.append(_record("precipitation_p99", percent([_quantile(x, weights, 0.99) for x in rain])))
    late = [x[:, DAY:, mask > 0] for x in rain]
    heaviest = [np.lib.stride_tricks.sliding_window_view(x, DAY, axis=1).sum(-1).max((1, 2)).mean() for x in late]
    out.append(_record("precipitation_heaviest", percent(heaviest)))

    for (name, level), u in position.items():
        v = position.get((name.replace("u_component", "v_component"), level), u)
        if u != v:
            speed = [(weights * np.hypot(x[..., u], x[..., v])).mean() for x in pair]
            out.append(_record("wind_speed", percent(speed), "10m" if level is None else str(level)))
    return out


def _global(pair: Pair, reference: Float[np.ndarray, "k c"], columns: Columns, kelvin: float | int) -> list[Record]:
    energy = [_energy(x, columns.grid) for x in pair]
    out = []
    for band, k in BANDS.items():
        warm, control, expected = (spectrum[k].sum(0) for spectrum in (*energy, reference))
        for i, channel in enumerate(columns.channels):
            out.append(_record(f"energy_change_{band}", warm[i] / control[i], channel.key))
            out.append(_record(f"energy_ratio_{band}", warm[i] / expected[i], channel.key))
    water = [np.mean([total(member, columns, "total_water") for member in x]) for x in pair]
    out.append(_record("column_water", 100 / kelvin * (water[0] / water[1] - 1)))
    for run, x in pair._asdict().items():
        found = realism(x, columns.channels, columns.grid, columns.surface_geopotential)
        for (quantity, level), values in found.items():
            out.append(_record(f"{quantity}_{run}", np.nanmean(values), None if level is None else str(level)))
    return out


def _energy(x: Ensemble, grid: Grid) -> Float[np.ndarray, "k c"]:
    """Variance along latitude circles by zonal wavenumber, mean over the area, leads and members."""
    spectrum = zonal_spectrum(x.astype(np.float64), axis=-2)
    return (spectrum * area_weights(grid)[..., None]).mean((0, 1, 2))


def _quantile(x: Float[np.ndarray, "m t h w"], weights: Float[np.ndarray, "h w"], q: float) -> float:
    """Area-weighted, over everything."""
    return float(np.quantile(x, q, weights=np.broadcast_to(weights, x.shape), method="inverted_cdf"))


def _record(quantity: str, value: float | np.floating, channel: str | None = None, hours: int | None = None) -> Record:
    return {"quantity": quantity, "channel": channel, "lead_hours": hours, "value": float(value)}
