"""Posterior sampling: every method by its name, those that guide the denoiser and those that change the step.

`guide`d denoisers work with every sampler. RePaint and the published form of PiGDM are steps of the sampler, and TDS
(`diffusion/smc.py`) is a sampler of its own, whose members compete.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wind_jax.diffusion.denoiser import Denoiser, expand_like
from wind_jax.diffusion.guidance import METHODS, check_options, guide
from wind_jax.diffusion.likelihood import ObservationLike, gaussian, misfit
from wind_jax.diffusion.samplers import Multistep, Step, ddim, levels, normal, sample
from wind_jax.diffusion.schedule import Schedule
from wind_jax.diffusion.smc import twisted
from wind_jax.diffusion.solve import cg


def sample_posterior(
    denoiser: Denoiser,
    observation: ObservationLike,
    x_init: Float[Array, "b ..."],
    grid: Float[Array, "..."],
    schedule: Schedule,
    step: Step | Multistep | None = None,
    keys: Array | None = None,
    method: str = "mmps",
    options: dict | None = None,
) -> Float[Array, "b ..."]:
    """Members of p(x | y).

    Args:
        denoiser: The prior's.
        observation: The task.
        x_init, grid, schedule, step, keys: As in `samplers.sample`; "pgdm_step" and "tds" have steps of their own.
        method: A method of `guidance.guide`, or "repaint", "pgdm_step", "tds".
        options: The method's own arguments.

    Raises:
        ValueError: An unknown method, an option that it does not have, or an observation that it cannot use.
    """
    options = options or {}
    check_method(method, options)
    check_noise(method, observation)
    if method in METHODS:
        return sample(guide(denoiser, observation, schedule, method, **options), x_init, grid, schedule, step, keys)
    if method == "tds":
        return twisted(denoiser, observation, x_init, grid, schedule, keys, **options)[0]
    own = repaint(observation, step or ddim(), **options) if method == "repaint" else pgdm_step(observation, **options)
    return sample(denoiser, x_init, grid, schedule, own, keys)


def check_method(method: str, options: dict) -> None:
    """Checks names, before anything is traced.

    Raises:
        ValueError: An unknown method, or an option that it does not have.
    """
    check_options(ALL_METHODS, method, options)


def check_noise(method: str, observation: ObservationLike) -> None:
    """Checks that a method can use the noise of an observation: those that put y in its place weigh no residuals.

    Raises:
        ValueError: RePaint or PiGDM's own step, and a likelihood that is not Gaussian or a variance that adapts.
    """
    likelihoods, variances = jax.tree.leaves(observation.log_likelihood), jax.tree.leaves(observation.variance)
    weighs = any(f is not gaussian for f in likelihoods) or any(isinstance(v, str) for v in variances)
    if weighs and method in ("repaint", "pgdm_step"):
        raise ValueError(
            f"{method} puts y in its place, whatever the residual: it has no use for Student's t or another "
            'likelihood, nor for variance="adaptive". Choose another method, such as "mmps".'
        )


def check_selection(observation: ObservationLike, x: Float[Array, "..."]) -> None:
    """Checks that an operator selects values of x, each at most once, as RePaint needs it.

    Args:
        observation: of one member.
        x: any member.

    Raises:
        ValueError: the operator does something else.
    """
    try:
        scatter = jax.linear_transpose(observation.operator, x)
        z = jax.tree.map(lambda y: jax.random.normal(jax.random.key(0), y.shape, y.dtype), observation.operator(x))
        back = observation.operator(scatter(z)[0])
        selects = all(
            bool(jnp.allclose(a, b, atol=1e-5)) for a, b in zip(*map(jax.tree.leaves, (back, z)), strict=True)
        )
    except NotImplementedError:
        selects = False
    if not selects:
        raise ValueError(
            "RePaint needs an operator that selects values of x in model units, such as that of sparse_obs; this one "
            'does something else: choose another method, such as "mmps".'
        )


def repaint(observation: ObservationLike, step: Step | Multistep, resamplings: int = 3) -> Step:
    """RePaint (arXiv 2201.09865, algorithm 1): observed values are put into x_s, as noisy as it is, again and again.

    The operator must select values of x (a mask, or single cells), none twice; their noise is drawn anew each time.

    Args:
        observation: The task, with Gaussian noise of a known variance.
        step: The sampler's, from t to s.
        resamplings: Passes over each step; all but the last go back to t by fresh noise.

    Raises:
        ValueError: A step that is a multistep method, or fewer than one resampling; in the step, no keys.
    """
    if resamplings < 1:
        raise ValueError(f"RePaint needs at least one pass over a step, got {resamplings}.")
    if isinstance(step, Multistep):
        raise ValueError(
            "RePaint goes back and forth in time: it needs a sampler of one step such as ddim, not a multistep method."
        )

    def repainted(denoiser, x_t, t, s, schedule, keys):
        if keys is None:
            raise ValueError("RePaint draws noise: give sample() a key for each member.")
        alpha_t, sigma_t = levels(schedule, t, x_t)
        alpha_s, sigma_s = levels(schedule, s, x_t)
        scatter = jax.linear_transpose(observation.operator, x_t[0])
        y = jax.tree.map(lambda y: jnp.asarray(y, x_t.dtype), observation.y)
        spread_out = lambda v, y: jnp.broadcast_to(jnp.asarray(v, y.dtype), y.shape)
        noise = jax.tree.map(spread_out, jax.tree.broadcast(observation.variance, y), y)
        values, variance = scatter(y)[0], scatter(noise)[0]
        # Frames that wait, and known ones, are not painted.
        seen = (scatter(jax.tree.map(jnp.ones_like, y))[0] > 0)[None] & (expand_like(t > s, x_t) > 0)

        def once(i, x_t, last):
            fold = lambda j: jax.vmap(lambda key: jax.random.fold_in(key, 3 * i + j))(keys)
            x_s = step(denoiser, x_t, t, s, schedule, fold(0))
            spread = jnp.sqrt(sigma_s**2 + alpha_s**2 * variance[None])
            painted = alpha_s * values[None] + spread * normal(fold(1), x_t.shape[1:], x_t.dtype)
            x_s = jnp.where(seen, painted, x_s)
            if last:
                return x_s
            growth = (sigma_t / alpha_t) ** 2 - (sigma_s / alpha_s) ** 2
            fresh = normal(fold(2), x_t.shape[1:], x_t.dtype)
            return alpha_t / alpha_s * x_s + alpha_t * jnp.sqrt(jnp.maximum(growth, 0)) * fresh

        x_t = jax.lax.fori_loop(0, resamplings - 1, lambda i, x: once(i, x, last=False), x_t)
        return once(resamplings - 1, x_t, last=True)

    return repainted


def pgdm_step(observation: ObservationLike, eta: float = 0.0, iterations: int = 8) -> Step:
    """PiGDM's published step (Song et al., ICLR 2023, algorithm 1): DDIM, then alpha_s alpha_t J^T A^+ (y - A x0_hat).

    For an exact, linear y; its variance plays no part.

    Args:
        observation: The task.
        eta: Fresh noise, from 0 (none) to 1, as of `ddim`.
        iterations: Iterations of conjugate gradients for (A A^T)^-1 in the pseudo-inverse A^+ = A^T (A A^T)^-1.
    """
    plain = ddim(eta)

    def step(denoiser, x_t, t, s, schedule, keys):
        alpha_t, _ = levels(schedule, t, x_t)
        alpha_s, _ = levels(schedule, s, x_t)
        x0_hat, pullback = jax.vjp(lambda x_t: denoiser(x_t, t), x_t)
        y_hat, push = jax.linearize(jax.vmap(observation.operator), x0_hat)
        pull = lambda w: jax.linear_transpose(push, x0_hat)(w)[0]
        residual = jax.vmap(lambda y_hat: misfit(observation, y_hat))(y_hat)
        toward = pull(cg(lambda w: push(pull(w)), residual, iterations))
        x_s = plain(lambda x_t, t: x0_hat, x_t, t, s, schedule, keys)
        return x_s + alpha_s * alpha_t * pullback(toward)[0]

    return step


ALL_METHODS = METHODS | {"repaint": repaint, "pgdm_step": pgdm_step, "tds": twisted}
