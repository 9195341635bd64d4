"""Noise schedules and time grids.

The forward process turns clean data into noise as the diffusion time goes from 0 to 1:

    x_t = alpha_t x + sigma_t z,    z ~ N(0, I)

A time grid is the path back, one row a step: `(steps + 1,)` where all frames share their time, or
`(steps + 1, frames)`. A column that stays at 0 is a known frame; equal columns are ordinary sampling;
staggered columns are rolling diffusion.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

ALPHA_MIN = 1e-3
SIGMA_MIN = 1e-3
LAST_TIME = 0.01
"""Above 0, of a time grid with equal steps in logit(t)."""


class Schedule(NamedTuple):
    """Signal and noise levels, each an elementwise function of the time t in [0, 1]."""

    alpha: Callable[[Array], Array]
    sigma: Callable[[Array], Array]


def rectified() -> Schedule:
    """Straight lines, alpha = 1 - t and sigma = t, both kept at or above 1e-3 (arXiv 2209.03003)."""
    return Schedule(
        alpha=lambda t: 1 - t + ALPHA_MIN * t,
        sigma=lambda t: t + SIGMA_MIN * (1 - t),
    )


def cosine() -> Schedule:
    """alpha = cos(w t) with alpha(1) = 1e-3, and alpha^2 + sigma^2 = 1 + 1e-6 (arXiv 2102.09672)."""
    rate = math.acos(ALPHA_MIN)
    return Schedule(
        alpha=lambda t: jnp.cos(rate * t),
        sigma=lambda t: jnp.sqrt(jnp.sin(rate * t) ** 2 + SIGMA_MIN**2),
    )


def vp() -> Schedule:
    """Variance preserving: log alpha quadratic in t, alpha^2 + sigma^2 = 1 + 1e-6 (arXiv 2011.13456)."""
    rate = math.log(ALPHA_MIN)
    return Schedule(
        alpha=lambda t: jnp.exp(rate * t**2),
        sigma=lambda t: jnp.sqrt(SIGMA_MIN**2 - jnp.expm1(2 * rate * t**2)),
    )


def ve() -> Schedule:
    """Variance exploding: alpha = 1, sigma from 1e-3 to 1e3, its logarithm linear in t (arXiv 2011.13456)."""
    low, high = math.log(SIGMA_MIN), -math.log(SIGMA_MIN)
    return Schedule(
        alpha=lambda t: jnp.ones_like(t),
        sigma=lambda t: jnp.exp(low + (high - low) * t),
    )


SCHEDULES = {"rectified": rectified, "cosine": cosine, "vp": vp, "ve": ve}


def time_grid(
    steps: int,
    frames: int | None = None,
    known: Sequence[int] = (),
    start: float = 0.98,
    end: float = 0.0,
    spacing: str = "linear",
) -> Float[Array, "..."]:
    """Steps from `start` down to 0, or down to `end` and from there to 0 at once.

    Chains start a little below 1 because gamma = sigma^2 / alpha, the weight of guidance, grows without bound
    there. An `end` above 0 leaves out lower noise: the sample is the network's x0_hat of that time.

    Args:
        steps: Number of steps of the sampler.
        frames: Number of frames of the video; None gives one time for all frames.
        known: Indices of the frames that are known; their columns are 0. Negative ones count from the end.
        start: Time of the first row.
        end: Time of the last row but one; 0 leaves it to equal steps, which in logit(t) end at 0.01.
        spacing: "linear", equal steps in t, or "logit", equal steps in logit(t): on the rectified schedule in the
            log-SNR, of which large scales need more at high noise, and small ones at low noise.

    Returns:
        `(steps + 1,)`, or `(steps + 1, frames)` where `frames` is given.

    Raises:
        ValueError: Fewer than one step, `start` outside (0, 1], an `end` that is not below it or of fewer than two
            steps, or known frames without `frames` or out of range.
    """
    if steps < 1:
        raise ValueError(f"A time grid needs at least one step, got steps={steps}.")
    if not 0 < start <= 1:
        raise ValueError(f"A time grid starts in (0, 1], got start={start}.")
    if end and not (0 < end < start and steps > 1):
        raise ValueError(
            f"A time grid ends in [0, {start}), below its start, by two steps or more; got {end} by {steps}."
        )
    if spacing == "linear":
        times = np.append(np.linspace(start, end, steps), 0.0) if end else np.linspace(start, 0.0, steps + 1)
    elif spacing == "logit":
        first, last = (np.log(t / (1 - t)) for t in (min(start, 1 - ALPHA_MIN), end or min(LAST_TIME, start / 2)))
        times = np.append(1 / (1 + np.exp(-np.linspace(first, last, steps))), 0.0)
    else:
        raise ValueError(f'The spacing of a time grid is "linear" or "logit", got {spacing!r}.')
    if frames is None:
        if len(known):
            raise ValueError(f"Known frames {tuple(known)} need a grid with one column a frame: give frames.")
        return jnp.asarray(times)
    outside = [k for k in known if not -frames <= k < frames]
    if outside:
        raise ValueError(f"Known frames {outside} lie outside a video of {frames} frames.")
    grid = np.tile(times[:, None], (1, frames))
    grid[:, list(known)] = 0.0
    return jnp.asarray(grid)
