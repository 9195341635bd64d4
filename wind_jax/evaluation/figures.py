"""The figures of a run, from its files: what goes into `plots`, chosen and computed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray
from jaxtyping import Float, Int

from wind_jax import physics
from wind_jax.channels import channels, stack
from wind_jax.columns import Columns, total
from wind_jax.evaluation import metrics, plots, scores
from wind_jax.evaluation.animation import animate
from wind_jax.files import open_zarr
from wind_jax.sphere import Grid, area_weights, zonal_spectrum
from wind_jax.tasks.forecast import lead_hours

# Channels that figures and forecast tables show, where the prior has them.
HEADLINE = (
    ("geopotential", 500), ("2m_temperature", None), ("u_component_of_wind", 850), ("total_precipitation_6hr", None),
    ("temperature", 850), ("mean_sea_level_pressure", None),
)  # fmt: skip


POINT = (50.0, 10.0)  # latitude and longitude of the place whose time series is drawn
STATIC = "static.zarr"


def headline(data: xarray.Dataset, count: int) -> list[tuple[str, int | None]]:
    """The first few of `HEADLINE` that a run has, else what it has."""
    has = lambda name, level: name in data and (level is None or level in data["level"])
    return [key for key in HEADLINE if has(*key)][:count] or [
        (name, int(data["level"][0]) if "level" in data[name].dims else None) for name in list(data.data_vars)[:count]
    ]


def date(time: np.datetime64) -> str:
    """A time as readers write it: 2000-01-01 06 UTC."""
    return np.datetime_as_string(time, unit="h").replace("T", " ") + " UTC"


def fields(
    folder: Path,
    variable: str,
    level: int | None,
    lead: int | slice | Int[np.ndarray, "_"],
    case: int = 0,
    members: int = 2,
) -> xarray.Dataset:
    """One field beside its ensemble, for `plots.ensemble_maps`.

    Args:
        folder: of the run.
        variable: its name.
        level: in hPa, None at the surface.
        lead: position or positions of the frames.
        case: position of the start.
        members: how many stand as `member_1` and so on; mean and spread are of all.
    """
    pick = {"time": case, "prediction_timedelta": lead}
    ensemble = _open(folder, "posterior")[variable].isel(pick)
    out = {"truth": _open(folder, "truth")[variable].isel(pick)}
    if (seen := _open(folder, "observations")) is not None:
        # Means over coarse cells or several frames: each cell shows the mean that it is in.
        seen = seen[variable].isel(time=case).sel(prediction_timedelta=ensemble["prediction_timedelta"], method="pad")
        horizontal = {name: ensemble[name] for name in ("latitude", "longitude")}
        when = {"prediction_timedelta": ensemble["prediction_timedelta"]}
        out["observations"] = seen.sel(horizontal, method="nearest").assign_coords(horizontal | when)
    out |= {"mean": ensemble.mean("number")} | {f"member_{i + 1}": ensemble[i] for i in range(members)}
    out["spread"] = ensemble.std("number", ddof=1)
    out = {name: field if level is None else field.sel(level=level) for name, field in out.items()}
    return xarray.Dataset(
        {name: field.reset_coords(drop=True) for name, field in out.items()},
        attrs={"variable": variable, "units": ensemble.attrs["units"]},
    )


def keep_static(folder: Path, static: Mapping[str, Float[np.ndarray, "h w"]], grid: Grid) -> None:
    """Puts fields that do not change, such as `land_sea_mask`, into the folder of a run, for maps drawn later."""
    coordinates = {"latitude": grid.latitude, "longitude": grid.longitude}
    fields = {name: (tuple(coordinates), field) for name, field in static.items()}
    xarray.Dataset(fields, coordinates).to_zarr(folder / STATIC, mode="w", zarr_format=2, consolidated=True)


def draw(
    task: str,
    folder: Path,
    found: Sequence[scores.Record],
    land: xarray.DataArray,
    ground: Float[np.ndarray, "h w"] | None = None,
    centre: tuple[float, float] | None = None,
) -> dict:
    """The figures of a task, by name.

    Args:
        task: its name.
        folder: of the run.
        found: its scores.
        land: (latitude, longitude) mask, for coasts.
        ground: geopotential at the surface in m2 s-2, for the dry mass of forecasts; None draws none.
        centre: of maps, as for `plots.ensemble_maps`.
    """
    if task == "warming":
        return storyline(folder)
    if task == "forecast":
        drawn = forecast(folder, found, land, centre)
    else:
        drawn = reconstruction(folder, found, land, TITLES.get(task, "Posterior"), centre)
    drawn |= {"spectra": spectra(folder), "ranks": ranks(folder), "point": point(folder)}
    if task == "forecast" and ground is not None and (mass := dry_mass(folder, ground)):
        drawn["drift"] = plots.drift(mass, "Drift of the dry-air mass")
    return drawn


TITLES = {
    "sparse_obs": "Reconstruction from sparse observations",
    "spatial_downscaling": "Downscaling in space",
    "temporal_downscaling": "Downscaling in time",
    "reanalysis": "Reanalysis of sparse observations",
    "stations": "Analysis of station reports",
}


def reconstruction(
    folder: Path,
    found: Sequence[scores.Record],
    land: xarray.DataArray,
    title: str,
    centre: tuple[float, float] | None,
) -> dict:
    """By name: maps of the middle frame, and the error of every channel beside that of each other method."""
    data = open_zarr(folder / "truth.zarr")
    middle = data.sizes["prediction_timedelta"] // 2
    rows = {plots.name(*key): fields(folder, *key, middle) for key in headline(data, 5)}
    when = date((data["time"][0] + data["prediction_timedelta"][middle]).values)
    methods = {r["method"] for r in found if r["metric"] == "rmse"}
    rmse = {method: scores.select(found, method=method, metric="rmse") for method in methods}
    keys, shown = list(rmse["posterior"]), sorted(methods - {"climatology"})
    ratios = xarray.DataArray(
        [[rmse[m].get(key, np.nan) / rmse["climatology"][key] for key in keys] for m in shown],
        {"method": shown, "channel": [plots.name(*key) for key in keys]},
        ("method", "channel"),
    )
    return {
        "reconstruction": plots.ensemble_maps(rows, land, f"{title}, {when}", centre=centre),
        "scores": plots.skill_dots(ratios, "Error against climatology"),
    }


def forecast(
    folder: Path, found: Sequence[scores.Record], land: xarray.DataArray, centre: tuple[float, float] | None
) -> dict:
    """By name: error and spread by lead time, and maps at days 1, 3 and 5."""
    data = open_zarr(folder / "truth.zarr")
    hours = lead_hours(data["prediction_timedelta"].values)
    panels = {}
    for variable, level in headline(data, 6):
        by_lead = lambda method, metric: np.array(
            [scores.select(found, method=method, metric=metric, lead_hours=h)[variable, level] for h in hours]  # noqa: B023
        )
        curves = {method: by_lead(method, "rmse") for method in ("posterior", "persistence", "climatology")}
        curves["spread"] = by_lead("posterior", "spread_skill_ratio") * curves["posterior"]  # with (M + 1) / M
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
        "forecast": plots.ensemble_maps(
            rows, land, f"{plots.name(variable, level)}, forecast from {when}", centre=centre
        ),
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


def spectra(folder: Path):
    """Zonal variance by wavenumber in the last frame: mean over the sphere and the cases."""
    truth, members = (_open(folder, name).isel(prediction_timedelta=-1) for name in ("truth", "posterior"))
    weights = area_weights(_grid(truth))

    def power(field):
        return ((zonal_spectrum(field) * weights).mean(-2)).mean(0)  # of rows, of cases

    panels = {}
    for key in headline(truth, 6):
        ensemble = _values(members, key)
        panels[plots.name(*key)] = xarray.Dataset(
            {
                "truth": ("wavenumber", power(_values(truth, key))),
                "mean": ("wavenumber", power(ensemble.mean(1))),
                "members": (("number", "wavenumber"), np.stack([power(x) for x in np.moveaxis(ensemble, 1, 0)])),
            },
            {"wavenumber": np.arange(truth.sizes["longitude"] // 2 + 1)},
            {"variable": key[0], "units": truth[key[0]].attrs["units"]},
        )
    return plots.spectra(panels, f"Zonal spectra at {_lead(truth)}, mean over the sphere")


def ranks(folder: Path):
    """Rank of the truth among the members, over all frames and cases and the cells without an observation."""
    truth, members, seen = (_open(folder, name) for name in ("truth", "posterior", "observations"))
    same = seen is not None and all(seen.sizes[d] == n for d, n in truth.sizes.items())
    weights = area_weights(_grid(truth)).astype(np.float32)
    panels = {}
    for key in headline(truth, 6):
        share = []
        for lead in range(truth.sizes["prediction_timedelta"]):
            now = {"prediction_timedelta": lead}
            y, x = _values(truth.isel(now), key), np.moveaxis(_values(members.isel(now), key), 1, 0)
            mask = np.isnan(_values(seen.isel(now), key)) if same else None
            share.append(np.asarray(metrics.rank_histogram(x, y, weights, mask)).mean(-1))
        panels[plots.name(*key)] = xarray.DataArray(np.nanmean(share, axis=0), dims="rank")
    return plots.rank_histograms(panels, "Rank histograms, all frames")


def point(folder: Path):
    """Truth, observations and members of the first case in the cell nearest to `POINT`."""
    there = dict(zip(("latitude", "longitude"), POINT, strict=True))
    truth, members, seen = (_open(folder, name) for name in ("truth", "posterior", "observations"))
    same = seen is not None and all(seen.sizes[d] == n for d, n in truth.sizes.items())
    truth, members = (data.isel(time=0).sel(there, method="nearest") for data in (truth, members))
    panels = {}
    for variable, level in headline(truth, 6):
        pick = lambda data: (data[variable] if level is None else data[variable].sel(level=level)).values  # noqa: B023
        ensemble = pick(members)
        series = {"truth": ("time", pick(truth)), "mean": ("time", ensemble.mean(0))}
        series["members"] = (("number", "time"), ensemble)
        if same:
            series["observations"] = ("time", pick(seen.isel(time=0).sel(there, method="nearest")))
        panels[plots.name(variable, level)] = xarray.Dataset(
            series,
            {"time": (truth["time"] + truth["prediction_timedelta"]).values},
            {"variable": variable, "units": truth[variable].attrs["units"]},
        )
    latitude, longitude = float(truth["latitude"]), float(truth["longitude"])
    place = f"{abs(latitude):.1f}° {'N' if latitude >= 0 else 'S'}, {longitude:.1f}° E"
    return plots.point_series(panels, f"The cell at {place}, from {date(truth['time'].values)}")


def dry_mass(folder: Path, ground: Float[np.ndarray, "h w"]) -> xarray.Dataset | None:
    """Dry-air mass of the first case as the mean pressure it exerts, minus the truth's in the first frame.

    Args:
        folder: of the run.
        ground: geopotential at the surface, m2 s-2.

    Returns:
        For `plots.drift`; None where the run has not what the mass is told from.
    """
    truth, members = (_open(folder, name).isel(time=0) for name in ("truth", "posterior"))
    names = [name for name in ("geopotential", "specific_humidity", "surface_pressure") if name in truth]
    if not {"geopotential", "specific_humidity"} <= set(names):
        return None
    parts = channels(names, truth["level"].values.tolist())
    columns = Columns(parts, _grid(truth), ground)

    def pressure(data):
        return total(stack(data, parts), columns) * physics.GRAVITY / physics.EARTH_AREA / 100  # hPa

    true, drawn = pressure(truth), np.stack([pressure(members.isel(number=i)) for i in range(members.sizes["number"])])
    return xarray.Dataset(
        {
            "truth": ("lead_hours", true - true[0]),
            "mean": ("lead_hours", drawn.mean(0) - true[0]),
            "members": (("number", "lead_hours"), drawn - true[0]),
        },
        {"lead_hours": lead_hours(truth["prediction_timedelta"].values)},
        {"quantity": "Mean surface pressure of dry air", "units": "hPa"},
    )


def film(folder: Path, land: xarray.DataArray, path: Path, centre: tuple[float, float] | None = None) -> None:
    """Writes the first case as an animation: truth, posterior mean and a member of the first of `HEADLINE`.

    Args:
        folder: of the run.
        land: (latitude, longitude) mask, for coasts.
        path: of the GIF.
        centre: of maps, as for `plots.ensemble_maps`.
    """
    truth = _open(folder, "truth").isel(time=0)
    variable, level = headline(truth, 1)[0]
    shown = fields(folder, variable, level, slice(None))[["truth", "mean", "member_1"]]
    times = (truth["time"] + truth["prediction_timedelta"]).values
    shown = shown.rename(prediction_timedelta="time").assign_coords(time=times)
    animate(shown.assign_attrs(level=level), land, path, centre=centre)


def _open(folder: Path, name: str) -> xarray.Dataset | None:
    path = folder / f"{name}.zarr"
    return open_zarr(path) if path.exists() else None


def _grid(data: xarray.Dataset) -> Grid:
    return Grid(data["latitude"].values, data["longitude"].values)


def _values(data: xarray.Dataset, key: tuple[str, int | None]) -> np.ndarray:
    variable, level = key
    return (data[variable] if level is None else data[variable].sel(level=level)).values


def _lead(data: xarray.Dataset) -> str:
    return f"+{int(data['prediction_timedelta'].values / np.timedelta64(1, 'h'))} h"
