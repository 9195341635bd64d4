"""The warmed storm, checked against physics: zero-shot storylines beside SPEEDY, warmed for real. docs/warming.md

    python -m studies.settle_warming [--config.workdir=runs/settle_warming]

1. SPEEDY runs from a seed that no training archive had and keeps its model state every `chunk_days`.
2. The storms with the heaviest rain are chosen, at most one a chunk, some in middle latitudes and some in the tropics.
3. SPEEDY runs again from the state before each: `kelvin` more in the sea throughout and in the air at the start, at
   constant relative humidity; and once more with the soil warmer too.
4. The prior draws four ensembles from the two frames before each: free and guided by the event's large scale, both as
   it was and warmer. They share their noise.
5. What the warming changed in each is compared: results.json, tables.md, signal.png, change.png.

Each part is written once; a run that is stopped goes on where it was. Needs `pip install wind_jax[speedy]`.
Hardware: two CPU cores, 4 GB of memory; took an hour and a half beside much other work.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from wind_jax import config as configuration
from wind_jax.channels import channels
from wind_jax.columns import Columns
from wind_jax.command import command
from wind_jax.data.forcings import static_forcings
from wind_jax.data.speedy import STATES_PER_DAY, Settings, simulate
from wind_jax.data.speedy_warming import WarmedSpeedy, branch
from wind_jax.data.store import TIME_STEP, Store, open_store
from wind_jax.embedded import resolve
from wind_jax.ensemble import ensemble_mesh, member_batches, members_at_once
from wind_jax.evaluation import plots
from wind_jax.evaluation.counterfactual import BANDS, Pair, Record, Storm, box, compare, strongest_storms, summary
from wind_jax.experiments import warming
from wind_jax.prior import Prior, load_prior
from wind_jax.problems.storylines import ARMS, PAIRS
from wind_jax.progress import Progress, printer
from wind_jax.rollout import Guide, make_chain, rollout
from wind_jax.sphere import coarsening
from wind_jax.tasks.forecast import window_count
from wind_jax.tasks.warming import large_scale_observation, shift

TRUTHS = {"SPEEDY": False, "SPEEDY, soil too": True}  # whether the soil is warmer as well
STYLES = {  # Okabe and Ito: safe for the colour-blind
    "SPEEDY": ("#000000", "-", "SPEEDY, warmer sea"),
    "SPEEDY, soil too": ("#000000", ":", "SPEEDY, warmer sea and soil"),
    "storyline": ("#0072B2", "-", "Guided storyline"),
    "free": ("#D55E00", "-", "Free run from the warmer start"),
}
REGIONS = ("globe", "storm")
SIGNALS = (
    ("temperature", 250),
    ("temperature", 500),
    ("temperature", 850),
    ("2m_temperature", None),
    ("specific_humidity", 850),
    ("geopotential", 500),
)
CHANGES = {
    "Column water": ("column_water", None),
    "Mean precipitation": ("precipitation_mean", None),
    "99th percentile of 6 h": ("precipitation_p99", None),
    "Heaviest 24 h": ("precipitation_heaviest", None),
    "Wind speed 250 hPa": ("wind_speed", "250"),
    "Wind speed 850 hPa": ("wind_speed", "850"),
    "Wind speed 10 m": ("wind_speed", "10m"),
}
SPECTRA = (
    ("temperature", 850),
    ("specific_humidity", 850),
    ("u_component_of_wind", 500),
    ("total_precipitation_6hr", None),
)
BALANCES = {
    "Ageostrophic share of the wind, 500 hPa": ("geostrophic_imbalance", "500"),
    "Ageostrophic share of the wind, 850 hPa": ("geostrophic_imbalance", "850"),
    "Hydrostatic residual 700-850 hPa (K)": ("hydrostatic_residual", "850"),
    "Implied evaporation (mm / day)": ("implied_evaporation", None),
    "Drift of the dry-air mass (relative)": ("dry_air_mass_drift", None),
}


def get_config() -> ConfigDict:
    c, base = ConfigDict(), warming.get_config()
    c.workdir = "runs/settle_warming"
    c.seed = 0
    c.prior = "embedded"

    c.speedy = ConfigDict()
    c.speedy.seed = 4
    c.speedy.start = "2003-01-01"
    c.speedy.days = 180
    c.speedy.spinup_days = 150
    c.speedy.chunk_days = 6  # of a branch

    c.storms = ConfigDict()
    c.storms.middle_latitudes = 5
    c.storms.tropics = 3

    c.task = base.task
    c.task.leads = 12
    del c.task.name, c.task.latitude, c.task.longitude  # it is warmer everywhere
    c.members = 2
    c.sampler = base.sampler
    c.sampler.steps = 8  # as good as 20 for forecasts, see docs/demo_prior.md
    c.guidance = base.guidance
    return c


# --------------------------------------------------------------------------------------------------------------- storms
def choose(c: ConfigDict, store: Store) -> list[Storm]:
    """The storms of both belts, each in a chunk of its own, by date."""
    chunk = c.speedy.chunk_days * STATES_PER_DAY
    rain = open_store(store.path, channels(["total_precipitation_6hr"])).read(0, len(store))[..., 0]
    starts, storms = list(range(chunk, len(store), chunk)), []
    for latitudes, count in (((25, 65), c.storms.middle_latitudes), ((0, 20), c.storms.tropics)):
        free = [start for start in starts if start not in {storm.start for storm in storms}]
        storms += strongest_storms(rain, store.grid, free, c.task.leads, latitudes, count)
    return sorted(storms)


# -------------------------------------------------------------------------------------------------------------- members
class Storylines:
    """The prior's ensembles of one configuration."""

    def __init__(self, c: ConfigDict, prior: Prior, store: Store):
        self.c, self.prior, self.store, self.statistics = c, prior, store, prior.statistics
        self.static, self.ground = static_forcings(store), store.static("geopotential_at_surface")
        self.new = prior.frames - c.task.context
        self.windows = window_count(c.task.leads, prior.frames, c.task.context)
        self.frames = c.task.context + self.windows * self.new
        if self.windows * self.new > (longest := c.speedy.chunk_days * STATES_PER_DAY):
            raise ValueError(
                f"config.task.leads {c.task.leads} take whole windows of {self.windows * self.new} new frames; "
                f"config.speedy.chunk_days {c.speedy.chunk_days} give {longest}."
            )
        self.chain = make_chain(**c.sampler.to_dict())
        self.batches = member_batches(c.members, members_at_once(prior, ensemble_mesh(1)))
        cells = coarsening(prior.grid, c.task.factor)
        observe = lambda x: large_scale_observation(x, cells, self.statistics, c.task.variables, c.task.error)
        method = c.guidance.method
        self.guide = Guide(observe, method, tuple(c.guidance.get(method, {}).items()))

    def event(self, storm: Storm, warm: bool) -> np.ndarray:
        """SPEEDY's own frames, from the first known one on, (t, h, w, c); or these, warmer."""
        x = self.store.read(storm.start - self.c.task.context, self.frames)
        return shift(x, self.statistics.channels, self.c.task.kelvin, self.ground) if warm else x

    def draw(self, storm: Storm, number: int, warm: bool, guided: bool) -> Iterator[np.ndarray]:
        """Members in physical units, (b, new, h, w, c), window by window of each batch."""
        x, context = self.event(storm, warm), self.c.task.context
        times = self.store.times[storm.start - context] + TIME_STEP * np.arange(self.frames)
        for batch in self.batches:
            told = [x[w * self.new : w * self.new + self.prior.frames] for w in range(self.windows)]
            drawn = rollout(
                self.prior,
                self.statistics.normalize(x[:context]),
                self.prior.inputs(self.static, times),
                batch,
                jax.random.fold_in(jax.random.key(self.c.seed), number),
                self.chain,
                guide=self.guide if guided else None,
                told=told if guided else None,
            )
            for frames in drawn:
                yield self.statistics.physical(np.asarray(frames))

    def ensemble(self, storm: Storm, number: int, name: str, path: Path, bar: Progress) -> np.ndarray:
        """(m, leads, h, w, c), drawn once and read from `path` ever after."""
        if not path.exists():
            drawn = []
            for frames in self.draw(storm, number, *ARMS[name]):
                if not np.isfinite(frames).all():
                    raise ValueError(f"The ensemble {name} of storm {number} diverged: raise config.sampler.steps.")
                drawn.append(frames)
                bar.update()
            batches = [drawn[i : i + self.windows] for i in range(0, len(drawn), self.windows)]
            x = np.concatenate([np.concatenate(batch, axis=1) for batch in batches])
            partial = path.with_suffix(".partial.npz")
            np.savez(partial, x=x[: self.c.members, : self.c.task.leads].astype(np.float32))
            partial.replace(path)
        else:
            bar.update(self.windows * len(self.batches))
        with np.load(path) as file:
            return file["x"]


# --------------------------------------------------------------------------------------------------------------- tables
def pick(found: Sequence[Record], **where) -> list[Record]:
    """The records with these values."""
    return [record for record in found if all(record[key] == value for key, value in where.items())]


def table(found: Sequence[Record], title: str, rows: dict[str, dict], spec: str) -> str:
    """A line for each of `rows` (label -> what picks its records), a column for each arm: mean, half the interval."""
    lines = [f"| {title} | {' | '.join(STYLES)} |", "|---|" + "---|" * len(STYLES)]
    for label, where in rows.items():
        cells = []
        for arm in STYLES:
            (record,) = pick(found, arm=arm, **where)
            half = "" if record["high"] is None else f" ± {record['high'] - record['mean']:{spec}}"
            cells.append(f"{record['mean']:{spec}}{half}")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def key(variable: str, level: int | None) -> str:
    """The channel as records name it."""
    return variable if level is None else f"{variable}_{level}"


def tables(found: Sequence[Record], leads: int) -> str:
    """The main numbers, as Markdown; results.json has all."""
    hours = (6, *range(24, 6 * leads + 1, 24))
    out = []
    for region in REGIONS:
        rows = {
            f"{plots.name(*channel)}, {h} h": {"quantity": "signal_kept", "channel": key(*channel), "lead_hours": h}
            for channel in SIGNALS
            for h in hours
        }
        out.append(table(pick(found, region=region), f"share of the signal kept, {region}", rows, ".2f"))
    for region in REGIONS:
        rows = {"Clausius-Clapeyron at 2 m": ("clausius_clapeyron", None)} | CHANGES
        rows = {label: {"quantity": q, "channel": at, "lead_hours": None} for label, (q, at) in rows.items()}
        if region != "globe":
            del rows["Column water"]
        out.append(table(pick(found, region=region), f"% / K, {region}", rows, ".1f"))
    rows = {f"{h} h": {"region": "globe", "quantity": "precipitation_mean", "lead_hours": h} for h in hours}
    out.append(table(found, "mean precipitation, % / K, globe", rows, ".1f"))
    for quantity, title in (("energy_change", "energy, warm / control"), ("energy_ratio", "energy, warm / SPEEDY's")):
        rows = {
            f"{plots.name(*channel)}, wavenumbers {band}": {"quantity": f"{quantity}_{band}", "channel": key(*channel)}
            for channel in SPECTRA
            for band in BANDS
        }
        out.append(table(found, title, rows, ".2f"))
    rows = {
        f"{label}, {run}": {"quantity": f"{quantity}_{run}", "channel": at}
        for label, (quantity, at) in BALANCES.items()
        for run in ("control", "warm")
    }
    out.append(table(found, "balance and budgets", rows, ".2g"))
    return "\n\n".join(out) + "\n"


# -------------------------------------------------------------------------------------------------------------- figures
def signal_figure(found: Sequence[Record]) -> Figure:
    """How much of the imposed signal is left over the globe, by lead, with the confidence interval over storms."""
    figure = Figure(figsize=(9.6, 5.4), layout="constrained")
    figure.suptitle("How much of the imposed warming is kept", fontsize=12)
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    for ax, (variable, level) in zip(axes.flat, SIGNALS, strict=True):
        for arm, (colour, line, label) in STYLES.items():
            some = pick(found, arm=arm, region="globe", quantity="signal_kept", channel=key(variable, level))
            days = [record["lead_hours"] / 24 for record in some]
            low, mean, high = ([record[part] for record in some] for part in ("low", "mean", "high"))
            ax.plot(days, mean, line, color=colour, label=label, linewidth=1.6)
            if None not in low:
                ax.fill_between(days, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.set_title(plots.name(variable, level), fontsize=10)
        ax.set_xlim(0, days[-1])
        ax.set_ylim(bottom=0)
        finish(ax)
    for ax in axes[-1]:
        ax.set_xlabel("Lead time (days)", fontsize=9)
    for ax in axes[:, 0]:
        ax.set_ylabel("Share kept", fontsize=9)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def change_figure(found: Sequence[Record]) -> Figure:
    """Change of water, rain and wind for each kelvin, with the confidence interval over storms."""
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    figure.suptitle("What each kelvin changes", fontsize=12)
    axes = figure.subplots(1, 2, sharey=True)
    for ax, (region, title) in zip(axes, (("globe", "Globe"), ("storm", "Box about the storm")), strict=True):
        expected = pick(found, arm="SPEEDY", region=region, quantity="clausius_clapeyron")[0]["mean"]
        ax.axvline(expected, color="#666666", linestyle="--", linewidth=1, label="Clausius-Clapeyron at 2 m")
        ax.axvline(0, color="#666666", linewidth=0.8)
        for line, (quantity, channel) in enumerate(CHANGES.values()):
            for offset, (arm, (colour, style, label)) in enumerate(STYLES.items()):
                where = {"region": region, "quantity": quantity, "channel": channel, "lead_hours": None}
                for record in pick(found, arm=arm, **where):
                    at = line + 0.2 * (offset - 1.5)
                    fill = "white" if style == ":" else colour
                    once = label if line == 1 else None
                    ax.plot(record["mean"], at, "o", color=colour, markerfacecolor=fill, markersize=5, label=once)
                    if record["low"] is not None:
                        ax.plot([record["low"], record["high"]], [at, at], color=colour, linewidth=1.2, zorder=1)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("% / K", fontsize=9)
        finish(ax)
    axes[0].set_yticks(range(len(CHANGES)), CHANGES)
    axes[0].invert_yaxis()
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def finish(ax) -> None:
    """The look of the package's figures."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8)


# ----------------------------------------------------------------------------------------------------------------- main
def main(argv: list[str]) -> None:
    """Command line: `[--config.key=value ...]`."""
    c = configuration.load(["--config", __file__, *argv])[0]
    say = printer(160)
    folder, kelvin, leads = Path(c.workdir), c.task.kelvin, c.task.leads
    for name in ("branches", "members"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    prior = load_prior(resolve(c.prior, "prior.npz"))
    configuration.claim(folder, c, prior.digest())

    # ------------------------------------------------------------------------------------------------ event and truths
    settings, archive = Settings(**c.speedy.to_dict()), folder / "speedy.zarr"
    simulate(archive, settings, keep_states=True)
    store = open_store(archive, prior.statistics.channels)
    storylines, storms = Storylines(c, prior, store), choose(c, store)
    for storm in storms:
        say(
            f"{store.times[storm.start + storm.frame]:.13}: {storm.rain:.0f} mm in 24 h at {storm.latitude:.0f} N, "
            f"{storm.longitude:.0f} E, branch from state {storm.start}"
        )
    paths = {
        (arm, storm): folder / "branches" / f"{storm.start:06d}{'_soil' if land else ''}.zarr"
        for arm, land in TRUTHS.items()
        for storm in storms
    }
    for arm, land in TRUTHS.items():
        if missing := [storm for storm in storms if not paths[arm, storm].exists()]:
            model = WarmedSpeedy(settings, kelvin, land)
            with Progress(arm, len(missing), unit="branch") as bar:
                for storm in missing:
                    branch(paths[arm, storm], model, archive, storm.start)
                    bar.update()

    # ------------------------------------------------------------------------------------------ members and comparison
    columns = Columns(prior.statistics.channels, prior.grid, storylines.ground)
    cases = []
    steps = len(storms) * len(ARMS) * storylines.windows * len(storylines.batches)
    with Progress("members", steps, unit="window") as bar:
        for i, storm in enumerate(storms):
            path = lambda name, start=storm.start: folder / "members" / f"{start:06d}_{name}.npz"
            members = {name: storylines.ensemble(storm, i, name, path(name), bar) for name in ARMS}
            event = store.read(storm.start, leads)
            warm = storylines.event(storm, True)[c.task.context :][:leads]
            truths = {
                arm: Pair(open_store(paths[arm, storm], columns.channels).read(0, leads)[None], event[None])
                for arm in TRUTHS
            }
            arms = truths | {arm: Pair(members[arm], members[base]) for arm, base in PAIRS.items()}
            cases.append(compare(arms, warm - event, columns, kelvin, box(storm, prior.grid)))
            partial = {"storms": [storm._asdict() for storm in storms[: i + 1]], "numbers": summary(cases)}
            (folder / "results.json").write_text(json.dumps(partial, indent=1) + "\n")
    found = summary(cases)
    (folder / "tables.md").write_text(tables(found, leads))
    for name, figure in (("signal", signal_figure(found)), ("change", change_figure(found))):
        figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
    say(tables(found, leads))
    say(f"{len(cases)} storms, {c.members} members; results are in {folder}")


if __name__ == "__main__":
    command(main)
