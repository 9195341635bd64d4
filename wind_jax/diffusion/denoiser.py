"""From a network to a denoiser, x0_hat = E[x | x_t]: the type that every sampler and guide works on.

A denoiser is any function `denoise(x_t, t) -> x0_hat`, with x_t `(b, t, h, w, c)` or `(b, d)` and the time t
a scalar, `(b,)` or `(b, frame)`.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from wind_jax.diffusion.schedule import Schedule

Denoiser = Callable[[Array, Array], Array]

# x0_hat from the network's output, with z the noise: x_t = alpha x + sigma z.
_TO_X0 = {
    "x0": lambda out, x_t, alpha, sigma: out,
    "v": lambda out, x_t, alpha, sigma: (alpha * x_t - sigma * out) / (alpha**2 + sigma**2),
    "epsilon": lambda out, x_t, alpha, sigma: (x_t - sigma * out) / alpha,
}


def expand_like(t: ArrayLike, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Appends axes of length 1, so that `t`, a scalar, `(b,)` or `(b, frame)`, multiplies `x` from the left.

    A scalar gets as many axes as `x` too; its type becomes that of `x`.
    """
    t = jnp.asarray(t, x.dtype)
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def broadcast_time(t: ArrayLike, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """One time for each frame of a video, `(b, frame)`; for each row, `(b,)`, where `x` is `(b, d)`."""
    levels = x.shape[: 2 if x.ndim > 2 else 1]
    t = jnp.asarray(t, x.dtype)
    return jnp.broadcast_to(t.reshape(t.shape + (1,) * (len(levels) - t.ndim)), levels)


def make_denoiser(network: Callable[[Array, Array], Array], schedule: Schedule, prediction: str = "x0") -> Denoiser:
    """Reads a network's output as E[x | x_t].

    Args:
        network: `(x_t, t) -> out`; sees t as `(b, frame)` for videos, `(b,)` for vectors.
        schedule: The noise schedule that the network was trained with.
        prediction: What `out` is: "x0", "v" = alpha z - sigma x (arXiv 2202.00512), or "epsilon" = z.

    Raises:
        ValueError: An unknown `prediction`.
    """
    if prediction not in _TO_X0:
        raise ValueError(f"Unknown prediction {prediction!r}: expected one of {', '.join(_TO_X0)}.")
    to_x0 = _TO_X0[prediction]

    def denoise(x_t, t):
        t = broadcast_time(t, x_t)
        out = network(x_t, t)
        t = expand_like(t, x_t)
        return to_x0(out, x_t, schedule.alpha(t), schedule.sigma(t))

    return denoise
