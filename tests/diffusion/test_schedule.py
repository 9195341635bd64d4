"""Schedules against the reference values, time grids by their definition."""

import jax.numpy as jnp
import numpy as np
import pytest

from wind_jax.diffusion.denoiser import expand_like
from wind_jax.diffusion.samplers import ddim, euler, sample
from wind_jax.diffusion.schedule import SCHEDULES, time_grid


@pytest.mark.parametrize("name", SCHEDULES)
def test_matches_reference(name, reference, x64):
    values = np.load(reference("guidance_parity.npz"))
    schedule = SCHEDULES[name]()
    t = jnp.asarray(values["schedule/t"])
    np.testing.assert_allclose(schedule.alpha(t), values[f"schedule/{name}/alpha"], rtol=1e-7)
    np.testing.assert_allclose(schedule.sigma(t), values[f"schedule/{name}/sigma"], rtol=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
def test_float32_loses_nothing_at_the_ends(name, x64):
    t = jnp.concatenate([jnp.asarray([0.0, 1e-6, 1e-3]), jnp.linspace(0.01, 1, 50)])
    for level in SCHEDULES[name]():
        value = level(t.astype(jnp.float32))
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, level(t), rtol=2e-5, atol=1e-7)


def test_time_grid_columns():
    grid = np.asarray(time_grid(4, frames=3, known=(0, -1), start=0.8))
    assert grid.shape == (5, 3)
    assert (grid[:, [0, 2]] == 0).all()
    np.testing.assert_allclose(grid[:, 1], [0.8, 0.6, 0.4, 0.2, 0.0], rtol=1e-6)
    assert grid[-1, 1] == 0
    np.testing.assert_array_equal(time_grid(4, start=0.8), grid[:, 1])
    ended = np.asarray(time_grid(4, frames=2, known=(0,), start=0.8, end=0.5))
    np.testing.assert_allclose(ended, [[0, 0.8], [0, 0.7], [0, 0.6], [0, 0.5], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize(("steps", "end"), [(4, 0.8), (4, 0.9), (4, -0.1), (1, 0.5)])
def test_time_grids_that_do_not_end_are_refused(steps, end):
    with pytest.raises(ValueError, match=f"below its start, by two steps or more; got {end} by {steps}"):
        time_grid(steps, start=0.8, end=end)


def test_a_chain_that_ends_early_gives_the_estimate_of_that_time():
    """Of a constant denoiser that tells its time, its last call's; whatever the step."""
    denoiser = lambda x_t, t: jnp.full_like(x_t, 1) * expand_like(t, x_t)
    for step in (ddim(), euler()):
        x = sample(denoiser, jnp.ones((2, 3)), time_grid(4, start=0.8, end=0.5), SCHEDULES["rectified"](), step)
        np.testing.assert_allclose(x, 0.5, atol=2e-3)


def test_logit_spacing_has_equal_steps_of_the_log_snr():
    times = np.asarray(time_grid(12, start=0.98, spacing="logit"), np.float64)
    assert times[-1] == 0
    np.testing.assert_allclose(times[[0, -2]], [0.98, 0.01], rtol=1e-5)
    steps = np.diff(np.log(times[:-1] / (1 - times[:-1])))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4)
    assert time_grid(5, start=0.9, end=0.3, spacing="logit")[-2] == pytest.approx(0.3)
    with pytest.raises(ValueError, match="'cosine'"):
        time_grid(5, spacing="cosine")
