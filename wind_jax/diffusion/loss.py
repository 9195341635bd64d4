"""The diffusion-forcing objective (arXiv 2407.01392): every frame of a window has its own noise level.

    loss = mean over noisy frames, cells and channels of  w(cell, channel) lambda(t) (x0_hat - x)^2

so that at inference any frame may be clean while others are noise.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from wind_jax.diffusion.denoiser import expand_like, make_denoiser
from wind_jax.diffusion.reference import WHITE, Reference
from wind_jax.diffusion.schedule import Schedule

SURFACE_WEIGHTS = {"2m_temperature": 1.0}
OTHER_SURFACE_WEIGHT = 0.1
CHANNEL_WEIGHTS = ("uniform", "paper")
WEIGHTINGS = ("edm", "paper")


class Patterns(NamedTuple):
    """Probabilities of the ways in which a sample's frames get their times; they add up to 1.

    Attributes:
        independent: Each frame draws its own time, as the paper does.
        shared: One time for all frames.
        context: The first k ~ U{1, ..., frames - 1} frames are clean, t = 0; the others share a time.
    """

    independent: float = 1.0
    shared: float = 0.0
    context: float = 0.0


class Times(NamedTuple):
    """Distribution of the times that carry noise.

    Attributes:
        name: "uniform", t ~ U(0, 1), as in the paper, or "logit_normal", logit(t) ~ N(mean, spread^2). On the rectified
            schedule the latter is EDM's log-normal distribution of sigma / alpha (arXiv 2206.00364, 2403.03206).
        mean: Of logit(t).
        spread: Of logit(t).

    """

    name: str = "uniform"
    mean: float = 0.0
    spread: float = 1.0


class Objective(NamedTuple):
    """What the network learns, and from which noise; the default is the paper's.

    Attributes:
        prediction: What the network's output is, as in `make_denoiser`.
        weighting: lambda(t). "edm": 1 / error^2 of the reference, so that every noise level and, of a `Spectrum`, every
            channel has a target of variance 1. "paper": 1; for a network that predicts epsilon (alpha / sigma)^2, its
            error in epsilon, since the error of x0_hat has no bound as t nears 1.
        patterns: Of the times of a sample's frames.
        times: Their distribution.

    Raises:
        ValueError: By `check`.
    """

    prediction: str = "x0"
    weighting: str = "paper"
    patterns: Patterns = Patterns()
    times: Times = Times()

    def check(self, frames: int) -> None:
        """Raises ValueError for settings that are unknown, out of range or do not suit windows of `frames`."""
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"Unknown weighting {self.weighting!r}: expected one of {', '.join(WEIGHTINGS)}.")
        if self.times.name not in ("uniform", "logit_normal") or not self.times.spread > 0:
            raise ValueError(f'Times must be "uniform" or "logit_normal" with a positive spread, got {self.times}.')
        if min(self.patterns) < 0 or abs(sum(self.patterns) - 1) > 1e-6:
            raise ValueError(f"Pattern probabilities must be non-negative and add up to 1, got {self.patterns}.")
        if self.patterns.context > 0 and frames < 2:
            raise ValueError(f"Clean context needs at least 2 frames, got frames={frames}.")


PAPER = Objective()


def draw_times(key: Key[Array, ""], batch: int, frames: int, objective: Objective = PAPER) -> Float[Array, "b t"]:
    """Draws the times of a batch, each sample's pattern by its probability.

    Raises:
        ValueError: As `Objective.check`.
    """
    objective.check(frames)
    patterns, times = objective.patterns, objective.times

    def draw(key, shape):
        if times.name == "uniform":
            return jax.random.uniform(key, shape)
        return jax.nn.sigmoid(times.mean + times.spread * jax.random.normal(key, shape))

    choice_key, own_key, shared_key, context_key = jax.random.split(key, 4)
    own = draw(own_key, (batch, frames))
    shared = jnp.broadcast_to(draw(shared_key, (batch, 1)), (batch, frames))
    clean = jax.random.randint(context_key, (batch, 1), 1, max(frames, 2))
    context = jnp.where(jnp.arange(frames)[None, :] < clean, 0.0, shared)
    choice = jax.random.uniform(choice_key, (batch, 1))
    whole = jnp.where(choice < patterns.independent + patterns.shared, shared, context)
    return jnp.where(choice < patterns.independent, own, whole)


def loss_weights(
    area: np.ndarray,
    channels: Sequence,
    statistics,
    channel_weights: str = "paper",
    surface_weights: Mapping[str, float] | None = None,
) -> np.ndarray:
    """Weights of the squared error: cell area x channel weight, each of mean 1.

    The paper's channel weight is that of a forecaster: the level over the mean level for fields on pressure levels, at
    the surface 1 for 2 m temperature and 0.1 for the others, times (std / std of changes from frame to frame)^2
    (arXiv 2212.12794, 2602.03924). A prior has to be right in every channel: "uniform".

    Args:
        area: `(h,)` or `(h, 1)`, cell areas of the rows, in any unit.
        channels: The `Channel`s of the data, in order.
        statistics: The data's `Statistics`; its `std` and `difference_std`, `(c,)`, are used.
        channel_weights: "uniform" or "paper".
        surface_weights: Weights of surface fields by channel key, in place of those above; of "paper" alone.

    Returns:
        `(h, 1, c)` float32.

    Raises:
        ValueError: Unknown channel weights, or a surface weight for a key that is no surface channel.
    """
    if channel_weights not in CHANNEL_WEIGHTS:
        raise ValueError(f"Unknown channel weights {channel_weights!r}: expected one of {', '.join(CHANNEL_WEIGHTS)}.")
    surface_weights = dict(surface_weights or {})
    surface = [channel.key for channel in channels if channel.level is None]
    unknown = [key for key in surface_weights if key not in surface]
    if unknown:
        raise ValueError(f"Surface weights name {unknown}, which are no surface channels; there are {surface}.")
    area = np.asarray(area, np.float64).reshape(-1, 1, 1)
    weights = np.broadcast_to(area / area.mean(), (area.size, 1, len(channels)))
    if channel_weights == "paper":
        surface_weights = SURFACE_WEIGHTS | surface_weights
        levels = [channel.level for channel in channels if channel.level is not None]
        by_level = np.array(
            [
                surface_weights.get(channel.key, OTHER_SURFACE_WEIGHT)
                if channel.level is None
                else channel.level / np.mean(levels)
                for channel in channels
            ]
        )
        difficulty = (np.asarray(statistics.std, np.float64) / np.asarray(statistics.difference_std)) ** 2
        weights = weights * (by_level / by_level.mean())[None, None, :]
        weights = weights * (difficulty / difficulty.mean())[None, None, :]
    return weights.astype(np.float32)


def diffusion_forcing_loss(
    network: Callable[..., Array],
    x: Float[Array, "b t h w c"],
    key: Key[Array, ""],
    schedule: Schedule,
    weights: Float[Array | np.ndarray, "h 1 c"],
    objective: Objective = PAPER,
    reference: Reference = WHITE,
) -> Float[Array, ""]:
    """Weighted squared error of x0_hat over the frames that carry noise.

    Clean frames (t = 0) enter as they are and count for nothing.

    Args:
        network: As of `make_denoiser`; float32 or bfloat16.
        x: Clean windows in model units.
        key: Draws times and noise.
        schedule: Noise schedule.
        weights: From `loss_weights`.
        objective: Prediction, weighting and noise.
        reference: Of the "preconditioned" prediction and of the "edm" weighting.

    Returns:
        The loss, float32.
    """
    time_key, noise_key = jax.random.split(key)
    x = x.astype(jnp.float32)
    t = draw_times(time_key, x.shape[0], x.shape[1], objective).astype(jnp.float32)
    noisy = t > 0  # uniform draws may be 0 too
    t_x = expand_like(t, x)
    alpha, sigma = schedule.alpha(t_x), schedule.sigma(t_x)
    z = jax.random.normal(noise_key, x.shape, jnp.float32)
    x_t = jnp.where(t_x > 0, alpha * x + sigma * z, x)
    x0_hat = make_denoiser(network, schedule, objective.prediction, reference)(x_t, t).astype(jnp.float32)
    error = x0_hat - x
    if objective.weighting == "edm":
        error = error / reference.error(alpha, sigma)
    elif objective.prediction == "epsilon":
        error = error * alpha / sigma
    error = jnp.mean(jnp.asarray(weights)[None, None] * error**2, axis=(2, 3, 4))
    error = jnp.where(noisy, error, 0.0)
    return error.sum() / jnp.maximum(noisy.astype(jnp.float32).sum(), 1)
