"""What holding the dry-air mass costs, and what it buys: the tables and figures of docs/conservation.md.

    python -m studies.conservation [--config.workdir=runs/conservation_study]

Two parts, each going on where it was stopped:

    ablation    forecasts with the mass held to errors from 1e-3 to 1e-7, free, and free with the pressure rescaled
                afterwards: what remains of the departure, CRPS, and the variance of small scales
    long run    one trajectory of `days`, free, held, and rescaled after every window: drift of the dry-air mass, of
                the mean temperature and of the spectra

Hardware: two CPU cores, 6 GB of memory, about 45 minutes.
"""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from rich.table import Table

from wind_jax import config as configuration
from wind_jax.columns import Columns, total
from wind_jax.command import command
from wind_jax.data.forcings import static_forcings
from wind_jax.data.store import TIME_STEP, open_store
from wind_jax.embedded import resolve
from wind_jax.evaluation import metrics
from wind_jax.observations.totals import rescale_dry_air_mass, totals_observation
from wind_jax.prior import load_prior
from wind_jax.problems.problem import Setting
from wind_jax.problems.registry import make_problem
from wind_jax.progress import Progress, printer
from wind_jax.rollout import Guide, make_chain, rollout
from wind_jax.sphere import area_mean, area_weights, zonal_spectrum

ERRORS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
SMALL_SCALES = slice(11, None)  # zonal wavenumbers from 11 on, where noise shows first (the packaged data are T21)
COLOURS = {"free": "#d55e00", "held": "#0072b2", "rescaled": "#009e73"}  # Okabe and Ito: safe for the colour-blind
SCORED = (("geopotential", 500), ("temperature", 850), ("u_component_of_wind", 850), ("mean_sea_level_pressure", None))


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.workdir = "runs/conservation_study"
    c.seed = 0
    c.prior = "embedded"
    c.path = "embedded"
    c.context = 2
    c.cases = 4
    c.members = 4
    c.leads = 6
    c.days = 100
    c.long_members = 2
    c.sampler = ConfigDict({"name": "ddim", "steps": 16, "start": 0.98})
    return c


class Study:
    """What both parts start from."""

    def __init__(self, c: ConfigDict):
        self.c = c
        self.folder = Path(c.workdir)
        self.prior = load_prior(resolve(c.prior, "prior.npz"))
        configuration.claim(self.folder, c, self.prior.digest())
        self.statistics = self.prior.statistics
        self.store = open_store(resolve(c.path, "sample.zarr"), self.statistics.channels)
        self.static = static_forcings(self.store)
        self.ground = self.store.static("geopotential_at_surface")
        self.columns = Columns(self.statistics.channels, self.prior.grid, self.ground)
        self.chain = make_chain(**c.sampler.to_dict())
        self.scored = [i for i, ch in enumerate(self.statistics.channels) if (ch.name, ch.level) in SCORED]

    def rescaled(self, target: float) -> Callable[[np.ndarray], np.ndarray]:
        """The simple fix, on members (b, t, h, w, c) in physical units."""
        fix = jax.jit(jax.vmap(lambda x: rescale_dry_air_mass(x, self.columns, target)))
        return lambda x: np.asarray(fix(jnp.asarray(x)))

    def departure(self, x: np.ndarray, target: float) -> np.ndarray:
        """Relative departure from the target of each member and frame, (b, t)."""
        return np.stack([total(member, self.columns) for member in x]) / target - 1

    def spectra(self, x: np.ndarray) -> np.ndarray:
        """Zonal power of the scored channels, mean over the sphere, (b, t, scored, wavenumbers)."""
        power = zonal_spectrum(np.moveaxis(x[..., self.scored], -1, 2), axis=-1)
        return (power * area_weights(self.prior.grid)).mean(-2)


# ------------------------------------------------------------------------------------------------------------- ablation
def ablation(s: Study) -> list[dict]:
    """One record a setting, written as it is found."""
    path = s.folder / "ablation.json"
    found = json.loads(path.read_text()) if path.exists() else []
    settings = ["free", *ERRORS, "rescaled"]
    with Progress("ablation", len(settings), unit="setting") as bar:
        for setting in settings:
            if not any(r["setting"] == setting for r in found):
                found.append({"setting": setting, **forecasts(s, setting)})
                path.write_text(json.dumps(found, indent=1) + "\n")
            bar.update()
    return found


def forecasts(s: Study, setting: str | float) -> dict:
    """Forecasts of all cases with one setting; the noise is the same for all settings."""
    held = isinstance(setting, float)
    conserve = {"dry_air_mass": setting} if held else None
    base = Setting(s.prior, s.store, s.static, s.ground, s.c.cases, (), jax.random.key(s.c.seed), "nominal")
    problem = make_problem(base, "forecast", context=s.c.context, leads=s.c.leads, conserve=conserve)
    guide = Guide(problem.observe, "mmps", (("iterations", 1),)) if held else None
    weights = area_weights(s.prior.grid)
    departures, crps, mse, variance, power = [], [], [], [], []
    for case, start in enumerate(problem.starts):
        known = problem.states(case, 0, s.c.context)
        target = float(total(known[-1:], s.columns)[0])
        frames = s.c.context + problem.windows * (s.prior.frames - s.c.context)
        inputs = s.prior.inputs(s.static, s.store.times[start] + TIME_STEP * np.arange(frames))
        told = [problem.told(case, window) for window in range(problem.windows)] if held else None
        drawn = rollout(
            s.prior, s.statistics.normalize(known), inputs, s.c.members, jax.random.key(case), s.chain, 0, guide, told
        )
        x = s.statistics.physical(np.concatenate([np.asarray(frames) for frames in drawn], axis=1))
        x = x[:, : s.c.leads]
        if setting == "rescaled":
            x = s.rescaled(target)(x)
        truth = problem.states(case, s.c.context, s.c.leads)
        ensemble, y = (np.moveaxis(a[..., s.scored], -1, -3) for a in (x, truth))
        departures.append(np.abs(s.departure(x, target)))
        crps.append(metrics.crps(ensemble, y, weights).mean(0))
        mse.append(metrics.ensemble_mean_mse(ensemble, y, weights).mean(0))
        variance.append(metrics.ensemble_variance(ensemble, weights).mean(0))
        small = [s.spectra(a)[..., SMALL_SCALES].sum(-1).mean((0, 1)) for a in (x, truth[None])]
        power.append(small[0] / small[1])
    ratio = metrics.spread_skill_ratio(np.mean(variance, 0), np.mean(mse, 0), s.c.members)
    return {
        "mean_departure": float(np.mean(departures)),
        "largest_departure": float(np.max(departures)),
        "channels": [s.statistics.channels[i].key for i in s.scored],
        "crps": np.mean(crps, 0).tolist(),
        "crps_by_case": np.asarray(crps).tolist(),
        "spread_skill_ratio": np.asarray(ratio).tolist(),
        "small_scale_power": np.mean(power, 0).tolist(),
    }


def ablation_table(found: list[dict]) -> Table:
    """CRPS and the power of small scales beside those of the free forecasts and of the truth."""
    free = next(r for r in found if r["setting"] == "free")
    table = Table(title="Dry-air mass of forecasts: what holding it costs", title_justify="left")
    table.add_column("mass", no_wrap=True)
    for heading in ("mean |dM/M|", "largest", *(f"CRPS {key}" for key in free["channels"]), "spread/skill", "power"):
        table.add_column(heading, justify="right")
    for r in found:
        name = f"held to {r['setting']:.0e}" if isinstance(r["setting"], float) else r["setting"]
        # Paired by case: the same cases and noise in every row.
        change = np.asarray(r["crps_by_case"]) / np.asarray(free["crps_by_case"]) - 1
        error = change.std(0, ddof=1) / np.sqrt(len(change))
        table.add_row(
            name,
            f"{r['mean_departure']:.1e}",
            f"{r['largest_departure']:.1e}",
            *(f"{100 * m:+.1f} ± {100 * e:.1f} %" for m, e in zip(change.mean(0), error, strict=True)),
            f"{np.mean(r['spread_skill_ratio']):.2f}",
            f"{np.mean(r['small_scale_power']):.2f}",
        )
    return table


def ablation_figure(found: list[dict]) -> Figure:
    """What remains of the departure, CRPS and power of small scales by the error to which the mass is held."""
    free, rescaled = (next(r for r in found if r["setting"] == name) for name in ("free", "rescaled"))
    held = sorted((r for r in found if isinstance(r["setting"], float)), key=lambda r: r["setting"])
    panels = {
        "Mean departure from the target": lambda r: r["mean_departure"],
        "CRPS as a fraction of the free run's": lambda r: np.mean(np.asarray(r["crps"]) / free["crps"]),
        "Power of small scales (truth = 1)": lambda r: np.mean(r["small_scale_power"]),
    }
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for ax, (title, value) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        ax.plot([r["setting"] for r in held], [value(r) for r in held], "o-", color=COLOURS["held"], label="held")
        for name, record in (("free", free), ("rescaled", rescaled)):
            ax.axhline(value(record), color=COLOURS[name], linestyle="--", label=name)
        ax.set(xscale="log", xlabel="stated relative error of the mass", title=title)
    log, *ratios = figure.axes
    log.set_yscale("log")
    for ax in ratios:
        ax.set_ylim(0, 1.2 * ax.get_ylim()[1])  # a small change should not fill the panel
    return finished(figure)


def finished(figure: Figure) -> Figure:
    """Without frames, with one legend."""
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.title.set_fontsize(10)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


# ------------------------------------------------------------------------------------------------------------- long run
def long_run(s: Study, arm: str) -> dict[str, np.ndarray]:
    """Diagnostics of every frame of one trajectory, written after every window."""
    path = s.folder / f"long_{arm}.npz"
    context, new = s.c.context, s.prior.frames - s.c.context
    windows = -(-4 * s.c.days // new)
    start = s.store.times[0]
    first = s.store.read(0, context)
    target = float(total(first[-1:], s.columns)[0])
    inputs = s.prior.inputs(s.static, start + TIME_STEP * np.arange(context + windows * new))
    guide = None
    if arm == "held":
        held, error = {"dry_air_mass": np.zeros(s.prior.frames, np.float32)}, {"dry_air_mass": 1e-6}
        fixed = totals_observation(s.columns, held, {"dry_air_mass": target}, error, s.statistics)
        guide = Guide(lambda _: fixed, "mmps", (("iterations", 1),))
    fix = s.rescaled(target)
    known, done, begun = s.statistics.normalize(first), [], 0
    if path.exists():
        with np.load(path) as file:
            known, begun = file["known"], int(file["windows"])
            done = [{name: file[name] for name in ("departure", "temperature", "power")}]
    key = jax.random.key(s.c.seed)
    with Progress(f"{s.c.days} days, {arm}", windows, unit="window") as bar:
        bar.update(begun)
        for window in range(begun, windows):
            at = window * new
            # One window at a time, so that the rescaled run goes on from rescaled frames.
            (frames,) = rollout(
                s.prior, known, inputs[at : at + s.prior.frames], s.c.long_members, jax.random.fold_in(key, window),
                s.chain, 0, guide, [0] if guide else None,
            )  # fmt: skip
            x = s.statistics.physical(np.asarray(frames))
            if arm == "rescaled":
                x = fix(x)
            known = np.concatenate([np.broadcast_to(known, (len(x), *known.shape[-4:])), s.statistics.normalize(x)], 1)
            known = known[:, -context:]
            done.append(
                {
                    "departure": s.departure(x, target),
                    "temperature": np.asarray(area_mean(x[..., mean_temperature(s)], s.prior.grid, axis=(2, 3))),
                    "power": s.spectra(x),
                }
            )
            if not np.isfinite(x).all():
                raise ValueError(f"The {arm} run is not finite in window {window}; what it was until then: {path}.")
            whole = {name: np.concatenate([part[name] for part in done], axis=1) for name in done[0]}
            np.savez(path.with_suffix(".partial.npz"), known=known, windows=window + 1, **whole)
            path.with_suffix(".partial.npz").replace(path)
            bar.update()
    with np.load(path) as file:
        return {name: file[name][:, : 4 * s.c.days] for name in ("departure", "temperature", "power")}


def mean_temperature(s: Study) -> list[int]:
    """Positions of the channels whose global mean is followed: temperature on pressure levels."""
    return [i for i, ch in enumerate(s.statistics.channels) if ch.name == "temperature"]


def long_table(s: Study, runs: dict[str, dict[str, np.ndarray]]) -> Table:
    """Drift by the last ten days."""
    table = Table(title=f"A trajectory of {s.c.days} days", title_justify="left")
    headings = ("largest |dM/M|", "dM/M at the end", "dT 850 at the end", "dT 500 at the end", "power, last 10 days")
    table.add_column("mass", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    levels = [s.statistics.channels[i].level for i in mean_temperature(s)]
    small = lambda power: power[..., SMALL_SCALES].sum(-1).mean((0, 1))
    truth = small(s.spectra(s.store.read(0, 28)[None]))  # a week
    for arm, run in runs.items():
        warm = run["temperature"].mean(0)
        change = warm[-40:].mean(0) - warm[:40].mean(0)
        power = np.mean(small(run["power"][:, -40:]) / truth)
        table.add_row(
            arm,
            f"{np.abs(run['departure']).max():.1e}",
            f"{run['departure'][:, -4:].mean():+.1e}",
            f"{change[levels.index(850)]:+.2f} K",
            f"{change[levels.index(500)]:+.2f} K",
            f"{power:.2f}",
        )
    change = normal_temperature(s)[-40:].mean(0) - normal_temperature(s)[:40].mean(0)
    table.add_row("climatology", "", "", *(f"{change[levels.index(level)]:+.2f} K" for level in (850, 500)), "")
    return table


def normal_temperature(s: Study) -> np.ndarray:
    """Global mean temperature of the climatology at the times of the trajectory, (t, levels)."""
    times = s.store.times[0] + TIME_STEP * np.arange(s.c.context, s.c.context + 4 * s.c.days)
    return np.array(
        [
            area_mean(s.prior.climatology.at(t)[0][..., mean_temperature(s)], s.prior.grid, (0, 1))
            for t in times[:, None]
        ]
    )


def long_figure(s: Study, runs: dict[str, dict[str, np.ndarray]]) -> Figure:
    """Dry-air mass, mean temperature and the power of small scales, mean of the members, by day."""
    level = [s.statistics.channels[i].level for i in mean_temperature(s)].index(850)
    channel = [s.statistics.channels[i].key for i in s.scored].index("temperature_850")
    panels = {
        "Departure of the dry-air mass (relative)": lambda run: run["departure"],
        "Global mean temperature at 850 hPa (K)": lambda run: run["temperature"][..., level],
        "Variance of temperature 850 at small scales (K²)": lambda run: run["power"][:, :, channel, SMALL_SCALES].sum(
            -1
        ),
    }
    days = np.arange(1, 4 * s.c.days + 1) / 4
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for ax, (title, value) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for width, (arm, run) in zip((2.4, 1.6, 0.8), runs.items(), strict=True):  # none hides another
            ax.plot(days, value(run).mean(0), color=COLOURS[arm], label=arm, linewidth=width)
        ax.set(xlabel="day", title=title, xlim=(0, s.c.days))
    _, temperature, variance = figure.axes
    temperature.plot(days, normal_temperature(s)[:, level], "--", color="#333333")
    truth = s.spectra(s.store.read(0, 28)[None])[:, :, channel, SMALL_SCALES].sum(-1).mean()
    variance.axhline(truth, linestyle="--", color="#333333")
    variance.set_ylim(0, None)
    figure.axes[0].plot([], [], "--", color="#333333", label="climatology; truth's first week")
    return finished(figure)


def main(argv: list[str]) -> None:
    """Command line: `[--config.key=value ...]`."""
    s = Study(configuration.load(["--config", __file__, *argv])[0])
    say = printer(160)
    found = ablation(s)
    say(ablation_table(found))
    ablation_figure(found).savefig(s.folder / "ablation.png", dpi=130, bbox_inches="tight")
    runs = {arm: long_run(s, arm) for arm in ("free", "held", "rescaled")}
    say(long_table(s, runs))
    long_figure(s, runs).savefig(s.folder / "long_run.png", dpi=130, bbox_inches="tight")
    say(f"results are in {s.folder}")


if __name__ == "__main__":
    command(main)
