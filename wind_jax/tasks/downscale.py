"""Downscaling: fine fields from their means over coarse cells, or over several frames.

    spatial    y = area-weighted mean of x over each cell of a coarse grid
    temporal   y = mean of x over each n frames; for precipitation, the sum: what fell in them

In physical units: what is given is a mean of rain in m, not of its logarithm, so that the operator is nonlinear in
the model's units. Everything observed is a dict by variable name, (t, h, w, levels of the variable) each, so that
variables enter guidance each in units of its own error, and an adaptive variance is one for each variable.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wind_jax.channels import Channel, positions
from wind_jax.data.normalize import Statistics
from wind_jax.observations.observation import Observation, chosen_variance, observe
from wind_jax.sphere import Coarsening, coarsen

Video = Float[Array | np.ndarray, "t h w c"]
Values = Mapping[str, Float[Array | np.ndarray, "_ _ _ _"]]
Operator = Callable[[Video], Values]


def spatial_operator(coarsening: Coarsening, channels: Sequence[Channel], variables: Sequence[str] = ()) -> Operator:
    """Means over coarse cells: (t, h, w, c) to (t, H, W, levels) by variable, physical units.

    Args:
        coarsening: as `wind_jax.sphere.coarsening` makes it.
        channels: what the last axis of a video holds.
        variables: names of those observed; all where it is empty.

    Raises:
        ValueError: a variable that is not among the channels.
    """
    observed = _observed(channels, variables)
    return lambda x: {name: coarsen(x[..., where], coarsening) for name, where in observed.items()}


def temporal_operator(frames: int, n: int, channels: Sequence[Channel], variables: Sequence[str] = ()) -> Operator:
    """Means, or sums of accumulations, over each n frames: (t, h, w, c) to (t / n, h, w, levels) by variable.

    Args:
        frames: t of a video.
        n: frames that one mean is over, 2 or more.
        channels: what the last axis of a video holds.
        variables: names of those observed; all where it is empty.

    Raises:
        ValueError: a variable that is not among the channels, or frames that are no multiple of n.
    """
    if n < 2 or frames % n:
        raise ValueError(f"Means over {n} frames need two or more, and a window of a multiple of {n}; got {frames}.")
    observed = _observed(channels, variables)

    def operator(x):
        groups = x.reshape(frames // n, n, *x.shape[1:])
        return {
            name: groups[..., where].sum(1) if channels[where[0]].accumulation else groups[..., where].mean(1)
            for name, where in observed.items()
        }

    return operator


def spatial_observation(
    y: Values,
    coarsening: Coarsening,
    error: float | Mapping[str, float],
    statistics: Statistics,
    variance: str = "nominal",
) -> Observation:
    """The observation of coarse fields.

    Args:
        y: (t, H, W, levels) by variable, physical units; variables that it leaves out are not observed.
        coarsening: from the video's grid to that of y.
        error: standard deviation of the error of y, as in `errors`.
        statistics: of the video's channels.
        variance: "nominal", the square of `error`, or "adaptive", the mean squared residual of each variable.

    Raises:
        ValueError: an unknown variable, fields of another shape, an error that is not positive, another `variance`.
    """
    frames = _shape(y)[0]
    operator = spatial_operator(coarsening, statistics.channels, tuple(y))
    error = errors(error, statistics, tuple(y))
    return _observation(operator, y, (frames, *coarsening.fine.shape), error, statistics, variance)


def temporal_observation(
    y: Values,
    n: int,
    error: float | Mapping[str, float],
    statistics: Statistics,
    variance: str = "nominal",
) -> Observation:
    """The observation of means over n frames.

    Args:
        y: (m, h, w, levels) by variable, physical units, for a window of m * n frames; variables that it leaves
            out are not observed. Of accumulations, the sums.
        n: frames that one mean is over.
        error: standard deviation of the error of y, as in `errors`.
        statistics: of the video's channels.
        variance: "nominal", the square of `error`, or "adaptive", the mean squared residual of each variable.

    Raises:
        ValueError: an unknown variable, fields of another shape, an error that is not positive, another `variance`.
    """
    m, h, w, _ = _shape(y)
    operator = temporal_operator(m * n, n, statistics.channels, tuple(y))
    error = errors(error, statistics, tuple(y), n)
    return _observation(operator, y, (m * n, h, w), error, statistics, variance)


def as_fields(y: Values, channels: Sequence[Channel]) -> Float[Array | np.ndarray, "t h w c"]:
    """Values by variable, of all of them, along one axis of channels."""
    return jnp.concatenate([y[name] for name in positions(channels)], axis=-1)


def errors(
    error: float | Mapping[str, float], statistics: Statistics, variables: Sequence[str] = (), n: int = 1
) -> dict[str, Float[np.ndarray, "1 1 1 _"]]:
    """Standard deviation of the error of means, by variable, (1, 1, 1, levels), physical units.

    Args:
        error: by variable name in physical units ({"temperature": 0.1} is 0.1 K at every level), or one number,
            the fraction of what one standard deviation of a channel above its mean is in physical units. That is
            the standard deviation itself but for precipitation, whose statistics are of log10(1000 tp + 1): there
            it is the step from the typical rain to that one deviation above it, about 1 mm in 6 h.
        statistics: of the channels.
        variables: names of those observed; all where it is empty.
        n: frames that add up in accumulations; the fraction is of so many times the amount.

    Raises:
        ValueError: an error that is not positive, a variable without one, or an unknown variable.
    """
    observed = _observed(statistics.channels, variables)
    if isinstance(error, Mapping):
        if wrong := sorted(set(error) ^ set(observed)):
            raise ValueError(f"Errors of the means are needed for exactly {sorted(observed)}; wrong: {wrong}.")
        out = {name: np.full(where.size, error[name], np.float32) for name, where in observed.items()}
    else:
        zero = np.zeros(len(statistics.channels))
        scale = error * (statistics.denormalize(zero + 1) - statistics.denormalize(zero))
        scale = scale * [n if c.accumulation else 1 for c in statistics.channels]
        out = {name: scale[where].astype(np.float32) for name, where in observed.items()}
    if not all((np.isfinite(values) & (values > 0)).all() for values in out.values()):
        raise ValueError(f"Errors of the means must be positive, got {error}.")
    return {name: values[None, None, None, :] for name, values in out.items()}


def _shape(y: Values) -> tuple[int, ...]:
    """Of what is observed of the first variable."""
    if not y:
        raise ValueError("Downscaling needs at least one observed variable, got none.")
    return next(iter(y.values())).shape


def _observation(operator, y, window, error, statistics, variance) -> Observation:
    """Of an operator on windows (t, h, w), after its result was compared with y."""
    y = {name: jnp.asarray(values) for name, values in y.items()}
    x = jax.ShapeDtypeStruct((*window, len(statistics.channels)), jnp.float32)
    expected = jax.eval_shape(operator, x)
    for name, values in y.items():
        if values.shape != expected[name].shape:
            raise ValueError(f"y[{name!r}] has the shape {values.shape}, expected {expected[name].shape}.")
    nominal = {name: values**2 for name, values in error.items()}
    return observe(operator, y, chosen_variance(variance, nominal), statistics)


def _observed(channels: Sequence[Channel], variables: Sequence[str]) -> dict[str, np.ndarray]:
    """Where each observed variable lies on the channel axis."""
    every = positions(channels)
    if unknown := sorted(set(variables) - set(every)):
        raise ValueError(f"Observed variables {unknown} are not among the prior's: {', '.join(every)}.")
    return {name: where for name, where in every.items() if not variables or name in variables}
