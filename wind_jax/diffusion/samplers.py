"""From noise to data: one scan over the rows of a time grid, with the method as a small step function.

A step is `step(denoiser, x_t, t, s, schedule, keys) -> x_s`, from times t to times s <= t, both `(b,)` or
`(b, frame)`. The deterministic ones solve the probability-flow ODE (arXiv 2011.13456, eq. 13), which is

    d(x / alpha) = z(x_t, t) d(sigma / alpha),    z = (x_t - alpha_t x0_hat) / sigma_t
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from wind_jax.diffusion.denoiser import Denoiser, broadcast_time, expand_like
from wind_jax.diffusion.schedule import Schedule

Step = Callable[[Denoiser, Array, Array, Array, Schedule, Array | None], Array]


class Multistep(NamedTuple):
    """A step that uses the denoiser's result of the step before.

    Attributes:
        step: `(denoiser, x_t, before, t, s, schedule, x0_before) -> (x_s, x0_hat)`, with `before` the time of the step
            before and `x0_before` its x0_hat; in the first step `before` is t.
    """

    step: Callable[[Denoiser, Array, Array, Array, Array, Schedule, Array], tuple[Array, Array]]


def levels(schedule: Schedule, t: Array, x: Array) -> tuple[Array, Array]:
    """alpha and sigma at times t, to multiply x from the left."""
    t = expand_like(t, x)
    return schedule.alpha(t), schedule.sigma(t)


def normal(keys: Array, shape: Sequence[int], dtype) -> Array:
    """Standard normal noise `(b, *shape)`, a key for each member; drawn flat, which compiles much faster on CPU."""
    flat = jax.vmap(lambda key: jax.random.normal(key, (math.prod(shape),), dtype))(keys)
    return flat.reshape(keys.shape[0], *shape)


def ddim(eta: float = 0.0) -> Step:
    """DDIM (arXiv 2010.02502, eq. 12 and 16): eta = 0 is deterministic, eta = 1 ancestral sampling (DDPM).

    Raises:
        ValueError: `eta` outside [0, 1]; in the step, eta > 0 without a key.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"DDIM's eta lies in [0, 1], got {eta}.")

    def step(denoiser, x_t, t, s, schedule, keys):
        alpha_t, sigma_t = levels(schedule, t, x_t)
        alpha_s, sigma_s = levels(schedule, s, x_t)
        x0_hat = denoiser(x_t, t)
        z_hat = (x_t - alpha_t * x0_hat) / sigma_t
        if eta == 0:
            return alpha_s * x0_hat + sigma_s * z_hat
        if keys is None:
            raise ValueError(f"DDIM with eta={eta} draws noise: give sample() a key for each member.")
        fresh = eta**2 * (1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2)
        noise = normal(keys, x_t.shape[1:], x_t.dtype)
        return alpha_s * x0_hat + sigma_s * (jnp.sqrt(1 - fresh) * z_hat + jnp.sqrt(fresh) * noise)

    return step


def euler() -> Step:
    """Euler's method for the probability-flow ODE; order 1. The same map as DDIM with eta = 0."""

    def step(denoiser, x_t, t, s, schedule, keys):
        alpha_t, sigma_t = levels(schedule, t, x_t)
        alpha_s, sigma_s = levels(schedule, s, x_t)
        slope = (x_t - alpha_t * denoiser(x_t, t)) / sigma_t
        return alpha_s * (x_t / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) * slope)

    return step


def heun() -> Step:
    """Heun's method for the probability-flow ODE (arXiv 2206.00364): order 2, two denoiser calls a step."""

    def step(denoiser, x_t, t, s, schedule, keys):
        alpha_t, sigma_t = levels(schedule, t, x_t)
        alpha_s, sigma_s = levels(schedule, s, x_t)
        length = sigma_s / alpha_s - sigma_t / alpha_t
        slope = (x_t - alpha_t * denoiser(x_t, t)) / sigma_t
        x_s = alpha_s * (x_t / alpha_t + length * slope)
        end_slope = (x_s - alpha_s * denoiser(x_s, _arrival(t, s))) / sigma_s
        return alpha_s * (x_t / alpha_t + length * (slope + end_slope) / 2)

    return step


def dpmpp_2m() -> Multistep:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2): order 2 in the log-SNR with one denoiser call a step.

    x0_hat is continued linearly from the last two steps. The first step and the one that arrives at time 0 are DDIM's.
    """

    def step(denoiser, x_t, before, t, s, schedule, x0_before):
        log_snr = lambda t: jnp.log(jnp.divide(*levels(schedule, t, x_t)))
        alpha_s, sigma_s = levels(schedule, s, x_t)
        sigma_t = levels(schedule, t, x_t)[1]
        x0_hat = denoiser(x_t, t)
        length, length_before = log_snr(s) - log_snr(t), log_snr(t) - log_snr(before)
        second_order = (length_before > 0) & (expand_like(s, x_t) > 0)
        ratio = jnp.where(second_order, length / (2 * jnp.where(second_order, length_before, 1)), 0)
        direction = x0_hat + ratio * (x0_hat - x0_before)
        return sigma_s / sigma_t * x_t - alpha_s * jnp.expm1(-length) * direction, x0_hat

    return Multistep(step)


def ddpm() -> Step:
    """Ancestral sampling (arXiv 2006.11239, eq. 7), which is DDIM with eta = 1."""
    return ddim(1.0)


def predictor_corrector(predictor: Step | Multistep, corrections: int = 1, snr: float = 0.1) -> Step:
    """A step of `predictor`, then Langevin steps at the time reached (arXiv 2011.13456, algorithm 1).

        x <- x + d score(x) + sqrt(2 d) z,    d = snr sigma_s^2

    Each correction is a call of the denoiser; it mends what guidance or long steps got wrong about the spread.

    Args:
        predictor: Any other step.
        corrections: Langevin steps after each of the predictor's.
        snr: Length of a correction relative to the noise's variance, in (0, 1).

    Raises:
        ValueError: A predictor of several steps, fewer than one correction, or snr outside (0, 1); in the step, no
            keys.
    """
    if isinstance(predictor, Multistep):
        raise ValueError("Langevin corrections need a predictor of one step, such as ddim(); got a multistep method.")
    if corrections < 1 or not 0 < snr < 1:
        raise ValueError(f"Expected corrections >= 1 and snr in (0, 1), got {corrections} and {snr}.")

    def step(denoiser, x_t, t, s, schedule, keys):
        if keys is None:
            raise ValueError("Langevin corrections draw noise: give sample() a key for each member.")
        fold = lambda i: jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
        x_s = predictor(denoiser, x_t, t, s, schedule, fold(0))
        alpha_s, sigma_s = levels(schedule, s, x_t)
        arrival = _arrival(t, s)

        def correct(i, x):
            score = (alpha_s * denoiser(x, arrival) - x) / sigma_s**2
            length = snr * sigma_s**2
            return x + length * score + jnp.sqrt(2 * length) * normal(fold(i + 1), x.shape[1:], x.dtype)

        return jax.lax.fori_loop(0, corrections, correct, x_s)

    return step


def _arrival(t: Array, s: Array) -> Array:
    """s, but not 0 for frames that arrive there: time 0 is for known frames, these are still denoised and guided."""
    return jnp.where(t > 0, jnp.maximum(s, jnp.finfo(s.dtype).tiny), s)


def member_keys(key: Key[Array, ""], members: int | Sequence[int] | Int[Array, "b"]) -> Key[Array, "b"]:
    """One key a member, by its index alone, so that members do not depend on how many run beside them.

    Args:
        key: The ensemble's key.
        members: Number of members, or the indices of those to run here.
    """
    members = jnp.arange(members) if isinstance(members, int) else jnp.asarray(members)
    return jax.vmap(lambda member: jax.random.fold_in(key, member))(members)


def initial(
    keys: Key[Array, "b"],
    shape: Sequence[int],
    grid0: Float[Array | np.ndarray, "..."],
    schedule: Schedule,
    known: Float[Array | np.ndarray, "..."] | None = None,
    mean: Float[Array | np.ndarray, "..."] | float = 0.0,
) -> Float[Array, "b ..."]:
    """Draws the start of a chain from N(alpha mean, alpha^2 + sigma^2): model units have variance 1 about the mean.

    Args:
        keys: From `member_keys`.
        shape: One member's, `(t, h, w, c)` or `(d,)`.
        grid0: The time grid's first row, a scalar or `(t,)`.
        schedule: Noise schedule.
        known: Broadcasts to `shape` or `(b, *shape)`; its frames where `grid0` is 0 are taken over exactly.
        mean: Of the data, broadcasts to `shape`: a climatology, or 0.

    Returns:
        `(b, *shape)` float32, or float64 where that is enabled.

    Raises:
        ValueError: Known frames in the grid without `known`.
    """
    dtype = jnp.asarray(0.0).dtype
    if known is None and not isinstance(grid0, jax.core.Tracer) and (np.asarray(grid0) == 0).any():
        raise ValueError(f"The grid's first row {grid0} has frames at 0, so their values are needed: give known.")
    grid0 = jnp.asarray(grid0, dtype)
    z = normal(jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys), shape, dtype)
    t = jnp.broadcast_to(grid0, (keys.shape[0], *grid0.shape))
    alpha, sigma = levels(schedule, t, z)
    x_init = alpha * jnp.broadcast_to(jnp.asarray(mean, dtype), z.shape) + jnp.sqrt(alpha**2 + sigma**2) * z
    if known is None:
        return x_init
    known = jnp.asarray(known, dtype)
    known = jnp.broadcast_to(known.reshape((1,) * (z.ndim - known.ndim) + known.shape), z.shape)
    return jnp.where(expand_like(t, z) == 0, known, x_init)


def sample(
    denoiser: Denoiser,
    x_init: Float[Array, "b ..."],
    grid: Float[Array | np.ndarray, "..."],
    schedule: Schedule,
    step: Step | Multistep | None = None,
    key: Key[Array, "b"] | None = None,
) -> Float[Array, "b ..."]:
    """Runs the chain down the grid.

    Args:
        denoiser: Plain or guided.
        x_init: Members at the grid's first row, from `initial`.
        grid: `(steps + 1,)` or `(steps + 1, frame)`, each column falling or level. A frame whose time does
            not change in a step is left as it is, bit for bit.
        schedule: Noise schedule.
        step: `ddim(eta)`, `euler()`, `heun()` or `dpmpp_2m()`; None is `ddim()`.
        key: One a member, from `member_keys`; only steps that draw noise need it.

    Raises:
        ValueError: A grid of the wrong shape, or with times that rise or leave [0, 1].
    """
    step = step or ddim()
    if not isinstance(grid, jax.core.Tracer):
        _check_grid(np.asarray(grid), x_init.shape)
    grid = jnp.asarray(grid, x_init.dtype)

    def advance(carry, row):
        (x_t, x0_before), (index, *times) = carry, row
        before, t, s = (broadcast_time(jnp.broadcast_to(v, (x_t.shape[0], *v.shape)), x_t) for v in times)
        if isinstance(step, Multistep):
            x_s, x0_before = step.step(denoiser, x_t, before, t, s, schedule, x0_before)
        else:
            # Index 0 of a member's key is for its initial noise.
            keys = None if key is None else jax.vmap(lambda k: jax.random.fold_in(k, index + 1))(key)
            x_s = step(denoiser, x_t, t, s, schedule, keys)
        return (jnp.where(expand_like(t == s, x_t) > 0, x_t, x_s), x0_before), None

    rows = jnp.arange(grid.shape[0] - 1), jnp.concatenate([grid[:1], grid[:-2]]), grid[:-1], grid[1:]
    x0_before = x_init if isinstance(step, Multistep) else None  # the first step does not use it
    return jax.lax.scan(advance, (x_init, x0_before), rows)[0][0]


def _check_grid(grid: np.ndarray, shape: tuple[int, ...]) -> None:
    if grid.ndim not in (1, 2) or len(grid) < 2 or (grid.ndim == 2 and grid.shape[1:] != shape[1:2]):
        raise ValueError(f"A time grid for x of shape {shape} is (steps + 1,) or (steps + 1, frame), got {grid.shape}.")
    if not ((grid >= 0) & (grid <= 1)).all() or (np.diff(grid, axis=0) > 0).any():
        raise ValueError(f"A time grid falls within [0, 1], got rows from {grid[0]} to {grid[-1]}.")
