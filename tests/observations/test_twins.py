"""Twins: what is drawn, what is measured, and that the dataset gives back what was observed to the last bit."""

import jax
import numpy as np
import pytest
import synthetic

from wind_jax.channels import channels
from wind_jax.data.normalize import Statistics
from wind_jax.observations.gridded import Placed, cell_errors, dense, gridded, mean_errors
from wind_jax.observations.twins import draw_cells, means, measure, observe_cells, observe_means
from wind_jax.sphere import Grid, area_mean, coarsening

RAIN = "total_precipitation_6hr"
CHANNELS = channels(["temperature", "2m_temperature", RAIN], [500, 850])
GRID = Grid(np.linspace(-81, 81, 10), np.arange(0, 360, 18.0))
SHAPE = (3, *GRID.shape, len(CHANNELS))
TIMES = synthetic.times(3)
STATISTICS = Statistics(CHANNELS, np.array([250, 280, 285, 0.2]), np.array([4, 2, 5, 0.3]), np.ones(4))


@pytest.fixture
def x():
    """Model units; no rain in many places."""
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    x[..., 3] = np.maximum(x[..., 3], -2 / 3)
    return x


def observed(cells):
    """Whether each value of the window is observed."""
    ones = {name: Placed(where, np.ones(where.shape), np.ones(where.shape)) for name, where in cells.items()}
    return np.isfinite(dense(ones, SHAPE))


def test_every_field_has_the_same_number_of_distinct_cells_elsewhere():
    cells = draw_cells(jax.random.key(0), SHAPE, CHANNELS, 0.05)
    seen = observed(cells)
    assert (seen.sum((1, 2)) == 10).all()
    fields = np.moveaxis(seen, -1, 1).reshape(-1, 200)
    assert len(np.unique(fields, axis=0)) == len(fields)


def test_the_draw_is_uniform_over_cells():
    counts = np.zeros(GRID.shape)
    for seed in range(40):
        counts += observed(draw_cells(jax.random.key(seed), SHAPE, CHANNELS, 0.25)).sum((0, 3))
    share = counts / (40 * 3 * 4)
    assert abs(share - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 480)


def test_only_named_variables_are_observed():
    cells = draw_cells(jax.random.key(0), SHAPE, CHANNELS, 0.1, ("temperature",))
    assert list(cells) == ["temperature"]
    assert observed(cells).any((0, 1, 2)).tolist() == [True, True, False, False]


def test_errors_have_their_size(x):
    error = cell_errors({"temperature": 1.0, "2m_temperature": 0.5, RAIN: 0.03}, STATISTICS)
    np.testing.assert_allclose(error, [1 / 4, 1 / 2, 0.1, 0.1])
    np.testing.assert_allclose(cell_errors(0.05, STATISTICS), 0.05)
    cells = draw_cells(jax.random.key(0), SHAPE, CHANNELS, 1.0)
    y = measure(x, cells, error, jax.random.key(1))
    noise = dense({name: Placed(where, y[name], y[name]) for name, where in cells.items()}, SHAPE) - x
    np.testing.assert_allclose(noise.std((0, 1, 2)), error, rtol=0.15)


@pytest.mark.parametrize("error", [0.05, {"temperature": 1.0, "2m_temperature": 0.5, RAIN: 0.03}])
def test_cells_come_back_to_the_last_bit(x, error):
    """Of the same cells and values, measured in model units, with rain whose error takes it below 0."""
    key = jax.random.key(3)
    truth = STATISTICS.denormalize(x)
    dataset = observe_cells(truth, STATISTICS, GRID, TIMES, 0.2, error, key)
    assert dataset[RAIN].min() < 0
    placed = gridded(dataset, STATISTICS, GRID).window(TIMES)
    place, noise = jax.random.split(key)
    cells, deviation = draw_cells(place, SHAPE, CHANNELS, 0.2), cell_errors(error, STATISTICS)
    y = measure(STATISTICS.normalize(truth), cells, deviation, noise)
    assert list(placed) == list(cells)
    for name, p in placed.items():
        np.testing.assert_array_equal(p.places, cells[name])
        np.testing.assert_array_equal(p.y, y[name])
        np.testing.assert_array_equal(p.error, deviation[cells[name] % 4])


def test_coarse_fields_have_the_area_means_of_the_fine(x):
    by = coarsening(GRID, 2)
    truth = STATISTICS.denormalize(x)
    y = means(truth, CHANNELS, target=by)
    coarse = np.concatenate([area_mean(values, by.grid, (-3, -2)) for values in y.values()], -1)
    np.testing.assert_allclose(coarse, area_mean(truth, GRID, (-3, -2)), rtol=2e-6)


def test_means_and_sums_have_their_spans(x):
    """Those of the temporal downscaling of before: a sum of rain spans the accumulations of its frames."""
    truth, step = STATISTICS.denormalize(x), np.timedelta64(6, "h")
    dataset = observe_means(truth, STATISTICS, GRID, TIMES, 0.1, every=3)
    np.testing.assert_array_equal(dataset["2m_temperature"][0], truth[..., 2].mean(0))
    np.testing.assert_array_equal(dataset[RAIN][0], truth[..., 3].sum(0))
    assert dataset["temperature"].dims[0] == "time"
    np.testing.assert_array_equal(dataset["time_bnds"], [[TIMES[0], TIMES[0] + 3 * step]])
    np.testing.assert_array_equal(dataset["time_of_sum_bnds"], [[TIMES[0] - step, TIMES[2]]])
    found = gridded(dataset, STATISTICS, GRID)
    np.testing.assert_array_equal(found.window(TIMES)[RAIN].weights, [[1, 1, 1]])
    expected = mean_errors(0.1, STATISTICS, frames=3)
    for name, field in found.fields.items():
        np.testing.assert_array_equal(field.error[0, 0, 0], expected[name].astype(np.float32))


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, float("nan")])
def test_bad_fraction(fraction):
    with pytest.raises(ValueError, match=f"fraction.*{fraction}"):
        draw_cells(jax.random.key(0), SHAPE, CHANNELS, fraction)


def test_bad_input(x):
    with pytest.raises(ValueError, match=r"\['geopotential'\].*prior's"):
        draw_cells(jax.random.key(0), SHAPE, CHANNELS, 0.1, ("geopotential",))
    with pytest.raises(ValueError, match=r"\(30, 721, 1440, 70\) has 2180304000 values"):
        draw_cells(jax.random.key(0), (30, 721, 1440, 70), CHANNELS, 0.1)
    with pytest.raises(ValueError, match="positive, got -1"):
        cell_errors(-1.0, STATISTICS)
    with pytest.raises(ValueError, match=r"wrong or missing: .*humidity"):
        cell_errors({"specific_humidity": 1.0}, STATISTICS)
    with pytest.raises(ValueError, match=r"wrong or missing: \['temperature', 'wind'\]"):
        mean_errors({"wind": 1.0}, STATISTICS, ("temperature",))
    with pytest.raises(ValueError, match="multiple of 2; got 3"):
        means(x, CHANNELS, every=2)


@pytest.mark.parametrize("variables", [(RAIN,), ("temperature",)])
def test_sums_alone_and_means_alone(x, variables):
    dataset = observe_means(STATISTICS.denormalize(x), STATISTICS, GRID, TIMES, 0.1, variables, every=3)
    placed = gridded(dataset, STATISTICS, GRID).window(TIMES)
    assert list(placed) == list(variables)
    np.testing.assert_allclose(placed[variables[0]].weights.sum(), 3 if variables == (RAIN,) else 1, rtol=1e-6)
