"""The figures of a run, from its files: what goes into `plots`, chosen and computed."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray

from wind_jax.evaluation import plots, scores
from wind_jax.tasks.forecast import lead_hours

# Channels that figures and forecast tables show, where the prior has them.
HEADLINE = (
    ("geopotential", 500), ("2m_temperature", None), ("u_component_of_wind", 850), ("total_precipitation_6hr", None),
    ("temperature", 850), ("mean_sea_level_pressure", None),
)  # fmt: skip


def headline(data: xarray.Dataset, count: int) -> list[tuple[str, int | None]]:
    """The first few of `HEADLINE` that a run has, else what it has."""
    has = lambda name, level: name in data and (level is None or level in data["level"])
    return [key for key in HEADLINE if has(*key)][:count] or [
        (name, int(data["level"][0]) if "level" in data[name].dims else None) for name in list(data.data_vars)[:count]
    ]


def date(time: np.datetime64) -> str:
    """A time as readers write it: 2000-01-01 06 UTC."""
    return np.datetime_as_string(time, unit="h").replace("T", " ") + " UTC"


def fields(folder: Path, variable: str, level: int | None, lead: int) -> xarray.Dataset:
    """One field of the first case beside its ensemble, for `plots.ensemble_maps`."""
    pick = {"time": 0, "prediction_timedelta": lead}
    members = xarray.open_zarr(folder / "posterior.zarr", chunks=None)[variable].isel(pick)
    out = {"truth": xarray.open_zarr(folder / "truth.zarr", chunks=None)[variable].isel(pick)}
    if (folder / "observations.zarr").exists():
        # Means over coarse cells or several frames: each cell shows the mean that it is in.
        seen = xarray.open_zarr(folder / "observations.zarr", chunks=None)[variable].isel(time=0)
        seen = seen.sel(prediction_timedelta=members["prediction_timedelta"], method="pad")
        coordinates = {name: members[name] for name in ("latitude", "longitude")}
        out["observations"] = seen.sel(coordinates, method="nearest").assign_coords(coordinates)
    out |= {"mean": members.mean("number"), "member_1": members[0], "member_2": members[1]}
    out["spread"] = members.std("number", ddof=1)
    out = {name: field if level is None else field.sel(level=level) for name, field in out.items()}
    return xarray.Dataset(
        {name: field.reset_coords(drop=True) for name, field in out.items()},
        attrs={"variable": variable, "units": members.attrs["units"]},
    )


def draw(task: str, folder: Path, found: Sequence[scores.Record], land: xarray.DataArray) -> dict:
    """The figures of a task, by name.

    Args:
        task: its name.
        folder: of the run.
        found: its scores.
        land: (latitude, longitude) mask, for coasts.
    """
    if task == "forecast":
        return forecast(folder, found, land)
    if task == "warming":
        return storyline(folder)
    return reconstruction(folder, found, land, TITLES.get(task, "Posterior"))


TITLES = {
    "sparse_obs": "Reconstruction from sparse observations",
    "spatial_downscaling": "Downscaling in space",
    "temporal_downscaling": "Downscaling in time",
    "reanalysis": "Reanalysis of sparse observations",
    "stations": "Analysis of station reports",
}


def reconstruction(folder: Path, found: Sequence[scores.Record], land: xarray.DataArray, title: str) -> dict:
    """By name: maps of the middle frame, and the error of every channel beside interpolation's and climatology's."""
    data = xarray.open_zarr(folder / "truth.zarr", chunks=None)
    middle = data.sizes["prediction_timedelta"] // 2
    rows = {plots.name(*key): fields(folder, *key, middle) for key in headline(data, 5)}
    when = date((data["time"][0] + data["prediction_timedelta"][middle]).values)
    rmse = {
        method: scores.select(found, method=method, metric="rmse")
        for method in ("interpolation", "posterior", "climatology")
    }
    keys, shown = list(rmse["posterior"]), [m for m in ("interpolation", "posterior") if rmse[m]]
    ratios = xarray.DataArray(
        [[rmse[m].get(key, np.nan) / rmse["climatology"][key] for key in keys] for m in shown],
        {"method": shown, "channel": [plots.name(*key) for key in keys]},
        ("method", "channel"),
    )
    return {
        "reconstruction": plots.ensemble_maps(rows, land, f"{title}, {when}"),
        "scores": plots.skill_dots(ratios, "Error against climatology"),
    }


def forecast(folder: Path, found: Sequence[scores.Record], land: xarray.DataArray) -> dict:
    """By name: error and spread by lead time, and maps at days 1, 3 and 5."""
    data = xarray.open_zarr(folder / "truth.zarr", chunks=None)
    hours = lead_hours(data["prediction_timedelta"].values)
    panels = {}
    for variable, level in headline(data, 6):
        by_lead = lambda method, metric: np.array(
            [scores.select(found, method=method, metric=metric, lead_hours=h)[variable, level] for h in hours]  # noqa: B023
        )
        curves = {method: by_lead(method, "rmse") for method in ("posterior", "persistence", "climatology")}
        curves["spread"] = by_lead("posterior", "spread_skill_ratio") * curves["posterior"]
        panels[plots.name(variable, level)] = xarray.Dataset(
            {name: ("lead_hours", values) for name, values in curves.items()},
            {"lead_hours": hours},
            {"variable": variable, "units": data[variable].attrs["units"]},
        )
    variable, level = headline(data, 1)[0]
    days = [hours.index(h) for h in (24, 72, 120) if h in hours] or [len(hours) - 1]
    rows = {f"Day {hours[lead] / 24:g}": fields(folder, variable, level, lead) for lead in days}
    when = date(data["time"][0].values)
    return {
        "errors": plots.lead_curves(panels, "Ensemble forecast: error and spread by lead time"),
        "forecast": plots.ensemble_maps(rows, land, f"{plots.name(variable, level)}, forecast from {when}"),
    }


def storyline(folder: Path) -> dict:
    """By name: how much of the imposed signal each run keeps."""
    runs = [run for run in json.loads((folder / "report.json").read_text())["storylines"] if run["case"] == 0]
    keys = [key for key in runs[0]["signal_kept"] if key.rsplit("_", 1)[0] in ("temperature", "specific_humidity")][:6]
    panels = {
        plots.name(key.rsplit("_", 1)[0], int(key.rsplit("_", 1)[1])): xarray.Dataset(
            {run["arm"]: ("lead_hours", run["signal_kept"][key]) for run in runs},
            {"lead_hours": runs[0]["lead_hours"]},
            {"units": "share kept"},
        )
        for key in keys
    }
    return {"signal": plots.lead_curves(panels, "How much of the imposed warming is kept")}
