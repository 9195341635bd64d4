"""The Gaussian references: orthonormal modes, exact posterior means, and the error that they say they have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wind_jax.diffusion.reference import WHITE, Spectrum, fit_spectrum, fourier_basis

H, C = 6, 2


def drawn(width, samples, seed=0):
    """States of a Gaussian that is homogeneous in longitude: white noise, smoothed along both axes; (n, h, w, c)."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, H, width, C))
    x = x + 0.8 * np.roll(x, 1, axis=2) + 0.8 * np.roll(x, -1, axis=2)
    rows = np.exp(-0.5 * (np.subtract.outer(np.arange(H), np.arange(H)) / 1.2) ** 2)
    x = np.einsum("gh,nhwc->ngwc", rows, x) * np.array([1.0, 0.3])
    return (x / x.std()).astype(np.float32)


@pytest.mark.parametrize("width", [7, 8])
def test_modes_are_orthonormal(width):
    basis = fourier_basis(width)
    np.testing.assert_allclose(basis @ basis.T, np.eye(width), atol=1e-12)
    x = drawn(width, 20)
    spectrum = fit_spectrum(x)
    np.testing.assert_allclose(spectrum.synthesis(spectrum.analysis(jnp.asarray(x))), x, atol=1e-5)
    white = jax.random.normal(jax.random.key(0), (4000, H, width, C))
    np.testing.assert_allclose(spectrum.analysis(white).var(0), 1.0, atol=0.12)


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_estimate_is_the_posterior_mean_of_its_gaussian(t, x64):
    """Against the matrix (Sigma^-1 alpha^2 / sigma^2 ...)^-1 of the covariance that the modes make up."""
    width, alpha, sigma = 8, 1 - t, t
    spectrum = Spectrum(*(jnp.asarray(a, jnp.float64) for a in fit_spectrum(drawn(width, 300))))
    profiles = np.linalg.qr(np.asarray(spectrum.profiles))[0]  # orthonormal to double precision
    spectrum = spectrum._replace(profiles=jnp.asarray(profiles))
    units = jnp.eye(width * H).reshape(-1, width, H, 1) * jnp.ones((1, 1, 1, C))
    modes = np.asarray(spectrum.synthesis(units))[..., 0].reshape(width * H, -1).T
    x_t = np.random.default_rng(1).standard_normal((3, H, width, C))
    level = lambda value: jnp.full((3, 1, 1, 1), value)
    found = np.asarray(spectrum.estimate(jnp.asarray(x_t), level(alpha), level(sigma)))
    error = np.asarray(spectrum.error(level(alpha), level(sigma)))
    for c in range(C):
        covariance = modes @ np.diag(np.asarray(spectrum.variance[..., c]).reshape(-1)) @ modes.T
        gain = alpha * covariance @ np.linalg.inv(alpha**2 * covariance + sigma**2 * np.eye(H * width))
        np.testing.assert_allclose(found[..., c].reshape(3, -1), x_t[..., c].reshape(3, -1) @ gain.T, atol=1e-9)
        left = np.trace(covariance - alpha * gain @ covariance) / (H * width)
        np.testing.assert_allclose(error[..., 0, 0, c], np.sqrt(left), rtol=1e-9)


@pytest.mark.parametrize("t", [0.1, 0.3, 0.7])
def test_fitted_spectrum_beats_one_spread_for_all(t):
    """On other states of the same distribution; the error that it states is the one that it has."""
    spectrum, x = fit_spectrum(drawn(16, 500)), jnp.asarray(drawn(16, 400, seed=5))
    alpha, sigma = (jnp.full((x.shape[0], 1, 1, 1), level) for level in (1 - t, t))
    x_t = alpha * x + sigma * jax.random.normal(jax.random.key(0), x.shape)

    def rms(reference):
        return jnp.sqrt(jnp.mean((reference.estimate(x_t, alpha, sigma) - x) ** 2, (0, 1, 2)))

    np.testing.assert_allclose(rms(spectrum), spectrum.error(alpha, sigma)[0, 0, 0], rtol=0.05)
    assert (rms(spectrum) < rms(WHITE)).all()


def test_each_frame_has_its_own_level():
    x = jnp.asarray(drawn(8, 6)).reshape(2, 3, H, 8, C)
    spectrum = fit_spectrum(drawn(8, 50))
    t = jnp.asarray([[0.1, 0.5, 0.9], [0.2, 0.2, 0.7]]).reshape(2, 3, 1, 1, 1)
    together = spectrum.estimate(x, 1 - t, t)
    alone = spectrum.estimate(x[1, 2], 1 - t[1, 2], t[1, 2])
    np.testing.assert_allclose(together[1, 2], alone, atol=1e-6)


def test_one_state_has_no_spectrum():
    with pytest.raises(ValueError, match="two states"):
        fit_spectrum(drawn(8, 1))
