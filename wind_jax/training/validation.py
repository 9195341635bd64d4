"""What training is watched by: the loss at fixed noise levels and the CRPS of short held-out forecasts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from wind_jax.diffusion.denoiser import expand_like
from wind_jax.diffusion.samplers import ddim, initial, member_keys, sample
from wind_jax.diffusion.schedule import time_grid
from wind_jax.evaluation.metrics import cell_mean, pointwise_crps
from wind_jax.prior import Prior
from wind_jax.sphere import area_weights

NOISE_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.98)


def make_validation(
    prior: Prior, weights: jax.Array, *, members: int, context: int, sampler_steps: int
) -> Callable[[Any, dict[str, jax.Array], jax.Array], dict[str, jax.Array]]:
    """Compiled validation (params, batch, key) -> metrics of one batch of held-out windows.

    Metrics: `loss_t<level>`, the training loss with all frames at that noise level, and `forecast_crps`, the fair CRPS
    of an ensemble forecast from `context` known frames as a fraction of the mean absolute error of persistence, each
    channel in units of its standard deviation, averaged over channels and leads.

    Args:
        prior: gives architecture, statistics and diffusion; its parameters are not used.
        weights: of the loss, (h, 1, c), mean 1.
        members: ensemble size of the forecasts, at least 2.
        context: known frames.
        sampler_steps: of deterministic DDIM.
    """
    schedule = prior.schedule
    known = range(context)
    grid = time_grid(sampler_steps, prior.frames, known=known)

    def fixed_noise_losses(params, batch, key) -> dict[str, jax.Array]:
        x = batch["x"]
        denoise = dataclasses.replace(prior, params=params).denoiser(batch["inputs"])
        z = jax.random.normal(key, x.shape, x.dtype)

        def loss(t):
            t = jnp.full(x.shape[:2], t, x.dtype)
            x_t = expand_like(schedule.alpha(t), x) * x + expand_like(schedule.sigma(t), x) * z
            return jnp.mean(weights[None, None] * (denoise(x_t, t) - x) ** 2)

        losses = jax.lax.map(loss, jnp.asarray(NOISE_LEVELS, x.dtype))
        return {f"loss_t{level:g}": value for level, value in zip(NOISE_LEVELS, losses, strict=True)}

    def forecast_crps(params, batch, key) -> jax.Array:
        area = area_weights(prior.grid)
        mean = lambda error: cell_mean(jnp.moveaxis(error, -1, 1), area)  # (t, h, w, c) -> (t, c)

        def one(x, inputs, key):
            denoise = dataclasses.replace(prior, params=params).denoiser(inputs)
            x_1 = initial(member_keys(key, members), x.shape, grid[0], schedule, known=x, mean=prior.mean(inputs))
            ensemble = sample(denoise, x_1, grid, schedule, ddim())
            error = pointwise_crps(ensemble[:, context:], x[context:])
            persistence = jnp.abs(x[context:] - x[context - 1 : context])
            return mean(error), mean(persistence)

        keys = jax.random.split(key, batch["x"].shape[0])
        error, persistence = jax.vmap(one)(batch["x"], batch["inputs"], keys)  # windows are spread over the mesh
        return jnp.mean(jnp.mean(error, axis=0) / jnp.mean(persistence, axis=0))

    @jax.jit
    def validate(params, batch, key):
        metrics = fixed_noise_losses(params, batch, jax.random.fold_in(key, 0))
        return metrics | {"forecast_crps": forecast_crps(params, batch, jax.random.fold_in(key, 1))}

    return validate
