"""Guidance turns a denoiser into one that knows an observation y = A(x) + noise.

With gamma = sigma_t^2 / alpha_t and J = d x0_hat / d x_t, so that gamma J^T is the covariance of x given x_t
(Tweedie), each method is an approximation S of the covariance of y given x_t:

    guided x0_hat = x0_hat + gamma J^T A'^T S^-1 (y - A(x0_hat))

      DPS     S = |y - A(x0_hat)| / scale in the published form, or Sigma_y
      SDA     S = Sigma_y + g (sigma_t / alpha_t)^2
      PiGDM   S = Sigma_y + A' r_t^2 A'^T,  r_t^2 = sigma_t^2 / (alpha_t^2 + sigma_t^2)
      TMPD    S = Sigma_y + diag(A' gamma J^T A'^T 1)
      MMPS    S = Sigma_y + A' gamma J^T A'^T

and DiffPIR, which leaves J out, moves x0_hat to the nearest state that y allows. A call runs the network once,
forward; all products with J^T are backward passes through that one run. Members of a batch must not depend on each
other. With a time per frame, gamma is per frame, and frames at time 0 are known: x0_hat is x_t there, and stays.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, PyTree

from wind_jax.diffusion.denoiser import Denoiser, expand_like
from wind_jax.diffusion.likelihood import ObservationLike, effective_variance, misfit, signal_power
from wind_jax.diffusion.schedule import Schedule
from wind_jax.diffusion.solve import SOLVERS


class _Linearised(NamedTuple):
    """An observation seen from x0_hat; every leaf has a leading axis of members."""

    x0_hat: Array  # with known frames as they are
    alpha: Array  # these three broadcast to x_t
    sigma: Array
    known: Array  # the frames at time 0

    residual: PyTree  # y - A(x0_hat)
    variance: PyTree  # Sigma_y, a diagonal, like `residual`
    operator: Callable[[Array], PyTree]  # A'
    adjoint: Callable[[PyTree], Array]  # A'^T


def _linearise(
    observation: ObservationLike, schedule: Schedule, x0_hat: Array, x_t: Array, t: ArrayLike
) -> _Linearised:
    """The observation at x0_hat."""
    t_x = expand_like(t, x_t)
    known = jnp.broadcast_to(t_x == 0, (x_t.shape[0], *t_x.shape[1:]))
    x0_hat = jnp.where(known, x_t, x0_hat)
    y_hat, push = jax.linearize(jax.vmap(observation.operator), x0_hat)
    transpose = jax.linear_transpose(push, x0_hat)
    residual = jax.vmap(lambda y_hat: misfit(observation, y_hat))(y_hat)
    return _Linearised(
        x0_hat=x0_hat,
        alpha=schedule.alpha(t_x),
        sigma=schedule.sigma(t_x),
        known=known,
        residual=residual,
        variance=jax.vmap(lambda r: effective_variance(observation, r))(residual),
        operator=push,
        adjoint=lambda w: transpose(w)[0],
    )


def _guided(
    denoiser: Denoiser,
    observation: ObservationLike,
    schedule: Schedule,
    weigh: Callable[[_Linearised, Callable[[Array], Array]], PyTree],
) -> Denoiser:
    """The denoiser with gamma J^T A'^T w added, where w = weigh(at, covariance) is a method's S^-1 (y - A(x0_hat))."""

    def guided(x_t, t):
        x0_hat, pullback = jax.vjp(lambda x_t: denoiser(x_t, t), x_t)
        at = _linearise(observation, schedule, x0_hat, x_t, t)
        gamma = jnp.where(at.known, 0, at.sigma**2 / at.alpha)

        def covariance(v):  # gamma J^T; known frames neither move nor carry anything
            return gamma * pullback(jnp.where(at.known, 0, v))[0]

        return at.x0_hat + covariance(at.adjoint(weigh(at, covariance)))

    return guided


def dps(denoiser: Denoiser, observation: ObservationLike, schedule: Schedule, scale: float | None = 1.0) -> Denoiser:
    """Diffusion posterior sampling (arXiv 2209.14687): x0_hat is taken for x, as if it were certain.

    Args:
        denoiser: The prior's.
        observation: The task.
        schedule: Noise schedule.
        scale: A number gives the published form, where the gradient is that of -scale |y - A(x0_hat)| over all of y,
            in units of the noise's standard deviation: y may hold K and Pa. None uses the observation's variance.
    """

    def weigh(at, covariance):
        if scale is None:
            return jax.tree.map(jnp.divide, at.residual, at.variance)
        squares = jax.tree.map(lambda r, v: (r**2 / v).reshape(r.shape[0], -1).sum(1), at.residual, at.variance)
        norm = jnp.sqrt(jax.tree.reduce(jnp.add, squares))
        factor = scale / jnp.where(norm > 0, norm, 1)
        return jax.tree.map(lambda r, v: expand_like(factor, r) * r / v, at.residual, at.variance)

    return _guided(denoiser, observation, schedule, weigh)


def sda(denoiser: Denoiser, observation: ObservationLike, schedule: Schedule, gamma: float = 1.0) -> Denoiser:
    """Score-based data assimilation (arXiv 2306.10574, eq. 15): the covariance of x0_hat is gamma (sigma / alpha)^2.

    Args:
        denoiser: The prior's.
        observation: The task.
        schedule: Noise schedule.
        gamma: Variance of x0_hat as a share of (sigma / alpha)^2, of the order of the prior's variance, as y sees it
            (`signal_power`). Where frames have times of their own, y sees the mean of (sigma / alpha)^2 over those
            that carry noise.

    Raises:
        ValueError: A negative gamma.
    """
    if not gamma >= 0:
        raise ValueError(f"SDA's gamma must be 0 or more, got {gamma}.")

    def weigh(at, covariance):
        ratio = jnp.where(at.known, 0, (at.sigma / at.alpha) ** 2).reshape(at.known.shape[0], -1)
        noisy = (~at.known).reshape(ratio.shape).astype(ratio.dtype)
        extra = gamma * ratio.sum(1) / jnp.maximum(noisy.sum(1), 1)
        power = jax.vmap(lambda x: signal_power(observation.operator, x))(at.x0_hat)
        weight = lambda r, v, p: r / (v + expand_like(extra * p, v))
        return jax.tree.map(weight, at.residual, at.variance, power)

    return _guided(denoiser, observation, schedule, weigh)


def pgdm(
    denoiser: Denoiser, observation: ObservationLike, schedule: Schedule, iterations: int = 8, solver: str = "cg"
) -> Denoiser:
    """Pseudoinverse guidance (Song et al., ICLR 2023, eq. 7): x given x_t has variance r_t^2 in every direction.

    Args:
        denoiser: The prior's.
        observation: The task.
        schedule: Noise schedule.
        iterations: Iterations of the solver; a product is with the operator alone, not with the network.
        solver: Solver of the linear system, "cg" or "gmres".

    Raises:
        ValueError: An unknown solver, or fewer than one iteration.
    """
    solve = _solver("PiGDM", solver, iterations)

    def weigh(at, covariance):
        spread = jnp.where(at.known, 0, at.sigma**2 / (at.alpha**2 + at.sigma**2))
        return _solve(at, lambda v: spread * v, solve, whiten=True)

    return _guided(denoiser, observation, schedule, weigh)


def tmpd(denoiser: Denoiser, observation: ObservationLike, schedule: Schedule, whiten: bool = True) -> Denoiser:
    """Tweedie moment projected diffusion (arXiv 2310.06721, eq. 12): the covariance of y by its row sums, a diagonal.

    Row sums that a learned Jacobian makes negative count as zero.

    Args:
        denoiser: The prior's.
        observation: The task.
        schedule: Noise schedule.
        whiten: Sum rows in units of the noise's standard deviation: y may hold K and Pa.
    """

    def weigh(at, covariance):
        unit = jax.tree.map(jnp.sqrt if whiten else jnp.ones_like, at.variance)
        rows = at.operator(covariance(at.adjoint(jax.tree.map(lambda u: 1 / u, unit))))
        weight = lambda r, v, u, s: r / (v + u * jnp.maximum(s, 0))
        return jax.tree.map(weight, at.residual, at.variance, unit, rows)

    return _guided(denoiser, observation, schedule, weigh)


def mmps(
    denoiser: Denoiser,
    observation: ObservationLike,
    schedule: Schedule,
    iterations: int = 2,
    solver: str = "cg",
    whiten: bool = True,
) -> Denoiser:
    """Moment matching posterior sampling (arXiv 2405.13712): exact for a Gaussian prior and a linear A.

    Args:
        denoiser: The prior's.
        observation: The task.
        schedule: Noise schedule.
        iterations: Iterations of the solver; each is a product with J^T, a backward pass.
        solver: Solver of the linear system, "cg" or "gmres".
        whiten: Solve in units of the noise's standard deviation, as if y had unit noise. Observations of
            different kinds (K, Pa, kg) need it to enter the solver's inner products as equals.

    Raises:
        ValueError: An unknown solver, or fewer than one iteration.
    """
    solve = _solver("MMPS", solver, iterations)
    return _guided(denoiser, observation, schedule, lambda at, covariance: _solve(at, covariance, solve, whiten))


def diffpir(
    denoiser: Denoiser,
    observation: ObservationLike,
    schedule: Schedule,
    strength: float = 1.0,
    iterations: int = 3,
    solver: str = "cg",
) -> Denoiser:
    """DiffPIR (arXiv 2305.08995, eq. 12): the x nearest to x0_hat that agrees with y, one Gauss-Newton step,

        x0_hat + (A'^T Sigma_y^-1 A' + strength (alpha / sigma)^2)^-1 A'^T Sigma_y^-1 (y - A(x0_hat))

    Args:
        denoiser: The prior's.
        observation: The task.
        schedule: Noise schedule.
        strength: lambda, the weight of x0_hat.
        iterations: Iterations of the solver; a product is with the operator alone, not with the network.
        solver: Solver of the linear system, "cg" or "gmres".

    Raises:
        ValueError: An unknown solver, fewer than one iteration, or a strength that is not positive.
    """
    solve = _solver("DiffPIR", solver, iterations)
    if not strength > 0:
        raise ValueError(f"DiffPIR's strength must be positive, got {strength}.")

    def guided(x_t, t):
        at = _linearise(observation, schedule, denoiser(x_t, t), x_t, t)
        precision = strength * (at.alpha / at.sigma) ** 2
        back = lambda w: jnp.where(at.known, 0, at.adjoint(jax.tree.map(jnp.divide, w, at.variance)))
        return at.x0_hat + solve(lambda v: back(at.operator(v)) + precision * v, back(at.residual))

    return guided


def _solver(method: str, solver: str, iterations: int) -> Callable:
    if solver not in SOLVERS:
        raise ValueError(f"Unknown solver {solver!r}: expected one of {', '.join(SOLVERS)}.")
    if iterations < 1:
        raise ValueError(f"{method} needs at least one iteration of its solver, got {iterations}.")
    return partial(SOLVERS[solver], iterations=iterations)


def _solve(at: _Linearised, covariance: Callable[[Array], Array], solve: Callable, whiten: bool) -> PyTree:
    """(Sigma_y + A' covariance A'^T)^-1 (y - A(x0_hat)), in units of the noise's standard deviation if `whiten`."""
    unit = jax.tree.map(jnp.sqrt if whiten else jnp.ones_like, at.variance)
    variance = jax.tree.map(lambda v, u: (v / u) / u, at.variance, unit)

    def matvec(v):
        signal = at.operator(covariance(at.adjoint(jax.tree.map(jnp.divide, v, unit))))
        return jax.tree.map(lambda n, v, s, u: n * v + s / u, variance, v, signal, unit)

    weights = solve(matvec, jax.tree.map(jnp.divide, at.residual, unit))
    return jax.tree.map(jnp.divide, weights, unit)


METHODS = {"dps": dps, "sda": sda, "pgdm": pgdm, "tmpd": tmpd, "mmps": mmps, "diffpir": diffpir}


def guide(
    denoiser: Denoiser, observation: ObservationLike, schedule: Schedule, method: str = "mmps", **options
) -> Denoiser:
    """The denoiser of the posterior given `observation`.

    Args:
        denoiser: The prior's.
        observation: The task.
        schedule: Noise schedule.
        method: A name in `METHODS`.
        **options: The method's own arguments, as `iterations` of `mmps`.

    Raises:
        ValueError: An unknown method, or an option that it does not have.
    """
    check_options(METHODS, method, options)
    return METHODS[method](denoiser, observation, schedule, **options)


def check_options(methods: Mapping[str, Callable], method: str, options: Mapping[str, object]) -> None:
    """Checks names, before anything is traced.

    Args:
        methods: functions by name; their arguments with a default are the options.
        method: one of them.
        options: by name.

    Raises:
        ValueError: An unknown method, or an option that it does not have.
    """
    if method not in methods:
        raise ValueError(f"Unknown guidance method {method!r}: expected one of {', '.join(methods)}.")
    known = defaults(methods[method])
    if unknown := [name for name in options if name not in known]:
        raise ValueError(f"Guidance by {method} has no option {unknown}; it has {list(known)}.")


def defaults(function: Callable) -> dict[str, Any]:
    """The arguments of a function that have a default, which are its options, and their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}
