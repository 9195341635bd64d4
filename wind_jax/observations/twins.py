"""Twin experiments: gridded observations of a truth, as the dataset that a user would bring.

What `gridded.gridded` makes of them does not tell a twin from an observation.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import xarray
from jaxtyping import Array, Float, Int, Key

from wind_jax.channels import Channel, levels_of, positions, unstack
from wind_jax.data.normalize import Statistics
from wind_jax.observations.gridded import Error, cell_errors, mean_errors, observed_positions
from wind_jax.observations.observation import check_size
from wind_jax.sphere import Coarsening, Grid, coarsen

Video = Float[Array | np.ndarray, "t h w c"]
Cells = dict[str, Int[Array | np.ndarray, "_"]]


def observe_cells(
    truth: Float[np.ndarray, "t h w c"],
    statistics: Statistics,
    grid: Grid,
    times: np.ndarray,
    fraction: float,
    error: Error,
    key: Key[Array, ""],
    variables: Sequence[str] = (),
) -> xarray.Dataset:
    """Random cells of a truth with Gaussian errors, as a user would bring them.

    Values are float64, so that `gridded` has them to the last bit of float32 in model units.

    Args:
        truth: physical units.
        statistics: of the prior.
        grid: of the prior.
        times: (t,) datetime64 of the frames.
        fraction: of the cells of each field.
        error: standard deviation, as `cell_errors` takes it.
        key: of the draw of cells and of errors.
        variables: observed ones, empty: all.

    Raises:
        ValueError: as `draw_cells` and `cell_errors`.
    """
    place, noise = jax.random.split(key)
    deviation = cell_errors(error, statistics, variables)
    cells = draw_cells(place, truth.shape, statistics.channels, fraction, variables)
    z = np.full(truth.size, np.nan)
    for name, y in measure(statistics.normalize(truth), cells, deviation, noise).items():
        z[cells[name]] = y
    dataset = unstack(statistics.denormalize(z.reshape(truth.shape)), statistics.channels, grid, times)
    physical = deviation.astype(np.float64) * statistics.std
    spread = {name: physical[where] for name, where in positions(statistics.channels).items()}
    return _with_errors(dataset[list(cells)], spread, statistics.channels, logarithmic=True)


def draw_cells(
    key: Key[Array, ""],
    shape: Sequence[int],
    channels: Sequence[Channel],
    fraction: float,
    variables: Sequence[str] = (),
) -> Cells:
    """Random cells: the same number in every frame and observed channel, each drawn by itself without replacement.

    Args:
        key: of the draw; frame and channel are folded in.
        shape: (t, h, w, c) of the window.
        channels: what its last axis holds.
        fraction: of the cells of one field, in (0, 1]; at least one cell is drawn.
        variables: names of those observed; all where it is empty.

    Returns:
        Positions in the flattened window by variable, ascending.

    Raises:
        ValueError: a fraction outside (0, 1], a variable that is not among the channels, or a window too large.
    """
    check_size(shape)
    if not 0 < fraction <= 1:
        raise ValueError(f"The observed fraction must be in (0, 1], got {fraction}.")
    where = observed_positions(channels, variables)
    frames, h, w, c = shape
    count = max(1, round(fraction * h * w))
    fields = np.array([(t, i) for t in range(frames) for i in sorted(np.concatenate([*where.values()]))], np.int32)

    def draw(field):
        folded = jax.random.fold_in(jax.random.fold_in(key, field[0]), field[1])
        return jax.random.permutation(folded, h * w)[:count]

    drawn = np.asarray(jax.lax.map(draw, jnp.asarray(fields)))
    cells = np.sort((fields[:, :1] * (h * w) + drawn) * c + fields[:, 1:], axis=None).astype(np.int32)
    return {name: cells[np.isin(cells % c, channel)] for name, channel in where.items()}


def measure(
    x: Float[np.ndarray, "t h w c"], cells: Cells, error: Float[np.ndarray, "c"], key: Key[Array, ""]
) -> dict[str, Float[np.ndarray, "_"]]:
    """Values of `x` at the cells with Gaussian errors of these standard deviations, all in model units."""
    noise = np.asarray(jax.random.normal(key, (sum(where.size for where in cells.values()),), jnp.float32))
    noise = np.split(noise, np.cumsum([where.size for where in cells.values()])[:-1])
    return {
        name: x.ravel()[where] + error[where % error.size] * part
        for (name, where), part in zip(cells.items(), noise, strict=True)
    }


def observe_means(
    truth: Float[np.ndarray, "t h w c"],
    statistics: Statistics,
    grid: Grid,
    times: np.ndarray,
    error: Error,
    variables: Sequence[str] = (),
    target: Coarsening | None = None,
    every: int = 1,
) -> xarray.Dataset:
    """Means of a truth over coarse cells, over frames, or both, without errors, as a user would bring them.

    The mean of some frames is one over the span from the first of them to a time step after the last; the sum of
    accumulations is one over the span from a time step before the first of them to the last.

    Args:
        truth: physical units.
        statistics: of the prior.
        grid: of the prior.
        times: (t,) datetime64 of the frames, a time step apart.
        error: standard deviation that the observations are said to have, as `mean_errors` takes it.
        variables: observed ones, empty: all.
        target: from the prior's grid to a coarser one; None: the prior's own.
        every: frames in one mean; 1: each of them.

    Raises:
        ValueError: as `means` and `mean_errors`.
    """
    channels, coarse = statistics.channels, target.grid if target else grid
    found = means(truth, channels, variables, target, every)
    array = np.full((len(times) // every, *coarse.shape, len(channels)), np.nan, np.float32)
    for name, values in found.items():
        array[..., positions(channels)[name]] = values
    dataset = unstack(array, channels, coarse, times[::every])[list(found)]
    dataset = _with_errors(dataset, mean_errors(error, statistics, variables, every), channels)
    return dataset if every == 1 else _with_spans(dataset, channels, times[1] - times[0], every)


def _with_spans(
    dataset: xarray.Dataset, channels: Sequence[Channel], step: np.timedelta64, every: int
) -> xarray.Dataset:
    """The dataset, whose times are those of the first of `every` frames, with spans; sums have a time of their own."""
    begin = dataset["time"].values
    amounts = sorted({channel.name for channel in channels if channel.accumulation} & set(dataset.data_vars))
    means = _with_bounds(dataset.drop_vars(amounts), "time", "mean", begin, every * step)
    if not amounts:
        return means
    sums = dataset[amounts].rename(time="time_of_sum").assign_coords(time_of_sum=begin + (every - 1) * step)
    return means.merge(_with_bounds(sums, "time_of_sum", "sum", begin - step, every * step))


def _with_bounds(
    dataset: xarray.Dataset, time: str, method: str, begin: np.ndarray, length: np.timedelta64
) -> xarray.Dataset:
    """The dataset whose variables along `time` are of a method over spans of this length."""
    for variable in dataset.data_vars.values():
        if time in variable.dims:
            variable.attrs["cell_methods"] = f"{time}: {method}"
    dataset[time].attrs["bounds"] = f"{time}_bnds"
    dataset[time].encoding = {"units": "seconds since 1970-01-01", "dtype": "int64"}  # those of its bounds, too
    dataset[f"{time}_bnds"] = (time, "bnds"), np.stack([begin, begin + length], -1)
    return dataset


def means(
    x: Video,
    channels: Sequence[Channel],
    variables: Sequence[str] = (),
    target: Coarsening | None = None,
    every: int = 1,
) -> dict[str, Float[Array | np.ndarray, "n H W l"]]:
    """Means over each few frames, for accumulations sums, and over coarse cells, by variable; physical units.

    Args:
        x: a window, numpy or jax.
        channels: what its last axis holds.
        variables: names of those observed; all where it is empty.
        target: as `wind_jax.sphere.coarsening` makes it; None: no coarsening.
        every: frames in one mean.

    Raises:
        ValueError: a variable that is not among the channels, or frames that are no multiple of `every`.
    """
    if every > 1:
        check_means(len(x), every)
    found = {}
    for name, where in observed_positions(channels, variables).items():
        field = x[..., where]
        if every > 1:
            groups = field.reshape(-1, every, *field.shape[1:])
            field = groups.sum(1) if channels[where[0]].accumulation else groups.mean(1)
        found[name] = coarsen(field, target) if target else field
    return found


def check_means(frames: int, every: int) -> None:
    """Checks that a window has means over `every` few frames.

    Raises:
        ValueError: fewer than two, or a window of another number of frames than a multiple of them.
    """
    if every < 2 or frames % every:
        raise ValueError(
            f"Means over {every} frames need two or more, and a window of a multiple of {every}; got {frames}."
        )


def as_fields(y: Mapping[str, Float[Array | np.ndarray, "n H W _"]], channels: Sequence[Channel]):
    """Values by variable, of all of them, along one axis of channels."""
    return jnp.concatenate([y[name] for name in positions(channels)], axis=-1)


def _with_errors(
    dataset: xarray.Dataset,
    errors: Mapping[str, np.ndarray],
    channels: Sequence[Channel],
    logarithmic: bool = False,
) -> xarray.Dataset:
    """The dataset with a variable `NAME_error` for each of its variables.

    Args:
        dataset: with variables of the channels.
        errors: (levels,) standard deviations by variable.
        channels: of the prior.
        logarithmic: errors of precipitation are of log10(1000 tp + 1).
    """
    for name in list(dataset.data_vars):
        levels = levels_of(channels, name)
        spread = errors[name]
        variable = channels[positions(channels)[name][0]].variable
        units = "1" if logarithmic and variable.transform == "log_precipitation" else variable.units
        dataset[f"{name}_error"] = xarray.DataArray(spread, {"level": levels}, ["level"]) if levels else ((), spread[0])
        dataset[f"{name}_error"].attrs = {"units": units, "long_name": f"standard deviation of {name}'s error"}
    return dataset
