"""The score table of a run: moments of every field, pooled over cases into records, and printed."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from rich.table import Table

from wind_jax.channels import Channel
from wind_jax.evaluation import metrics
from wind_jax.sphere import Grid, area_weights

Moments = dict[str, Float[np.ndarray, "t c *k"]]
"""Area means of one case by frame and channel, and by wavenumber or rank where they are spectra or rank histograms:
those of `_MOMENTS`, "acc", "spectrum" and "spectrum_of_truth", and "missing", the share of the area without a value."""

Box = tuple[float, float, float, float]
"""South, north, west and east edge in degrees, all included; 170 to -170 or 190 crosses the date line."""

Region = tuple[Box, ...]
"""The cells that are in any of its boxes."""


class Scored(NamedTuple):
    """A field of anybody's file, which may have any level and no units: as much of a `Channel` as records name."""

    name: str
    level: int | float | None
    units: str

    @property
    def key(self) -> str:
        """Name with level."""
        return self.name if self.level is None else f"{self.name}_{self.level}"


_NORTH, _SOUTH = (20.0, 90.0, 0.0, 360.0), (-90.0, -20.0, 0.0, 360.0)
REGIONS: dict[str, Region] = {
    "global": ((-90.0, 90.0, 0.0, 360.0),),
    "tropics": ((-20.0, 20.0, 0.0, 360.0),),
    "extra-tropics": (_SOUTH, _NORTH),
    "northern-hemisphere": (_NORTH,),
    "southern-hemisphere": (_SOUTH,),
    "europe": ((35.0, 75.0, -12.5, 42.5),),
    "north-america": ((25.0, 60.0, -120.0, -75.0),),
    "north-atlantic": ((25.0, 65.0, -70.0, -10.0),),
    "north-pacific": ((25.0, 60.0, 145.0, -130.0),),
    "east-asia": ((25.0, 60.0, 102.5, 150.0),),
    "ausnz": ((-45.0, -12.5, 120.0, 175.0),),
    "arctic": ((60.0, 90.0, 0.0, 360.0),),
    "antarctic": ((-90.0, -60.0, 0.0, 360.0),),
}
"""WeatherBench2's regions, by its names: the hemispheres are without the tropics."""

BASIC = ("rmse", "debiased_rmse", "crps", "spread_skill_ratio", "acc")
"""Metrics of the table of a run."""
DETERMINISTIC = ("rmse", "bias", "mae", "acc", "spectral_divergence", "log_spectral_distance")
"""Metrics of any forecast. The mean of an ensemble is scored, but for spectra, which are averaged over its members;
"acc" needs a climatology, and spectra a region of whole latitude circles."""
ENSEMBLE = ("crps", "energy_score", "spread", "spread_skill_ratio", "debiased_mse", "debiased_rmse")
"""Metrics that need two or more members. "debiased" is the error of the mean that infinitely many members would have:
MSE - variance / M, unbiased for exchangeable members."""
RANKS = "rank_histogram"
"""A moment of two or more members that is no number, and has no record: `rank_histogram`."""
BRIER = "brier_above_"
"""Begins the name of the Brier score of an exceedance, which ends with the threshold: `exceedance(280.0)`."""

_MOMENTS = {
    "mse": metrics.ensemble_mean_mse,
    "bias": lambda x, y, *cells: metrics.bias(x.mean(0), y, *cells),
    "mae": lambda x, y, *cells: metrics.mae(x.mean(0), y, *cells),
    "crps": metrics.crps,
    "energy_score": metrics.energy_score,
    "variance": lambda x, y, *cells: metrics.ensemble_variance(x, *cells),
    RANKS: lambda *args: jnp.moveaxis(metrics.rank_histogram(*args), 0, -1),
}
_debiased = lambda mean, members: mean["mse"] - mean["variance"] / members
# What a metric is made of, and how; one that is not here is a moment itself, averaged over cases.
_POOLED = {
    "rmse": (("mse",), lambda mean, members: np.sqrt(mean["mse"])),
    "spread": (("variance",), lambda mean, members: np.sqrt(mean["variance"])),
    "spread_skill_ratio": (
        ("mse", "variance"),
        lambda mean, members: np.asarray(metrics.spread_skill_ratio(mean["variance"], mean["mse"], members)),
    ),
    "debiased_mse": (("mse", "variance"), _debiased),
    "debiased_rmse": (("mse", "variance"), lambda *moments: np.sqrt(np.maximum(_debiased(*moments), 0))),
} | {
    name: (
        ("spectrum", "spectrum_of_truth"),
        lambda mean, members, distance=distance: np.asarray(distance(mean["spectrum"], mean["spectrum_of_truth"])),
    )
    for name, distance in (
        ("spectral_divergence", metrics.spectral_divergence),
        ("log_spectral_distance", metrics.log_spectral_distance),
    )
}
_UNITS = dict.fromkeys(("spread_skill_ratio", "acc", "spectral_divergence"), "1") | {"log_spectral_distance": "dB"}


class Record(TypedDict):
    """One number of `scores.json`.

    `lead_hours` is None where scores are pooled over all frames. `cases` is the number of starts that `value` is an
    average over; `missing` the share of area and time without a value.
    """

    variable: str
    level: int | None
    method: str
    region: str
    metric: str
    lead_hours: int | None
    value: float
    unit: str
    cases: int
    missing: float


def region_weights(grid: Grid, regions: Mapping[str, Region]) -> Float[np.ndarray, "r h w"]:
    """Cell areas inside each region, 0 outside; a cell belongs to a box as a whole, by its centre.

    Args:
        grid: of the fields.
        regions: by name, such as `REGIONS`.

    Raises:
        ValueError: edges that are no box, or a box without a cell.
    """
    inside = [np.any([_cells_of(grid, name, box) for box in region], axis=0) for name, region in regions.items()]
    return area_weights(grid) * np.stack(inside)


def _cells_of(grid: Grid, name: str, box: Box) -> Bool[np.ndarray, "h w"]:
    """Those of a box; its region's name is for errors."""
    south, north, west, east = box
    text = f"The region {name!r}, {south:g}:{north:g}:{west:g}:{east:g},"
    if not (-90 <= south <= north <= 90 and -360 <= west <= 360 and -360 <= east <= 360):
        raise ValueError(
            f"{text} is no box: expected south:north:west:east with -90 <= south <= north <= 90 and west and east "
            "within [-360, 360]."
        )
    width = 360.0 if abs(east - west) >= 360 else (east - west) % 360
    rows = (grid.latitude >= south - 1e-4) & (grid.latitude <= north + 1e-4)
    columns = (grid.longitude.astype(float) - west + 1e-4) % 360 <= width + 2e-4
    if not (rows.any() and columns.any()):
        raise ValueError(f"{text} holds no cell centre of the grid of {' x '.join(map(str, grid.shape))} cells.")
    return rows[:, None] & columns[None, :]


def moments(
    ensemble: Float[np.ndarray, "m t h w c"],
    truth: Float[np.ndarray, "t h w c"],
    weights: Float[np.ndarray, "*r h _"],
    mask: Bool[np.ndarray, "t h w c"] | None = None,
    climatology: Float[np.ndarray, "t h w c"] | None = None,
    wanted: Sequence[str] = BASIC,
    grid: Grid | None = None,
) -> dict[str, Float[np.ndarray, "..."]]:
    """What scores are made of, each averaged over the cells of one field.

    Args:
        ensemble: physical units; one member for a deterministic method.
        truth: the same frames.
        weights: of the cells, (h, 1) or (h, w); or of each of some regions, (r, h, w).
        mask: cells that count; all where it is None.
        climatology: gives "acc", the anomaly correlation of the ensemble mean.
        wanted: metrics that `records` is to make of them, or `RANKS`; those that this ensemble has.
        grid: gives spectra.

    Returns:
        `Moments`, with the regions before the frames where there are some.
    """
    absent = ({"variance", RANKS} if len(ensemble) == 1 else set()) | ({"acc"} if climatology is None else set())
    absent |= {"spectrum", "spectrum_of_truth"} if grid is None else set()
    names = sorted({name for metric in wanted for name in _made_of(metric)} - absent)
    values = _moments(ensemble, truth, weights, mask, climatology, tuple(names), grid)
    return {name: np.asarray(value) for name, value in values.items()}


def exceedance(threshold: float) -> str:
    """Name of the Brier score of the event that a value exceeds the threshold, in the unit of the field.

    >>> exceedance(280.0)
    'brier_above_280'
    """
    return f"{BRIER}{threshold:.10g}"


@partial(jax.jit, static_argnames=("names", "grid"))
def _moments(ensemble, truth, weights, mask, climatology, names, grid):
    """Compiled as one, so that errors at points are computed once for all regions."""
    fields = lambda x: None if x is None else jnp.moveaxis(x, -1, -3)
    x, y, cells, normal = map(fields, (ensemble, truth, mask, climatology))
    known = _MOMENTS | {
        "acc": lambda x, y, *cells: metrics.acc(x.mean(0), y, normal, *cells),
        "spectrum": lambda x, y, weights, _: _spectrum(x, weights, grid).mean(0),
        "spectrum_of_truth": lambda x, y, weights, _: _spectrum(y, weights, grid),
    }
    for name in names:
        if name.startswith(BRIER):
            known[name] = partial(_brier, float(name.removeprefix(BRIER)))
    means = lambda weights: {name: known[name](x, y, weights, cells) for name in names}
    return jax.vmap(means)(weights) if weights.ndim == 3 else means(weights)


def _brier(threshold, x, y, *cells):
    return metrics.brier_score(x, y, threshold, *cells)


def _spectrum(x, weights, grid):
    """Mean over the rows of a region; NaN where the region takes a part of them."""
    weights = jnp.broadcast_to(weights, grid.shape)
    rows = weights.sum(-1)
    whole = ((weights > 0).all(-1) | (rows == 0)).all()
    inside = (rows > 0).reshape(*[1] * (x.ndim - 2), -1, 1)
    energy = jnp.where(inside, metrics.zonal_energy_spectrum(x, grid), 0)
    return jnp.where(whole, jnp.average(energy, axis=-2, weights=rows), jnp.nan)


def _made_of(metric: str) -> tuple[str, ...]:
    return _POOLED[metric][0] if metric in _POOLED else (metric,)


def records(
    method: str,
    cases: Sequence[Moments],
    channels: Sequence[Channel | Scored],
    members: int,
    lead_hours: Sequence[int] | None = None,
    region: str = "global",
    wanted: Sequence[str] = BASIC,
) -> list[Record]:
    """Scores of one method over all its cases.

    Squares and variances are averaged before roots and ratios are taken. A case without a value (none of its cells
    counts) is left out of the average and of the number of cases.

    Args:
        method: its name.
        cases: from `moments`, one for each start.
        channels: of the fields.
        members: ensemble size.
        lead_hours: of each frame, for scores by lead time; None pools the frames.
        region: that the moments are of.
        wanted: metrics, of which those appear that the moments give.

    Returns:
        A record for each metric, lead time and channel; none where a score is undefined (the correlation of a zero
        anomaly, the interpolation of a channel that was not observed).
    """
    axes = (0, 1) if lead_hours is None else (0,)
    mean, count = {}, {}
    for name in cases[0]:
        mean[name], count[name] = _pool([case[name] for case in cases], axes)
    missing = mean.get("missing", np.zeros((len(lead_hours or [0]), len(channels))))
    found = []
    for metric in wanted:
        if metric == RANKS or not mean.keys() >= set(_made_of(metric)):
            continue
        value = _POOLED[metric][1](mean, members) if metric in _POOLED else mean[metric]
        found += [
            Record(
                variable=channel.name,
                level=channel.level,
                method=method,
                region=region,
                metric=metric,
                lead_hours=lead,
                value=float(value[i, j]),
                unit=_unit(metric, channel),
                cases=int(count[_made_of(metric)[0]][i, j].item()),
                missing=float(missing[i, j]),
            )
            for i, lead in enumerate([None] if lead_hours is None else lead_hours)
            for j, channel in enumerate(channels)
            if np.isfinite(value[i, j])
        ]
    return found


def rank_histogram(cases: Sequence[Moments]) -> Float[np.ndarray, "t c rank"]:
    """Share of the area where the truth lies above 0..M of the M members, averaged over cases as `records` does.

    It sums to 1 over ranks, and is 1 / (M + 1) everywhere for a reliable ensemble; NaN where no case has a value.
    """
    return _pool([case[RANKS] for case in cases], axes=(0,))[0]


def _pool(cases: Sequence[Float[np.ndarray, "t c *k"]], axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Mean over cases, and frames if they are among the axes, that have a value; and the number of these cases."""
    value = np.stack(cases).astype(np.float64)
    valid = np.isfinite(value).all(tuple(range(3, value.ndim)), keepdims=True)
    total = np.where(valid, value, 0).sum(axes, keepdims=True)[0]
    with np.errstate(invalid="ignore"):
        mean = total / valid.sum(axes, keepdims=True)[0]
    return mean, valid.any(axes[1:], keepdims=True).sum(0)


def _unit(metric: str, channel: Channel | Scored) -> str:
    if metric.startswith(BRIER):
        return "1"
    return f"({channel.units})2" if metric == "debiased_mse" else _UNITS.get(metric, channel.units)


def select(found: Sequence[Record], **where: object) -> dict[tuple[str, int | None], float]:
    """(variable, level) -> value of the records whose other fields are as given.

    >>> found = records("a", [{"mse": np.array([[4.0]])}], [Scored("z", 500, "m")], members=1, lead_hours=[6])
    >>> select(found, method="a", metric="rmse")
    {('z', 500): 2.0}
    """
    return {
        (r["variable"], r["level"]): r["value"] for r in found if all(r[name] == value for name, value in where.items())
    }


def table(
    found: Sequence[Record],
    lead_hours: int | None = None,
    shown: Sequence[tuple[str, int | None]] | None = None,
) -> tuple[Table, str]:
    """RMSE of the posterior mean beside the other methods'.

    Args:
        found: all records of a run.
        lead_hours: the lead time shown; None for pooled scores.
        shown: (variable, level) of the rows; None for all.

    Returns:
        The table, with the rows where another method is better in yellow, and a last line that counts the variables
        for which the posterior is best, over all of them.
    """
    at = lambda method, metric: select(found, method=method, metric=metric, lead_hours=lead_hours)
    others = sorted({r["method"] for r in found} - {"posterior"}, reverse=True)
    methods = ("posterior", *others)
    rmse, crps = ({method: at(method, metric) for method in methods} for metric in ("rmse", "crps"))
    ratio = at("posterior", "spread_skill_ratio")
    units = {(r["variable"], r["level"]): r["unit"] for r in found if r["metric"] == "rmse"}
    when = "" if lead_hours is None else f" at {lead_hours} h"
    out = Table(title=f"RMSE of the ensemble mean{when} (* best)", title_justify="left")
    out.add_column("variable", overflow="fold")
    for heading in ("unit", *methods, "CRPS gain", "spread/skill"):
        out.add_column(heading, justify="left" if heading == "unit" else "right", no_wrap=True)
    wins = 0
    for key in rmse["posterior"]:
        values = {method: rmse[method][key] for method in methods if key in rmse[method]}
        best = min(values, key=values.get)
        wins += best == "posterior"
        if shown is not None and key not in shown:
            continue
        gain = 1 - crps["posterior"][key] / min(crps[method][key] for method in values if method != "posterior")
        mark = lambda method: f"{values[method]:.4g}{'*' if method == best else ' '}" if method in values else ""  # noqa: B023
        out.add_row(
            key[0] if key[1] is None else f"{key[0]} {key[1]}",
            units[key],
            *map(mark, methods),
            f"{gain:+.0%}",
            f"{ratio[key]:.2f}" if key in ratio else "",
            style=None if best == "posterior" else "yellow",
        )
    names = " and ".join(others)
    return out, f"posterior better than {names} for {wins} of {len(rmse['posterior'])} variables{when}"
