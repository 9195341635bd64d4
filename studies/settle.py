"""One frozen prior against networks trained for the task: zero-shot, specialists and baselines on the same cases.

    python -m wind_jax.train --config experiments/specialist_spatial.py
    python -m wind_jax.train --config experiments/specialist_temporal.py
    python -m studies.settle --config.path=archive.zarr [--config.tasks="('temporal_downscaling',)"]

Downscaling in space and in time as `experiments/spatial_downscaling.py` and `temporal_downscaling.py` set it, by the
posterior of the prior, by a specialist of the same architecture, data, batches and steps (`training/specialist.py`), by
interpolation, by cubic interpolation of anomalies and by climatology. All but the posterior give one field; so that
their CRPS can be compared they are dressed with a Gaussian of their own errors, by row and channel, in windows between
the cases. A run that is stopped goes on where it was. The tables are written into docs/skill.md.

Hardware: two CPU cores, 6 GB of memory, about 50 minutes after training.
"""

import json
from collections import defaultdict
from functools import cached_property, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from studies.skill import between, fill, markdown, spoken
from wind_jax import config as configuration
from wind_jax.command import command
from wind_jax.data.forcings import static_forcings
from wind_jax.data.store import TIME_STEP, open_store
from wind_jax.embedded import resolve
from wind_jax.evaluation import metrics, plots
from wind_jax.evaluation.baselines import MEMBERS, gaussian_members
from wind_jax.evaluation.figures import HEADLINE
from wind_jax.experiments import spatial_downscaling, temporal_downscaling
from wind_jax.prior import Prior, apply, graph, load_prior
from wind_jax.problems.problem import Problem, Setting
from wind_jax.problems.registry import make_problem
from wind_jax.progress import Progress, track
from wind_jax.rollout import Guide, make_chain, rollout
from wind_jax.sphere import area_weights, zonal_spectrum
from wind_jax.training.specialist import estimate

TASKS = {"spatial_downscaling": spatial_downscaling, "temporal_downscaling": temporal_downscaling}
METHODS = {  # compared with interpolation, and their colours: those of Okabe and Ito, safe for the colour-blind
    "posterior": "#0072B2",
    "specialist": "#D55E00",
    "anomalies": "#009E73",
    "climatology": "#999999",
}
SMALL_SCALES = slice(11, None)  # zonal wavenumbers
SAME_CLIMATE = 0.02  # standard deviations between means: on another machine the same seeds give other weather


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.workdir = "runs/settle"
    c.seed = 0
    c.prior = "embedded"
    c.path = ""  # an archive that training has not seen
    c.docs = "docs/skill.md"
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
        self.store = open_store(c.path, self.prior.statistics.channels)
        self.static = static_forcings(self.store)
        self.statistics = self.prior.statistics
        self.members, self.key = c.members, jax.random.key(c.seed)
        task = TASKS[name].get_config()
        setting = Setting(self.prior, self.store, self.static, None, c.cases, (), self.key, "nominal")
        self.problem: Problem = make_problem(setting, **task.task.to_dict())
        self.between: Problem = make_problem(setting._replace(cases=c.cases + 1), **task.task.to_dict())
        if (near := abs(self.between.starts[1:-1, None] - self.problem.starts).min()) < self.prior.frames:
            raise ValueError(
                f"Windows between {c.cases} cases of {c.path!r} begin {near} frames from one, and share frames with "
                "it: the archive is too short."
            )
        self.settings = {
            "config": {key: value for key, value in c.items() if key in ("seed", "path", "cases", "members")},
            "task": task.to_dict(),
            "networks": [self.prior.digest(), self.specialist.digest()],
        }
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

    def times(self, problem: Problem, case: int) -> np.ndarray:
        return self.store.times[int(problem.starts[case])] + TIME_STEP * np.arange(self.prior.frames)

    def fields(self, problem: Problem, case: int) -> dict[str, np.ndarray]:
        """By method, what gives one field (t, h, w, c), model units."""
        baseline, times = problem.baseline(case, slice(0, self.prior.frames)), self.times(problem, case)
        guess, own = baseline["interpolation"], self.specialist.statistics
        inputs = jnp.asarray(self.specialist.inputs(self.static, times))[None]
        refined = self.refine(self.specialist.params, jnp.asarray(own.normalize(guess))[None], inputs)
        fields = {
            "specialist": own.denormalize(np.asarray(refined)[0]),
            "interpolation": guess,
            "anomalies": baseline[self.anomalies],
            "climatology": np.asarray(self.prior.climatology.at(times)),
        }
        return {method: self.statistics.normalize(x) for method, x in fields.items()}

    @cached_property
    def deviation(self) -> dict[str, np.ndarray]:
        """By method, root mean square of its errors between the cases, (1, h, 1, c), model units."""
        errors = defaultdict(list)
        for case in track(range(1, len(self.problem.starts)), "errors between the cases", unit="case"):
            truth = self.statistics.normalize(self.between.states(case, 0, self.prior.frames))
            for method, field in self.fields(self.between, case).items():
                errors[method].append(field - truth)
        return {k: np.sqrt(np.mean(np.square(e), axis=(0, 1, 3)))[None, :, None] for k, e in errors.items()}

    def solve(self, case: int) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
        """Truth (t, h, w, c) and, by method, members (m, t, h, w, c) and what they are made of: the same, or (1, t, h,
        w, c), one field that was dressed; physical units."""
        prior, statistics = self.prior, self.statistics
        inputs = prior.inputs(self.static, self.times(self.problem, case))
        told = [self.problem.told(case, 0)]
        (x,) = rollout(
            prior, None, inputs, self.members, jax.random.fold_in(self.key, case), self.chain, 0, self.guide, told
        )
        members = statistics.physical(np.asarray(x))
        return self.problem.states(case, 0, prior.frames), {"posterior": (members, members)} | {
            method: (
                gaussian_members(field, self.deviation[method], statistics, (case,)),
                statistics.physical(field)[None],
            )
            for method, field in self.fields(self.problem, case).items()
        }


def check_alike(prior: Prior, specialist: Prior, name: str) -> None:
    """Refuses a comparison that would be none.

    Raises:
        ValueError: another architecture, other data, or another number of training windows.
    """
    seen = [json.loads(p.provenance).get("samples") for p in (prior, specialist)]
    if prior.config != specialist.config or prior.statistics.channels != specialist.statistics.channels:
        raise ValueError(f"The specialist of {name} has another architecture or other channels than the prior.")
    apart = np.abs(prior.statistics.mean - specialist.statistics.mean) / prior.statistics.std
    if apart.max() > SAME_CLIMATE:
        worst = prior.statistics.channels[int(apart.argmax())].key
        raise ValueError(
            f"The specialist of {name} was trained on other data: the means of {worst} are {apart.max():.2f} standard "
            f"deviations apart, expected at most {SAME_CLIMATE}."
        )
    if seen[0] != seen[1]:
        raise ValueError(f"The prior was trained on {seen[0]} windows, the specialist of {name} on {seen[1]}.")


def power(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Of the small scales of fields (m, t, h, w, c), by channel."""
    by_row = zonal_spectrum(np.moveaxis(x, -1, -3))[..., SMALL_SCALES].sum(-1)
    return (by_row * weights[:, 0]).mean((0, 1, -1))


def moments(x: np.ndarray, made_of: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> dict[str, list[float]]:
    """CRPS and variance of members in one case, squared error and power of what they are made of, by channel."""
    members, fields, y = (np.moveaxis(a, -1, -3) for a in (x, made_of, truth))
    out = {
        "mse": metrics.ensemble_mean_mse(fields, y, weights).mean(0),
        "crps": metrics.crps(members, y, weights).mean(0),
        "variance": metrics.ensemble_variance(members, weights).mean(0),
        "power": power(made_of, weights),
    }
    return {name: np.asarray(values, float).tolist() for name, values in out.items()}


def run(c: ConfigDict, name: str, solver: Solver, folder: Path) -> dict:
    """Moments of all cases and methods of a task, written case by case."""
    path = folder / f"{name}.json"
    channels = [(ch.name, ch.level) for ch in solver.prior.statistics.channels]
    found = json.loads(json.dumps({"settings": solver.settings, "channels": channels, "cases": []}))
    if path.exists() and (before := json.loads(path.read_text()))["settings"] == found["settings"]:
        found = before
    weights = area_weights(solver.prior.grid)
    with Progress(name, c.cases, unit="case") as bar:
        bar.update(len(found["cases"]))
        for case in range(len(found["cases"]), c.cases):
            truth, solved = solver.solve(case)
            by_method = {method: moments(*pair, truth, weights) for method, pair in solved.items()}
            found["cases"].append(by_method | {"truth": {"power": power(truth[None], weights).tolist()}})
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
    """RMSE or CRPS as a fraction of interpolation's, over chosen cases; mean over channels where none is given.

    The RMSE of the posterior is that of the mean of infinitely many members.
    """
    values = lambda m, what: np.mean([found["cases"][i][m][what] for i in chosen], axis=0)
    own = values(method, what)
    if (method, what) == ("posterior", "mse"):
        own = own - values(method, "variance") / found["settings"]["config"]["members"]
    ratio = own / values("interpolation", what)
    ratio = np.sqrt(ratio) if what == "mse" else ratio
    return float(ratio.mean() if channel is None else ratio[channel])


def table(found: dict, what: str) -> str:
    """Markdown: RMSE or CRPS as fractions of interpolation's, with their intervals over cases."""
    cases, keys = len(found["cases"]), [tuple(key) for key in found["channels"]]
    body = []
    for key in (None, *(key for key in HEADLINE if key in keys)):
        channel = None if key is None else keys.index(key)
        cells = [interval(partial(relative, found, method, what, channel), cases) for method in METHODS]
        best = min(value for value, _, _ in cells)
        strong = lambda value: f"**{value:.2f}**" if value == best else f"{value:.2f}"  # noqa: B023
        body.append(
            [
                "mean of all fields" if key is None else plots.name(*key),
                *(f"{strong(value)} ({low:.2f} to {high:.2f})" for value, low, high in cells),
            ]
        )
    return markdown(["field", *METHODS], body)


def spread_and_power(found: dict) -> str:
    """Markdown: spread/skill of posterior and dressed specialist, and the small scales of one field of each."""
    keys, members = [tuple(key) for key in found["channels"]], found["settings"]["config"]["members"]
    mean = lambda m, what: np.mean([case[m][what] for case in found["cases"]], axis=0)
    ratio = lambda m, size: np.asarray(metrics.spread_skill_ratio(mean(m, "variance"), mean(m, "mse"), size))
    columns = [ratio("posterior", members), ratio("specialist", MEMBERS)]
    columns += [mean(m, "power") / mean("truth", "power") for m in ("posterior", "specialist", "interpolation")]
    headings = ["spread/skill: posterior", "specialist", "small scales: posterior", "specialist", "interpolation"]
    every = [["mean of all fields", *(f"{column.mean():.2f}" for column in columns)]]
    shown = [key for key in HEADLINE if key in keys]
    body = [[plots.name(*key), *(f"{column[keys.index(key)]:.2f}" for column in columns)] for key in shown]
    return markdown(["field", *headings], every + body)


def section(found: dict, name: str, path: Path) -> str:
    """What docs/skill.md says of a task."""
    config = found["settings"]["config"]
    return (
        f"### {spoken(name)}\n\n{len(found['cases'])} cases, {config['members']} members, from `{path}`. RMSE of the "
        f"mean as a fraction of interpolation's (95 % interval over cases):\n\n{table(found, 'mse')}\n"
        f"CRPS, likewise:\n\n{table(found, 'crps')}\n"
        f"Spread/skill, and variance at zonal wavenumbers from {SMALL_SCALES.start} as a fraction of the truth's:\n\n"
        f"{spread_and_power(found)}\n"
    )


def figure(results: dict[str, dict]) -> Figure:
    """RMSE of every channel as a fraction of interpolation's, a panel a task."""
    out = Figure(figsize=(10, 6.2), layout="constrained")
    for ax, (name, found) in zip(out.subplots(1, len(results), sharey=True, squeeze=False)[0], results.items()):
        keys, every = [plots.name(*key) for key in found["channels"]], np.arange(len(found["cases"]))
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
    marks = {name: f"settle {name}" for name in c.tasks}
    for mark in marks.values():  # what is wrong with any file shows before any work
        between(c.docs, mark)
    solvers = {name: Solver(c, name) for name in c.tasks}
    results = {name: run(c, name, solver, folder) for name, solver in solvers.items()}
    for name, found in results.items():
        fill(c.docs, text := section(found, name, folder / f"{name}.json"), marks[name])
        print(text)
    figure(results).savefig(folder / "settle.png", dpi=130, bbox_inches="tight")
    print(f"results are in {folder}, the tables in {c.docs}")


if __name__ == "__main__":
    command(main)
