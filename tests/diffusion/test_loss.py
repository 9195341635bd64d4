"""The objective: draws, weights, and closed forms of the loss."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wind_jax.diffusion.denoiser import expand_like, make_denoiser
from wind_jax.diffusion.loss import (
    PAPER,
    Objective,
    Patterns,
    Times,
    diffusion_forcing_loss,
    draw_times,
    loss_weights,
)
from wind_jax.diffusion.reference import White
from wind_jax.diffusion.schedule import SCHEDULES, rectified

FLAT = np.ones((4, 1, 3), np.float32)
CONTEXT = Objective(patterns=Patterns(0.0, 0.0, 1.0))


def loss_of(network, x, objective=PAPER):
    def loss(x):
        return diffusion_forcing_loss(network, x, jax.random.key(1), rectified(), FLAT, objective)

    return jax.jit(loss)(x)


def batch(samples=64, frames=3):
    return jax.random.normal(jax.random.key(7), (samples, frames, 4, 5, 3))


def test_independent_times_are_uniform_and_uncorrelated():
    t = np.asarray(draw_times(jax.random.key(0), 20000, 3))
    np.testing.assert_allclose(t.mean(0), 0.5, atol=0.01)
    np.testing.assert_allclose(np.cov(t.T), np.eye(3) / 12, atol=0.003)


def test_logit_normal_times():
    """Quantiles of the draws are those of the distribution: P(t < 1 / (1 + e^-(m + s q))) = Phi(q)."""
    t = np.asarray(draw_times(jax.random.key(0), 40000, 1, Objective(times=Times("logit_normal", -0.5, 1.5))))[:, 0]
    for q, probability in ((-2, 0.02275), (-1, 0.15866), (0, 0.5), (1, 0.84134), (2, 0.97725)):
        assert abs((t < 1 / (1 + np.exp(0.5 - 1.5 * q))).mean() - probability) < 0.01


def test_patterns():
    t = np.asarray(draw_times(jax.random.key(0), 4000, 4, CONTEXT))
    clean = (t == 0).sum(1)
    np.testing.assert_allclose(np.bincount(clean, minlength=5) / 4000, [0, 1 / 3, 1 / 3, 1 / 3, 0], atol=0.03)
    assert all((row[:k] == 0).all() and (row[k:] == row[-1]).all() for row, k in zip(t, clean))
    t = np.asarray(draw_times(jax.random.key(0), 4000, 4, Objective(patterns=Patterns(0.25, 0.5, 0.25))))
    equal = (t == t[:, :1]).all(1)
    np.testing.assert_allclose([equal.mean(), (t[:, 0] == 0).mean()], [0.5, 0.25], atol=0.03)


def test_weights_factors():
    channel = lambda key, level: SimpleNamespace(key=key, level=level)
    channels = [
        channel("temperature_500", 500),
        channel("temperature_1000", 1000),
        channel("2m_temperature", None),
        channel("mean_sea_level_pressure", None),
    ]
    statistics = SimpleNamespace(std=np.array([2.0, 2, 4, 1]), difference_std=np.array([1.0, 2, 2, 1]))
    area = np.array([1.0, 2.0, 3.0])
    weights = loss_weights(area, channels, statistics)
    assert weights.shape == (3, 1, 4)
    ratio = weights[0, 0] / weights[0, 0, 3]
    np.testing.assert_allclose(ratio, np.array([2 / 3 * 4, 4 / 3, 1.0 * 4, 0.1]) / 0.1, rtol=1e-5)
    np.testing.assert_allclose(weights[:, 0] / weights[:1, 0], np.repeat(area[:, None], 4, 1), rtol=1e-5)
    raised = loss_weights(area, channels, statistics, "paper", {"mean_sea_level_pressure": 1.0})
    np.testing.assert_allclose(raised[0, 0, 3] / raised[0, 0, 2], 0.25, rtol=1e-5)
    uniform = loss_weights(area, channels, statistics, "uniform")
    np.testing.assert_allclose(uniform, np.broadcast_to(area[:, None, None] / 2, (3, 1, 4)), rtol=1e-6)


@pytest.mark.parametrize("prediction", ["x0", "v", "epsilon"])
def test_optimal_network_reaches_the_bayes_error(prediction):
    """x ~ N(0, I): E[x | x_t] = alpha x_t / (alpha^2 + sigma^2), error sigma^2 / (alpha^2 + sigma^2)."""
    schedule = rectified()
    x = batch(256)

    def network(x_t, t):
        t = expand_like(t, x_t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x0_hat = alpha * x_t / (alpha**2 + sigma**2)
        z_hat = sigma * x_t / (alpha**2 + sigma**2)
        return {"x0": x0_hat, "v": alpha * z_hat - sigma * x0_hat, "epsilon": z_hat}[prediction]

    loss = loss_of(network, x, Objective(prediction))
    t = np.linspace(0, 1, 10001)
    alpha, sigma = np.asarray(schedule.alpha(t)), np.asarray(schedule.sigma(t))
    error = (alpha**2 if prediction == "epsilon" else sigma**2) / (alpha**2 + sigma**2)
    np.testing.assert_allclose(loss, error.mean(), rtol=0.03)


@pytest.mark.parametrize("prediction", ["preconditioned", "x0", "v", "epsilon"])
def test_edm_weighting_gives_every_level_a_target_of_unit_variance(prediction):
    """A network that only ever says what the reference's estimate is has a loss of 1, whatever it predicts."""
    schedule, x = rectified(), batch(256)

    def network(x_t, t):
        t = expand_like(t, x_t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x0_hat = White().estimate(x_t, alpha, sigma)
        z_hat = (x_t - alpha * x0_hat) / sigma
        v_hat = alpha * z_hat - sigma * x0_hat
        return {"preconditioned": 0 * x_t, "x0": x0_hat, "v": v_hat, "epsilon": z_hat}[prediction]

    times = Times("logit_normal", 0.0, 2.0)
    np.testing.assert_allclose(loss_of(network, x, Objective(prediction, "edm", times=times)), 1.0, rtol=0.02)


def test_clean_frames_count_for_nothing():
    """An output of 0 costs x^2 = 1 on each noisy frame, whatever the network does on clean ones."""
    x = jnp.ones((32, 3, 4, 5, 3))

    def network(x_t, t):
        return jnp.where(expand_like(t, x_t) == 0, 1e6, 0.0) * x_t

    loss = loss_of(network, x, CONTEXT)
    np.testing.assert_allclose(loss, 1.0, rtol=1e-6)


def test_clean_frames_enter_exactly():
    x = batch()
    seen = {}

    def network(x_t, t):
        seen.update(x_t=x_t, t=t)
        return x_t

    diffusion_forcing_loss(network, x, jax.random.key(1), rectified(), FLAT, CONTEXT)
    clean = np.asarray(seen["t"] == 0)
    assert clean.any()
    same = np.asarray((seen["x_t"] == x).all((2, 3, 4)))
    np.testing.assert_array_equal(same, clean)


def test_loss_is_float32_for_a_bfloat16_network():
    loss = loss_of(lambda x_t, t: x_t.astype(jnp.bfloat16), batch(4))
    assert loss.dtype == jnp.float32


@pytest.mark.parametrize("name", SCHEDULES)
def test_predictions_are_one_denoiser(name, x64):
    schedule = SCHEDULES[name]()
    x, z = jax.random.normal(jax.random.key(0), (2, 4, 3, 2, 2, 1))
    t = jax.random.uniform(jax.random.key(1), (4, 3))
    alpha, sigma = schedule.alpha(expand_like(t, x)), schedule.sigma(expand_like(t, x))
    x_t = alpha * x + sigma * z
    for prediction, out in {"x0": x, "v": alpha * z - sigma * x, "epsilon": z}.items():
        x0_hat = make_denoiser(lambda x_t, t, out=out: out, schedule, prediction)(x_t, t)
        np.testing.assert_allclose(x0_hat, x, atol=1e-9)


@pytest.mark.parametrize("t", [0.3, [0.3, 0.3], [[0.3] * 3] * 2])
def test_time_broadcasts_from_the_left(t):
    x_t = jnp.ones((2, 3, 4, 5, 1))
    denoise = make_denoiser(lambda x_t, t: x_t * expand_like(t, x_t), rectified())
    np.testing.assert_allclose(denoise(x_t, jnp.asarray(t)), 0.3, rtol=1e-6)
