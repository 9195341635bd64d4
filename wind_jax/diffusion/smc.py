"""Twisted diffusion sampler: sequential Monte Carlo over the members, exact as they become many (arXiv 2306.17775)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wind_jax.diffusion.denoiser import Denoiser, broadcast_time, expand_like
from wind_jax.diffusion.likelihood import ObservationLike, misfit, noise_variance, signal_power
from wind_jax.diffusion.samplers import levels, normal
from wind_jax.diffusion.schedule import Schedule


class Weights(NamedTuple):
    """What became of the members.

    Attributes:
        effective_size: (steps + 1,) effective sample size 1 / sum w^2 before each resampling, the last one included.
        ancestors: (b,) which of the initial members each final one descends from.
    """

    effective_size: Float[Array, "steps"]
    ancestors: Float[Array, "b"]


def twisted(
    denoiser: Denoiser,
    observation: ObservationLike,
    x_init: Float[Array, "b ..."],
    grid: Float[Array, "..."],
    schedule: Schedule,
    keys: Array | None,
    threshold: float = 0.5,
    spread: float = 1.0,
) -> tuple[Float[Array, "b ..."], Weights]:
    """Draws equally weighted members of p(x | y); they depend on one another.

    Each step proposes by ancestral sampling guided by the gradient of the twist

        log N(y; A(x0_hat), Sigma_y + spread sigma_t^2 / (alpha_t^2 + sigma_t^2)),

    weighs each member by what the proposal left out, and resamples where the effective sample size falls below
    `threshold` of the members. The last twist is the likelihood itself, so any spread is right in the limit of many
    members; a good one needs fewer.

    Args:
        denoiser: The prior's.
        observation: The task.
        x_init: Members at the grid's first row.
        grid: (steps + 1,) or (steps + 1, frame).
        schedule: Noise schedule.
        keys: One a member.
        threshold: Share of the members, in [0, 1]: below it they are resampled; 1 resamples at every step.
        spread: Variance of x given pure noise, of the order of 1; y sees it as `signal_power` says.

    Returns:
        Members (b, ...), and what became of them.

    Raises:
        ValueError: No keys, or a threshold outside [0, 1].
    """
    if keys is None:
        raise ValueError("TDS draws noise: give it a key for each member.")
    if not 0 <= threshold <= 1:
        raise ValueError(f"TDS resamples below a share of the members in [0, 1], got threshold={threshold}.")
    members = x_init.shape[0]
    grid = jnp.asarray(grid, x_init.dtype)
    power = signal_power(observation.operator, x_init[0])
    ancestors_type = jnp.arange(members).dtype
    common = jax.random.fold_in(keys[0], 1)  # resampling is one draw for all members

    def log_twist(x0_hat, extra):
        residual = jax.vmap(lambda x: misfit(observation, observation.operator(x)))(x0_hat)

        def leaf(density, r, v, p):
            v = v + expand_like(extra * p, v)
            return (density(r, v) - 0.5 * jnp.log(v)).reshape(members, -1).sum(1)

        variance = jax.vmap(lambda r: jax.lax.stop_gradient(noise_variance(observation, r)))(residual)
        densities = jax.tree.broadcast(observation.log_likelihood, residual)
        return jax.tree.reduce(jnp.add, jax.tree.map(leaf, densities, residual, variance, power))

    def resample(key, log_weights, trees, always=False):
        weights = jax.nn.softmax(log_weights)
        size = 1 / (weights**2).sum()
        # Systematic resampling: one uniform number, members copied in proportion to their weights.
        places = (jnp.arange(members, dtype=x_init.dtype) + jax.random.uniform(key, (), x_init.dtype)) / members
        chosen = jnp.searchsorted(jnp.cumsum(weights), places).clip(0, members - 1).astype(ancestors_type)
        needed = jnp.asarray(True) if always else size < threshold * members
        chosen = jnp.where(needed, chosen, jnp.arange(members))
        return size, jnp.where(needed, 0.0, log_weights), jax.tree.map(lambda a: a[chosen], trees)

    def advance(carry, row):
        index, t, s = row
        x_t, log_weights, ancestors = carry
        t, s = (broadcast_time(jnp.broadcast_to(v, (members, *v.shape)), x_t) for v in (t, s))
        alpha_t, sigma_t = levels(schedule, t, x_t)
        alpha_s, sigma_s = levels(schedule, s, x_t)
        noisy = (t > 0).astype(x_t.dtype)
        level = schedule.sigma(t) ** 2 / (schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2)
        extra = spread * (level * noisy).reshape(members, -1).sum(1) / jnp.maximum(noisy.reshape(members, -1).sum(1), 1)

        def value(x_t):
            x0_hat = jnp.where(expand_like(t, x_t) == 0, x_t, denoiser(x_t, t))
            log_p = log_twist(x0_hat, extra)
            return log_p.sum(), (x0_hat, log_p)

        score, (x0_hat, log_p) = jax.grad(value, has_aux=True)(x_t)
        parts = (x_t, x0_hat, log_p, score, ancestors)
        key = jax.random.fold_in(common, index)
        size, log_weights, (x_t, x0_hat, log_p, score, ancestors) = resample(key, log_weights + log_p, parts)

        ratio = alpha_t * sigma_s / (alpha_s * sigma_t)
        width = sigma_s * jnp.sqrt(jnp.maximum(1 - ratio**2, 1e-12))

        def proposed(x0):
            return alpha_s * x0 + sigma_s * ratio * (x_t - alpha_t * x0) / sigma_t

        z = normal(jax.vmap(lambda k: jax.random.fold_in(k, index + 1))(keys), x_t.shape[1:], x_t.dtype)
        free, moved = proposed(x0_hat), proposed(x0_hat + sigma_t**2 / alpha_t * score)
        held = expand_like(t == s, x_t) > 0
        x_s = jnp.where(held, x_t, moved + width * z)
        change = jnp.where(held, 0, z**2 - ((moved + width * z - free) / width) ** 2)
        log_weights = log_weights + 0.5 * change.reshape(members, -1).sum(1) - log_p
        return (x_s, log_weights, ancestors), size

    steps = grid.shape[0] - 1
    start = (x_init, jnp.zeros(members, x_init.dtype), jnp.arange(members))
    (x, log_weights, ancestors), sizes = jax.lax.scan(advance, start, (jnp.arange(steps), grid[:-1], grid[1:]))
    log_weights = log_weights + log_twist(x, jnp.zeros(members, x.dtype))
    size, _, (x, ancestors) = resample(jax.random.fold_in(common, steps), log_weights, (x, ancestors), always=True)
    return x, Weights(jnp.append(sizes, size), ancestors)
