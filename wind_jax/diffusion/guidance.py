"""Guidance turns a denoiser into one that knows an observation y = A(x) + noise.

With gamma = sigma_t^2 / alpha_t and J = d x0_hat / d x_t, so that gamma J^T is the covariance of x given x_t
(Tweedie), each method is an approximation S of the covariance of y given x_t:

    guided x0_hat = x0_hat + gamma J^T A'^T S^-1 (y - A(x0_hat))

      DPS     S = Sigma_y, or |y - A(x0_hat)| / scale in the published form
      MMPS    S = Sigma_y + A' gamma J^T A'^T

A call runs the network once, forward; all products with J^T are backward passes through that one run. Members
of a batch must not depend on each other. With a time per frame, gamma is per frame, and frames at time 0 are
known: x0_hat is x_t there, and stays.
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from wind_jax.diffusion.denoiser import Denoiser, expand_like
from wind_jax.diffusion.schedule import Schedule
from wind_jax.diffusion.solve import SOLVERS


@runtime_checkable
class ObservationLike(Protocol):
    """What guidance asks of an observation; `tasks.observation.Observation` is one."""

    operator: Callable[[Array], PyTree]  # of one member, in model units
    y: PyTree
    variance: PyTree


class _Linearised(NamedTuple):
    """An observation seen from x0_hat; every leaf has a leading axis of members."""

    residual: PyTree  # y - A(x0_hat)
    variance: PyTree  # Sigma_y, a diagonal, like `residual`
    operator: Callable[[Array], PyTree]  # A'
    adjoint: Callable[[PyTree], Array]  # A'^T
    covariance: Callable[[Array], Array]  # gamma J^T


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


def noise_variance(variance: PyTree, residual: PyTree) -> PyTree:
    """Variance of the observation's noise, one number for each in y.

    "adaptive" stands for the mean squared residual at hand, leaf by leaf: where the model errs by more than
    the instrument, the nominal noise would have it chase errors of its own.

    Args:
        variance: A tree that y's tree extends, of numbers, arrays that broadcast to y's, or "adaptive".
        residual: y - A(x0_hat) of one member.

    Returns:
        A pytree like `residual`.
    """

    def leaf(variance, residual):
        if isinstance(variance, str):
            variance = jnp.maximum(jnp.mean(residual**2), jnp.finfo(residual.dtype).tiny)
        return jnp.broadcast_to(jnp.asarray(variance, residual.dtype), residual.shape)

    return jax.tree.map(leaf, jax.tree.broadcast(variance, residual), residual)


def _guided(
    denoiser: Denoiser,
    observation: ObservationLike,
    schedule: Schedule,
    weigh: Callable[[_Linearised], PyTree],
) -> Denoiser:
    """The denoiser with gamma J^T A'^T w added, where w = weigh(...) is a method's S^-1 (y - A(x0_hat))."""

    def guided(x_t, t):
        t_x = expand_like(t, x_t)
        known = t_x == 0
        gamma = jnp.where(known, 0, schedule.sigma(t_x) ** 2 / schedule.alpha(t_x))
        x0_hat, pullback = jax.vjp(lambda x_t: jnp.where(known, x_t, denoiser(x_t, t)), x_t)
        y_hat, push = jax.linearize(jax.vmap(observation.operator), x0_hat)
        transpose = jax.linear_transpose(push, x0_hat)
        residual = jax.vmap(lambda y_hat: misfit(observation, y_hat))(y_hat)
        at = _Linearised(
            residual=residual,
            variance=jax.vmap(lambda r: noise_variance(observation.variance, r))(residual),
            operator=push,
            adjoint=lambda w: transpose(w)[0],
            covariance=lambda v: gamma * pullback(v)[0],
        )
        return x0_hat + at.covariance(at.adjoint(weigh(at)))

    return guided


def dps(denoiser: Denoiser, observation: ObservationLike, schedule: Schedule, scale: float | None = None) -> Denoiser:
    """Diffusion posterior sampling (arXiv 2209.14687): x0_hat is taken for x, as if it were certain.

    Args:
        denoiser: The prior's.
        observation: The task.
        schedule: Noise schedule.
        scale: None uses the observation's variance. A number gives the published form, where the gradient is
            that of -scale |y - A(x0_hat)| over all of y, and the variance plays no part.
    """

    def weigh(at):
        if scale is None:
            return jax.tree.map(jnp.divide, at.residual, at.variance)
        squares = jax.tree.map(lambda r: (r**2).reshape(r.shape[0], -1).sum(1), at.residual)
        norm = jnp.sqrt(jax.tree.reduce(jnp.add, squares))
        factor = scale / jnp.where(norm > 0, norm, 1)
        return jax.tree.map(lambda r: expand_like(factor, r) * r, at.residual)

    return _guided(denoiser, observation, schedule, weigh)


def mmps(
    denoiser: Denoiser,
    observation: ObservationLike,
    schedule: Schedule,
    iterations: int = 3,
    solver: str = "cg",
    whiten: bool = True,
) -> Denoiser:
    """Moment matching posterior sampling (arXiv 2405.13712): exact for a Gaussian prior and a linear A.

    Args:
        denoiser: The prior's.
        observation: The task.
        schedule: Noise schedule.
        iterations: Of the solver; each is a product with J^T, a backward pass.
        solver: "cg" or "gmres".
        whiten: Solve in units of the noise's standard deviation, as if y had unit noise. Observations of
            different kinds (K, Pa, kg) need it to enter the solver's inner products as equals.

    Raises:
        ValueError: An unknown solver, or fewer than one iteration.
    """
    if solver not in SOLVERS:
        raise ValueError(f"Unknown solver {solver!r}: expected one of {', '.join(SOLVERS)}.")
    if iterations < 1:
        raise ValueError(f"MMPS needs at least one iteration of its solver, got {iterations}.")

    def weigh(at):
        unit = jax.tree.map(jnp.sqrt if whiten else jnp.ones_like, at.variance)
        variance = jax.tree.map(lambda v, u: (v / u) / u, at.variance, unit)

        def matvec(v):
            signal = at.operator(at.covariance(at.adjoint(jax.tree.map(jnp.divide, v, unit))))
            return jax.tree.map(lambda n, v, s, u: n * v + s / u, variance, v, signal, unit)

        weights = SOLVERS[solver](matvec, jax.tree.map(jnp.divide, at.residual, unit), iterations)
        return jax.tree.map(jnp.divide, weights, unit)

    return _guided(denoiser, observation, schedule, weigh)


METHODS = {"dps": dps, "mmps": mmps}


def guide(
    denoiser: Denoiser, observation: ObservationLike, schedule: Schedule, method: str = "mmps", **options
) -> Denoiser:
    """The denoiser of the posterior given `observation`.

    Args:
        denoiser: The prior's.
        observation: The task.
        schedule: Noise schedule.
        method: A name in `METHODS`.
        **options: The method's own: `scale` of `dps`; `iterations`, `solver`, `whiten` of `mmps`.

    Raises:
        ValueError: An unknown method, or an option that it does not have.
    """
    if method not in METHODS:
        raise ValueError(f"Unknown guidance method {method!r}: expected one of {', '.join(METHODS)}.")
    accepted = list(inspect.signature(METHODS[method]).parameters)[3:]
    unknown = [name for name in options if name not in accepted]
    if unknown:
        raise ValueError(f"Guidance by {method} has no option {unknown}; it has {accepted}.")
    return METHODS[method](denoiser, observation, schedule, **options)
