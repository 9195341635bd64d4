"""The diffusion-forcing objective (arXiv 2407.01392): every frame of a window has its own noise level.

    loss = mean over noisy frames, cells and channels of  w (x0_hat - x)^2

so that at inference any frame may be clean while others are noise.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from wind_jax.diffusion.denoiser import expand_like, make_denoiser
from wind_jax.diffusion.schedule import Schedule

SURFACE_WEIGHTS = {"2m_temperature": 1.0}
OTHER_SURFACE_WEIGHT = 0.1


class Patterns(NamedTuple):
    """Probabilities of the ways in which a sample's frames get their times; they add up to 1.

    Attributes:
        independent: Each frame draws its own t ~ U(0, 1), as the paper does.
        shared: One t ~ U(0, 1) for all frames.
        context: The first k ~ U{1, ..., frames - 1} frames are clean, t = 0; the others share a t ~ U(0, 1).
    """

    independent: float = 1.0
    shared: float = 0.0
    context: float = 0.0


PAPER_PATTERNS = Patterns()


def draw_times(
    key: Key[Array, ""], batch: int, frames: int, patterns: Patterns = PAPER_PATTERNS
) -> Float[Array, "b t"]:
    """Draws the times of a batch, each sample's pattern by its probability.

    Raises:
        ValueError: Probabilities negative or not adding up to 1, or context with fewer than two frames.
    """
    if min(patterns) < 0 or abs(sum(patterns) - 1) > 1e-6:
        raise ValueError(f"Pattern probabilities must be non-negative and add up to 1, got {patterns}.")
    if patterns.context > 0 and frames < 2:
        raise ValueError(f"Clean context needs at least 2 frames, got frames={frames}.")
    choice_key, own_key, shared_key, context_key = jax.random.split(key, 4)
    own = jax.random.uniform(own_key, (batch, frames))
    shared = jnp.broadcast_to(jax.random.uniform(shared_key, (batch, 1)), (batch, frames))
    clean = jax.random.randint(context_key, (batch, 1), 1, max(frames, 2))
    context = jnp.where(jnp.arange(frames)[None, :] < clean, 0.0, shared)
    choice = jax.random.uniform(choice_key, (batch, 1))
    whole = jnp.where(choice < patterns.independent + patterns.shared, shared, context)
    return jnp.where(choice < patterns.independent, own, whole)


def loss_weights(
    area: np.ndarray, channels: Sequence, statistics, surface_weights: Mapping[str, float] | None = None
) -> np.ndarray:
    """Weights of the squared error: cell area x channel weight x (std / std of 6 h differences)^2.

    The channel weight is the level over the mean level for fields on pressure levels; at the surface it is 1
    for 2 m temperature and 0.1 for the others (arXiv 2212.12794, 2602.03924). Each factor has mean 1.

    Args:
        area: `(h,)` or `(h, 1)`, cell areas of the rows, in any unit.
        channels: The `Channel`s of the data, in order.
        statistics: The data's `Statistics`; its `std` and `difference_std`, `(c,)`, are used.
        surface_weights: Weights of surface fields by channel key, in place of those above.

    Returns:
        `(h, 1, c)` float32.

    Raises:
        ValueError: A weight for a key that is no surface channel.
    """
    surface_weights = dict(surface_weights or {})
    surface = [channel.key for channel in channels if channel.level is None]
    unknown = [key for key in surface_weights if key not in surface]
    if unknown:
        raise ValueError(f"Surface weights name {unknown}, which are no surface channels; there are {surface}.")
    surface_weights = SURFACE_WEIGHTS | surface_weights
    levels = [channel.level for channel in channels if channel.level is not None]
    channel_weight = np.array(
        [
            surface_weights.get(channel.key, OTHER_SURFACE_WEIGHT)
            if channel.level is None
            else channel.level / np.mean(levels)
            for channel in channels
        ]
    )
    area = np.asarray(area, np.float64).reshape(-1, 1, 1)
    difficulty = (np.asarray(statistics.std, np.float64) / np.asarray(statistics.difference_std)) ** 2
    weights = area / area.mean()
    weights = weights * (channel_weight / channel_weight.mean())[None, None, :]
    weights = weights * (difficulty / difficulty.mean())[None, None, :]
    return weights.astype(np.float32)


def diffusion_forcing_loss(
    network: Callable[[Array, Array], Array],
    x: Float[Array, "b t h w c"],
    key: Key[Array, ""],
    schedule: Schedule,
    weights: Float[Array | np.ndarray, "h 1 c"],
    prediction: str = "x0",
    patterns: Patterns = PAPER_PATTERNS,
) -> Float[Array, ""]:
    """Weighted squared error of x0_hat over the frames that carry noise.

    Clean frames (t = 0) enter as they are and count for nothing. A network that predicts epsilon is judged by
    its error in epsilon, (alpha / sigma)^2 times the error of x0_hat: the latter has no bound as t nears 1.

    Args:
        network: `(x_t, t (b, t)) -> out`, float32 or bfloat16.
        x: Clean windows in model units.
        key: Draws times and noise.
        schedule: Noise schedule.
        weights: From `loss_weights`.
        prediction: What the network's output is, as in `make_denoiser`.
        patterns: Probabilities of the noise patterns.

    Returns:
        The loss, float32.
    """
    time_key, noise_key = jax.random.split(key)
    x = x.astype(jnp.float32)
    t = draw_times(time_key, x.shape[0], x.shape[1], patterns).astype(jnp.float32)
    noisy = t > 0  # uniform draws may be 0 too
    t_x = expand_like(t, x)
    alpha, sigma = schedule.alpha(t_x), schedule.sigma(t_x)
    z = jax.random.normal(noise_key, x.shape, jnp.float32)
    x_t = jnp.where(t_x > 0, alpha * x + sigma * z, x)
    x0_hat = make_denoiser(network, schedule, prediction)(x_t, t).astype(jnp.float32)
    error = jnp.mean(jnp.asarray(weights)[None, None] * (x0_hat - x) ** 2, axis=(2, 3, 4))
    if prediction == "epsilon":
        error = error * (schedule.alpha(t) / schedule.sigma(t)) ** 2
    error = jnp.where(noisy, error, 0.0)
    return error.sum() / jnp.maximum(noisy.astype(jnp.float32).sum(), 1)
