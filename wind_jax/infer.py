"""Draw a posterior ensemble with a frozen prior: prior -> data -> task -> members -> scores -> figures.

    python -m wind_jax.infer --config experiments/sparse_obs.py [--config.members=16]

When the run is complete its workdir holds:

    config.json  posterior.zarr  truth.zarr  observations.zarr (sparse_obs)  scores.json  figures/*.png
"""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray
from ml_collections import ConfigDict
from rich.console import Console

from wind_jax import config as configuration
from wind_jax.data.climatology import Climatology
from wind_jax.data.forcings import FORCING_NAMES, static_forcings
from wind_jax.data.store import TIME_STEP, Store, open_store
from wind_jax.data.windows import window_starts
from wind_jax.diffusion.denoiser import Denoiser
from wind_jax.diffusion.guidance import guide
from wind_jax.diffusion.samplers import initial, member_keys, sample
from wind_jax.diffusion.schedule import Schedule, time_grid
from wind_jax.embedded import resolve
from wind_jax.evaluation import figures, scores
from wind_jax.evaluation.baselines import interpolation, persistence
from wind_jax.prior import Prior, load_prior
from wind_jax.progress import Progress
from wind_jax.results import ForecastFile, results
from wind_jax.rollout import Chain, make_chain, rollout
from wind_jax.sphere import area_weights
from wind_jax.tasks import sparse_obs
from wind_jax.tasks.forecast import lead_hours, lead_times, window_count
from wind_jax.tasks.observation import Observation, check

TASKS = ("sparse_obs", "forecast")


def infer(c: ConfigDict) -> None:
    """Run the experiment that config `c` describes.

    Args:
        c: as of `experiments/sparse_obs.py` or `experiments/forecast.py`.

    Raises:
        ValueError: anything wrong with config, prior, data or workdir, before the first member is drawn; or a chain
            that diverged.
    """
    say = (Console() if sys.stdout.isatty() else Console(width=120)).print  # a log keeps whole tables
    if c.task.name not in TASKS:
        raise ValueError(f"Unknown task {c.task.name!r}: expected one of {', '.join(TASKS)}.")
    forecast = c.task.name == "forecast"

    # -------------------------------------------------------------------------------------------------- prior and data
    prior = load_prior(resolve(c.prior, "prior.npz"))
    statistics, channels = prior.statistics, prior.statistics.channels
    store = open_store(resolve(c.data.path, "sample.zarr"), channels)
    fitted = Climatology.load(resolve(c.data.climatology, "climatology.npz")).select(channels)
    for what, grid in (("archive", store.grid), ("climatology", fitted.grid)):
        if grid != prior.grid:
            raise ValueError(
                f"The grid {grid.shape} of the {what} is not the prior's {prior.grid.shape}, cell by cell."
            )
    static = static_forcings(store, c.data.missing_static)

    # ------------------------------------------------------------------------------------------------------------ task
    context = c.task.context if forecast else 0  # frames at the start of a window that are known
    windows = window_count(c.task.leads, prior.frames, context) if forecast else 1
    leads = lead_times(c.task.leads) if forecast else TIME_STEP * np.arange(prior.frames)
    new = prior.frames - context  # frames that each window adds
    starts = case_starts(store, context + len(leads), c.data.period, c.cases)
    begins = store.times[starts + max(context - 1, 0)]  # time of lead 0
    truth = [store.read(int(start), context + len(leads)) for start in starts]
    keys = [jax.random.fold_in(jax.random.key(c.seed), case) for case in range(c.cases)]
    chain = make_chain(**c.sampler.to_dict())
    batches = member_batches(c.members, c.member_batch or members_at_once(prior))
    if not forecast:
        guidance = make_guidance(c.guidance)
        error = sparse_obs.errors(c.task.error, statistics)
        observed = []
        for key, x in zip(keys, truth, strict=True):
            place, noise = jax.random.split(jax.random.fold_in(key, 0))
            cells = sparse_obs.draw_cells(place, prior.shape, channels, c.task.fraction, c.task.variables)
            observed.append((cells, sparse_obs.measure(statistics.normalize(x), cells, error, noise)))
        observation = sparse_obs.sparse_observation(*observed[0], error, guidance.variance)
        check(observation, prior.shape)
        guided(lambda x_t, t: x_t, observation, prior.schedule, guidance)  # refuses an unknown method or option here

    def draw(case: int, members: range) -> Iterator[jax.Array]:
        """New frames of some members, window by window, in model units."""
        times = store.times[starts[case]] + TIME_STEP * np.arange(context + windows * new)
        inputs, key = prior.inputs(static, times), jax.random.fold_in(keys[case], 1)
        if forecast:
            known = statistics.normalize(truth[case][:context])
            yield from rollout(prior, known, inputs, members, key, chain)
        else:
            yield reconstruct(prior, inputs, *observed[case], error, member_keys(key, members), chain, guidance)

    with results(c.workdir, c.task.name, configuration.to_json(c)) as folder:
        # ------------------------------------------------------------------------------------- truth and observations
        file = partial(ForecastFile, channels=channels, grid=prior.grid, starts=begins, leads=leads, chunk=new)
        truth_file, posterior_file = file(folder / "truth.zarr"), file(folder / "posterior.zarr", members=c.members)
        observations_file = None if forecast else file(folder / "observations.zarr")
        for case in range(c.cases):
            truth_file.write(case, slice(None), truth[case][context:])
            if not forecast:
                values = statistics.denormalize(sparse_obs.dense(*observed[case], prior.shape))
                observations_file.write(case, slice(None), values)

        # ---------------------------------------------------------------------------------------------------- members
        say(
            f"{c.task.name}: {c.cases} cases x {c.members} members, {len(batches[0])} at a time, "
            f"on {jax.devices()[0].device_kind}"
        )
        with Progress("sampling", c.cases * len(batches) * windows, unit="window", log_every=30.0) as bar:
            for case in range(c.cases):
                for batch in batches:
                    for window, frames in enumerate(draw(case, batch)):
                        lead = slice(window * new, min((window + 1) * new, len(leads)))
                        wanted = slice(batch.start, min(batch.stop, c.members))  # a last batch may run too many
                        x = np.asarray(frames)[: wanted.stop - wanted.start, : lead.stop - lead.start]
                        if not np.isfinite(x).all():
                            raise ValueError(
                                f"The chain diverged in case {case}, window {window}: values are not finite. Lower "
                                "config.sampler.start, or raise config.sampler.steps or config.task.error."
                            )
                        posterior_file.write(case, lead, statistics.denormalize(x), members=wanted)
                        bar.update()

        # ----------------------------------------------------------------------------------------------------- scores
        found = score(posterior_file, truth_file, observations_file, fitted, truth, context)
        (folder / "scores.json").write_text(json.dumps(found, indent=1) + "\n")

        # ---------------------------------------------------------------------------------------------------- figures
        if c.figures:
            os.mkdir(folder / "figures")
            land = xarray.DataArray(
                static[..., FORCING_NAMES.index("land_sea_mask")],
                {"latitude": prior.grid.latitude, "longitude": prior.grid.longitude},
                ("latitude", "longitude"),
            )
            draw_figures = figures.forecast if forecast else figures.reconstruction
            for name, figure in draw_figures(folder, found, land).items():
                figure.savefig(folder / "figures" / f"{name}.png", dpi=130, bbox_inches="tight")

    # ----------------------------------------------------------------------------------------------------------- table
    shown = [hours for hours in (24, 48, 72, 120) if hours in lead_hours(leads)] if forecast else [None]
    for hours in shown or [lead_hours(leads)[-1]]:
        table, line = scores.table(found, hours, figures.HEADLINE if forecast else None)
        say(table)
        say(line)
    say(f"results are in {c.workdir}")


# ------------------------------------------------------------------------------------------------------------- sampling
class Guidance(NamedTuple):
    """How the denoiser is guided; hashable, for the compiled sampler."""

    method: str
    variance: str
    options: tuple[tuple[str, object], ...]


def make_guidance(c: ConfigDict) -> Guidance:
    """The guidance that `config.guidance` describes: a method, its own options, and whose variance it trusts."""
    if c.method not in c:
        raise ValueError(f"config.guidance has no options for the method {c.method!r}; it has {', '.join(c)}.")
    return Guidance(c.method, c.variance, tuple(c[c.method].items()))


def guided(denoiser: Denoiser, observation: Observation, schedule: Schedule, guidance: Guidance) -> Denoiser:
    """`guide` by a `Guidance`."""
    return guide(denoiser, observation, schedule, guidance.method, **dict(guidance.options))


@partial(jax.jit, static_argnames=("chain", "guidance"))
def reconstruct(
    prior: Prior,
    inputs: jax.Array,
    cells: sparse_obs.Cells,
    y: sparse_obs.Values,
    error: jax.Array,
    keys: jax.Array,
    chain: Chain,
    guidance: Guidance,
) -> jax.Array:
    """Posterior members (b, t, h, w, c) of one window given observed cells; observations are arguments, so every case
    and batch of members runs the one compiled sampler."""
    observation = sparse_obs.sparse_observation(cells, y, error, guidance.variance)
    denoiser = guided(prior.denoiser(inputs), observation, prior.schedule, guidance)
    grid = time_grid(chain.steps, start=chain.start)
    x_init = initial(keys, prior.shape, grid[0], prior.schedule, mean=prior.mean(inputs))
    return sample(denoiser, x_init, grid, prior.schedule, chain.step, keys)


def case_starts(store: Store, frames: int, period: Sequence[str], cases: int) -> np.ndarray:
    """Positions (cases,) of the first frames of windows spread evenly over the period.

    Raises:
        ValueError: more cases than windows, or none.
    """
    possible = window_starts(store.times, frames, tuple(period) or None)
    if not 1 <= cases <= possible.size:
        raise ValueError(f"config.cases is {cases}; {store.path} has 1 to {possible.size} windows of {frames} frames.")
    return possible[np.linspace(0, possible.size - 1, cases).round().astype(int)]


def member_batches(members: int, at_once: int) -> list[range]:
    """Members to run together, equally many in every batch so that one compiled sampler serves all.

    Raises:
        ValueError: fewer than two members, or a negative batch.
    """
    if members < 2 or at_once < 1:
        raise ValueError(f"An ensemble needs 2 or more members in batches of 1 or more, got {members} and {at_once}.")
    count = -(-members // at_once)
    size = -(-members // count)
    return [range(i * size, (i + 1) * size) for i in range(-(-members // size))]


def members_at_once(prior: Prior) -> int:
    """How many members fit in memory: what the network keeps of one member for its backward pass, twice.

    On an accelerator the budget is 80 % of its memory; on a CPU, where larger batches are no faster, 0.8 GiB.
    """

    def kept(params, x, inputs):
        denoise = dataclasses.replace(prior, params=params).denoiser(inputs)
        return jax.vjp(lambda x: denoise(x, 0.5), x)[1]

    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    x = jax.ShapeDtypeStruct((1, *prior.shape), jnp.float32)
    inputs = jax.ShapeDtypeStruct((*prior.shape[:-1], prior.config.forcings), jnp.float32)
    one = 2 * max(size(jax.eval_shape(kept, prior.params, x, inputs)) - size(prior.params), size(x))
    memory = jax.devices()[0].memory_stats() or {}
    return max(1, int(0.8 * memory.get("bytes_limit", 2**30)) // one)


# -------------------------------------------------------------------------------------------------------------- scoring
def score(
    posterior: ForecastFile,
    truth: ForecastFile,
    observations: ForecastFile | None,
    fitted: Climatology,
    states: Sequence[np.ndarray],
    context: int,
) -> list[scores.Record]:
    """Records of the posterior and of what a user would try first, from the files of a run.

    With observations, over the cells without any, pooled over frames; else by lead time.

    Args:
        posterior: members.
        truth: the same frames.
        observations: NaN where there are none; None for a forecast.
        fitted: the climatology.
        states: of each case the true frames, `context` known ones first.
        context: number of known frames.
    """
    weights = area_weights(truth.grid).astype(np.float32)
    cases: dict[str, list[scores.Moments]] = {}
    for case, begin in enumerate(truth.starts):
        blocks: dict[str, list[scores.Moments]] = {}
        for first in range(0, len(truth.leads), truth.chunk):
            lead = slice(first, first + truth.chunk)
            y, normal = truth.read(case, lead), fitted.at(begin + truth.leads[lead])
            forecasts = {"posterior": posterior.read(case, lead), "climatology": normal[None]}
            unobserved, reference = None, normal
            if observations is None:
                forecasts["persistence"] = persistence(states[case][context - 1], len(y))[None]
            else:
                seen = observations.read(case, lead)
                unobserved, reference = np.isnan(seen), None
                forecasts["interpolation"] = interpolation(seen, truth.grid)[None]
            for method, x in forecasts.items():
                blocks.setdefault(method, []).append(scores.moments(x, y, weights, unobserved, reference))
        for method, parts in blocks.items():
            whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            cases.setdefault(method, []).append(whole)
    hours = lead_hours(truth.leads) if observations is None else None
    members = len(posterior.read(0, slice(0, 1)))
    return [
        record
        for method in sorted(cases, key=lambda method: method != "posterior")
        for record in scores.records(method, cases[method], truth.channels, members, hours)
    ]


def main(argv: list[str]) -> None:
    """Command line: `--config FILE [--config.key=value ...]`."""
    infer(configuration.load(argv)[0])


if __name__ == "__main__":
    configuration.command(main)
