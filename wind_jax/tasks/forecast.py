"""Forecasting: no observation, only known frames.

The first `context` frames of a window are known, the others are drawn; the next window begins with the last
`context` frames of the one before.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wind_jax.data.store import TIME_STEP


def window_count(leads: int, frames: int, context: int) -> int:
    """Windows needed for `leads` new frames.

    Raises:
        ValueError: no lead, or a context that leaves no frame of the window free or none known.
    """
    if leads < 1:
        raise ValueError(f"A forecast needs at least one lead time, got {leads}.")
    if not 1 <= context < frames:
        raise ValueError(f"A window of {frames} frames needs between 1 and {frames - 1} known ones, got {context}.")
    return -(-leads // (frames - context))


def lead_times(leads: int) -> np.ndarray:
    """(leads,) timedelta64 after the last known frame: 6 h, 12 h, ..."""
    return TIME_STEP * np.arange(1, leads + 1)


def lead_hours(leads: np.ndarray) -> list[int]:
    """Lead times (timedelta64) in whole hours."""
    return (leads // np.timedelta64(1, "h")).tolist()


def known_window(known: Float[Array, "b k h w c"], frames: int) -> Float[Array, "b t h w c"]:
    """The known frames at the start of a window of `frames`; the free ones are zero, no one reads them."""
    return jnp.pad(known, ((0, 0), (0, frames - known.shape[1]), (0, 0), (0, 0), (0, 0)))
