"""Baselines: exact where linear interpolation is, periodic, bounded, and never without an answer."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import RectBivariateSpline

from wind_jax.channels import channels
from wind_jax.evaluation.baselines import (
    about_climatology,
    interpolation,
    persistence,
    refine_in_time,
    refined,
    upsample,
    upsampled,
)
from wind_jax.sphere import Grid, coarsen, coarsening

GRID = Grid(np.linspace(-86, 86, 20), np.arange(0, 360, 10.0))


def sparse(field, count, seed=0):
    """`field` (h, w) as one frame and channel, NaN but for some cells."""
    out = np.full(field.size, np.nan, np.float32)
    chosen = np.random.default_rng(seed).choice(field.size, count, replace=False)
    out[chosen] = field.ravel()[chosen]
    return out.reshape(1, *field.shape, 1)


def smooth(grid=GRID, dtype=np.float32):
    """A field of wavenumbers 0 and 1, (h, w)."""
    latitude, longitude = np.deg2rad(np.meshgrid(grid.latitude, grid.longitude, indexing="ij"))
    return (250 + 30 * np.sin(latitude) + 10 * np.cos(latitude) * np.cos(longitude - 1)).astype(dtype)


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


def test_upsampled_means_of_a_smooth_field_are_near_it_at_second_order():
    errors = []
    for size in (30, 60):
        fine = Grid(np.linspace(-90, 90, 4 * size + 1), np.arange(8 * size) * 45 / size)
        truth = smooth(fine)[None, ..., None]
        by = coarsening(fine, 4)
        errors.append(np.abs(upsample(coarsen(truth, by), by.grid, fine) - truth)[:, size // 2 : -size // 2].max())
    assert errors[1] < 0.1
    assert 3 < errors[0] / errors[1] < 5


def test_upsampling_keeps_a_constant_and_turns_wind_across_the_poles():
    fine = Grid(np.arange(-87.5, 90, 5), np.arange(2.5, 360, 5))
    by = coarsening(fine, 3)
    constant = np.full((2, *by.grid.shape, 1), 7.0, np.float32)
    np.testing.assert_allclose(upsample(constant, by.grid, fine), 7, rtol=1e-6)
    flow = np.broadcast_to(-np.sin(np.deg2rad(by.grid.longitude)), by.grid.shape)[None, ..., None]  # over the pole
    exact = -np.sin(np.deg2rad(fine.longitude))
    wind = upsample(flow, by.grid, fine, vector=True)
    np.testing.assert_allclose(wind[0, -1, :, 0], exact, atol=0.02)
    assert np.abs(upsample(flow, by.grid, fine)[0, -1, :, 0] - exact).max() > 0.2
    with pytest.raises(ValueError, match=r"\(36, 72\) cells, expected \(12, 24\)"):
        upsample(np.zeros((1, 36, 72, 1), np.float32), by.grid, fine)


def test_refined_means():
    y = np.array([1.0, 5.0, 3.0], np.float32)[:, None, None, None] * np.ones((3, 2, 4, 1), np.float32)
    repeated = refine_in_time(y, 4, "repeat")
    np.testing.assert_array_equal(repeated.reshape(3, 4, 2, 4, 1).mean(1), y)
    np.testing.assert_array_equal(refine_in_time(y, 4, "repeat", accumulated=True), repeated / 4)
    linear = refine_in_time(y, 4)[:, 0, 0, 0]
    np.testing.assert_allclose(linear, [1, 1, 1.5, 2.5, 3.5, 4.5, 4.75, 4.25, 3.75, 3.25, 3, 3])
    trend = np.arange(12, dtype=np.float32)[:, None, None, None] * np.ones((12, 2, 4, 1), np.float32)
    refined = refine_in_time(trend.reshape(3, 4, 2, 4, 1).mean(1), 4)
    np.testing.assert_allclose(refined[2:-2], trend[2:-2], rtol=1e-6)
    np.testing.assert_array_equal(refine_in_time(y[:1], 2), np.repeat(y[:1], 2, axis=0))
    with pytest.raises(ValueError, match="'quintic'"):
        refine_in_time(y, 4, "quintic")


@pytest.mark.parametrize("pole_rows", [0, 1])
def test_cubic_is_of_fourth_order_also_at_the_poles(pole_rows):
    errors = []
    for size in (8, 16):
        rows = np.linspace(-90, 90, size + 1) if pole_rows else np.arange(-90 + 90 / size, 90, 180 / size)
        coarse = Grid(rows, np.arange(2 * size + 1) * 360 / (2 * size + 1))  # odd: no column has its opposite
        fine = Grid(np.linspace(-90, 90, 91), np.arange(0, 360, 4.0) + 1)
        y, truth = (smooth(grid, np.float64)[..., None] for grid in (coarse, fine))
        errors.append(np.abs(upsample(y, coarse, fine, method="cubic") - truth).max())
        np.testing.assert_allclose(upsample(y, coarse, coarse, method="cubic"), y, atol=1e-5)  # it interpolates
        assert errors[-1] < np.abs(upsample(y, coarse, fine) - truth).max() / 10
    assert 11 < errors[0] / errors[1] < 25  # 16 for fourth order


def test_cubic_equals_bicubic_splines_away_from_seam_and_poles():
    coarse, fine = Grid(np.linspace(-87, 87, 30), np.arange(0, 360, 6.0)), Grid(np.arange(-30, 31.0), np.arange(360.0))
    y = np.random.default_rng(0).normal(size=coarse.shape)
    theirs = RectBivariateSpline(coarse.latitude, coarse.longitude, y, s=0)(fine.latitude, fine.longitude)
    ours = upsample(y[..., None], coarse, fine, method="cubic")[..., 0]
    np.testing.assert_allclose(ours[:, 90:270], theirs[:, 90:270], atol=1e-4)  # ends are forgotten by 0.27 a node


def test_cubic_turns_wind_across_the_poles_and_takes_jax_arrays():
    coarse, fine = Grid(np.arange(-87.5, 90, 5), np.arange(0, 360, 5.0)), Grid(np.arange(-89.5, 90), np.arange(360.0))
    flow = lambda grid: np.broadcast_to(-np.sin(np.deg2rad(grid.longitude)), grid.shape)[..., None]
    wind = upsample(flow(coarse), coarse, fine, vector=True, method="cubic")
    np.testing.assert_allclose(wind, flow(fine), atol=1e-5)
    assert np.abs(upsample(flow(coarse), coarse, fine, method="cubic") - flow(fine)).max() > 0.2
    both = channels(["temperature", "u_component_of_wind"], [500])
    y = np.concatenate([np.full_like(flow(coarse), 7), flow(coarse)], axis=-1)
    fields = upsampled(jnp.asarray(y), coarse, fine, both, "cubic")
    np.testing.assert_allclose(fields, np.concatenate([np.full_like(wind, 7), wind], axis=-1), atol=1e-5)
    with pytest.raises(ValueError, match="'quintic'"):
        upsample(y, coarse, fine, method="quintic")


def test_cubic_in_time_keeps_every_mean_and_is_exact_for_parabolas():
    rng = np.random.default_rng(0)
    for m in (1, 2, 3, 7):
        y = rng.normal(size=(m, 2, 3, 1)).astype(np.float32)
        fine = refine_in_time(y, 4, "cubic")
        np.testing.assert_allclose(fine.reshape(m, 4, 2, 3, 1).mean(1), y, atol=1e-6)
        sums = refine_in_time(jnp.asarray(y), 4, "cubic", accumulated=True)
        np.testing.assert_allclose(sums, fine / 4, atol=1e-6)
    t = np.arange(16, dtype=np.float32)
    parabola = ((t - 3) ** 2)[:, None, None, None] * np.ones((16, 2, 3, 1), np.float32)
    np.testing.assert_allclose(refine_in_time(parabola.reshape(4, 4, 2, 3, 1).mean(1), 4, "cubic"), parabola, atol=1e-4)


def test_about_climatology_keeps_what_it_knows_and_the_means():
    both = channels(["temperature", "specific_humidity"], [500])
    normal = np.random.default_rng(0).normal(size=(8, 2, 4, 2)).astype(np.float32) ** 2
    measure = lambda x: x.reshape(2, 4, 2, 4, 2).mean(1)
    back = lambda y: refined(y, 4, both, "cubic")
    np.testing.assert_allclose(about_climatology(measure(normal), normal, measure, back, both), normal, atol=1e-6)
    y = measure(normal) + np.float32(1)
    np.testing.assert_allclose(measure(about_climatology(y, normal, measure, back, both)), y, atol=1e-5)
    low = about_climatology(y - 9, normal, measure, back, both)
    assert low[..., 0].max() < 0  # temperature here; humidity is cut off
    assert low[..., 1].min() == 0
