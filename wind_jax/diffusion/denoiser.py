"""From a network to a denoiser, x0_hat = E[x | x_t]: the type that every sampler and guide works on.

A denoiser is any function `denoise(x_t, t) -> x0_hat`, with x_t `(b, t, h, w, c)` or `(b, d)` and the time t
a scalar, `(b,)` or `(b, frame)`.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from wind_jax.diffusion.reference import WHITE, Reference, Spectrum
from wind_jax.diffusion.schedule import Schedule

Denoiser = Callable[[Array, Array], Array]

PREDICTIONS = ("preconditioned", "x0", "v", "epsilon")
"""What a network's output may be, see `make_denoiser`."""


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


def about(mean: ArrayLike, denoiser: Denoiser, schedule: Schedule) -> Denoiser:
    """The denoiser of x, from `denoiser` of the anomaly x - mean: x_t - alpha mean is the anomaly, equally noisy.

    Args:
        mean: broadcasts to x; a climatology, for example.
        denoiser: of anomalies.
        schedule: the noise schedule.
    """

    def denoise(x_t, t):
        centre = jnp.broadcast_to(mean, x_t.shape)
        return centre + denoiser(x_t - schedule.alpha(expand_like(t, x_t)) * centre, t)

    return denoise


def make_denoiser(
    network: Callable[..., Array],
    schedule: Schedule,
    prediction: str = "x0",
    reference: Reference = WHITE,
) -> Denoiser:
    """Reads a network's output as E[x | x_t].

    Args:
        network: `(x_t, t) -> out`; sees t as `(b, frame)` for videos, `(b,)` for vectors. With a `Spectrum` as the
            reference it is `(x_t, t, estimate) -> out`: the filtered field is an input of its own.
        schedule: The noise schedule that the network was trained with.
        prediction: What `out` is, with x_t = alpha x + sigma z: "x0", "v" = alpha z - sigma x (arXiv 2202.00512),
            "epsilon" = z, or "preconditioned", what is left of x by the reference's estimate, in units of its error.
        reference: Of the "preconditioned" prediction.

    Raises:
        ValueError: An unknown `prediction`.
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"Unknown prediction {prediction!r}: expected one of {', '.join(PREDICTIONS)}.")

    def denoise(x_t, t):
        t = broadcast_time(t, x_t)
        alpha, sigma = schedule.alpha(expand_like(t, x_t)), schedule.sigma(expand_like(t, x_t))
        if prediction == "preconditioned":
            estimate = reference.estimate(x_t, alpha, sigma)
            out = network(x_t, t, estimate) if isinstance(reference, Spectrum) else network(x_t, t)
            return estimate + reference.error(alpha, sigma) * out
        out = network(x_t, t)
        if prediction == "x0":
            return out
        if prediction == "v":
            return (alpha * x_t - sigma * out) / (alpha**2 + sigma**2)
        return (x_t - sigma * out) / alpha

    return denoise
