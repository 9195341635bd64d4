"""What an observation says of a state: the residual y - A(x), the variance of its noise, and how likely both are.

A log likelihood is a function `(residual, variance) -> log density` of each number, up to a constant; `gaussian` unless
an observation names another.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

LogLikelihood = Callable[[Array, Array], Array]


@runtime_checkable
class ObservationLike(Protocol):
    """What guidance asks of an observation; `observations.observation.Observation` is one."""

    operator: Callable[[Array], PyTree]  # of one member, in model units
    y: PyTree
    variance: PyTree
    log_likelihood: PyTree


def gaussian(residual: Array, variance: Array) -> Array:
    """Log density of N(0, variance), up to a constant."""
    return -0.5 * residual**2 / variance


def student_t(degrees_of_freedom: float | int) -> LogLikelihood:
    """Student's t with `variance` its squared scale: gross errors are likelier, so they pull less (Lange et al., 1989).

    Raises:
        ValueError: Degrees of freedom that are not positive.
    """
    nu = float(degrees_of_freedom)
    if not nu > 0:
        raise ValueError(f"Student's t needs positive degrees of freedom, got {degrees_of_freedom}.")
    return lambda residual, variance: -0.5 * (nu + 1) * jnp.log1p(residual**2 / (nu * variance))


def misfit(observation: ObservationLike, y_hat: PyTree) -> PyTree:
    """y - y_hat of one member.

    Raises:
        ValueError: `y_hat` is not a tree of y's shapes.
    """
    y = jax.tree.map(jnp.asarray, observation.y)
    expected, found = (jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (y, y_hat))
    if jax.tree.structure(y) != jax.tree.structure(y_hat) or expected != found:
        raise ValueError(f"The operator returns values of shapes {found}, but y has {expected}.")
    return jax.tree.map(lambda y, y_hat: y.astype(y_hat.dtype) - y_hat, y, y_hat)


def noise_variance(observation: ObservationLike, residual: PyTree) -> PyTree:
    """Variance of the observation's noise, one number for each in y.

    "adaptive" stands for the mean squared residual at hand, leaf by leaf: where the model errs by more than
    the instrument, the nominal noise would have it chase errors of its own.

    Args:
        observation: Its variance is a tree that y's tree extends, of numbers, arrays that broadcast to y's, or
            "adaptive".
        residual: y - A(x0_hat) of one member.

    Returns:
        A pytree like `residual`.
    """

    def leaf(variance, residual):
        if isinstance(variance, str):
            variance = jnp.maximum(jnp.mean(residual**2), jnp.finfo(residual.dtype).tiny)
        return jnp.broadcast_to(jnp.asarray(variance, residual.dtype), residual.shape)

    return jax.tree.map(leaf, jax.tree.broadcast(observation.variance, residual), residual)


def effective_variance(observation: ObservationLike, residual: PyTree) -> PyTree:
    """The variance of the Gaussian that pulls as hard on each residual as the observation's own likelihood.

    With l the log likelihood, v = -r / l'(r), as in iteratively reweighted least squares (Holland and Welsch, 1977):
    a gross error gets a large variance of its own. For `gaussian` it is `noise_variance`.

    Args:
        observation: The task.
        residual: y - A(x0_hat) of one member.

    Returns:
        A pytree like `residual`.
    """

    def leaf(log_likelihood, residual, variance):
        if log_likelihood is gaussian:
            return variance
        small = 1e-3 * jnp.sqrt(variance)  # at 0 the ratio is 0 / 0
        r = jnp.where(jnp.abs(residual) < small, small, residual)
        return -r / jax.grad(lambda r: log_likelihood(r, variance).sum())(r)

    likelihoods = jax.tree.broadcast(observation.log_likelihood, residual)
    return jax.tree.map(leaf, likelihoods, residual, noise_variance(observation, residual))


def signal_power(operator: Callable[[Array], PyTree], x: Array) -> PyTree:
    """Variance that a state of unit variance gives to y: the mean of the diagonal of A' A'^T, leaf by leaf.

    By Hutchinson's estimate with one vector of random signs, which is exact for an operator that selects.

    Args:
        operator: of one member.
        x: one member, where the operator is linearised.

    Returns:
        A tree like y, of numbers.
    """
    y_hat, pullback = jax.vjp(operator, x)
    leaves, tree = jax.tree.flatten(y_hat)

    def power(i):
        signs = [
            jax.random.rademacher(jax.random.key(i), leaf.shape, leaf.dtype) if i == j else jnp.zeros_like(leaf)
            for j, leaf in enumerate(leaves)
        ]
        return (pullback(tree.unflatten(signs))[0] ** 2).sum() / leaves[i].size

    return tree.unflatten([power(i) for i in range(len(leaves))])


def log_density(observation: ObservationLike, residual: PyTree) -> Array:
    """Log likelihood of all of y given one member's residual, up to a constant; an adaptive variance is held fixed."""
    variance = jax.lax.stop_gradient(noise_variance(observation, residual))
    likelihoods = jax.tree.broadcast(observation.log_likelihood, residual)
    terms = jax.tree.map(lambda density, r, v: density(r, v).sum(), likelihoods, residual, variance)
    return jax.tree.reduce(jnp.add, terms)
