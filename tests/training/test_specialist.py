"""Specialists: the first guess is the interpolation that the tasks' baselines use, and training lowers its error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wind_jax.channels import channels
from wind_jax.data.normalize import Statistics
from wind_jax.sphere import Grid, coarsen, coarsening
from wind_jax.training.specialist import estimate, first_guess, specialist_scores

CHANNELS = channels(("temperature", "u_component_of_wind", "total_precipitation_6hr"), (500, 850))
GRID = Grid(np.linspace(-78.75, 78.75, 8), np.arange(0, 360, 22.5))


@pytest.fixture
def statistics():
    n = len(CHANNELS)
    return Statistics(CHANNELS, np.linspace(0.1, 0.5, n), np.linspace(0.5, 1.5, n), np.full(n, 0.3))


def window(seed=0, frames=4):
    x = jax.random.normal(jax.random.key(seed), (frames, *GRID.shape, len(CHANNELS)))
    return x.at[..., -1].set(jnp.abs(x[..., -1]))  # no negative rain


def test_means_over_frames(statistics):
    x = window()
    guess = first_guess({"name": "temporal_downscaling", "mean_over": 4}, statistics, GRID, 4)(x)
    assert jnp.allclose(guess[0], guess[3], atol=1e-5)  # one mean: the same in all frames
    rain = statistics.denormalize(guess)[..., -1].sum(0)  # and what falls in them is what fell
    assert jnp.allclose(rain, statistics.denormalize(x)[..., -1].sum(0), rtol=1e-4)
    assert jnp.allclose(guess[0, ..., 0], x[..., 0].mean(0), atol=1e-5)


def test_means_over_cells(statistics):
    cells = coarsening(GRID, 4)
    constant = jnp.broadcast_to(window()[:, :1, :1, :], window().shape)
    guess = first_guess({"name": "spatial_downscaling", "factor": 4}, statistics, GRID, 4)
    scalar = np.array([not c.name.endswith("wind") for c in CHANNELS])
    assert jnp.allclose(guess(constant)[..., scalar], constant[..., scalar], atol=1e-4)
    middle = guess(constant)[:, 3:5]  # a vector changes its sign across the poles, so not there
    assert jnp.allclose(middle, constant[:, 3:5], atol=1e-4)
    assert coarsen(guess(window()), cells).shape == (4, *cells.grid.shape, len(CHANNELS))


@pytest.mark.parametrize(
    "task", [{"name": "forecast"}, {"name": "spatial_downscaling", "factor": 2, "error": 1.0}, {"name": "sparse_obs"}]
)
def test_other_tasks_are_refused(task, statistics):
    with pytest.raises(ValueError, match="A specialist is for"):
        first_guess(task, statistics, GRID, 4)


def test_estimate_and_its_score(statistics):
    """A network that says nothing leaves the first guess, whose relative error is 1; the exact one has none."""
    x, guess, mean = window(0)[None], window(1)[None], window(2)[None]
    silent = estimate(lambda x_t, t: jnp.zeros_like(x_t), guess, mean)
    exact = estimate(lambda x_t, t: x - guess + 0 * t[:, :, None, None, None], guess, mean)
    assert specialist_scores(silent, guess, x, GRID)["relative_rmse"] == pytest.approx(1)
    assert specialist_scores(exact, guess, x, GRID)["relative_rmse"] == pytest.approx(0, abs=1e-5)
    seen = estimate(lambda x_t, t: x_t, guess, mean)  # the network sees the anomaly
    assert jnp.allclose(seen, 2 * guess - mean)
