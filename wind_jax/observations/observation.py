"""An observation y = A(x) + noise: what is known of the video that the prior describes.

Operators are written in physical units, K, Pa, kg kg-1; `observe` puts the change of units inside.
Observations compose, so that a task may be several.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from wind_jax.diffusion.likelihood import gaussian, log_density, misfit


class Observation(NamedTuple):
    """What is known, as guidance sees it.

    Attributes:
        operator: A, of one member `(t, h, w, c)` in model units, to a pytree like `y`; differentiable.
        y: The observed values, the same for all members.
        variance: Of the noise: a number, a pytree of numbers or arrays that broadcast to `y`, or "adaptive",
            the mean squared residual at each step of the sampler.
        log_likelihood: `(residual, variance) -> log density` of each number, or a pytree of such: `gaussian`, or
            `student_t(4)` for stations with gross errors.
    """

    operator: Callable[[Array], PyTree]
    y: PyTree
    variance: PyTree
    log_likelihood: PyTree = gaussian


def take(
    x: Float[Array | np.ndarray, "t h w c"], places: Mapping[str, Int[Array | np.ndarray, "..."]]
) -> dict[str, Array]:
    """Values of a window at places in its flattened form, by name; 0 beyond its end.

    All are gathered at once: what pulls them back then makes one window, not one for each name.
    """
    shapes = [where.shape for where in places.values()]
    every = jnp.concatenate([jnp.ravel(where) for where in places.values()])
    values = jnp.ravel(x).at[every].get(mode="fill", fill_value=0)
    parts = jnp.split(values, np.cumsum([math.prod(shape) for shape in shapes])[:-1])
    return {name: part.reshape(shape) for name, part, shape in zip(places, parts, shapes, strict=True)}


def observe(
    operator: Callable[[Array], PyTree], y: PyTree, variance: PyTree, statistics, log_likelihood: PyTree = gaussian
) -> Observation:
    """An observation whose operator sees physical units.

    Args:
        operator: A, of one member `(t, h, w, c)` in physical units.
        y: Values in the operator's units.
        variance: As in `Observation`, in those units squared.
        statistics: The data's `Statistics`, whose `physical` the operator sees.
        log_likelihood: As in `Observation`.

    Raises:
        ValueError: y that is not finite, a variance that is not positive, or trees that do not fit.
    """
    _check_values(y, variance)
    return Observation(lambda x: operator(statistics.physical(x)), y, variance, log_likelihood)


def compose(*observations: Observation) -> Observation:
    """All of the observations at once, their noises independent; y, variance and log likelihood become tuples.

    Raises:
        ValueError: No observations.
    """
    if not observations:
        raise ValueError("compose() needs at least one observation, got none.")
    operators, *rest = zip(*observations)
    return Observation(lambda x: tuple(operator(x) for operator in operators), *rest)


def chosen_variance(choice: str, nominal: PyTree) -> PyTree:
    """The variance of a task's observation, as `config.guidance.variance` chooses it.

    Args:
        choice: "nominal" or "adaptive".
        nominal: the squares of the task's stated errors.

    Raises:
        ValueError: another choice.
    """
    if choice not in ("nominal", "adaptive"):
        raise ValueError(f'The guidance variance must be "nominal" or "adaptive", got {choice!r}.')
    return nominal if choice == "nominal" else choice


def likelihood_grad(observation: Observation) -> Callable[..., Array]:
    """The function `(x0_hat, y=observation.y)`: the gradient of log p(y | x0_hat) by x0_hat of one member.

    For Gaussian noise it is A'^T Sigma_y^-1 (y - A(x0_hat)). An adaptive variance is held fixed in it.
    """

    def log_likelihood(x0_hat, y=observation.y):
        told = observation._replace(y=y)
        return log_density(told, misfit(told, observation.operator(x0_hat)))

    return jax.grad(log_likelihood)


def check(observation: Observation, shape: Sequence[int], x: Array | np.ndarray | None = None) -> None:
    """Checks an observation before long work: the operator and its gradient are run once.

    Args:
        observation: To be checked.
        shape: Of one member, `(t, h, w, c)`.
        x: A plausible state in model units, where the operator must be finite; zeros if it is left out.

    Raises:
        ValueError: y that is not finite, a variance that is not positive, an operator whose result is not
            like y, not finite, or not differentiable.
    """
    _check_values(observation.y, observation.variance)
    x = jnp.zeros(tuple(shape)) if x is None else jnp.asarray(x, jnp.asarray(0.0).dtype)
    try:
        y_hat, pullback = jax.vjp(observation.operator, x)
        misfit(observation, y_hat)
        # Random, as the rows of a difference operator sum to 0.
        direction = lambda y: jax.random.normal(jax.random.key(0), y.shape, y.dtype)
        gradient = pullback(jax.tree.map(direction, y_hat))[0]
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError, TypeError) as error:
        raise ValueError(
            "The observation's operator cannot be differentiated: write it in jax.numpy, without converting to numpy, "
            f"to integers or to Python numbers ({str(error).splitlines()[0]})."
        ) from error
    for path, value in jax.tree.leaves_with_path(y_hat):
        if not _all(jnp.isfinite(value)):
            raise ValueError(
                f"The operator's result{jax.tree_util.keystr(path)} is not finite for a plausible state: "
                f"{int((~jnp.isfinite(value)).sum())} of {value.size} values."
            )
    if not _all(jnp.isfinite(gradient)):
        raise ValueError(
            "The gradient of the observation's operator is not finite for a plausible state, though its values are: "
            "a square root or a norm at 0, or a where() that hides a division by 0?"
        )
    if not isinstance(gradient, jax.core.Tracer) and not gradient.any():
        raise ValueError("The observation's operator does not depend on the state: its gradient is 0 everywhere.")


def check_size(shape: Sequence[int]) -> None:
    """Checks that 32-bit integers can number the values of a window.

    Raises:
        ValueError: they cannot.
    """
    if (size := math.prod(shape)) > 2**31 - 1:
        raise ValueError(
            f"A window {tuple(shape)} has {size} values, and positions in it are 32-bit integers, up to {2**31 - 1}: "
            "take a prior of fewer frames, channels or cells."
        )


def _all(flags: Array) -> bool:
    """Whether all are true; under jit no one knows, and a check lets it pass."""
    return True if isinstance(flags, jax.core.Tracer) else bool(flags.all())


def _check_values(y: PyTree, variance: PyTree) -> None:
    try:
        variances = jax.tree.broadcast(variance, y)
    except ValueError:
        raise ValueError(
            f"The variance's tree {jax.tree.structure(variance)} is no part of y's, {jax.tree.structure(y)}."
        ) from None
    for (path, value), noise in zip(jax.tree.leaves_with_path(y), jax.tree.leaves(variances)):
        where = f"y{jax.tree_util.keystr(path)}"
        if not isinstance(value, jax.core.Tracer) and not np.isfinite(value).all():
            raise ValueError(f"{where} has values that are not finite: leave unobserved values out.")
        if isinstance(noise, jax.core.Tracer):
            continue
        if isinstance(noise, str):
            if noise != "adaptive":
                raise ValueError(f'The variance of {where} is {noise!r}: expected a number or "adaptive".')
            continue
        if not (np.isfinite(noise) & (np.asarray(noise) > 0)).all():
            raise ValueError(f"The variance of {where} must be positive and finite, got {np.min(noise)}.")
        try:
            fits = np.broadcast_shapes(np.shape(noise), np.shape(value)) == np.shape(value)
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"The variance of {where} has shape {np.shape(noise)}: expected one that broadcasts to "
                f"{np.shape(value)}."
            )
