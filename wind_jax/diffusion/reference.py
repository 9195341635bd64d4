"""Gaussian references: what is known of the data before training, and the linear denoiser that follows from it.

A reference is a Gaussian model of one frame. Its posterior mean is a linear function of x_t, cheap enough for every
step of a sampler. The network learns only what the linear function leaves, in units of that function's error:

    x0_hat = estimate(x_t) + error * network(x_t)

This is the preconditioning of EDM (Karras et al. 2022, arXiv 2206.00364, eq. 7), there with one number for the spread
of the data, here also with their covariance.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class White(NamedTuple):
    """Independent values, as in EDM.

    Attributes:
        spread: standard deviation for which the estimate is best: finer structures of the atmosphere are weaker than
            its whole variance of 1. The error is that for data of variance 1.
    """

    spread: float = 0.3

    def estimate(self, x_t: Float[Array, "..."], alpha: Array, sigma: Array) -> Float[Array, "..."]:
        """The part of x_t that passes by the network; alpha and sigma broadcast against x_t."""
        return self._skip(alpha, sigma) * x_t

    def error(self, alpha: Array, sigma: Array) -> Array:
        """Root mean square of x - estimate(x_t), shaped like alpha and sigma."""
        skip = self._skip(alpha, sigma)
        return jnp.sqrt((1 - skip * alpha) ** 2 + (skip * sigma) ** 2)

    def _skip(self, alpha: Array, sigma: Array) -> Array:
        return alpha * self.spread**2 / (alpha**2 * self.spread**2 + sigma**2)


class Spectrum(NamedTuple):
    """Independent modes, each with its variance in each channel: the estimate is a Wiener filter.

    A mode is a sine or cosine in longitude times a profile in latitude. The profiles of a wavenumber are the principal
    components of the data over all channels. Modes are orthonormal, so that white noise of variance 1 has variance 1 in
    each of them.

    Attributes:
        profiles: for each function of `fourier_basis`, k = h profiles in latitude.
        variance: of the data, in model units, in each mode and channel.
    """

    profiles: Float[Array | np.ndarray, "w h k"]
    variance: Float[Array | np.ndarray, "w k c"]

    def estimate(
        self, x_t: Float[Array, "*b h w c"], alpha: Float[Array, "*b 1 1 1"], sigma: Float[Array, "*b 1 1 1"]
    ) -> Float[Array, "*b h w c"]:
        """E[x | x_t] of the reference."""
        variance = self._variance(alpha)
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return self.synthesis(gain * self.analysis(x_t))

    def error(self, alpha: Float[Array, "*b 1 1 1"], sigma: Float[Array, "*b 1 1 1"]) -> Float[Array, "*b 1 1 c"]:
        """Root mean square of x - estimate(x_t) over the cells of a frame, for each channel."""
        variance = self._variance(alpha)
        return jnp.sqrt((variance * sigma**2 / (alpha**2 * variance + sigma**2)).mean(axis=(-3, -2), keepdims=True))

    def analysis(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b w k c"]:
        """Coefficients of the modes."""
        waves = _product("jw,...hwc->...jhc", fourier_basis(x.shape[-2]), x)
        return _product("jhk,...jhc->...jkc", self.profiles, waves)

    def synthesis(self, coefficients: Float[Array, "*b w k c"]) -> Float[Array, "*b h w c"]:
        """The fields of some coefficients; the inverse and transpose of `analysis`."""
        waves = _product("jhk,...jkc->...jhc", self.profiles, coefficients)
        return _product("jw,...jhc->...hwc", fourier_basis(coefficients.shape[-3]), waves)

    def _variance(self, like: Array) -> Float[Array, "... w k c"]:
        return jnp.asarray(self.variance, like.dtype).reshape((1,) * (like.ndim - 3) + self.variance.shape)


Reference = White | Spectrum
WHITE = White()


def fourier_basis(width: int) -> Float[np.ndarray, "w w"]:
    """Orthonormal real Fourier functions of the longitude, one a row: constant, cos, sin, cos of twice the angle, ...

    >>> fourier_basis(4).round(3).tolist()
    [[0.5, 0.5, 0.5, 0.5], [0.707, 0.0, -0.707, -0.0], [0.0, 0.707, 0.0, -0.707], [0.5, -0.5, 0.5, -0.5]]
    """
    wavenumber = _wavenumbers(width)
    angle = 2 * np.pi / width * np.outer(wavenumber, np.arange(width))
    basis = np.where((np.arange(width) % 2 == 1)[:, None], np.cos(angle), np.sin(angle))
    basis[0] = 1.0
    return basis / np.linalg.norm(basis, axis=1, keepdims=True)


def _wavenumbers(width: int) -> np.ndarray:
    """Zonal wavenumber (w,) of each function of `fourier_basis`."""
    return (np.arange(width) + 1) // 2


def fit_spectrum(x: Float[np.ndarray, "n h w c"]) -> Spectrum:
    """The `Spectrum` of a sample of states.

    Args:
        x: states less their mean, each channel of variance about 1.

    Raises:
        ValueError: fewer than two states.
    """
    samples, h, w, c = x.shape
    if samples < 2:
        raise ValueError(f"a spectrum needs two states or more, got {samples}")
    waves = np.einsum("jw,nhwc->jnhc", fourier_basis(w).astype(x.dtype), x, optimize=True)
    profiles, variance = np.empty((w, h, h), np.float32), np.empty((w, h, c), np.float32)
    for wavenumber in range(w // 2 + 1):
        functions = np.flatnonzero(_wavenumbers(w) == wavenumber)  # its cosine and its sine
        values = waves[functions].reshape(-1, h, c).astype(np.float64)
        power = np.maximum((values**2).mean(axis=(0, 1)), 1e-30)  # so that every channel counts alike
        rows = (values / np.sqrt(power)).transpose(0, 2, 1).reshape(-1, h)
        modes = np.linalg.eigh(rows.T @ rows)[1][:, ::-1]
        profiles[functions] = modes
        variance[functions] = (np.einsum("hk,nhc->nkc", modes, values, optimize=True) ** 2).mean(axis=0)
    return Spectrum(profiles, variance)


def _product(subscripts: str, constant: Float[Array | np.ndarray, "..."], x: Float[Array, "..."]) -> Array:
    # Full precision: accelerators would round the factors to 10 bits or fewer.
    return jnp.einsum(subscripts, jnp.asarray(constant, x.dtype), x, precision=jax.lax.Precision.HIGHEST)
