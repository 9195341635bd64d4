"""The score table of a run: moments of every field, pooled over cases into records, and printed."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from jaxtyping import Bool, Float
from rich.table import Table

from wind_jax.data.variables import Channel
from wind_jax.evaluation import metrics

Moments = dict[str, Float[np.ndarray, "t c"]]
"""Area means of one case by frame and channel: "mse" of the (ensemble) mean, "crps", "variance", "acc"."""


class Record(TypedDict):
    """One number of `scores.json`; `lead_hours` is None where scores are pooled over all frames."""

    variable: str
    level: int | None
    method: str
    metric: str
    lead_hours: int | None
    value: float
    unit: str


def moments(
    ensemble: Float[np.ndarray, "m t h w c"],
    truth: Float[np.ndarray, "t h w c"],
    weights: Float[np.ndarray, "h 1"],
    mask: Bool[np.ndarray, "t h w c"] | None = None,
    climatology: Float[np.ndarray, "t h w c"] | None = None,
) -> Moments:
    """What scores are made of, each averaged over the cells of one field.

    Args:
        ensemble: physical units; one member for a deterministic method.
        truth: the same frames.
        weights: of the cells.
        mask: cells that count; all where it is None.
        climatology: gives "acc", the anomaly correlation of the ensemble mean.
    """
    x, y = np.moveaxis(ensemble, -1, 2), np.moveaxis(truth, -1, 1)
    cells = None if mask is None else np.moveaxis(mask, -1, 1)
    out = {
        "mse": metrics.ensemble_mean_mse(x, y, weights, cells),
        "crps": metrics.crps(x, y, weights, cells),
    }
    if len(x) > 1:
        out["variance"] = metrics.ensemble_variance(x, weights, cells)
    if climatology is not None:
        out["acc"] = metrics.acc(x.mean(0), y, np.moveaxis(climatology, -1, 1), weights, cells)
    return {name: np.asarray(value) for name, value in out.items()}


def records(
    method: str,
    cases: Sequence[Moments],
    channels: Sequence[Channel],
    members: int,
    lead_hours: Sequence[int] | None = None,
) -> list[Record]:
    """Scores of one method over all its cases.

    Squares and variances are averaged before roots and ratios are taken.

    Args:
        method: its name.
        cases: from `moments`, one for each start.
        channels: of the fields.
        members: ensemble size.
        lead_hours: of each frame, for scores by lead time; None pools the frames.

    Returns:
        A record for each metric, lead time and channel; none where a score is undefined (the correlation of a zero
        anomaly, the interpolation of a channel that was not observed).
    """
    axes = (0, 1) if lead_hours is None else 0
    mean = {name: np.mean([case[name] for case in cases], axis=axes) for name in cases[0]}
    values = {"rmse": np.sqrt(mean["mse"]), "crps": mean["crps"]}
    if "variance" in mean:
        values["spread_skill_ratio"] = np.asarray(metrics.spread_skill_ratio(mean["variance"], mean["mse"], members))
    if "acc" in mean:
        values["acc"] = mean["acc"]
    leads = [None] if lead_hours is None else list(lead_hours)
    return [
        Record(
            variable=channel.name,
            level=channel.level,
            method=method,
            metric=metric,
            lead_hours=lead,
            value=float(value[i, j]),
            unit=channel.units if metric in ("rmse", "crps") else "1",
        )
        for metric, value in ((metric, np.atleast_2d(value)) for metric, value in values.items())
        for i, lead in enumerate(leads)
        for j, channel in enumerate(channels)
        if np.isfinite(value[i, j])
    ]


def select(found: Sequence[Record], **where: object) -> dict[tuple[str, int | None], float]:
    """(variable, level) -> value of the records whose other fields are as given.

    >>> select([Record(variable="z", level=500, method="a", metric="rmse", lead_hours=6, value=2.0, unit="m")],
    ...        method="a", metric="rmse")
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
