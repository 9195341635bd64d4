"""One frozen prior against networks trained for the task: zero-shot, specialists and baselines on the same cases.

    python -m wind_jax.train --config experiments/specialist_spatial.py
    python -m wind_jax.train --config experiments/specialist_temporal.py
    python -m experiments.settle [--config.path=data/speedy_heldout.zarr]

Downscaling in space and in time as `experiments/spatial_downscaling.py` and `temporal_downscaling.py` set it, by the
posterior of the prior, by a specialist of the same architecture, data, batches and steps (`training/specialist.py`), by
interpolation, by cubic interpolation of anomalies and by climatology. A run that is stopped goes on where it was.

Hardware: two CPU cores, 6 GB of memory, about 50 minutes after training. Scores: docs/skill.md.
"""

import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from experiments import spatial_downscaling, temporal_downscaling
from wind_jax import config as configuration
from wind_jax.data.forcings import static_forcings
from wind_jax.data.store import TIME_STEP, open_store
from wind_jax.embedded import resolve
from wind_jax.evaluation import metrics
from wind_jax.prior import Prior, apply, graph, load_prior
from wind_jax.problems.problem import Problem, Setting
from wind_jax.problems.registry import make_problem
from wind_jax.progress import Progress
from wind_jax.rollout import Guide, make_chain, rollout
from wind_jax.sphere import area_weights, zonal_spectrum
from wind_jax.training.specialist import estimate

TASKS = {"spatial_downscaling": spatial_downscaling, "temporal_downscaling": temporal_downscaling}
SHOWN = (
    "geopotential_500", "temperature_850", "u_component_of_wind_850", "specific_humidity_700", "2m_temperature",
    "total_precipitation_6hr",
)  # fmt: skip
METHODS = {  # compared with interpolation, and their colours: those of Okabe and Ito, safe for the colour-blind
    "posterior": "#0072B2",
    "specialist": "#D55E00",
    "anomalies": "#009E73",
    "climatology": "#999999",
}
SMALL_SCALES = slice(11, None)  # zonal wavenumbers


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.workdir = "runs/settle"
    c.seed = 0
    c.prior = "embedded"
    c.path = "embedded"
    c.cases = 16
    c.members = 8
    c.tasks = tuple(TASKS)
    c.specialists = ConfigDict({name: f"runs/specialist_{name.partition('_')[0]}/prior.npz" for name in TASKS})
    return c


class Solver:
    """One task, solved in every way."""

    def __init__(self, c: ConfigDict, name: str):
        self.prior = load_prior(resolve(c.prior, "prior.npz"))
        self.specialist = load_prior(c.specialists[name])
        check_alike(self.prior, self.specialist, name)
        self.store = open_store(resolve(c.path, "sample.zarr"), self.prior.statistics.channels)
        self.static = static_forcings(self.store)
        self.members, self.key = c.members, jax.random.key(c.seed)
        task = TASKS[name].get_config()
        setting = Setting(self.prior, self.store, self.static, None, c.cases, (), self.key, "nominal")
        self.problem: Problem = make_problem(setting, **task.task.to_dict())
        method = task.guidance.method
        self.guide = Guide(self.problem.observe, method, tuple(task.guidance[method].items()))
        self.anomalies = {"spatial_downscaling": "bicubic_anomaly", "temporal_downscaling": "cubic_anomaly"}[name]
        self.chain = make_chain(**task.sampler.to_dict())
        network = lambda params, x_t, t, inputs: apply(graph(self.specialist.config), params, x_t, t, inputs)
        self.refine = jax.jit(
            lambda params, guess, inputs: estimate(
                lambda x_t, t: network(params, x_t, t, inputs), guess, self.specialist.mean(inputs)
            )
        )

    def solve(self, case: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Truth (t, h, w, c) and, by method, members (m, t, h, w, c), physical units."""
        prior, statistics = self.prior, self.prior.statistics
        times = self.store.times[int(self.problem.starts[case])] + TIME_STEP * np.arange(prior.frames)
        inputs = prior.inputs(self.static, times)
        told = [self.problem.told(case, 0)]
        (x,) = rollout(
            prior, None, inputs, self.members, jax.random.fold_in(self.key, case), self.chain, 0, self.guide, told
        )
        baseline = self.problem.baseline(case, slice(0, prior.frames))
        interpolation, anomalies = (baseline[name] for name in ("interpolation", self.anomalies))
        guess = jnp.asarray(self.specialist.statistics.normalize(interpolation))[None]
        own_inputs = jnp.asarray(self.specialist.inputs(self.static, times))[None]
        special = self.specialist.statistics.physical(
            np.asarray(self.refine(self.specialist.params, guess, own_inputs))
        )
        return self.problem.states(case, 0, prior.frames), {
            "posterior": statistics.physical(np.asarray(x)),
            "specialist": special,
            "interpolation": interpolation[None],
            "anomalies": anomalies[None],
            "climatology": np.asarray(prior.climatology.at(times))[None],
        }


def check_alike(prior: Prior, specialist: Prior, name: str) -> None:
    """Refuses a comparison that would be none.

    Raises:
        ValueError: another architecture, or another number of training windows.
    """
    seen = [json.loads(p.provenance).get("samples") for p in (prior, specialist)]
    if prior.config != specialist.config or prior.statistics.channels != specialist.statistics.channels:
        raise ValueError(f"The specialist of {name} has another architecture or other channels than the prior.")
    if seen[0] != seen[1]:
        raise ValueError(f"The prior was trained on {seen[0]} windows, the specialist of {name} on {seen[1]}.")


def moments(x: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> dict[str, list[float]]:
    """Squared error, CRPS, variance and power of small scales of one case, by channel."""
    fields, y = np.moveaxis(x, -1, -3), np.moveaxis(truth, -1, -3)
    small = lambda a: (zonal_spectrum(a)[..., SMALL_SCALES].sum(-1) * weights[:, 0]).mean(-1)
    out = {
        "mse": metrics.ensemble_mean_mse(fields, y, weights).mean(0),
        "crps": metrics.crps(fields, y, weights).mean(0),
        "variance": metrics.ensemble_variance(fields, weights).mean(0),
        "power": small(fields).mean((0, 1)),
        "power_of_mean": small(fields.mean(0)).mean(0),
    }
    return {name: np.asarray(values, float).tolist() for name, values in out.items()}


def run(c: ConfigDict, name: str, folder: Path) -> dict:
    """Moments of all cases and methods of a task, written case by case."""
    solver, path = Solver(c, name), folder / f"{name}.json"
    settings = {key: value for key, value in json.loads(configuration.to_json(c)).items() if key != "workdir"}
    found = {"settings": settings, "channels": [ch.key for ch in solver.prior.statistics.channels], "cases": []}
    if path.exists() and (before := json.loads(path.read_text()))["settings"] == settings:
        found = before
    weights = area_weights(solver.prior.grid)
    with Progress(name, c.cases, unit="case") as bar:
        bar.update(len(found["cases"]))
        for case in range(len(found["cases"]), c.cases):
            truth, solved = solver.solve(case)
            by_method = {method: moments(x, truth, weights) for method, x in solved.items()}
            by_method["truth"] = {"power": moments(truth[None], truth, weights)["power"]}
            found["cases"].append(by_method)
            partial_path = path.with_suffix(".partial")
            partial_path.write_text(json.dumps(found) + "\n")
            partial_path.replace(path)
            bar.update()
    return found


# -------------------------------------------------------------------------------------------------------------- results
def interval(statistic, cases: int, draws: int = 2000) -> tuple[float, float, float]:
    """A statistic of all cases, and the middle 95 % of it over cases drawn again with replacement."""
    rng = np.random.default_rng(0)
    again = [statistic(rng.integers(0, cases, cases)) for _ in range(draws)]
    return statistic(np.arange(cases)), *np.percentile(again, [2.5, 97.5])


def relative(found: dict, method: str, what: str, channel: int | None, chosen: np.ndarray) -> float:
    """RMSE or CRPS as a fraction of interpolation's, over chosen cases; mean over channels where none is given."""
    values = lambda m: np.mean([found["cases"][i][m][what] for i in chosen], axis=0)
    ratio = values(method) / values("interpolation")
    ratio = np.sqrt(ratio) if what == "mse" else ratio
    return float(ratio.mean() if channel is None else ratio[channel])


def table(found: dict, name: str) -> Table:
    """Errors as fractions of interpolation's with their intervals, spread/skill, and the power of small scales."""
    cases, keys = len(found["cases"]), found["channels"]
    out = Table(
        title=f"{name}, {cases} cases: fractions of interpolation's (95 % interval over cases)", title_justify="left"
    )
    out.add_column("variable", no_wrap=True)
    for what in ("RMSE", "CRPS"):
        for method in METHODS:
            out.add_column(f"{what} {method}", justify="right")
    out.add_column("spread/skill", justify="right")
    out.add_column("power: member, specialist, truth = 1", justify="right")
    mean = lambda m, what: np.mean([case[m][what] for case in found["cases"]], axis=0)
    members = found["settings"]["members"]
    ratio = metrics.spread_skill_ratio(mean("posterior", "variance"), mean("posterior", "mse"), members)
    power = [mean(m, "power") / mean("truth", "power") for m in ("posterior", "specialist")]
    for key in ("mean of all", *(key for key in SHOWN if key in keys)):
        channel = None if key == "mean of all" else keys.index(key)
        pick = (lambda a: float(np.mean(a))) if channel is None else (lambda a: float(a[channel]))  # noqa: B023
        cells = []
        for what in ("mse", "crps"):
            for method in METHODS:
                value, low, high = interval(partial(relative, found, method, what, channel), cases)
                cells.append(f"{value:.2f} ({low:.2f}-{high:.2f})")
        out.add_row(key, *cells, f"{pick(np.asarray(ratio)):.2f}", ", ".join(f"{pick(p):.2f}" for p in power))
    return out


def figure(results: dict[str, dict]) -> Figure:
    """RMSE of every channel as a fraction of interpolation's, a panel a task."""
    out = Figure(figsize=(10, 6.2), layout="constrained")
    for ax, (name, found) in zip(out.subplots(1, len(results), sharey=True, squeeze=False)[0], results.items()):
        keys, every = found["channels"], np.arange(len(found["cases"]))
        for method, colour in METHODS.items():
            values = [relative(found, method, "mse", i, every) for i in range(len(keys))]
            ax.plot(values, range(len(keys)), "o", color=colour, label=method, markersize=5)
        ax.axvline(1, color="#333333", linewidth=0.8)
        ax.set(title=name.replace("_", " "), xlabel="RMSE, interpolation = 1", xlim=(0, None))
        ax.set_yticks(range(len(keys)), keys, fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", linewidth=0.3)
    out.axes[0].invert_yaxis()
    out.legend(*out.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return out


def main(argv: list[str]) -> None:
    """Command line: `[--config.key=value ...]`."""
    c = configuration.load(["--config", __file__, *argv])[0]
    folder = Path(c.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    say = (Console() if sys.stdout.isatty() else Console(width=220)).print
    for name in c.tasks:
        Solver(c, name)  # what is wrong with any of the files shows before the first is worked on
    results = {name: run(c, name, folder) for name in c.tasks}
    for name, found in results.items():
        say(table(found, name))
    figure(results).savefig(folder / "settle.png", dpi=130, bbox_inches="tight")
    say(f"results are in {folder}")


if __name__ == "__main__":
    configuration.command(main)
