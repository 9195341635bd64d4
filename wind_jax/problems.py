"""Tasks as inverse problems: which frames are known, what each window is told, and what a user would try first.

Each function makes the `Problem` of one task from an archive that holds the truth, as in an observing-system
simulation experiment: its arguments are those of `config.task`, its docstring says what y is.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from wind_jax.data.store import TIME_STEP, Store
from wind_jax.data.windows import window_starts
from wind_jax.evaluation.baselines import interpolation, persistence, refine_in_time, upsample
from wind_jax.prior import Prior
from wind_jax.rollout import window_frames
from wind_jax.sphere import Grid, coarsening
from wind_jax.tasks import downscale
from wind_jax.tasks import sparse_obs as sparse
from wind_jax.tasks.conservation import Columns, conservation_operator, total
from wind_jax.tasks.forecast import lead_times, window_count
from wind_jax.tasks.observation import Observation, observe

Fields = Float[np.ndarray, "l h w c"]


class Setting(NamedTuple):
    """What every task starts from.

    Attributes:
        prior: p(x) of one window.
        store: archive of the truth, with the prior's channels and grid.
        surface_geopotential: (h, w) m2 s-2; None where the archive has none.
        cases: number of problems, spread evenly over the period.
        period: first and last day, empty for all.
        key: of everything that is drawn.
        variance: "nominal" or "adaptive": of the observations, as guidance sees it.
    """

    prior: Prior
    store: Store
    surface_geopotential: np.ndarray | None
    cases: int
    period: Sequence[str]
    key: Key[Array, ""]
    variance: str


class Seen(NamedTuple):
    """Observations as fields, for the file and the figures of a run.

    Attributes:
        grid: of the fields.
        leads: (l,) timedelta64.
        values: of a case, (l, H, W, c) physical units, NaN where nothing was observed.
        masked: scores leave the observed cells out.
    """

    grid: Grid
    leads: np.ndarray
    values: Callable[[int], Fields]
    masked: bool


class Problem(NamedTuple):
    """One task on some cases.

    Attributes:
        starts: (cases,) positions in the archive of the first frame of all.
        context: known frames at the start, 0 for none.
        overlap: frames that neighbouring windows share.
        windows: their number.
        leads: (l,) timedelta64 of the frames drawn, since the last known frame or else the first.
        observe: what a window is told -> its observation; None for a free run.
        told: (case, window) -> arrays, the same shapes for all.
        seen: observations as fields, where they are such.
        baseline: (case, positions among the leads) -> fields by method, NaN where it has none.
    """

    starts: np.ndarray
    context: int
    overlap: int
    windows: int
    leads: np.ndarray
    observe: Callable[[PyTree], Observation] | None
    told: Callable[[int, int], PyTree]
    seen: Seen | None
    baseline: Callable[[int, slice], Mapping[str, Fields]]


def case_starts(store: Store, frames: int, period: Sequence[str], cases: int) -> np.ndarray:
    """Positions (cases,) of the first frames of windows spread evenly over the period.

    Raises:
        ValueError: more cases than windows, or none.
    """
    possible = window_starts(store.times, frames, tuple(period) or None)
    if not 1 <= cases <= possible.size:
        raise ValueError(f"config.cases is {cases}; {store.path} has 1 to {possible.size} windows of {frames} frames.")
    return possible[np.linspace(0, possible.size - 1, cases).round().astype(int)]


def _nothing(case: int, window: int) -> None:
    return None


def forecast(s: Setting, context: int, leads: int, conserve: Mapping[str, float] | None = None) -> Problem:
    """From known frames alone; y, if anything, is what is conserved.

    Args:
        s: the setting.
        context: known frames at the start of each window.
        leads: new frames, 6 h apart.
        conserve: relative error by quantity ("dry_air_mass", "total_water", "energy") to which each frame is held
            at its value in the last known frame.
    """
    windows = window_count(leads, s.prior.frames, context)
    starts = case_starts(s.store, context + leads, s.period, s.cases)
    last = lambda case: s.store.read(int(starts[case]) + context - 1, 1)
    observe_constraint, told = (None, _nothing) if not conserve else _conserved(s, conserve, last)
    return Problem(
        starts=starts,
        context=context,
        overlap=context,
        windows=windows,
        leads=lead_times(leads),
        observe=observe_constraint,
        told=told,
        seen=None,
        baseline=lambda case, lead: {"persistence": persistence(last(case)[0], lead.stop - lead.start)},
    )


def _conserved(s: Setting, conserve: Mapping[str, float], initial: Callable[[int], Fields]):
    """Observation of the conserved quantities, and the values that each case is told: those of its initial frame."""
    if s.surface_geopotential is None:
        raise ValueError(f"Conservation needs geopotential_at_surface; {s.store.path} has none.")
    columns = Columns(s.prior.statistics.channels, s.prior.grid, s.surface_geopotential)
    amounts = {name: [float(total(initial(case), columns, name)[0]) for case in range(s.cases)] for name in conserve}
    # Operators are departures from one reference, in which float32 resolves 1e-8; each case has its own y.
    operators = {name: conservation_operator(columns, amounts[name][0], name) for name in conserve}
    variance = {name: float(error) ** 2 for name, error in conserve.items()}
    if wrong := [name for name, value in variance.items() if not value > 0]:
        raise ValueError(f"The relative errors of conserved quantities must be positive, those of {wrong} are not.")

    def observation(y):
        return observe(lambda x: {name: f(x) for name, f in operators.items()}, y, variance, s.prior.statistics)

    def told(case, window):
        departure = {name: values[case] / values[0] - 1 for name, values in amounts.items()}
        return {name: np.full(s.prior.frames, value, np.float32) for name, value in departure.items()}

    return observation, told


def sparse_obs(s: Setting, fraction: float, error, variables: Sequence[str] = ()) -> Problem:
    """y: random cells of one window, with Gaussian errors; see `tasks.sparse_obs`.

    Args:
        s: the setting.
        fraction: of the cells of each field.
        error: standard deviation, as `tasks.sparse_obs.errors` takes it.
        variables: observed ones, empty: all.
    """
    return reanalysis(s, 1, 0, fraction, error, variables)


def reanalysis(
    s: Setting, windows: int, overlap: int, fraction: float, error, variables: Sequence[str] = ()
) -> Problem:
    """y: random cells of every frame of several windows, each guided by its own and by the frames of the one before.

    Args:
        s: the setting.
        windows: their number.
        overlap: frames that each shares with the next.
        fraction: of the cells of each field.
        error: standard deviation, as `tasks.sparse_obs.errors` takes it.
        variables: observed ones, empty: all.
    """
    prior, statistics = s.prior, s.prior.statistics
    frames = window_frames(windows, prior.frames, overlap)
    starts = case_starts(s.store, frames, s.period, s.cases)
    new, deviation = prior.frames - overlap, sparse.errors(error, statistics)

    @lru_cache(maxsize=4)
    def told(case, window):
        place, noise = jax.random.split(jax.random.fold_in(jax.random.fold_in(s.key, case), window))
        cells = sparse.draw_cells(place, prior.shape, statistics.channels, fraction, variables)
        truth = s.store.read(int(starts[case]) + window * new, prior.frames)
        return cells, sparse.measure(statistics.normalize(truth), cells, deviation, noise)

    @lru_cache(maxsize=1)
    def values(case):
        out = np.full((frames, *prior.shape[1:]), np.nan, np.float32)
        for window in range(windows):
            seen = statistics.denormalize(sparse.dense(*told(case, window), prior.shape))
            first = overlap if window else 0  # the overlap is not moved by a later window's observations
            out[window * new + first : window * new + prior.frames] = seen[first:]
        return out

    return Problem(
        starts=starts,
        context=0,
        overlap=overlap,
        windows=windows,
        leads=TIME_STEP * np.arange(frames),
        observe=lambda data: sparse.sparse_observation(*data, deviation, s.variance),
        told=told,
        seen=Seen(prior.grid, TIME_STEP * np.arange(frames), values, masked=True),
        baseline=lambda case, lead: {"interpolation": interpolation(values(case)[lead], prior.grid)},
    )


def spatial_downscaling(s: Setting, factor: int, error, variables: Sequence[str] = ()) -> Problem:
    """y: area-weighted means over coarse cells of one window.

    Args:
        s: the setting.
        factor: rows and columns of the fine grid in one coarse cell.
        error: standard deviation, as `tasks.downscale.errors` takes it.
        variables: observed ones, empty: all.
    """
    prior, statistics = s.prior, s.prior.statistics
    starts = case_starts(s.store, prior.frames, s.period, s.cases)
    cells = coarsening(prior.grid, factor)
    downscale.errors(error, statistics, variables)  # refuses what is wrong with them here
    operator = downscale.spatial_operator(cells, statistics.channels, variables)
    told, values = _means(s, starts, operator, cells.grid.shape, prior.frames)
    leads = TIME_STEP * np.arange(prior.frames)

    def baseline(case, lead):
        y = values(case)[lead]
        vector = np.array([c.name.endswith("component_of_wind") for c in statistics.channels])
        out = np.empty((len(y), *prior.shape[1:]), np.float32)
        for flag in (False, True):
            out[..., vector == flag] = upsample(y[..., vector == flag], cells.grid, prior.grid, vector=flag)
        return {"interpolation": out}

    return Problem(
        starts=starts,
        context=0,
        overlap=0,
        windows=1,
        leads=leads,
        observe=lambda y: downscale.spatial_observation(y, cells, error, statistics, s.variance),
        told=told,
        seen=Seen(cells.grid, leads, values, masked=False),
        baseline=baseline,
    )


def temporal_downscaling(s: Setting, mean_over: int, error, variables: Sequence[str] = ()) -> Problem:
    """y: means of one window over each few frames, for precipitation sums.

    Args:
        s: the setting.
        mean_over: frames in one mean; the window's number is a multiple of it.
        error: standard deviation, as `tasks.downscale.errors` takes it.
        variables: observed ones, empty: all.
    """
    prior, statistics = s.prior, s.prior.statistics
    starts = case_starts(s.store, prior.frames, s.period, s.cases)
    operator = downscale.temporal_operator(prior.frames, mean_over, statistics.channels, variables)
    downscale.errors(error, statistics, variables)  # refuses what is wrong with them here
    told, values = _means(s, starts, operator, prior.grid.shape, prior.frames // mean_over)
    sums = np.array([c.name in downscale.ACCUMULATIONS for c in statistics.channels])

    def baseline(case, lead):
        y, out = values(case), np.empty(prior.shape, np.float32)
        for flag in (False, True):
            out[..., sums == flag] = refine_in_time(y[..., sums == flag], mean_over, accumulated=flag)
        return {"interpolation": out[lead]}

    return Problem(
        starts=starts,
        context=0,
        overlap=0,
        windows=1,
        leads=TIME_STEP * np.arange(prior.frames),
        observe=lambda y: downscale.temporal_observation(y, mean_over, error, statistics, s.variance),
        told=told,
        seen=Seen(prior.grid, TIME_STEP * mean_over * np.arange(prior.frames // mean_over), values, masked=False),
        baseline=baseline,
    )


def _means(s: Setting, starts: np.ndarray, operator: Callable, shape: tuple[int, int], frames: int):
    """What downscaling is told, by variable, and the same as fields (frames, H, W, c)."""
    channels = s.prior.statistics.channels

    def told(case, window):
        truth = s.store.read(int(starts[case]), s.prior.frames)
        return {name: np.asarray(y, np.float32) for name, y in operator(truth).items()}

    def values(case):
        out = np.full((frames, *shape, len(channels)), np.nan, np.float32)
        for name, y in told(case, 0).items():
            out[..., [i for i, c in enumerate(channels) if c.name == name]] = y
        return out

    return told, values


PROBLEMS: dict[str, Callable[..., Problem]] = {
    "forecast": forecast,
    "sparse_obs": sparse_obs,
    "spatial_downscaling": spatial_downscaling,
    "temporal_downscaling": temporal_downscaling,
    "reanalysis": reanalysis,
}


def make_problem(s: Setting, name: str, **task) -> Problem:
    """The problem that `config.task` names, with its other entries.

    Raises:
        ValueError: an unknown task, or entries that are not its own.
    """
    if name not in PROBLEMS:
        raise ValueError(f"Unknown task {name!r}: expected one of {', '.join(PROBLEMS)}.")
    known = [p for p in inspect.signature(PROBLEMS[name]).parameters if p != "s"]
    if unknown := sorted(set(task) - set(known)):
        raise ValueError(f"config.task of {name} has no entry {unknown}; it has {known}.")
    return PROBLEMS[name](s, **task)
