"""Reconstruction from sparse observations: single cells of the video, drawn at random or given, with their errors.

    y = x[cells] + error * noise

In model units throughout: taking cells and changing units commute, so the operator is a gather, linear also in
precipitation (which is observed as log10(1000 tp + 1)), and all errors are of one order. Everything observed is a
dict by variable name, so that an adaptive variance is one for each variable; `cells` are positions in the flattened
window (t, h, w, c). Their number is fixed by the task: one compiled sampler serves all draws of them.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from wind_jax.channels import Channel
from wind_jax.data.normalize import Statistics
from wind_jax.observations.observation import Observation, check_size, chosen_variance, take

Cells = dict[str, Int[Array | np.ndarray, "_"]]  # numpy where they are made, jax where a sampler uses them
Values = dict[str, Float[Array | np.ndarray, "_"]]
Shape = tuple[int, int, int, int]


def draw_cells(
    key: Key[Array, ""],
    shape: Shape,
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

    Raises:
        ValueError: a fraction outside (0, 1], a variable that is not among the channels, or a window too large.
    """
    check_size(shape)
    if not 0 < fraction <= 1:
        raise ValueError(f"The observed fraction must be in (0, 1], got {fraction}.")
    names = list(dict.fromkeys(c.name for c in channels))
    if unknown := sorted(set(variables) - set(names)):
        raise ValueError(f"Observed variables {unknown} are not among the prior's: {', '.join(names)}.")
    frames, h, w, c = shape
    count = max(1, round(fraction * h * w))
    observed = [i for i, channel in enumerate(channels) if not variables or channel.name in variables]
    places = np.stack(np.meshgrid(np.arange(frames), observed, indexing="ij"), -1).reshape(-1, 2).astype(np.int32)

    def draw(place):
        folded = jax.random.fold_in(jax.random.fold_in(key, place[0]), place[1])
        return jax.random.permutation(folded, h * w)[:count]

    drawn = np.asarray(jax.lax.map(draw, jnp.asarray(places)))
    return _by_name((places[:, :1] * (h * w) + drawn) * c + places[:, 1:], channels)


def mask_cells(mask: Bool[np.ndarray, "..."], shape: Shape, channels: Sequence[Channel]) -> Cells:
    """The cells at which a given `mask` (t, h, w, c) is true; variables that it leaves out altogether are absent.

    Raises:
        ValueError: a mask of another shape than the window's, or true nowhere; or a window too large.
    """
    check_size(shape)
    if mask.shape != tuple(shape):
        raise ValueError(f"The observations' mask has the shape {mask.shape}, the window has {tuple(shape)}.")
    if not mask.any():
        raise ValueError("The observations' mask is true nowhere; at least one cell has to be observed.")
    return _by_name(np.flatnonzero(mask), channels)


def _by_name(cells: np.ndarray, channels: Sequence[Channel]) -> Cells:
    """Sorts cells of any order into variables."""
    cells = np.sort(cells, axis=None).astype(np.int32)
    names = np.array([c.name for c in channels])
    found = names[cells % len(channels)]
    return {name: cells[found == name] for name in dict.fromkeys(names.tolist()) if name in found}


def errors(error: float | Mapping[str, float], statistics: Statistics) -> Float[np.ndarray, "c"]:
    """Standard deviation of the observation error of each channel, in model units.

    Args:
        error: one number, the fraction of every channel's standard deviation; or by variable name in physical
            units ({"temperature": 1.0} is 1 K at every level), for precipitation in those of log10(1000 tp + 1).
        statistics: of the channels.

    Raises:
        ValueError: an error that is not positive, a variable without one, or an unknown variable.
    """
    names = [c.name for c in statistics.channels]
    if isinstance(error, Mapping):
        if wrong := sorted(set(error) ^ set(names)):
            raise ValueError(f"Observation errors are needed for exactly {sorted(set(names))}; wrong: {wrong}.")
        out = np.asarray([error[name] for name in names], np.float32) / np.asarray(statistics.std, np.float32)
    else:
        out = np.full(len(names), error, np.float32)
    if not (np.isfinite(out) & (out > 0)).all():
        raise ValueError(f"Observation errors must be positive, got {error}.")
    return out


def measure(
    x: Float[np.ndarray, "t h w c"], cells: Cells, error: Float[np.ndarray, "c"], key: Key[Array, ""]
) -> Values:
    """Synthetic observations of the truth `x` (model units), with Gaussian errors drawn by `key`.

    Raises:
        ValueError: cells outside the window.
    """
    check_cells(cells, x.shape)
    noise = np.asarray(jax.random.normal(key, (sum(where.size for where in cells.values()),), jnp.float32))
    noise = np.split(noise, np.cumsum([where.size for where in cells.values()])[:-1])
    return {
        name: x.ravel()[where] + error[where % error.size] * part
        for (name, where), part in zip(cells.items(), noise, strict=True)
    }


def sparse_observation(
    cells: Cells, y: Values, error: Float[Array | np.ndarray, "c"], variance: str = "nominal"
) -> Observation:
    """The observation of `cells` in model units.

    Args:
        cells: positions in the flattened window, by variable.
        y: observed values, by variable.
        error: standard deviation by channel.
        variance: "nominal", the square of `error`, or "adaptive", the mean squared residual of each variable.

    Raises:
        ValueError: another `variance`.
    """
    error = jnp.asarray(error)
    nominal = {name: error[where % error.size] ** 2 for name, where in cells.items()}
    return Observation(gather(cells), y, chosen_variance(variance, nominal))


def gather(cells: Cells) -> Callable[[Float[Array, "t h w c"]], Values]:
    """The operator: values of one window at the cells."""
    return lambda x: take(x, cells)


def dense(cells: Cells, y: Values, shape: Shape) -> Float[np.ndarray, "t h w c"]:
    """Values on the grid, NaN where nothing was observed.

    Raises:
        ValueError: cells outside the window.
    """
    check_cells(cells, shape)
    out = np.full(int(np.prod(shape)), np.nan, np.float32)
    for name, where in cells.items():
        out[np.asarray(where)] = np.asarray(y[name])
    return out.reshape(shape)


def check_cells(cells: Cells, shape: Shape) -> None:
    """Checks that observations lie in the window.

    Raises:
        ValueError: cells outside it; jax would clip them to its edge without a word.
    """
    size = int(np.prod(shape))
    for name, where in cells.items():
        where = np.asarray(where)
        if (outside := where[(where < 0) | (where >= size)]).size:
            raise ValueError(
                f"{outside.size} observations of {name!r} lie outside the grid: cell {outside[0]} of a window "
                f"{tuple(shape)}, expected 0 to {size - 1}."
            )
