"""An observation y = A(x) + noise: what a task tells of the video that the prior describes.

Operators are written in physical units, K, Pa, kg kg-1; `observe` puts the change of units inside.
Observations compose, so that a task may be several.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from wind_jax.diffusion.guidance import misfit, noise_variance


class Observation(NamedTuple):
    """A task, as guidance sees it.

    Attributes:
        operator: A, of one member `(t, h, w, c)` in model units, to a pytree like `y`; differentiable.
        y: The observed values, the same for all members.
        variance: Of the noise: a number, a pytree of numbers or arrays that broadcast to `y`, or "adaptive",
            the mean squared residual at each step of the sampler.
    """

    operator: Callable[[Array], PyTree]
    y: PyTree
    variance: PyTree


def observe(operator: Callable[[Array], PyTree], y: PyTree, variance: PyTree, statistics) -> Observation:
    """An observation whose operator sees physical units.

    Args:
        operator: A, of one member `(t, h, w, c)` in physical units.
        y: Values in the operator's units.
        variance: As in `Observation`, in those units squared.
        statistics: The data's `Statistics`, which denormalise.

    Raises:
        ValueError: y that is not finite, a variance that is not positive, or trees that do not fit.
    """
    _check_values(y, variance)
    return Observation(lambda x: operator(statistics.denormalize(x)), y, variance)


def compose(*observations: Observation) -> Observation:
    """All of the observations at once, their noises independent; y and variance become tuples.

    Raises:
        ValueError: No observations.
    """
    if not observations:
        raise ValueError("compose() needs at least one observation, got none.")
    operators, y, variance = zip(*observations)
    return Observation(lambda x: tuple(operator(x) for operator in operators), y, variance)


def likelihood_grad(observation: Observation) -> Callable[[Array], Array]:
    """The gradient of log N(y; A(x0_hat), variance) by x0_hat of one member, A'^T Sigma_y^-1 (y - A(x0_hat)).

    An adaptive variance is held fixed in it.
    """

    def log_likelihood(x0_hat):
        residual = misfit(observation, observation.operator(x0_hat))
        variance = jax.lax.stop_gradient(noise_variance(observation.variance, residual))
        terms = jax.tree.map(lambda r, v: -0.5 * jnp.sum(r**2 / v), residual, variance)
        return jax.tree.reduce(jnp.add, terms)

    return jax.grad(log_likelihood)


def check(observation: Observation, shape: Sequence[int]) -> None:
    """Checks an observation before long work; the operator is traced, not run.

    Args:
        observation: To be checked.
        shape: Of one member, `(t, h, w, c)`.

    Raises:
        ValueError: y that is not finite, a variance that is not positive, an operator whose result is not
            like y.
    """
    _check_values(observation.y, observation.variance)
    x = jax.ShapeDtypeStruct(tuple(shape), jnp.asarray(0.0).dtype)
    jax.eval_shape(lambda x: misfit(observation, observation.operator(x)), x)


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
