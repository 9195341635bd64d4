"""Baselines: exact where linear interpolation is, periodic, bounded, and never without an answer."""

import numpy as np
import pytest

from wind_jax.evaluation.baselines import interpolation, persistence
from wind_jax.sphere import Grid

GRID = Grid(np.linspace(-86, 86, 20), np.arange(0, 360, 10.0))


def sparse(field, count, seed=0):
    """`field` (h, w) as one frame and channel, NaN but for some cells."""
    out = np.full(field.size, np.nan, np.float32)
    chosen = np.random.default_rng(seed).choice(field.size, count, replace=False)
    out[chosen] = field.ravel()[chosen]
    return out.reshape(1, *field.shape, 1)


def smooth(grid=GRID):
    """A field of wavenumbers 0 and 1, (h, w)."""
    latitude, longitude = np.deg2rad(np.meshgrid(grid.latitude, grid.longitude, indexing="ij"))
    return (250 + 30 * np.sin(latitude) + 10 * np.cos(latitude) * np.cos(longitude - 1)).astype(np.float32)


def test_persistence_repeats_the_state():
    state = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    forecast = persistence(state, 5)
    assert forecast.shape == (5, 3, 4, 2)
    assert (forecast == state).all()


@pytest.mark.parametrize("count", [1, 3, 4, 30, GRID.shape[0] * GRID.shape[1]])
def test_observed_cells_keep_their_values_and_others_stay_within_them(count):
    observed = sparse(smooth(), count)
    filled = interpolation(observed, GRID)
    known = np.isfinite(observed)
    np.testing.assert_array_equal(filled[known], observed[known])
    assert filled.min() >= np.nanmin(observed) - 1e-3
    assert filled.max() <= np.nanmax(observed) + 1e-3
    assert filled.dtype == np.float32


def test_error_falls_as_the_square_of_the_spacing():
    errors = []
    for size in (60, 240):
        grid = Grid(np.linspace(-89, 89, size), np.arange(2 * size) * 180 / size)
        truth = smooth(grid)
        observed = np.full((1, *grid.shape, 1), np.nan, np.float32)
        observed[:, ::6, ::6] = truth[None, ::6, ::6, None]
        errors.append(np.sqrt(np.mean((interpolation(observed, grid)[0, ..., 0] - truth)[6:-6] ** 2)))
    assert 10 < errors[0] / errors[1] < 25  # 16 for second order


def test_longitude_has_no_seam():
    observed = sparse(smooth(), 25)
    rolled = interpolation(np.roll(observed, 7, axis=2), GRID)
    np.testing.assert_allclose(rolled, np.roll(interpolation(observed, GRID), 7, axis=2), rtol=1e-5)


def test_one_hemisphere_is_extended_by_its_nearest_values():
    observed = sparse(smooth(), 80)
    observed[:, :10] = np.nan
    filled = interpolation(observed, GRID)
    assert np.isfinite(filled).all()
    assert filled[:, 0].min() >= np.nanmin(observed)


def test_nothing_observed_gives_nothing():
    assert np.isnan(interpolation(np.full((1, *GRID.shape, 1), np.nan, np.float32), GRID)).all()


def test_another_grid_is_refused():
    with pytest.raises(ValueError, match=r"\(5, 36\)"):
        interpolation(np.zeros((1, 5, 36, 1), np.float32), GRID)
