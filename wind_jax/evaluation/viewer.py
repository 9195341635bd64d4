"""What the maps of a run's page are drawn from: fields of 8 bits a cell, for the browser."""

import base64
import zlib
from pathlib import Path

import numpy as np
import xarray
from jaxtyping import Float, UInt8
from matplotlib.colors import Normalize

from wind_jax.evaluation import plots
from wind_jax.evaluation.coasts import coastlines, seen_from
from wind_jax.evaluation.figures import STATIC, date, fields, headline
from wind_jax.files import open_zarr
from wind_jax.tasks.forecast import lead_hours

LEADS, MEMBERS, FIELDS = 20, 8, 6  # at most
BYTES = 12e6  # of all fields together before compression


def viewer(folder: Path, task: str) -> tuple[dict, str]:
    """What the browser draws its maps from, and a note about it.

    Each field is a stack of bytes (run, layer, lead, latitude, longitude), compressed by zlib: 0 to 254 between the
    limits of its scale, 255 for no value. Layers are the panels in their order, then the other members.

    Args:
        folder: of the run.
        task: its name.
    """
    truth = open_zarr(folder / "truth.zarr")
    members = open_zarr(folder / "posterior.zarr").sizes["number"]
    runs = list(dict.fromkeys(truth["arm"].values.tolist())) if "arm" in truth.coords else [""]
    leads = np.unique(np.linspace(0, truth.sizes["prediction_timedelta"] - 1, LEADS).round().astype(int))
    kept = min(members, MEMBERS)
    keys = headline(truth, FIELDS)
    if observed := (folder / "observations.zarr").exists():  # the field shown first is one that was observed
        seen = open_zarr(folder / "observations.zarr")
        nothing = lambda key: bool((seen[key[0]] if key[1] is None else seen[key[0]].sel(level=key[1])).isnull().all())
        keys = sorted(keys, key=nothing)
    truth_is = "Event as imposed" if task == "warming" else "Truth"
    panels = [
        {"key": "truth", "title": truth_is, "scale": "value"},
        *([{"key": "observations", "title": "Observations", "scale": "value"}] if observed else []),
        {"key": "mean", "title": "Ensemble mean", "scale": "value"},
        {"key": "error", "title": f"Mean minus {truth_is.lower()}", "scale": "error"},
        {"key": "spread", "title": "Spread (standard deviation)", "scale": "spread"},
        {"key": "member", "title": "Member 1", "scale": "value"},
    ]
    rows, columns = truth.sizes["latitude"], truth.sizes["longitude"]
    all_bytes = len(keys) * len(runs) * (len(panels) - 1 + kept) * len(leads) * rows * columns
    every = next(k for k in range(1, columns + 1) if columns % k == 0 and all_bytes <= BYTES * k**2)
    thin = slice(None, None, every)
    packed = []
    for key in keys:
        how = plots.display(key[0], truth[key[0]].attrs["units"])
        parts = [
            fields(folder, *key, leads, case, kept).isel(latitude=thin, longitude=thin) for case in range(len(runs))
        ]
        stack = xarray.concat(parts, "run").transpose("run", "prediction_timedelta", "latitude", "longitude")
        stack["error"] = stack["mean"] - stack["truth"]
        stack *= how.factor
        values = [name for name in stack if name not in ("error", "spread")]
        stack = stack.assign({name: stack[name] + how.offset for name in values})
        scales = {
            "value": (plots.limits(stack["truth"], how.colours), how.colours),
            "error": (plots.limits(stack["error"], plots.DIFFERENCE), plots.DIFFERENCE),
            "spread": (Normalize(0, float(stack["spread"].quantile(0.99))), plots.SPREAD),
        }
        layers = [panel["key"] for panel in panels[:-1]] + [f"member_{i + 1}" for i in range(kept)]
        norms = [scales.get(name, scales["value"])[0] for name in layers]
        levels = np.stack(
            [quantise(stack[name].values, norm) for name, norm in zip(layers, norms, strict=True)], axis=1
        )
        packed.append(
            {
                "name": plots.name(*key),
                "unit": how.unit,
                "difference_unit": how.difference_unit,
                "scales": {name: _scale(*scale) for name, scale in scales.items()},
                "data": base64.b64encode(zlib.compress(levels.tobytes(), 9)).decode(),
            }
        )
    hours = np.asarray(lead_hours(truth["prediction_timedelta"].values))[leads]
    times = (truth["time"][0] + truth["prediction_timedelta"]).values[leads]
    shown = {
        "latitude": truth["latitude"].values[thin].round(3).tolist(),
        "longitude": truth["longitude"].values[thin].round(3).tolist(),
        "coast": _coast(folder),
        "leads": [f"{date(time)} (+{hour} h)" for time, hour in zip(times, hours, strict=True)],
        "runs": runs,
        "members": kept,
        "panels": panels,
        "fields": packed,
    }
    cases = truth.sizes["time"] // len(runs)
    note = [f"The first of {cases} cases" if cases > 1 else "The one case"]
    note += [f"members 1 to {kept} of {members}"] if kept < members else []
    note += (
        [f"{len(leads)} of {truth.sizes['prediction_timedelta']} times"]
        if len(leads) < truth.sizes["prediction_timedelta"]
        else []
    )
    note += [f"every {every}th row and column"] if every > 1 else []
    return shown, "; ".join(note) + ". Colours serve all times of a field, so that these can be compared."


def quantise(field: Float[np.ndarray, "..."], norm: Normalize) -> UInt8[np.ndarray, "..."]:
    """Levels 0 to 254 between the limits of `norm`, clipped; 255 where there is no value."""
    share = np.ma.filled(np.clip(norm(np.ma.masked_invalid(field)), 0, 1), np.nan)
    return np.where(np.isnan(share), 255, np.rint(254 * np.nan_to_num(share))).astype(np.uint8)


def _scale(norm: Normalize, colours: str) -> dict:
    """For the browser: value = low + (high - low) (level / 254)^(1 / power)."""
    return {
        "low": float(norm.vmin),
        "high": float(norm.vmax),
        "power": float(getattr(norm, "gamma", 1.0)),
        "colours": plots.palette(colours, 128),
    }


def _coast(folder: Path) -> list:
    """Vertices (longitude, latitude), None between lines; empty where the run kept no land-sea mask."""
    if not (folder / STATIC).exists():
        return []
    land = open_zarr(folder / STATIC)["land_sea_mask"]
    return [None if np.isnan(p).any() else p.round(1).tolist() for p in seen_from(coastlines(land), 0.0)]
