"""Score any forecast of the WeatherBench2 schema: open -> check -> moments, block by block -> records -> files.

    python -m wind_jax.evaluate --forecast posterior.zarr --truth truth.zarr --out scores
    python -m wind_jax.evaluate --forecast a.zarr --truth era5.zarr --climatology c.zarr --regions nino34=-5:5:190:240

A forecast has dimensions `time` (start), `prediction_timedelta`, `latitude`, `longitude` and, where they apply, `level`
and `number`; one without `prediction_timedelta` is scored at its own times, as lead time 0. The truth is such a file,
or an archive by valid `time`. A climatology, for the anomaly correlation, is one by `dayofyear` and `hour`, as
WeatherBench2 has them, or an .npz of `wind_jax.data.climatology`. All may lie on disk or behind a URL.

Scores are averages over the area of a region, then over starts; roots and ratios are taken last. The CRPS is the fair
one, as is the Brier score, and spread/skill has the factor (M + 1) / M of Fortin et al. (2014): 1 is reliable for any
number M of members.
A cell without a value on one side does not count; `missing` is the share of these, `cases` the number of starts.
Regions are WeatherBench2's, by name, or boxes of one's own.

Of an ensemble, scores.nc also has `VARIABLE_rank_histogram` by region, lead time, level and `rank`: the share of the
area, averaged over starts, where the truth lies above 0, 1 .. M members; a cell whose truth equals some of them (no
rain) counts equally in the ranks it may have. Flat, 1 / (M + 1) everywhere, is reliable, a U too little spread, a dome
too much.
"""

import argparse
import contextlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas
import xarray
from jaxtyping import Float
from rich.table import Table

from wind_jax import run
from wind_jax.command import command
from wind_jax.data.forecast_file import CONVENTIONS
from wind_jax.data.store import in_period
from wind_jax.evaluation import scores
from wind_jax.evaluation.fields import LEAD, Chosen, Fields, Levels, agree, locate, open_climatology, whole
from wind_jax.progress import Progress, printer
from wind_jax.sphere import Grid

BLOCK_BYTES = 64 * 2**20  # of a forecast in memory; one chunk of lead times where that is more
REGIONS = ("global", "tropics", "extra-tropics", "northern-hemisphere", "southern-hemisphere", "europe")
"""Scored where none are named."""

Ranks = dict[str, xarray.DataArray]
"""Rank histograms (region, lead time, level, rank) by variable."""


def evaluate(options: argparse.Namespace) -> tuple[list[scores.Record], Ranks]:
    """Scores a forecast as the options of the command line say.

    Returns:
        All scores, and the rank histograms of an ensemble if they are wanted.

    Raises:
        ValueError: files that cannot be opened or differ in grid, levels, units or times, ensemble metrics of one
            member, a region that is none; before any field is read. Or fields that have no value in common.
    """
    # ---------------------------------------------------------------------------------------------- open, choose, check
    forecast, truth = Fields("forecast", options.forecast), Fields("truth", options.truth)
    if truth.members:
        raise ValueError(f"The {truth.name} is an ensemble of {truth.members}; the truth has one value in each cell.")
    chosen = choose_levels(forecast, options.variables, options.levels)
    period = tuple(options.period) if options.period else None
    starts, leads = forecast.times[in_period(forecast.times, period)], choose_leads(forecast, options.leads)
    agree(forecast, truth, chosen)
    predicted, observed = locate(forecast, starts, leads, forecast), locate(truth, starts, leads, forecast)
    normal = options.climatology and open_climatology(options.climatology, forecast, chosen, starts, leads)
    members, wanted = forecast.members or 1, choose_metrics(forecast, options.metrics, bool(normal))
    exceedances = parse_exceedances(options.exceed, chosen)
    regions = parse_regions(options.regions)
    weights = scores.region_weights(forecast.grid, regions)

    # ----------------------------------------------------------------------------------------------------------- scores
    hours = whole(leads / np.timedelta64(1, "h"))
    blocks = {variable: lead_blocks(forecast, variable, levels, len(leads)) for variable, levels in chosen.items()}
    found: list[scores.Record] = []
    ranks: Ranks = {}
    empty: list[str] = []  # fields without a score
    with Progress("scoring", len(starts) * sum(map(len, blocks.values())), unit="block") as bar:
        for variable, levels in chosen.items():
            channels = [scores.Scored(variable, level, forecast.units(variable)) for level in levels]
            asked = (*wanted, *exceedances.get(variable, ()))
            cases = []
            for case, start in enumerate(starts):
                parts = []
                for block in blocks[variable]:
                    x = forecast.read(variable, levels, predicted(case, block))
                    y = truth.read(variable, levels, observed(case, block))[0]
                    reference = normal(variable, start + leads[block]) if normal else None
                    parts.append(moments(x, y, reference, weights, asked, forecast.grid))
                    bar.update()
                cases.append({name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]})
            gone = np.min([case["missing"] for case in cases], axis=(0, 1, 2)) > 1 - 1e-6
            if nowhere := [channel.key for channel, lost in zip(channels, gone) if lost]:
                raise ValueError(f"The {forecast.name} and the {truth.name} have no values in common of {nowhere}.")
            shares = []
            for i, region in enumerate(regions):
                here = [{name: value[i] for name, value in case.items()} for case in cases]
                if scores.RANKS in asked:
                    shares.append(scores.rank_histogram(here))
                method = Path(options.forecast).stem
                some = scores.records(method, here, channels, members, hours, region, asked)
                scored = {(r["level"], r["lead_hours"]) for r in some}
                every = ((channel, hour) for channel in channels for hour in hours)
                empty += [f"{c.key} at {hour} h, {region}" for c, hour in every if (c.level, hour) not in scored]
                found += some
            if shares:
                ranks[variable] = as_array(np.stack(shares), [*regions], leads, levels)
    if empty and found:
        warnings.warn(
            f"{len(empty)} of the fields have no score, as they have no value in common or none is defined there: "
            + "; ".join(empty[:5] + ["..."] * (len(empty) > 5)),
            stacklevel=2,
        )
    if not found:
        raise ValueError(
            f"{', '.join(wanted)} are undefined in {', '.join(regions)}: spectra are of whole latitude circles."
        )
    return found, ranks


def moments(
    x: Float[np.ndarray, "m t h w c"],
    y: Float[np.ndarray, "t h w c"],
    normal: Float[np.ndarray, "t h w c"] | None,
    weights: Float[np.ndarray, "r h w"],
    wanted: Sequence[str],
    grid: Grid,
) -> dict[str, Float[np.ndarray, "r t c *k"]]:
    """Moments over the cells with values on all sides, and the share of the area of the others."""
    there = np.isfinite(x).all(0) & np.isfinite(y) & (True if normal is None else np.isfinite(normal))
    lost = np.tensordot(weights, ~there, axes=([1, 2], [1, 2])) / weights.sum((1, 2))[:, None, None]
    x, y = np.where(there, x, np.nan), np.where(there, y, np.nan)  # so that both spectra are of the same fields
    return {**scores.moments(x, y, weights, there, normal, wanted, grid), "missing": lost}


def lead_blocks(forecast: Fields, variable: str, levels: Levels, leads: int) -> list[slice]:
    """The lead times in whole chunks of the file: what is in memory at once."""
    array = forecast.data[variable]
    chunk = array.encoding.get("preferred_chunks", {}).get(LEAD, 1)
    one = 4 * len(levels) * (forecast.members or 1) * array["latitude"].size * array["longitude"].size
    size = max(1, BLOCK_BYTES // (one * chunk)) * chunk
    return [slice(i, min(i + size, leads)) for i in range(0, leads, size)]


# -------------------------------------------------------------------------------------------------------------- choices
def choose_levels(forecast: Fields, variables: Sequence[str] | None, levels: Sequence[int] | None) -> Chosen:
    """All that the forecast has, or the variables and levels asked for."""
    there = forecast.variables
    if not there or not {*(variables or there)} <= {*there}:
        raise ValueError(f"The {forecast.name} has the variables {there} to score, not {variables or 'any'}.")
    own = {name: forecast.levels(name) for name in variables or there}
    return {name: list(levels) if levels and every != [None] else every for name, every in own.items()}


def choose_leads(forecast: Fields, hours: Sequence[float] | None) -> np.ndarray:
    """Those of the forecast, or some of them."""
    every = whole(forecast.leads / np.timedelta64(1, "h"))
    if absent := {*(hours or every)}.difference(every):
        raise ValueError(f"The {forecast.name} has the lead times {every} h, not {sorted(absent)} h.")
    return forecast.leads[np.isin(every, hours or every)]


def choose_metrics(forecast: Fields, asked: Sequence[str] | None, climatology: bool) -> tuple[str, ...]:
    """All that the forecast can have, or those asked for; refuses the ensemble's metrics to one member."""
    refused = (*scores.ENSEMBLE, scores.RANKS) if (forecast.members or 1) < 2 else ()
    if wrong := [metric for metric in asked or () if metric in refused]:
        raise ValueError(
            f"{', '.join(wrong)} of the {forecast.name}: it has one member, and the spread of members takes two. A "
            f"single forecast has {', '.join(scores.DETERMINISTIC)}; its CRPS is its mae."
        )
    if "acc" in (asked or ()) and not climatology:
        raise ValueError(f"acc of the {forecast.name} is of anomalies: name a climatology with --climatology.")
    if asked and {*asked} == {scores.RANKS}:
        raise ValueError(f"{scores.RANKS} comes beside scores in scores.nc: name another of the --metrics as well.")
    every = asked or (*scores.DETERMINISTIC, *scores.ENSEMBLE, scores.RANKS)
    return tuple(metric for metric in every if metric not in refused and (climatology or metric != "acc"))


def parse_regions(texts: Sequence[str]) -> dict[str, scores.Region]:
    """Names of `scores.REGIONS`, and boxes `name=south:north:west:east[,south:...]` in degrees."""
    regions = {}
    for text in texts:
        name, _, boxes = text.partition("=")
        try:
            edges = [tuple(map(float, box.split(":"))) for box in boxes.split(",")] if boxes else scores.REGIONS[name]
            regions[name] = tuple((south, north, west, east) for south, north, west, east in edges)
        except (KeyError, ValueError):
            known = ", ".join(scores.REGIONS)
            raise ValueError(f"No region {text!r}; expected one of {known}, or name=south:north:west:east.") from None
    return regions


def parse_exceedances(texts: Sequence[str], chosen: Chosen) -> dict[str, list[str]]:
    """Names of the Brier scores of each variable, from `variable=threshold,threshold`."""
    found = {}
    for text in texts:
        name, _, values = text.partition("=")
        try:
            thresholds = [float(value) for value in values.split(",")]
            if not np.isfinite(thresholds).all():
                raise ValueError
        except ValueError:
            raise ValueError(
                f"--exceed {text!r}; expected variable=threshold, or variable=threshold,threshold."
            ) from None
        found.setdefault(name, []).extend(map(scores.exceedance, thresholds))
        if name not in chosen:
            raise ValueError(f"--exceed {text!r} is of none of the scored variables, {', '.join(chosen)}.")
    return found


# -------------------------------------------------------------------------------------------------------------- results
def as_array(
    shares: Float[np.ndarray, "r t c rank"], regions: list[str], leads: np.ndarray, levels: Levels
) -> xarray.DataArray:
    """Rank histograms of a variable with their coordinates."""
    axes = {"region": regions, LEAD: leads, "level": np.array(levels, float), "rank": np.arange(shares.shape[-1])}
    array = xarray.DataArray(shares, axes, tuple(axes), attrs={"units": "1"})
    array["rank"].attrs = {"units": "1", "long_name": "number of members below the truth"}
    return array.isel(level=0, drop=True) if levels == [None] else array


def write(folder: Path, found: list[scores.Record], ranks: Ranks) -> None:
    """scores.csv, scores.json and scores.nc: one row, one object, one cell of an array for each score.

    Rank histograms are in scores.nc alone.
    """
    frame = pandas.DataFrame(found)
    frame.to_csv(folder / "scores.csv", index=False)
    (folder / "scores.json").write_text(json.dumps(found, indent=1) + "\n")
    arrays = {}
    for (variable, metric), part in frame.groupby(["variable", "metric"], sort=False):
        axes = {"region": part["region"], LEAD: pandas.to_timedelta(part["lead_hours"], unit="h")}
        if part["level"].notna().all():
            axes["level"] = part["level"].astype(float)
        part = part.set_index(pandas.MultiIndex.from_arrays(list(axes.values()), names=list(axes)))
        attributes = {"units": part["unit"].iloc[0], "long_name": f"{metric} of {variable}".replace("_", " ")}
        arrays[f"{variable}_{metric}"] = part["value"].to_xarray().assign_attrs(attributes)
        for name in ("cases", "missing"):  # those of the first metric: scores that are undefined are few
            arrays.setdefault(f"{variable}_{name}", part[name].to_xarray().astype(float).assign_attrs(units="1"))
    for variable, shares in ranks.items():
        long_name = f"{scores.RANKS} of {variable}".replace("_", " ")
        arrays[f"{variable}_{scores.RANKS}"] = shares.assign_attrs(long_name=long_name)
    data = xarray.merge([array.rename(name) for name, array in arrays.items()], join="outer", compat="no_conflicts")
    if "level" in data:
        data["level"].attrs |= {"units": "hPa", "standard_name": "air_pressure", "positive": "down"}
    data[LEAD].attrs |= {"standard_name": "forecast_period"}
    data.attrs = {"Conventions": CONVENTIONS, "title": f"scores of {found[0]['method']}", "source": "wind_jax.evaluate"}
    data.to_netcdf(folder / "scores.nc", engine="scipy")


def table(found: list[scores.Record]) -> Table:
    """Every metric of every field, in the first region at the last lead time."""
    region, lead = found[0]["region"], max(record["lead_hours"] for record in found)
    shown = [record for record in found if record["region"] == region and record["lead_hours"] == lead]
    metrics = list(dict.fromkeys(record["metric"] for record in shown))
    cases = max(record["cases"] for record in shown)
    out = Table(title=f"{found[0]['method']}: {region}, {lead} h, {cases} cases", title_justify="left")
    for heading in ("variable", "unit", *metrics, "missing"):
        out.add_column(heading.replace("_", " "), justify="left" if heading in ("variable", "unit") else "right")
    rows: dict[tuple, dict[str, scores.Record]] = {}
    for record in shown:
        rows.setdefault((record["variable"], record["level"]), {})[record["metric"]] = record
    for (variable, level), row in rows.items():
        first = next(iter(row.values()))
        values = [f"{row[metric]['value']:.4g}" if metric in row else "" for metric in metrics]
        out.add_row(f"{variable} {level or ''}", first["unit"], *values, f"{first['missing']:.1%}")
    return out


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m wind_jax.evaluate", description="Score a forecast.")
    parser.add_argument("--forecast", required=True, help="Zarr, path or URL")
    parser.add_argument("--truth", required=True, help="Zarr of the same schema, or an archive by valid time")
    parser.add_argument("--climatology", help="Zarr by dayofyear and hour, or .npz; for acc")
    parser.add_argument("--out", help="folder of scores.csv, scores.json, scores.nc")
    parser.add_argument(
        "--regions",
        nargs="+",
        default=REGIONS,
        help=f"of {', '.join(scores.REGIONS)}; or name=south:north:west:east[,south:...]; the first six if left out",
    )
    parser.add_argument("--variables", nargs="+", help="all of the forecast's if left out")
    parser.add_argument("--levels", nargs="+", type=int, help="in hPa; all if left out")
    parser.add_argument("--leads", nargs="+", type=float, help="lead times in hours; all if left out")
    parser.add_argument("--period", nargs=2, metavar=("FIRST", "LAST"), help="of the starts; both dates included whole")
    metrics = (*scores.DETERMINISTIC, *scores.ENSEMBLE, scores.RANKS)
    parser.add_argument("--metrics", nargs="+", choices=metrics, help="all that can be if left out")
    parser.add_argument(
        "--exceed",
        nargs="+",
        default=[],
        metavar="VARIABLE=THRESHOLD",
        help="also the Brier score of exceeding it, in the file's unit: total_precipitation_6hr=0.001,0.01",
    )
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Command line: scores a forecast, prints a table and writes all scores to --out, a folder of its own."""
    options, say = parse(argv), printer(160)
    with contextlib.nullcontext() if options.out is None else run.claim(options.out, "evaluate", say) as folder:
        found, ranks = evaluate(options)
        if folder:
            write(folder, found, ranks)
    say(table(found))
    if not options.metrics and not {record["metric"] for record in found}.intersection(scores.ENSEMBLE):
        say("Metrics of an ensemble are left out: the forecast has one member, and the spread of members takes two.")
    say(f"All {len(found)} scores are in {options.out}." if folder else "--out DIR keeps all scores.")


if __name__ == "__main__":
    command(main)
