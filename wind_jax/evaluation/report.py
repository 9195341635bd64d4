"""One self-contained page for a run: what was asked, maps to look through, scores, figures, and how to do it again.

    python -m wind_jax.evaluation.report runs/sparse_obs

The page needs no network and no other file. Its maps are fields of 8 bits a cell, drawn by the browser.
"""

import argparse
import base64
import json
import platform
import string
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from wind_jax.command import command
from wind_jax.evaluation import plots, scores
from wind_jax.evaluation.figures import TITLES, date
from wind_jax.evaluation.viewer import viewer
from wind_jax.files import open_zarr

_ASKED = {
    "forecast": "Forecast {leads} frames, 6 hours apart, from {context} known ones.",
    "sparse_obs": "Fill in every field of a window of the atmosphere from {fraction} of its cells, with errors of "
    "{error} of a standard deviation.",
    "spatial_downscaling": "Find the fine fields from means over {factor} x {factor} cells, taken to be good to "
    "{error} of a standard deviation.",
    "temporal_downscaling": "Find every frame from means over {mean_over} of them, taken to be good to {error} of a "
    "standard deviation.",
    "reanalysis": "Follow the atmosphere through {windows} windows that share {overlap} frames, from {fraction} of "
    "the cells of every frame, with errors of {error} of a standard deviation.",
    "stations": "Analyse reports of {variables} at stations, some of them wrong.",
    "warming": "Tell an event again in a climate that is warmer by {kelvin} K at the same relative humidity: its first "
    "{context} frames are warmer, and it is held to the warmer large scale (means over {factor} x {factor} cells).",
    "custom": "Draw what agrees with an operator of the user's, {operator}.",
}
_OPERATOR = (
    "<p>The operator is a function of the experiment file that was run, which this page does not hold: put it in place "
    "of its name.</p>"
)
_FIGURES = {
    "scores": ("Error of every field", "RMSE of each method as a fraction of that of climatology, by field."),
    "errors": (
        "Error and spread by lead time",
        "RMSE and ensemble spread against lead time, by field; with the factor (M + 1) / M of M members in its "
        "variance, a reliable spread equals the RMSE.",
    ),
    "spectra": (
        "Spectra",
        "Variance by zonal wavenumber of truth, members and their mean. A mean is smoother than the truth; members "
        "should not be.",
    ),
    "ranks": (
        "Rank histograms",
        "How often the truth lies below, between and above the members. Flat is reliable, a U too little spread, "
        "a dome too much.",
    ),
    "point": ("At one place", "Truth, members and their mean in one cell against time."),
    "drift": (
        "Dry-air mass",
        "Change of the mass of dry air, as surface pressure, against lead time. It should be kept.",
    ),
    "signal": ("Signal kept", "Share of the imposed warming that each run keeps, against lead time."),
}
METRICS = {
    "rmse": "RMSE", "debiased_rmse": "RMSE of many members", "crps": "CRPS", "spread_skill_ratio": "Spread/skill",
    "acc": "ACC",
}  # fmt: skip
_COMMAND = "python -m wind_jax.infer --config experiment.py"


class _Page(string.Template):
    delimiter = "%%"


def report(folder: Path) -> Path:
    """Writes `report.html` into the folder of a complete run.

    Args:
        folder: with `config.json`, `scores.json`, `posterior.zarr` and `truth.zarr` of `wind_jax.infer`; what else it
            wrote there (observations, figures, `report.json`, the coasts' mask) appears if it is there.

    Raises:
        ValueError: the folder holds no complete run.
    """
    needed = ("config.json", "scores.json", "posterior.zarr", "truth.zarr")
    if missing := [name for name in needed if not (folder / name).exists()]:
        raise ValueError(f"The folder {str(folder)!r} holds no complete run of wind_jax.infer: it has no {missing[0]}.")
    config = json.loads((folder / "config.json").read_text())
    found = json.loads((folder / "scores.json").read_text())
    shown, note = viewer(folder, config["task"]["name"])
    page = _Page(Path(__file__).with_suffix(".html").read_text()).substitute(
        title=escape(_title(config["task"]["name"])),
        asked="".join(
            f"<p>{escape(sentence)}</p>" for sentence in (asked(config), _outcome(found), _when(folder)) if sentence
        ),
        maps_note=escape(note),
        scores=_scores(found),
        figures=_figures(folder),
        said=_said(folder / "report.json"),
        settings=_definitions(_flat(_chosen(config))),
        again=_again(config),
        data=json.dumps(shown, separators=(",", ":")).replace("<", "\\u003c"),
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------------- what was asked
def asked(config: Mapping[str, Any]) -> str:
    """The task of a `config.json`, in words."""
    task = dict(config["task"])
    named = task.get("variables") and " and ".join(
        ", ".join(plots.name(v, None).lower() for v in task["variables"]).rsplit(", ", 1)
    )
    shares = {
        key: f"{100 * task[key]:g} %" if isinstance(task[key], int | float) else "various shares"
        for key in ("fraction", "error")
        if key in task
    }
    words = _ASKED[task["name"]].format_map(task | shares | {"variables": named})
    if task.get("conserve"):
        kept = " and ".join(name.replace("_", " ") for name in task["conserve"])
        words += f" Every frame is held to the {kept} of the last known one."
    elif named and task["name"] != "stations":
        words += f" Known are {named} alone."
    sampler, guided = config["sampler"], config.get("guidance")
    how = f"{sampler['steps']} steps of {sampler['name'].upper()}" + (
        f", guided by {guided['method'].upper()}" if guided else ""
    )
    cases = "1 case" if config["cases"] == 1 else f"{config['cases']} cases"
    return f"{words} The answer is an ensemble of {config['members']} members for {cases}, drawn in {how}."


def _title(task: str) -> str:
    return {**TITLES, "forecast": "Ensemble forecast", "warming": "Warming storyline"}.get(task, task.replace("_", " "))


def _outcome(found: Sequence[scores.Record]) -> str:
    """How often the posterior is best."""
    leads = sorted({r["lead_hours"] for r in found if r["lead_hours"] is not None})
    if not found:
        return ""
    line = scores.table(found, leads[-1] if leads else None)[1]
    return line[0].upper() + line[1:] + " (RMSE of the ensemble mean)."


def _when(folder: Path) -> str:
    starts = open_zarr(folder / "truth.zarr")["time"].values
    return "Start: " + ", ".join(dict.fromkeys(map(date, starts))) + "."


# --------------------------------------------------------------------------------------------------- scores and figures
def _scores(found: Sequence[scores.Record]) -> str:
    """All records, one row a field, one body a region and lead time."""
    if not found:
        return ""
    present = {(r["metric"], r["method"]) for r in found}
    metrics, methods = (list(dict.fromkeys(r[key] for r in found)) for key in ("metric", "method"))
    columns = [(metric, method) for metric in metrics for method in methods if (metric, method) in present]
    groups = list(dict.fromkeys((r["region"], r["lead_hours"]) for r in found))
    spans = {metric: sum(m == metric for m, _ in columns) for metric in metrics}
    head = "".join(
        f'<th colspan="{n}" scope="colgroup">{escape(METRICS.get(metric, metric))}</th>' for metric, n in spans.items()
    )
    names = ["Field", *(method.replace("_", " ").capitalize() for _, method in columns)]
    buttons = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in names)
    bodies = []
    for region, hours in groups:
        rows: dict = {}
        for r in found:
            if (r["region"], r["lead_hours"]) == (region, hours):
                rows.setdefault((r["variable"], r["level"]), {})[r["metric"], r["method"]] = r
        bodies.append(f"<tbody>{''.join(_row(key, cells, columns) for key, cells in rows.items())}</tbody>")
    label = lambda region, hours: " ".join(
        filter(None, ("" if hours is None else f"{hours} h", "" if region == "global" else region))
    )
    count = max(r["cases"] for r in found)
    cases = f"{count} case{'s' if count > 1 else ''}"
    options = "".join(f"<option>{escape(label(*group))}</option>" for group in groups)
    choose = f'<div class="controls"><label>Lead time <select id="group">{options}</select></label></div>'
    return f"""<section aria-labelledby="scores">
<h2 id="scores">Scores</h2>
<p class="soft">Over {cases}.
Less is better for RMSE and CRPS, more for ACC; spread/skill is 1 for a reliable ensemble.
Bold: best of its row. A heading sorts.</p>
{choose if len(groups) > 1 else ""}
<div class="scroll" tabindex="0" role="region" aria-labelledby="scores"><table class="sortable" id="table">
<thead><tr><td></td>{head}</tr><tr>{buttons}</tr></thead>
{"".join(bodies)}
</table></div>
</section>"""


def _row(key: tuple[str, int | None], cells: Mapping, columns: Sequence[tuple[str, str]]) -> str:
    best = {}
    for metric, choose in (("rmse", min), ("crps", min), ("acc", max)):
        if values := [r["value"] for (m, _), r in cells.items() if m == metric]:
            best[metric] = choose(values)
    unit = next((r["unit"] for (metric, _), r in cells.items() if metric in ("rmse", "crps")), "")
    how = plots.display(key[0], unit)
    label = f'{escape(plots.name(*key))} <span class="soft">{escape(how.difference_unit)}</span>'
    out = [f'<tr><th scope="row">{label}</th>']
    for column in columns:
        if column not in cells:
            out.append("<td></td>")
            continue
        value = cells[column]["value"]
        mark = ' class="best"' if value == best.get(column[0]) else ""
        shown = value * (how.factor if cells[column]["unit"] == unit else 1)
        out.append(f'<td{mark} data-value="{shown!r}">{shown:.4g}</td>')  # a heading sorts by what is seen
    return "".join(out) + "</tr>"


def _figures(folder: Path) -> str:
    """What `figures.draw` drew, apart from maps."""
    out = []
    for name, (heading, words) in _FIGURES.items():
        path = folder / "figures" / f"{name}.png"
        if path.exists():
            image = base64.b64encode(path.read_bytes()).decode()
            out.append(
                f'<figure><h3>{heading}</h3><img src="data:image/png;base64,{image}" alt="{escape(words)}">'
                f"<figcaption>{escape(words)}</figcaption></figure>"
            )
    if not out:
        return ""
    drawn = f'<div class="drawn">{"".join(out)}</div>'
    return f'<section aria-labelledby="figures"><h2 id="figures">Figures</h2>{drawn}</section>'


def _said(path: Path) -> str:
    """`report.json` as tables: one column a record of each list."""
    if not path.exists():
        return ""
    tables = []
    for name, said in json.loads(path.read_text()).items():
        columns = [_flat(record) if isinstance(record, Mapping) else {name: record} for record in _list(said)]
        rows = dict.fromkeys(key for column in columns for key in column)
        body = "".join(
            f'<tr><th scope="row">{escape(key)}</th>'
            + "".join(f"<td>{escape(_short(column.get(key, '')))}</td>" for column in columns)
            + "</tr>"
            for key in rows
        )
        tables.append(
            f'<h3>{escape(name.replace("_", " ").capitalize())}</h3><div class="scroll"><table>{body}</table></div>'
        )
    return f'<section aria-labelledby="said"><h2 id="said">What else this task says</h2>{"".join(tables)}</section>'


def _short(value: Any) -> str:
    """A number, a few words, or how a list goes from its first number to its last."""
    if isinstance(value, list):
        numbers = [x for x in value if isinstance(x, int | float)]
        return f"{numbers[0]:.4g} … {numbers[-1]:.4g}" if numbers else str(len(value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------------------- settings, once again
def _chosen(config: Mapping[str, Any]) -> dict:
    """The configuration without the options of guidance methods that were not used."""
    guidance = config.get("guidance", {})
    used = {k: v for k, v in guidance.items() if not isinstance(v, Mapping) or k == guidance["method"]}
    return dict(config) | ({"guidance": used} if guidance else {})


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def _list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


def _definitions(flat: Mapping[str, Any]) -> str:
    show = lambda value: "all" if value == [] else ", ".join(map(str, _list(value)))
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(show(v))}</dd>" for k, v in flat.items()) + "</dl>"


def _again(config: Mapping[str, Any]) -> str:
    """The run as an experiment file, the command, and the versions."""
    settings = {key: value for key, value in config.items() if key not in ("experiment", "fingerprint")}
    file = (
        "import json\n\nfrom ml_collections import ConfigDict\n\n\ndef get_config() -> ConfigDict:\n"
        f'    return ConfigDict(json.loads(r"""\n{json.dumps(settings, indent=2)}\n"""))\n'
    )
    used = {"Python": platform.python_version()} | {
        name: version(name) for name in ("wind_jax", "jax", "flax", "numpy")
    }
    own = _OPERATOR if "operator" in settings.get("task", {}) else ""
    return (
        f"{own}<p>Save this as <code>experiment.py</code>:</p><pre tabindex='0'>{escape(file)}</pre>"
        f"<p>and run</p><pre tabindex='0'>{_COMMAND}</pre>"
        f"<p class='soft'>This page was written with {escape(', '.join(f'{k} {v}' for k, v in used.items()))}.</p>"
    )


def main(argv: list[str]) -> None:
    """Command line: the folder of a run."""
    parser = argparse.ArgumentParser(
        prog="python -m wind_jax.evaluation.report", description=report.__doc__.split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="workdir of wind_jax.infer")
    print(report(parser.parse_args(argv).folder))


if __name__ == "__main__":
    command(main)
