"""Reconstruction of windows from what is given of them: single cells, means in space or time, an operator of one's own.

Each function makes the `Problem` of one task from an archive that holds the truth, as in an observing-system
simulation experiment: its arguments are those of `config.task`, its docstring says what y is.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import jax
import numpy as np

from wind_jax.channels import positions
from wind_jax.data.store import TIME_STEP
from wind_jax.evaluation.baselines import about_climatology, gaussian_members, interpolation, refined, upsampled
from wind_jax.evaluation.kriging import kriging
from wind_jax.observations import gridded, twins
from wind_jax.observations.operator import check_error, operator_observation
from wind_jax.problems.problem import Problem, Seen, Setting, archive_states, case_starts
from wind_jax.rollout import window_frames
from wind_jax.sphere import Coarsening, coarsen, coarsening


def sparse_obs(s: Setting, fraction: float, error, variables: Sequence[str] = ()) -> Problem:
    """y: random cells of one window, with Gaussian errors; see `observations.gridded`.

    Args:
        s: the setting.
        fraction: of the cells of each field.
        error: standard deviation, as `observations.gridded.cell_errors` takes it.
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
        error: standard deviation, as `observations.gridded.cell_errors` takes it.
        variables: observed ones, empty: all.
    """
    prior, statistics = s.prior, s.prior.statistics
    frames = window_frames(windows, prior.frames, overlap)
    starts = case_starts(s, frames)
    new, deviation = prior.frames - overlap, gridded.cell_errors(error, statistics, variables)

    @lru_cache(maxsize=4)
    def told(case, window):
        begin = int(starts[case]) + window * new
        times, key = s.store.times[begin:][: prior.frames], jax.random.fold_in(jax.random.fold_in(s.key, case), window)
        truth = s.store.read(begin, prior.frames)
        dataset = twins.observe_cells(truth, statistics, prior.grid, times, fraction, error, key, variables)
        return gridded.gridded(dataset, statistics, prior.grid).window(times)

    @lru_cache(maxsize=1)
    def measured(case):
        """In model units."""
        out = np.full((frames, *prior.shape[1:]), np.nan, np.float32)
        for window in range(windows):
            seen = gridded.dense(told(case, window), prior.shape)
            first = overlap if window else 0  # the overlap is not moved by a later window's observations
            out[window * new + first : window * new + prior.frames] = seen[first:]
        return out

    def values(case):
        return statistics.denormalize(measured(case))

    @lru_cache(maxsize=1)
    def kriged(case):
        times = s.store.times[int(starts[case]) :][:frames]
        normal = statistics.normalize(prior.climatology.at(times))
        return kriging(measured(case), normal, times, prior.grid, s.covariance, deviation)

    def baseline(case, lead):
        found = {"interpolation": interpolation(values(case)[lead], prior.grid)}
        if s.covariance:
            estimate = (field[lead] for field in kriged(case))
            found["kriging"] = gaussian_members(*estimate, statistics, (case, lead.start))
        return found

    return Problem(
        starts=starts,
        context=0,
        overlap=overlap,
        windows=windows,
        leads=TIME_STEP * np.arange(frames),
        observe=lambda placed: gridded.gridded_observation(placed, statistics, variance=s.variance),
        told=told,
        seen=Seen(prior.grid, TIME_STEP * np.arange(frames), values, masked=True),
        baseline=baseline,
        states=archive_states(s, starts),
    )


def spatial_downscaling(s: Setting, factor: int, error, variables: Sequence[str] = ()) -> Problem:
    """y: area-weighted means over coarse cells of one window.

    Args:
        s: the setting.
        factor: rows and columns of the fine grid in one coarse cell.
        error: standard deviation, as `observations.gridded.mean_errors` takes it.
        variables: observed ones, empty: all.
    """
    prior, statistics = s.prior, s.prior.statistics
    starts = case_starts(s, prior.frames)
    cells = coarsening(prior.grid, factor)
    gridded.mean_errors(error, statistics, variables)  # refuses what is wrong with them here
    told, values = _means(s, starts, error, variables, cells, 1)
    leads = TIME_STEP * np.arange(prior.frames)

    def baseline(case, lead):
        y, grids = values(case)[lead], (cells.grid, prior.grid)
        back = lambda y, method: upsampled(y, *grids, statistics.channels, method)
        found = {"interpolation": back(y, "linear"), "bicubic": back(y, "cubic")}
        if prior.climatology:
            normal = prior.climatology.at(s.store.times[int(starts[case]) :][: prior.frames][lead])
            found["bicubic_anomaly"] = about_climatology(
                y, normal, lambda x: coarsen(x, cells), lambda y: back(y, "cubic"), statistics.channels
            )
        return found

    return Problem(
        starts=starts,
        context=0,
        overlap=0,
        windows=1,
        leads=leads,
        observe=lambda placed: gridded.gridded_observation(placed, statistics, cells, s.variance),
        told=told,
        seen=Seen(cells.grid, leads, values, masked=False),
        baseline=baseline,
        states=archive_states(s, starts),
    )


def temporal_downscaling(s: Setting, mean_over: int, error, variables: Sequence[str] = ()) -> Problem:
    """y: means of one window over each few frames, for precipitation sums.

    Args:
        s: the setting.
        mean_over: frames in one mean; the window's number is a multiple of it.
        error: standard deviation, as `observations.gridded.mean_errors` takes it.
        variables: observed ones, empty: all.
    """
    prior, statistics = s.prior, s.prior.statistics
    starts = case_starts(s, prior.frames)
    twins.check_means(prior.frames, mean_over)
    gridded.mean_errors(error, statistics, variables)  # refuses what is wrong with them here
    told, values = _means(s, starts, error, variables, None, mean_over)

    def baseline(case, lead):
        y, back = values(case), lambda y, method: refined(y, mean_over, statistics.channels, method)
        found = {"interpolation": back(y, "linear")}
        if len(y) > 1:  # of one mean they are the same
            found["cubic"] = back(y, "cubic")
        if prior.climatology:
            normal = prior.climatology.at(s.store.times[int(starts[case]) :][: prior.frames])
            means = lambda x: np.asarray(
                twins.as_fields(twins.means(x, statistics.channels, every=mean_over), statistics.channels)
            )
            found["cubic_anomaly"] = about_climatology(
                y, normal, means, lambda y: back(y, "cubic"), statistics.channels
            )
        return {name: fields[lead] for name, fields in found.items()}

    return Problem(
        starts=starts,
        context=0,
        overlap=0,
        windows=1,
        leads=TIME_STEP * np.arange(prior.frames),
        observe=lambda placed: gridded.gridded_observation(placed, statistics, variance=s.variance),
        told=told,
        seen=Seen(prior.grid, TIME_STEP * mean_over * np.arange(prior.frames // mean_over), values, masked=False),
        baseline=baseline,
        states=archive_states(s, starts),
    )


def _means(
    s: Setting, starts: np.ndarray, error, variables: Sequence[str], cells: Coarsening | None, every: int
) -> tuple[Callable, Callable]:
    """What downscaling is told, and the same as fields (n, H, W, c): of coarse cells, or of `every` few frames."""
    prior, statistics = s.prior, s.prior.statistics
    times = lambda case: s.store.times[int(starts[case]) :][: prior.frames]

    @lru_cache(maxsize=4)
    def observed(case):
        truth = s.store.read(int(starts[case]), prior.frames)
        dataset = twins.observe_means(truth, statistics, prior.grid, times(case), error, variables, cells, every)
        return gridded.gridded(dataset, statistics, prior.grid)

    def told(case, window):
        return observed(case).window(times(case))

    def values(case):
        shape = prior.frames // every, *observed(case).grid.shape, len(statistics.channels)
        out = np.full(shape, np.nan, np.float32)
        for name, field in observed(case).fields.items():
            out[..., positions(statistics.channels)[name]] = field.values
        return out

    return told, values


def custom(s: Setting, operator: Callable, error) -> Problem:
    """y: what an operator of the user's makes of one window, without noise.

    Args:
        s: the setting.
        operator: `(channels, grid) -> A`, with A a differentiable function of a window (t, h, w, c) in physical
            units, to a pytree.
        error: standard deviation of y, as guidance sees it: a number, or a pytree of numbers or arrays like y.
    """
    prior = s.prior
    starts = case_starts(s, prior.frames)
    measure = operator(prior.statistics.channels, prior.grid)
    truth = lambda case: s.store.read(int(starts[case]), prior.frames)
    check_error(error)
    return Problem(
        starts=starts,
        context=0,
        overlap=0,
        windows=1,
        leads=TIME_STEP * np.arange(prior.frames),
        observe=lambda y: operator_observation(measure, y, error, prior.statistics, s.variance),
        told=lambda case, window: jax.tree.map(np.asarray, measure(jax.numpy.asarray(truth(case)))),
        seen=None,
        baseline=lambda case, lead: {},
        states=archive_states(s, starts),
    )
