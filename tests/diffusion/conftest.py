"""Priors whose denoiser is known in closed form."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wind_jax.diffusion.denoiser import expand_like
from wind_jax.diffusion.schedule import rectified


@pytest.fixture
def mixture(reference):
    """The reference values, and the denoiser of their mixture of Gaussians: values, denoise."""
    values = np.load(reference("guidance_parity.npz"))
    mean, covariance, log_weight = values["mu"], values["C"], values["logw"]
    identity = np.eye(mean.shape[1])

    def member(x_t, t):
        alpha, sigma = rectified().alpha(t), rectified().sigma(t)
        offset = x_t[None] - alpha * mean
        marginal = alpha**2 * covariance + sigma**2 * identity[None]
        solved = jnp.linalg.solve(marginal, offset[..., None])[..., 0]
        logits = log_weight - 0.5 * (offset * solved).sum(-1) - 0.5 * jnp.linalg.slogdet(marginal)[1]
        x0_hat = mean + alpha * jnp.einsum("k i j, k j -> k i", covariance, solved)
        return jax.nn.softmax(logits) @ x0_hat

    def denoise(x_t, t):
        return jax.vmap(member)(x_t, jnp.broadcast_to(t, x_t.shape[:1]))

    return SimpleNamespace(values=values, denoise=denoise)


@pytest.fixture
def gaussian():
    """N(mean, covariance) over a video of 48 numbers, all correlated, and its denoiser at any times."""
    shape = (3, 2, 4, 2)
    size = int(np.prod(shape))
    rng = np.random.default_rng(0)
    mean = 0.3 * rng.standard_normal(size)
    root = rng.standard_normal((size, size)) / np.sqrt(size)
    covariance = 0.7 * root @ root.T + 0.3 * np.diag(rng.uniform(0.5, 1.5, size))

    def denoise(x_t, t):
        """Times are those of the first member."""
        t = expand_like(t, x_t) + jnp.zeros_like(x_t)
        alpha, sigma = rectified().alpha(t[0].ravel()), rectified().sigma(t[0].ravel())
        marginal = alpha[:, None] * covariance * alpha[None, :] + jnp.diag(sigma**2)
        gain = jnp.linalg.solve(marginal, alpha[:, None] * covariance)
        offset = x_t.reshape(-1, size) - (alpha * mean)[None, :]
        return (mean[None, :] + offset @ gain).reshape(x_t.shape)

    return SimpleNamespace(shape=shape, size=size, mean=mean, covariance=covariance, denoise=denoise)
