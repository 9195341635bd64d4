"""Downscaling: operators conserve, observations are in physical units and each variable in units of its error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wind_jax.channels import channels
from wind_jax.data.normalize import Statistics
from wind_jax.diffusion.guidance import guide
from wind_jax.diffusion.schedule import rectified
from wind_jax.observations.observation import check, compose, likelihood_grad
from wind_jax.sphere import Grid, area_mean, coarsening
from wind_jax.tasks.downscale import (
    errors,
    spatial_observation,
    spatial_operator,
    temporal_observation,
    temporal_operator,
)

GRID = Grid(np.linspace(-90, 90, 13), np.arange(0, 360, 15.0))
CHANNELS = channels(["temperature", "geopotential", "2m_temperature", "total_precipitation_6hr"], [500, 850])
NAMES = {"temperature": 2, "geopotential": 2, "2m_temperature": 1, "total_precipitation_6hr": 1}
RAIN = "total_precipitation_6hr"
STATISTICS = Statistics(
    CHANNELS,
    np.array([250, 280, 5.5e4, 1.4e4, 285, 0.2]),
    np.array([8, 10, 2e3, 1e3, 12, 0.3]),
    np.ones(6),
)  # fmt: skip
BY = coarsening(GRID, 3)
FRAMES = 4


@pytest.fixture
def z():
    z = np.random.default_rng(0).normal(size=(FRAMES, *GRID.shape, len(CHANNELS))).astype(np.float32)
    z[..., 5] = np.abs(z[..., 5])  # rain above 0
    return z


@pytest.fixture
def x(z):
    return STATISTICS.denormalize(z)


def test_coarse_fields_have_the_area_means_of_the_fine(x):
    y = spatial_operator(BY, CHANNELS)(x)
    assert {name: values.shape for name, values in y.items()} == {n: (4, 5, 8, c) for n, c in NAMES.items()}
    coarse = np.concatenate([area_mean(values, BY.grid, (-3, -2)) for values in y.values()], -1)
    np.testing.assert_allclose(coarse, area_mean(x, GRID, (-3, -2)), rtol=2e-6)


def test_means_over_frames_and_the_sum_of_rain(x):
    y = temporal_operator(FRAMES, 2, CHANNELS, ("2m_temperature", RAIN))(x)
    assert list(y) == ["2m_temperature", RAIN]
    np.testing.assert_allclose(y["2m_temperature"][1], (x[2, ..., 4:5] + x[3, ..., 4:5]) / 2, rtol=1e-6)
    np.testing.assert_allclose(y[RAIN].sum(0), x[..., 5:].sum(0), rtol=1e-5)


def test_a_fraction_is_one_deviation_above_the_mean_in_physical_units():
    error = errors(0.1, STATISTICS)
    np.testing.assert_allclose(error["geopotential"], [[[[200.0, 100.0]]]], rtol=1e-6)
    np.testing.assert_allclose(error[RAIN], 0.1 * (10**0.5 - 10**0.2) / 1000, rtol=1e-6)
    np.testing.assert_allclose(errors(0.1, STATISTICS, n=4)[RAIN], 4 * error[RAIN])
    np.testing.assert_allclose(errors(0.1, STATISTICS, n=4)["temperature"], error["temperature"])
    given = errors({"temperature": 0.5, RAIN: 1e-4}, STATISTICS, ("temperature", RAIN))
    np.testing.assert_allclose(given["temperature"], [[[[0.5, 0.5]]]])
    np.testing.assert_allclose(given[RAIN], 1e-4)


def test_the_truth_explains_what_is_made_of_it(z, x):
    spatial = spatial_observation(spatial_operator(BY, CHANNELS)(x), BY, 0.1, STATISTICS)
    temporal = temporal_observation(temporal_operator(FRAMES, 2, CHANNELS)(x), 2, 0.1, STATISTICS, "adaptive")
    assert temporal.variance == "adaptive"
    for observation in (spatial, temporal):
        y_hat = jax.jit(observation.operator)(z)
        for name, values in errors(0.1, STATISTICS).items():
            assert (np.abs(np.asarray(y_hat[name]) - np.asarray(observation.y[name])) < 1e-3 * values).all()
    check(compose(spatial, temporal), z.shape)


def test_gradients_agree_with_finite_differences(z, x):
    """Rain too, whose mean is nonlinear in the model's units; all variables pull in units of their own error."""
    y = {name: 1.001 * values for name, values in spatial_operator(BY, CHANNELS)(x).items()}
    sums = {name: 1.001 * values for name, values in temporal_operator(FRAMES, 2, CHANNELS)(x).items()}
    with jax.enable_x64(True):
        observation = compose(spatial_observation(y, BY, 0.1, STATISTICS),
                              temporal_observation(sums, 2, 0.1, STATISTICS))  # fmt: skip
        z, direction = jnp.asarray(z, jnp.float64), np.random.default_rng(1).normal(size=z.shape)

        def log_likelihood(z):
            terms = jax.tree.map(
                lambda y, y_hat, v: jnp.sum((y.astype(y_hat.dtype) - y_hat) ** 2 / jnp.asarray(v, y_hat.dtype)),
                observation.y, observation.operator(z), observation.variance,
            )  # fmt: skip
            return -0.5 * sum(jax.tree.leaves(terms))

        @jax.jit
        def slopes(z):
            ahead, behind = (log_likelihood(z + s * direction) for s in (1e-5, -1e-5))
            return (likelihood_grad(observation)(z) * direction).sum(), (ahead - behind) / 2e-5

        np.testing.assert_allclose(*slopes(z), rtol=1e-5)


def test_guidance_brings_a_flat_guess_to_the_coarse_field(z, x):
    """From no knowledge of the field to within the error of its means, and only what is observed moves."""
    names = ("temperature", "2m_temperature")
    observation = spatial_observation(spatial_operator(BY, CHANNELS, names)(x), BY, 0.01, STATISTICS)
    schedule = rectified()
    shrink = lambda x_t, t: x_t * schedule.alpha(t) / (schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2)
    denoise = guide(shrink, observation, schedule, "mmps", iterations=12)
    answer = jax.jit(denoise)(jnp.zeros((1, *z.shape)), jnp.asarray(0.9))[0]
    for name, value in observation.operator(answer).items():
        rms = np.sqrt(np.mean((value - observation.y[name]) ** 2 / observation.variance[name]))
        assert rms < 1.0
    assert (np.asarray(answer)[..., 2:4] == 0).all()


def test_bad_input(x):
    y = spatial_operator(BY, CHANNELS)(x)
    with pytest.raises(ValueError, match=r"\['humidity'\].*prior's"):
        spatial_operator(BY, CHANNELS, ("humidity",))
    with pytest.raises(ValueError, match="multiple of 3; got 4"):
        temporal_operator(4, 3, CHANNELS)
    with pytest.raises(ValueError, match="Means over 1 frames"):
        temporal_operator(4, 1, CHANNELS)
    with pytest.raises(ValueError, match=r"positive, got -0.1"):
        spatial_observation(y, BY, -0.1, STATISTICS)
    with pytest.raises(ValueError, match=r"wrong: \['temperature', 'wind'\]"):
        errors({"wind": 1.0}, STATISTICS, ("temperature",))
    with pytest.raises(ValueError, match="'exact'"):
        spatial_observation(y, BY, 0.1, STATISTICS, "exact")
    with pytest.raises(ValueError, match=r"y\['temperature'\] has the shape \(4, 5, 8, 1\), expected \(4, 5, 8, 2\)"):
        spatial_observation(y | {"temperature": y["temperature"][..., :1]}, BY, 0.1, STATISTICS)
    with pytest.raises(ValueError, match="at least one observed variable"):
        temporal_observation({}, 2, 0.1, STATISTICS)
    with pytest.raises(ValueError, match="not finite"):
        spatial_observation(y | {RAIN: y[RAIN] * np.nan}, BY, 0.1, STATISTICS)
