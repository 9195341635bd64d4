"""What training is watched by: noise left at fixed levels, CRPS of short forecasts, spectra of free samples."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from wind_jax.diffusion.samplers import ddim, initial, member_keys, sample
from wind_jax.diffusion.schedule import time_grid
from wind_jax.evaluation.metrics import cell_mean, pointwise_crps
from wind_jax.prior import Prior
from wind_jax.sphere import area_weights, zonal_spectrum

NOISE_LEVELS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.98)


def noise_left(prior: Prior, x: jax.Array, inputs: jax.Array, key: jax.Array) -> jax.Array:
    """Share of the noise that the denoiser leaves: MSE of x0_hat over (sigma / alpha)^2, that of x_t / alpha.

    1 is what returning the input leaves. All frames have the same level; means are over windows, frames and area.

    Args:
        prior: whose denoiser is judged.
        x: (b, t, h, w, c) windows in model units.
        inputs: (b, t, h, w, f) as of `Prior.inputs`.
        key: of the noise.

    Returns:
        (levels, c), of `NOISE_LEVELS`.
    """
    denoise, schedule, area = prior.denoiser(inputs), prior.schedule, area_weights(prior.grid)
    z = jax.random.normal(key, x.shape, x.dtype)

    def one(t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        error = denoise(alpha * x + sigma * z, jnp.full(x.shape[:2], t, x.dtype)) - x
        return cell_mean(jnp.moveaxis(error**2, -1, 0), area).mean((1, 2)) * (alpha / sigma) ** 2

    return jax.lax.map(one, jnp.asarray(NOISE_LEVELS, x.dtype))


def fine_scales(width: int) -> slice:
    """Zonal wavenumbers of the smaller two thirds of the scales that a grid of `width` columns resolves.

    >>> fine_scales(64)
    slice(11, None, None)
    """
    return slice(width // 6 + 1, None)


def make_validation(
    prior: Prior, *, members: int, context: int, sampler_steps: int
) -> Callable[[Any, dict[str, jax.Array], jax.Array], dict[str, jax.Array]]:
    """Compiled validation (params, batch, key) -> metrics of one batch of held-out windows.

    Metrics, of each channel (`NAME/KEY`) and their mean (`NAME`):
        noise_left_t<level>: see `noise_left`.
        variance: of free samples, drawn without any known frame, over that of the windows.
        fine_variance: the same at the zonal wavenumbers of `fine_scales`.
    And `forecast_crps`, the fair CRPS of an ensemble forecast from `context` known frames as a fraction of the mean
    absolute error of persistence, each channel in units of its standard deviation, averaged over channels and leads.

    Args:
        prior: gives architecture, statistics and diffusion; its parameters are not used.
        members: ensemble size of the forecasts, at least 2; as many free samples are drawn for each window.
        context: known frames.
        sampler_steps: of deterministic DDIM.
    """
    schedule, area = prior.schedule, area_weights(prior.grid)
    keys = [channel.key for channel in prior.statistics.channels]
    mean = lambda error: cell_mean(jnp.moveaxis(error, -1, 1), area)  # (t, h, w, c) -> (t, c)

    def by_channel(name: str, values: jax.Array) -> dict[str, jax.Array]:
        return {name: values.mean()} | {f"{name}/{key}": value for key, value in zip(keys, values, strict=True)}

    def chains(prior: Prior, batch, key, known: int) -> jax.Array:
        """(b, members, t, h, w, c) samples, of which the first frames are those of the batch."""
        grid = time_grid(sampler_steps, prior.frames, known=range(known))

        def one(x, inputs, key):
            given = x if known else None
            x_1 = initial(member_keys(key, members), x.shape, grid[0], schedule, known=given, mean=prior.mean(inputs))
            return sample(prior.denoiser(inputs), x_1, grid, schedule, ddim())

        return jax.vmap(one)(batch["x"], batch["inputs"], jax.random.split(key, batch["x"].shape[0]))

    def power(anomaly: jax.Array) -> jax.Array:
        """(w // 2 + 1, c): zonal spectra, mean over rows by area and over all leading axes."""
        spectrum = zonal_spectrum(anomaly, axis=-2)
        return jnp.einsum("...hmc,h->mc", spectrum, jnp.asarray(area[:, 0])) / math.prod(spectrum.shape[:-2])

    @jax.jit
    def validate(params, batch, key):
        trained, x = dataclasses.replace(prior, params=params), batch["x"]
        noise_key, forecast_key, free_key = jax.random.split(key, 3)
        left = noise_left(trained, x, batch["inputs"], noise_key)
        metrics = {}
        for level, values in zip(NOISE_LEVELS, left, strict=True):
            metrics |= by_channel(f"noise_left_t{level:g}", values)

        ensemble = chains(trained, batch, forecast_key, context)
        error = jax.vmap(pointwise_crps)(ensemble[:, :, context:], x[:, context:])
        persistence = jnp.abs(x[:, context:] - x[:, context - 1 : context])
        relative = jax.vmap(mean)(error).mean(0) / jax.vmap(mean)(persistence).mean(0)
        metrics["forecast_crps"] = relative.mean()

        centre = jnp.broadcast_to(trained.mean(batch["inputs"]), x.shape)
        free, truth = chains(trained, batch, free_key, 0), x - centre
        drawn, there = power(free - jnp.expand_dims(centre, 1)), power(truth)
        metrics |= by_channel("variance", drawn.sum(0) / there.sum(0))
        fine = fine_scales(x.shape[-2])
        return metrics | by_channel("fine_variance", drawn[fine].sum(0) / there[fine].sum(0))

    return validate
