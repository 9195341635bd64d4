"""Sparse observations: what is drawn, what is measured, and that the operator puts values back where they were."""

import jax
import numpy as np
import pytest

from wind_jax.channels import channels
from wind_jax.data.normalize import Statistics
from wind_jax.observations.observation import check
from wind_jax.tasks import sparse_obs

CHANNELS = channels(["temperature", "2m_temperature", "total_precipitation_6hr"], [500, 850])
SHAPE = (3, 10, 20, len(CHANNELS))


@pytest.fixture
def statistics():
    ones = np.ones(len(CHANNELS), np.float32)
    return Statistics(CHANNELS, 0 * ones, np.array([4, 2, 5, 1], np.float32), ones)


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def observed(cells):
    """Whether each value of the window is observed."""
    ones = {name: np.ones(where.shape, np.float32) for name, where in cells.items()}
    return np.isfinite(sparse_obs.dense(cells, ones, SHAPE))


def test_every_field_has_the_same_number_of_distinct_cells_elsewhere():
    cells = sparse_obs.draw_cells(jax.random.key(0), SHAPE, CHANNELS, 0.05)
    seen = observed(cells)
    assert (seen.sum((1, 2)) == 10).all()
    fields = np.moveaxis(seen, -1, 1).reshape(-1, 200)
    assert len(np.unique(fields, axis=0)) == len(fields)


def test_the_draw_is_uniform_over_cells():
    counts = np.zeros(SHAPE[1:3])
    for seed in range(40):
        cells = sparse_obs.draw_cells(jax.random.key(seed), SHAPE, CHANNELS, 0.25)
        counts += observed(cells).sum((0, 3))
    share = counts / (40 * 3 * 4)
    assert abs(share - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 480)


def test_only_named_variables_are_observed():
    cells = sparse_obs.draw_cells(jax.random.key(0), SHAPE, CHANNELS, 0.1, ("temperature",))
    seen = observed(cells).any((0, 1, 2))
    assert list(cells) == ["temperature"]
    assert seen.tolist() == [True, True, False, False]


def test_a_mask_gives_its_own_cells(x):
    mask = np.random.default_rng(1).random(SHAPE) < 0.1
    mask[..., 3] = False
    cells = sparse_obs.mask_cells(mask, SHAPE, CHANNELS)
    assert list(cells) == ["temperature", "2m_temperature"]
    values = sparse_obs.gather(cells)(x)
    np.testing.assert_array_equal(sparse_obs.dense(cells, values, SHAPE), np.where(mask, x, np.nan))


def test_errors_have_their_size(x, statistics):
    error = sparse_obs.errors({"temperature": 1.0, "2m_temperature": 0.5, "total_precipitation_6hr": 0.2}, statistics)
    np.testing.assert_allclose(error, [1 / 4, 1 / 2, 0.1, 0.2])
    np.testing.assert_allclose(sparse_obs.errors(0.05, statistics), 0.05)
    cells = sparse_obs.draw_cells(jax.random.key(0), SHAPE, CHANNELS, 1.0)
    noise = sparse_obs.dense(cells, sparse_obs.measure(x, cells, error, jax.random.key(1)), SHAPE) - x
    np.testing.assert_allclose(noise.std((0, 1, 2)), error, rtol=0.15)


def test_observation_is_what_guidance_needs(x, statistics):
    error = sparse_obs.errors(0.1, statistics)
    cells = sparse_obs.draw_cells(jax.random.key(0), SHAPE, CHANNELS, 0.05)
    y = sparse_obs.measure(x, cells, error, jax.random.key(1))
    observation = sparse_obs.sparse_observation(cells, y, error)
    check(observation, SHAPE)
    assert all(np.allclose(v, 0.01) for v in observation.variance.values())
    for name, value in observation.operator(x).items():
        assert abs(value - y[name]).max() < 0.5
    assert sparse_obs.sparse_observation(cells, y, error, "adaptive").variance == "adaptive"


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, float("nan")])
def test_bad_fraction(fraction):
    with pytest.raises(ValueError, match=f"fraction.*{fraction}"):
        sparse_obs.draw_cells(jax.random.key(0), SHAPE, CHANNELS, fraction)


def test_bad_input(x, statistics):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="geopotential"):
        sparse_obs.draw_cells(key, SHAPE, CHANNELS, 0.1, ("geopotential",))
    with pytest.raises(ValueError, match=r"\(3, 10, 21, 4\)"):
        sparse_obs.mask_cells(np.ones((3, 10, 21, 4), bool), SHAPE, CHANNELS)
    quarter_degree = (30, 721, 1440, 70)
    with pytest.raises(ValueError, match=r"\(30, 721, 1440, 70\) has 2180304000 values"):
        sparse_obs.draw_cells(key, quarter_degree, CHANNELS, 0.1)
    with pytest.raises(ValueError, match="nowhere"):
        sparse_obs.mask_cells(np.zeros(SHAPE, bool), SHAPE, CHANNELS)
    outside = {"temperature": np.array([0, x.size], np.int32)}
    with pytest.raises(ValueError, match=f"outside the grid: cell {x.size}"):
        sparse_obs.measure(x, outside, np.ones(4, np.float32), key)
    with pytest.raises(ValueError, match="positive, got -1"):
        sparse_obs.errors(-1.0, statistics)
    with pytest.raises(ValueError, match=r"wrong: .*humidity"):
        sparse_obs.errors({"specific_humidity": 1.0}, statistics)
    with pytest.raises(ValueError, match="exact"):
        sparse_obs.sparse_observation({}, {}, np.ones(4, np.float32), "exact")
