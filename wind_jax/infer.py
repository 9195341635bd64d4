"""Draw a posterior ensemble with a frozen prior: prior -> problem -> members -> scores -> figures.

    python -m wind_jax.infer --config experiments/sparse_obs.py [--config.members=16]

When the run is complete its workdir holds:

    run.json  config.json  posterior.zarr  truth.zarr  observations.zarr (where y are fields)  scores.json
    figures/*.png  report.html (all of it to look through in a browser)  static.zarr
    report.json (physical realism of truth and members; stations: what was rejected, verification; warming: the signal
    kept, the change of rain; TDS: the effective sample size)

Members are written window by window. A run that is stopped resumes when the same command is given again, on other
devices too; one that is finished is not drawn again, and only its figures and report are made anew. If settings differ,
or a file that they name has changed, what was drawn is kept aside (`run.py`).
What XLA compiled is kept in compile_cache/ (JAX_COMPILATION_CACHE_DIR names another place).
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
import xarray
from ml_collections import ConfigDict

from wind_jax import config as configuration
from wind_jax import run
from wind_jax.command import command, keep_compiled
from wind_jax.data.climatology import Climatology
from wind_jax.data.forcings import FORCING_NAMES, static_forcings
from wind_jax.data.forecast_file import ForecastFile
from wind_jax.data.store import TIME_STEP, open_store
from wind_jax.diffusion.posterior import check_noise, check_selection
from wind_jax.embedded import resolve
from wind_jax.ensemble import ensemble_mesh, member_batches, members_at_once, over_mesh
from wind_jax.evaluation import figures, scores
from wind_jax.evaluation.baselines import gaussian_members
from wind_jax.evaluation.kriging import Covariance
from wind_jax.evaluation.report import report as write_report
from wind_jax.files import write_bytes
from wind_jax.observations.observation import check
from wind_jax.prior import load_prior
from wind_jax.problems.diagnosis import diverged, plausible, read_report, realism_record, weights_lines, write_weights
from wind_jax.problems.problem import Problem, Setting, fingerprint
from wind_jax.problems.registry import make_problem
from wind_jax.progress import Progress, printer, track
from wind_jax.rollout import Guide, check_guide, make_chain, rollout
from wind_jax.sphere import area_weights
from wind_jax.tasks.forecast import lead_hours
from wind_jax.training import processes
from wind_jax.training.mesh import batch_sharding


def infer(c: ConfigDict) -> None:
    """Run the experiment that config `c` describes.

    Args:
        c: complete, as `config.load` makes it for "inference".

    Raises:
        ValueError: anything wrong with config, prior, data or workdir, before the first member is drawn, also that
            another process runs there; or a chain that diverged.
        OSError: the disk is full, or has lost what was drawn; the same command resumes.
    """
    say = printer()
    with run.claim(c.workdir, "infer", say) as workdir:
        _infer(c, workdir, say)


def _infer(c: ConfigDict, workdir: Path, say: Callable[[str], None]) -> None:
    keep_compiled(c.workdir)
    chain = make_chain(**c.sampler.to_dict())  # checks how its times fit together

    # -------------------------------------------------------------------------------------------------- prior and data
    prior = load_prior(resolve(c.prior, "prior.npz"))
    compete = c.guidance.method == "tds"
    mesh = ensemble_mesh(min(c.members, c.member_batch or c.members), **c.mesh, compete=compete)
    at_once = c.member_batch or members_at_once(prior, mesh)
    batches = member_batches(c.members, at_once, 1 if compete else mesh.size // c.mesh.space)
    prior = over_mesh(prior, mesh, len(batches[0]))
    statistics, channels = prior.statistics, prior.statistics.channels
    store = open_store(resolve(c.data.path, "sample.zarr"), channels)
    fitted = prior.climatology if c.data.climatology == "prior" else Climatology.load(c.data.climatology)
    if fitted is None:
        raise ValueError(
            f"The prior {c.prior!r} carries no climatology: give the file of one as config.data.climatology."
        )
    fitted = fitted.select(channels)
    for what, grid in (("archive", store.grid), ("climatology", fitted.grid)):
        if grid != prior.grid:
            raise ValueError(
                f"The grid {grid.shape} of the {what} is not the prior's {prior.grid.shape}, cell by cell."
            )
    static = static_forcings(store, c.data.missing_static)
    ground = store.static("geopotential_at_surface") if store.has("geopotential_at_surface") else None

    # --------------------------------------------------------------------------------------------------------- problem
    keys = jax.random.split(jax.random.key(c.seed))  # of the observations, of the members
    covariance = Covariance.load(resolve(c.data.covariance, "covariance.json")) if c.data.covariance else None
    if covariance and not (prior.climatology and covariance.channels == channels):
        raise ValueError(
            "config.data.covariance is not of the prior's channels, or the prior carries no climatology: fit one by "
            "python -m wind_jax.evaluation.kriging, or leave it empty."
        )
    setting = Setting(prior, store, static, ground, c.cases, c.data.period, keys[0], c.guidance.variance, covariance)
    problem = make_problem(setting, **c.task.to_dict())
    leads, total = problem.leads, problem.overlap + problem.windows * (prior.frames - problem.overlap)
    firsts = store.times[problem.starts] if problem.times is None else problem.times
    begins = firsts + TIME_STEP * max(problem.context - 1, 0)  # time of lead 0
    guide = make_guide(c.guidance, problem) if problem.observe else None
    if guide:
        check_guide(guide)
        typical = plausible(prior, prior.inputs(static, begins[:1]))
        for window in range(min(problem.windows, 2)):
            observation = problem.observe(problem.told(0, window))
            check(observation, prior.shape, typical)
            check_noise(guide.method, observation)
            if guide.method == "repaint":
                check_selection(observation, typical)
        if guide.method == "tds" and (problem.windows > 1 or len(batches) > 1):
            raise ValueError(
                f"The members of TDS compete, within one window and all at once: it cannot run {problem.windows} "
                f"windows in {len(batches)} batches. Set config.member_batch to config.members, or take another method."
            )

    content = fingerprint(c.task.to_dict(), prior, problem, static, begins, fitted.coefficients)
    settings = json.dumps({**json.loads(configuration.to_json(c)), "fingerprint": content}, indent=2) + "\n"
    lines: list[str] = []
    if run.finished(workdir, settings):
        say(f"{workdir} holds the results of these settings: nothing is drawn again.")
        write_bytes(workdir / run.CONFIG, settings.encode())
    else:
        with run.drawing(workdir, settings, say) as folder:
            # ------------------------------------------------------------------------------- truth and observations
            file = partial(ForecastFile, channels=channels, starts=begins, chunk=prior.frames - problem.overlap)
            file = partial(file, arms=problem.arms)
            truth = problem.states and file(folder / run.TRUTH, grid=prior.grid, leads=leads)
            posterior = file(folder / run.POSTERIOR, grid=prior.grid, leads=leads, members=c.members)
            seen = problem.seen and file(folder / run.OBSERVATIONS, grid=problem.seen.grid, leads=problem.seen.leads)
            for case in range(len(problem.starts)):
                for lead in blocks(len(leads), truth.chunk) if truth else ():
                    truth.write(case, lead, problem.states(case, problem.context + lead.start, lead.stop - lead.start))
                if seen:
                    seen.write(case, slice(None), problem.seen.values(case))
            if truth:
                keep = {"land_sea_mask": static[..., FORCING_NAMES.index("land_sea_mask")]}
                keep |= {} if ground is None else {"geopotential_at_surface": ground}
                figures.keep_static(folder, keep, prior.grid)

            # ----------------------------------------------------------------------------------------------- members
            report, cases, position = folder / run.REPORT, len(problem.starts), run.Position(folder)
            say(
                f"{c.task.name}: {cases} cases x {c.members} members, {len(batches[0])} at a time, "
                f"on {f'{mesh.size} x ' if mesh.size > 1 else ''}{jax.devices()[0].device_kind}"
            )
            with Progress("sampling", cases * len(batches) * problem.windows, unit="window") as bar:
                for case in range(cases):
                    inputs = prior.inputs(static, firsts[case] + TIME_STEP * np.arange(total))
                    steered = guide if problem.guided(case) else None
                    for batch in batches:
                        members = slice(batch.start, min(batch.stop, c.members))  # a last batch may run too many
                        first, known = position.find(case, batch)
                        there = new_leads(problem, prior.frames, min(first, problem.windows) - 1).stop if first else 0
                        if not posterior.whole(case, there, members):  # something was lost: drawn again
                            first, known = 0, None
                        bar.update(min(first, problem.windows))
                        if first == 0 and problem.context:
                            known = statistics.normalize(problem.states(case, 0, problem.context))
                        told = (problem.told(case, window) for window in range(first, problem.windows))
                        drawn = rollout(
                            prior, known, inputs, list(batch), jax.random.fold_in(keys[1], problem.event(case)), chain,
                            problem.overlap, steered, told, first, partial(write_weights, report, case),
                            batch_sharding(mesh),
                        )  # fmt: skip
                        for window, frames in enumerate(drawn, first):
                            x = np.asarray(frames)
                            lead = new_leads(problem, prior.frames, window)
                            fields = statistics.physical(x[: members.stop - members.start, : lead.stop - lead.start])
                            if not (np.isfinite(x).all() and np.isfinite(fields).all()):
                                begun = window * (prior.frames - problem.overlap)
                                start = plausible(prior, inputs[begun : begun + prior.frames], known)
                                observation = problem.observe(problem.told(case, window)) if steered else None
                                kept = None if position.fresh else folder
                                raise ValueError(diverged(case, window, steered, observation, start, kept))
                            posterior.write(case, lead, fields, members=members)
                            posterior.sync(case, lead, members)
                            known = last_frames(known, x, problem.overlap)
                            position.mark(case, batch, window + 1, known)
                            bar.update()
            if not all(posterior.whole(case, len(leads)) for case in range(cases)):
                raise OSError(f"{posterior.path} has lost members that were drawn: the same command draws them again.")

            # ------------------------------------------------------------------------------------------------ scores
            found = score(posterior, truth, problem, fitted, setting) if problem.scored else []
            (folder / run.SCORES).write_text(json.dumps(found, indent=1) + "\n")
            said = read_report(report)  # of TDS
            lines = weights_lines(said["tds"], c.members) if "tds" in said else []
            whole = slice(None)
            if problem.report:
                more, more_lines = problem.report(lambda case: posterior.read(case, whole))
                said, lines = said | more, lines + more_lines
            if truth:
                before = lambda case: problem.states(case, problem.context - 1, 1)[0] if problem.context else None
                states = {
                    "truth": ((truth.read(case, whole), before(case)) for case in range(cases)),
                    "members": (
                        (posterior.read(case, whole, slice(i, i + 1))[0], before(case))
                        for case in range(cases)
                        for i in range(c.members)
                    ),
                }
                said["realism"] = [realism_record(of, x, channels, prior.grid, ground) for of, x in states.items()]
            if said:
                report.write_text(json.dumps(said, indent=1) + "\n")

    # -------------------------------------------------------------------------------------------------------- figures
    found, shows = json.loads((workdir / run.SCORES).read_text()), c.figures and (workdir / run.TRUTH).exists()
    if shows:
        (workdir / run.FIGURES).mkdir(exist_ok=True)
        land = xarray.DataArray(
            static[..., FORCING_NAMES.index("land_sea_mask")],
            {"latitude": prior.grid.latitude, "longitude": prior.grid.longitude},
            ("latitude", "longitude"),
        )
        for name, figure in figures.draw(c.task.name, workdir, found, land, ground, c.globe or None).items():
            figure.savefig(workdir / run.FIGURES / f"{name}.png", dpi=130, bbox_inches="tight")
        if len(leads) >= 8:
            figures.film(workdir, land, workdir / run.FIGURES / "animation.gif", c.globe or None)

    # ----------------------------------------------------------------------------------------------------------- table
    shown = [h for h in (24, 48, 72, 120) if h in lead_hours(leads)] or [lead_hours(leads)[-1]]
    for hours in (shown if problem.context else [None]) if problem.scored else []:
        table, line = scores.table(found, hours, figures.HEADLINE if problem.context else None)
        say(table)
        say(line)
    for line in lines:
        say(line)
    if shows:
        say(f"the report is {write_report(workdir)}")
    say(f"results are in {c.workdir}")


# ------------------------------------------------------------------------------------------------------------- sampling
def make_guide(c: ConfigDict, problem: Problem) -> Guide:
    """The guidance that `config.guidance` describes: a method and its own options."""
    return Guide(problem.observe, c.method, tuple(c[c.method].items()))


def new_leads(problem: Problem, frames: int, window: int) -> slice:
    """Positions among the leads of what a window adds; the last window may draw more than is asked for."""
    new = frames - problem.overlap
    first = window * new + (problem.overlap if window and not problem.context else 0)
    size = new if window or problem.context else frames
    return slice(first, min(first + size, len(problem.leads)))


def last_frames(known: np.ndarray | None, drawn: np.ndarray, overlap: int) -> np.ndarray:
    """The frames (b, overlap, h, w, c) that the next window begins with."""
    if known is not None and drawn.shape[1] < overlap:
        known = np.broadcast_to(known, (len(drawn), *known.shape[-4:]))
        drawn = np.concatenate([known, drawn], axis=1)
    return drawn[:, drawn.shape[1] - overlap :]


# -------------------------------------------------------------------------------------------------------------- scoring
def blocks(frames: int, size: int) -> list[slice]:
    """The leads in parts of one chunk: what is in memory at once."""
    return [slice(i, min(i + size, frames)) for i in range(0, frames, size)]


def score(
    posterior: ForecastFile, truth: ForecastFile, problem: Problem, fitted: Climatology, s: Setting
) -> list[scores.Record]:
    """Records of the posterior and of what a user would try first, from the files of a run.

    Forecasts are scored by lead time; what observations reach, pooled over frames, and over the cells without any
    where single cells are observed.

    Args:
        posterior: members.
        truth: the same frames.
        problem: what was solved.
        fitted: the climatology; with the covariance of anomalies a Gaussian ensemble about it.
        s: what the problem started from.
    """
    weights, seen, statistics = area_weights(truth.grid).astype(np.float32), problem.seen, s.prior.statistics
    deviation = s.covariance and s.covariance.deviation(truth.grid)[None]
    cases: dict[str, list[scores.Moments]] = {}
    members: dict[str, int] = {}
    for case, begin in enumerate(track(truth.starts, "scoring", unit="case")):
        parts: dict[str, list[scores.Moments]] = {}
        for lead in blocks(len(truth.leads), truth.chunk):
            y, normal = truth.read(case, lead), fitted.at(begin + truth.leads[lead])
            climatology = normal[None]
            if deviation is not None:
                about = statistics.normalize(normal)
                climatology = gaussian_members(about, deviation, statistics, (case, lead.start))
            forecasts = {"posterior": posterior.read(case, lead), "climatology": climatology}
            forecasts |= {k: x if x.ndim == 5 else x[None] for k, x in problem.baseline(case, lead).items()}
            unobserved = np.isnan(seen.values(case)[lead]) if seen and seen.masked else None
            for method, x in forecasts.items():
                members[method] = len(x)
                reference = normal if problem.context and method != "climatology" else None
                parts.setdefault(method, []).append(scores.moments(x, y, weights, unobserved, reference))
        for method, some in parts.items():
            whole = {name: np.concatenate([part[name] for part in some]) for name in some[0]}
            cases.setdefault(method, []).append(whole)
    hours = lead_hours(truth.leads) if problem.context else None
    found = []
    for method in sorted(cases, key=lambda method: method != "posterior"):
        # The members of a baseline have exactly its field as their mean, which has no error of few members.
        wanted = [metric for metric in scores.BASIC if method == "posterior" or metric != "debiased_rmse"]
        found += scores.records(method, cases[method], truth.channels, members[method], hours, wanted=wanted)
    return found


def main(argv: list[str]) -> None:
    """Command line: `--config NAME|FILE [--config.key=value ...]`."""
    processes.alone()
    infer(configuration.load(argv, "inference")[0])


if __name__ == "__main__":
    command(main)
