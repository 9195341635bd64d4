"""Skill of the packaged prior: every task on the held-out sample, as the tables of docs/skill.md and README.md.

    make skill
    python -m studies.skill [--config.workdir=runs/skill]

Runs `wind_jax.infer` for each entry of `RUNS` that the package as it is has not done yet, and writes the tables between
the marks of both files. Every number is that of a record in `<workdir>/<run>/scores.json`, which its table names.

Hardware: two CPU cores, 6 GB of memory, 21 minutes.
"""

import hashlib
import json
import re
import statistics
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from ml_collections import ConfigDict

import wind_jax
from wind_jax import config as configuration
from wind_jax.command import command
from wind_jax.embedded import resolve
from wind_jax.evaluation import plots, scores
from wind_jax.evaluation.figures import HEADLINE
from wind_jax.infer import infer
from wind_jax.prior import load_prior
from wind_jax.run import set_aside

# Name of a run -> its experiment and what it changes there.
RUNS = {
    "sparse_obs": ("sparse_obs", {}),
    "spatial_downscaling": ("spatial_downscaling", {"members": 4}),
    "temporal_downscaling": ("temporal_downscaling", {"members": 4}),
    "stations": ("stations", {"members": 4}),
    "reanalysis": ("reanalysis", {"members": 4, "cases": 1}),
    "forecast": ("forecast", {}),
    "conservation": ("conservation", {"members": 4}),
    "warming": ("warming", {"members": 4, "cases": 1, "task.leads": 12}),
} | {
    f"sparse_obs_{method}": ("sparse_obs", {"guidance.method": method, "members": 4, "cases": 1})
    for method in ("mmps", "dps", "sda", "pgdm", "diffpir")
}
LEADS = (24, 72, 120)  # hours, of forecasts


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.workdir = "runs/skill"
    c.docs = "docs/skill.md"
    c.readme = "README.md"
    return c


def complete(folder: Path, c: ConfigDict) -> bool:
    """Whether a run is done, with the settings and the prior that it has now."""
    mark = folder / "config.json"
    if not mark.exists():
        return False
    done, wanted = json.loads(mark.read_text()), json.loads(configuration.to_json(c))
    same = all(done.get(key) == value for key, value in wanted.items())
    return same and done["fingerprint"]["prior"] == digest(c.prior)


@lru_cache
def program() -> str:
    """Digest of the package's modules and of what it carries."""
    root = Path(wind_jax.__file__).parent
    files = sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@lru_cache
def digest(prior: str) -> str:
    """Of the prior that a config names, which all runs share."""
    return load_prior(resolve(prior, "prior.npz")).digest()


def run(name: str, workdir: str) -> Path:
    """The folder of a run, which is done now."""
    experiment, changes = RUNS[name]
    folder = Path(workdir) / name
    changes = {"workdir": str(folder), **changes}
    arguments = [f"--config.{key}={value}" for key, value in changes.items()]
    c = configuration.load(["--config", experiment, *arguments], "inference")[0]
    made_by = folder.with_suffix(".program")  # a run of older code may have other numbers
    if not (complete(folder, c) and made_by.exists() and made_by.read_text() == program()):
        set_aside(str(folder))
        infer(c)
        made_by.write_text(program())
    return folder


# --------------------------------------------------------------------------------------------------------------- tables
def rows(found: Sequence[scores.Record], lead: int | None, only: Sequence | None = None) -> list[list[str]]:
    """A row a variable: RMSE and CRPS of every method, spread/skill of the posterior, number of cases."""
    methods = methods_of(found)
    rmse, crps = ({m: score(found, m, metric, lead) for m in methods} for metric in ("rmse", "crps"))
    ratio = score(found, "posterior", "spread_skill_ratio", lead)
    records = {(r["variable"], r["level"]): r for r in found if r["metric"] == "rmse" and r["method"] == "posterior"}
    out = []
    for key in rmse["posterior"]:
        if only is not None and key not in only:
            continue
        record = records[key]
        how = plots.display(record["variable"], record["unit"])
        values = [table.get(key) for by_method in (rmse, crps) for table in by_method.values()]
        values = [None if value is None else how.factor * value for value in values]
        cells = [f"{value:.3g}" if value is not None else "" for value in values]
        for first in (0, len(methods)):  # the best of RMSE, and of CRPS, in bold
            some = [v for v in values[first : first + len(methods)] if v is not None]
            best = first + values[first : first + len(methods)].index(min(some))
            cells[best] = f"**{cells[best]}**"
        spread = f"{ratio[key]:.2f}" if key in ratio else ""
        out.append([plots.name(*key), how.difference_unit, *cells, spread, str(record.get("cases", ""))])
    return out


def score(found: Sequence[scores.Record], method: str, metric: str, lead: int | None) -> dict:
    """Values of a method by field; the RMSE of the posterior is that of the mean of infinitely many members."""
    metric = "debiased_rmse" if (method, metric) == ("posterior", "rmse") else metric
    return scores.select(found, method=method, metric=metric, lead_hours=lead)


def spoken(name: str) -> str:
    return name.replace("_", " ")


def methods_of(found: Sequence[scores.Record]) -> list[str]:
    return sorted({r["method"] for r in found}, key=lambda method: (method != "posterior", method))


def markdown(headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    line = lambda cells: "| " + " | ".join(cells) + " |\n"
    return line(headings) + line(["---"] * len(headings)) + "".join(map(line, body))


def table(found: Sequence[scores.Record], lead: int | None, only: Sequence | None = None) -> str:
    """Markdown of `rows`."""
    methods = methods_of(found)
    headings = ["field", "unit", *(f"{metric} {spoken(m)}" for metric in ("RMSE", "CRPS") for m in methods)]
    return markdown([*headings, "spread/skill", "cases"], rows(found, lead, only))


def leads_of(found: Sequence[scores.Record]) -> list[int | None]:
    """Lead times shown of a forecast; None for what is pooled over its frames."""
    have = {r["lead_hours"] for r in found}
    return [None] if None in have else [lead for lead in LEADS if lead in have] or [max(have)]


def section(name: str, folder: Path) -> str:
    """What docs/skill.md says of a run."""
    source = "report.json" if name == "warming" else "scores.json"
    out = f"### {name}\n\nFrom `{folder}/{source}`; settings in `config.json` beside it.\n\n"
    found = json.loads((folder / "scores.json").read_text())
    for lead in leads_of(found) if found else []:
        when = "" if lead is None else f"At {lead} h:\n\n"
        out += f"{when}{table(found, lead, HEADLINE)}\n<details><summary>all fields</summary>\n\n"
        out += f"{table(found, lead)}\n</details>\n\n"
    if name == "warming":
        out += storylines(json.loads((folder / "report.json").read_text()))
    return out


def storylines(report: dict) -> str:
    """Share of the imposed warming that each arm keeps, and the change of rain."""
    body = []
    for arm in report["storylines"]:
        kept = arm["signal_kept"]["temperature_850"]
        rain = f"{arm['precipitation_percent_per_kelvin']:+.1f}"
        scaling = f"{arm['clausius_clapeyron_percent_per_kelvin']:+.1f}"
        body.append([arm["arm"], f"{kept[0]:.0%}", f"{kept[-1]:.0%}", str(arm["lead_hours"][-1]), rain, scaling])
    headings = ("arm", "kept at 6 h", "kept at the end", "end, h", "rain, %/K", "Clausius-Clapeyron, %/K")
    return markdown(headings, body) + "\n"


def methods_table(folders: dict[str, Path]) -> str:
    """Guidance methods on the same sparse observations: mean over fields of RMSE and CRPS as fractions of MMPS's."""
    found = {name: json.loads((folder / "scores.json").read_text()) for name, folder in folders.items()}
    pick = lambda name, metric: score(found[name], "posterior", metric, None)
    body = []
    for name in found:
        cells = [f"`{name.removeprefix('sparse_obs_')}`"]
        for metric in ("rmse", "crps"):
            mine, base = pick(name, metric), pick("sparse_obs_mmps", metric)
            cells.append(f"{sum(mine[key] / base[key] for key in base) / len(base):.2f}")
        ratio = list(pick(name, "spread_skill_ratio").values())
        body.append([*cells, f"{sum(ratio) / len(ratio):.2f}"])
    return markdown(("method", "RMSE, MMPS = 1", "CRPS, MMPS = 1", "spread/skill"), body)


def summary(folders: dict[str, Path]) -> str:
    """What README.md says: for how many fields the posterior is better than every baseline, and by how much."""
    body = []
    for name, folder in folders.items():
        found = json.loads((folder / "scores.json").read_text())
        for lead in leads_of(found) if found else []:
            others = [m for m in methods_of(found) if m != "posterior"]
            cells = [spoken(name) + ("" if lead is None else f", {lead} h"), ", ".join(map(spoken, others))]
            for metric in ("rmse", "crps"):
                mine = score(found, "posterior", metric, lead)
                best = {key: min(v[key] for m in others if key in (v := score(found, m, metric, lead))) for key in mine}
                ratio = [mine[key] / best[key] for key in mine]
                wins = sum(value < 1 for value in ratio)
                cells.append(f"{statistics.median(ratio):.2f} ({wins} of {len(ratio)})")
            cases = {r["cases"] for r in found if r["method"] == "posterior"}
            body.append([*cells, str(max(cases)), f"`{folder}/scores.json`"])
    headings = ("task", "baselines", "RMSE", "CRPS", "cases", "from")
    return markdown(headings, body)


def between(path: str, mark: str) -> tuple[str, str]:
    """What stands before and after the text between the marks of a file, marks included.

    Raises:
        ValueError: a file without the marks.
    """
    found = re.fullmatch(rf"(.*<!-- {mark} -->\n).*?(<!-- end of {mark} -->.*)", Path(path).read_text(), re.DOTALL)
    if not found:
        raise ValueError(f"{path} has no '<!-- {mark} -->' and '<!-- end of {mark} -->' to write the tables between.")
    return found[1], found[2]


def fill(path: str, text: str, mark: str = "skill") -> None:
    """Puts the text between the marks of a file."""
    before, after = between(path, mark)
    Path(path).write_text(before + text + after)


def main(argv: list[str]) -> None:
    """Command line: `[--config.key=value ...]`."""
    c = configuration.load(["--config", __file__, *argv])[0]
    for page in (c.docs, c.readme):
        between(page, "skill")  # what is wrong with them shows before any work
    folders = {name: run(name, c.workdir) for name in RUNS}
    methods = {name: folder for name, folder in folders.items() if name.startswith("sparse_obs_")}
    tasks = {name: folder for name, folder in folders.items() if name not in methods}
    text = "".join(section(name, folder) for name, folder in tasks.items())
    text += (
        f"### Guidance methods\n\nFrom `{c.workdir}/sparse_obs_*/scores.json`: one case of sparse_obs, four members, "
        f"the same noise; means over all fields. TMPD diverges.\n\n{methods_table(methods)}"
    )
    fill(c.docs, text)
    fill(c.readme, summary(tasks))


if __name__ == "__main__":
    command(main)
