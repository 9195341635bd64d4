"""The sphere has area 4 pi, harmonics have known means, interpolation wraps and crosses the poles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wind_jax.sphere import (
    Grid,
    area_mean,
    area_weights,
    bilinear,
    cell_area,
    coarsen,
    coarsening,
    interpolate,
    zonal_spectrum,
)


def equiangular(h=121, w=240):
    return Grid(np.linspace(-90, 90, h), np.arange(w) * 360 / w)


def gaussian(h=32, w=64):
    return Grid(np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(h)[0])), np.arange(w) * 360 / w)


def staggered():
    return Grid(np.arange(-87.5, 90, 5), np.arange(2.5, 360, 5))


GRIDS = pytest.mark.parametrize("grid", [equiangular(), gaussian(), staggered()], ids=["poles", "gauss", "cells"])


@GRIDS
def test_cells_cover_the_sphere(grid):
    area = cell_area(grid)
    assert area.sum() * grid.longitude.size == pytest.approx(4 * np.pi, rel=1e-14)
    np.testing.assert_allclose(area, area[::-1], rtol=1e-5)
    assert area_weights(grid).shape == (grid.shape[0], 1)
    assert area_weights(grid).mean() == pytest.approx(1.0, rel=1e-6)


def test_pole_rows_are_half_cells():
    grid = equiangular()
    cap = 2 * np.pi * (1 - np.cos(np.deg2rad(0.75)))
    assert cell_area(grid)[0] * 240 == pytest.approx(cap, rel=1e-10)


def test_gaussian_areas_are_close_to_the_quadrature_weights():
    weights = np.polynomial.legendre.leggauss(32)[1] * 2 * np.pi / 64
    np.testing.assert_allclose(cell_area(gaussian())[1:-1], weights[1:-1], rtol=2e-3)


@GRIDS
def test_area_mean_of_spherical_harmonics(grid):
    z = np.sin(np.deg2rad(grid.latitude.astype(float)))[:, None] * np.ones(grid.shape)
    assert area_mean(np.full(grid.shape, 3.0), grid) == pytest.approx(3.0, rel=1e-12)
    assert area_mean(z, grid) == pytest.approx(0.0, abs=1e-6)
    assert area_mean(z**2, grid) == pytest.approx(1 / 3, rel=5e-3)


def test_area_mean_takes_axes_and_keeps_namespace_and_dtype():
    grid = gaussian(6, 12)
    x = np.random.default_rng(0).normal(size=(2, 6, 12, 3)).astype(np.float32)
    expected = area_mean(np.moveaxis(x, -1, 1), grid)
    for array in (x, jnp.asarray(x)):
        mean = area_mean(array, grid, axis=(-3, -2))
        assert mean.shape == (2, 3)
        assert mean.dtype == np.float32
        assert isinstance(mean, jax.Array) == isinstance(array, jax.Array)
        np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match=r"axes \(-2, -1\)"):
        area_mean(x, grid)


def test_grid_is_compared_by_value_across_float_widths():
    a = gaussian()
    b = Grid(a.latitude.astype(np.float64), a.longitude)
    assert a == b
    assert hash(a) == hash(b)
    assert a != gaussian(30, 64)
    assert equiangular().with_poles
    assert not a.with_poles


@pytest.mark.parametrize(
    ("latitude", "longitude", "message"),
    [
        (np.linspace(90, -90, 7), np.arange(0, 360, 45.0), "ascend strictly"),
        (np.array([0.0, 0.0, 10.0]), np.arange(0, 360, 45.0), "ascend strictly"),
        (np.array([0.0, 91.0]), np.arange(0, 360, 45.0), "within"),
        (np.array([0.0, np.nan]), np.arange(0, 360, 45.0), "finite"),
        (np.zeros((2, 2)), np.arange(0, 360, 45.0), "one dimension"),
        (np.linspace(-90, 90, 7), np.arange(0, 180, 45.0), "steps of 360 / 4"),
        (np.linspace(-90, 90, 7), np.array([0.0, 90, 200, 270]), "steps of 360 / 4"),
        (np.linspace(-90, 90, 7), np.arange(-180, 180, 45.0), "steps of 360 / 8"),
    ],
)
def test_grid_rejects(latitude, longitude, message):
    with pytest.raises(ValueError, match=message):
        Grid(latitude, longitude)


@GRIDS
def test_bilinear_reproduces_the_grid_and_is_second_order_between(grid):
    phi, lam = np.meshgrid(grid.latitude.astype(float), grid.longitude.astype(float), indexing="ij")

    def smooth(latitude, longitude):  # x + 2 y + 3 z of the unit vector: smooth across the poles
        latitude, longitude = np.deg2rad(latitude), np.deg2rad(longitude)
        return np.cos(latitude) * (np.cos(longitude) + 2 * np.sin(longitude)) + 3 * np.sin(latitude)

    field = smooth(phi, lam)[..., None]
    at_grid = interpolate(field, *bilinear(grid, phi.ravel(), lam.ravel()))
    np.testing.assert_allclose(at_grid, field.reshape(-1, 1), atol=1e-5)

    rng = np.random.default_rng(0)
    latitude = np.concatenate([np.rad2deg(np.arcsin(rng.uniform(-1, 1, 500))), [90.0, -90.0, 89.9, -89.9]])
    longitude = np.concatenate([rng.uniform(-360, 720, 500), [10.0, 200.0, 359.99, -0.01]])
    indices, weights = bilinear(grid, latitude, longitude)
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-6)
    assert weights.min() > -1e-6
    assert indices.max() < phi.size
    gaps = [*np.diff(grid.latitude), 360 / grid.longitude.size, 2 * (90 - grid.latitude[-1])]
    bound = 2 * np.deg2rad(max(gaps)) ** 2 / 8 * np.sqrt(14)  # two directions, the largest second derivative
    error = interpolate(field, indices, weights)[:, 0] - smooth(latitude, longitude)
    assert np.abs(error).max() < bound


def test_bilinear_wraps_in_longitude():
    grid = equiangular(5, 8)
    field = np.zeros((1, 5, 8, 1), np.float32)
    field[..., 0, 0], field[..., 7, 0] = 2.0, 1.0
    longitude = np.array([337.5, -22.5, 360.0, 315.0, 348.75, 292.5])
    values = interpolate(field, *bilinear(grid, np.full(longitude.size, 10.0), longitude))
    np.testing.assert_allclose(values[0, :, 0], [1.5, 1.5, 2.0, 1.0, 1.75, 0.5], atol=1e-5)


def test_wind_crosses_the_pole_with_its_sign():
    """A uniform flow over the pole has u = -sin(lon), v = -cos(lon) there, on any meridian."""
    grid = staggered()
    lam = np.deg2rad(grid.longitude.astype(float))
    u = np.broadcast_to(-np.sin(lam), grid.shape)[..., None]
    longitude = grid.longitude.astype(float)
    at_pole = interpolate(u, *bilinear(grid, np.full(longitude.size, 90.0), longitude, vector=True))
    np.testing.assert_allclose(at_pole[:, 0], -np.sin(lam), atol=1e-6)
    as_scalar = interpolate(u, *bilinear(grid, np.full(longitude.size, 90.0), longitude))
    np.testing.assert_allclose(as_scalar, 0.0, atol=1e-6)


def test_interpolate_is_the_same_in_jax_and_differentiable():
    grid = gaussian(6, 12)
    field = np.random.default_rng(0).normal(size=(2, 6, 12, 3)).astype(np.float32)
    indices, weights = bilinear(grid, np.array([12.0, 88.0]), np.array([3.0, 200.0]))
    values = jax.jit(lambda x: interpolate(x, indices, weights))(field)
    np.testing.assert_allclose(values, interpolate(field, indices, weights), rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda x: interpolate(x, indices, weights).sum())(jnp.asarray(field))
    assert gradient.sum() == pytest.approx(2 * 2 * 3, rel=1e-5)


TARGETS = pytest.mark.parametrize(
    ("grid", "target", "shape"),
    [
        (equiangular(), 4, (31, 60)),
        (equiangular(), 8, (16, 30)),
        (staggered(), 3, (12, 24)),
        (gaussian(), 4, (8, 16)),
        (equiangular(), gaussian(), (32, 64)),
        (equiangular(), Grid(np.linspace(-87, 87, 19), 3.7 + np.arange(0, 360, 10.0)), (19, 36)),
        (gaussian(), equiangular(7, 7), (7, 7)),
        (gaussian(), gaussian(), (32, 64)),
    ],
    ids=["poles/4", "poles/8", "cells/3", "gauss/4", "to gauss", "offset", "odd", "itself"],
)


@TARGETS
def test_coarsening_keeps_constants_and_the_area_mean(grid, target, shape):
    by = coarsening(grid, target)
    assert by.grid.shape == shape
    assert by.rows.min() >= 0
    assert by.columns.min() >= 0
    field = np.random.default_rng(0).normal(size=(2, *grid.shape, 3))
    coarse = coarsen(field, by)
    assert coarse.shape == (2, *shape, 3)
    np.testing.assert_allclose(area_mean(coarse, by.grid, (-3, -2)), area_mean(field, grid, (-3, -2)), atol=1e-14)
    np.testing.assert_allclose(coarsen(np.full((*grid.shape, 1), 5e4), by), 5e4, rtol=1e-13)


@TARGETS
def test_coarse_cells_lie_where_they_say(grid, target, shape):
    """The mean of a smooth field over a cell is near its value in the middle of the cell."""

    def smooth(grid):
        phi, lam = np.deg2rad(np.meshgrid(grid.latitude.astype(float), grid.longitude.astype(float), indexing="ij"))
        return (np.sin(phi) + np.cos(phi) * np.cos(lam - 1))[..., None]

    by = coarsening(grid, target)
    gap, fine_gap = (np.deg2rad(max(360 / g.shape[1], *np.diff(g.latitude))) for g in (by.grid, grid))
    middle = np.abs(by.grid.latitude) < 60  # towards the poles a row's mean lies nearer to the equator than itself
    error = np.abs(coarsen(smooth(grid), by) - smooth(by.grid))[middle].max()
    assert error < 0.25 * gap**2 + 0.25 * fine_gap**2 / gap + 1e-6


def test_coarsening_by_a_factor_is_the_mean_of_groups():
    grid = staggered()
    field = np.random.default_rng(0).normal(size=(*grid.shape, 1))
    area = np.broadcast_to(cell_area(grid)[:, None, None], field.shape)
    groups = [(a * 1.0).reshape(12, 3, 24, 3, 1).sum((1, 3)) for a in (field * area, area)]
    np.testing.assert_allclose(coarsen(field, coarsening(grid, 3)), groups[0] / groups[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(coarsening(grid, 3).grid.latitude[:2], [-82.5, -67.5])


def test_coarsening_with_poles_keeps_them_and_shares_the_rows_on_an_edge():
    by = coarsening(equiangular(), 4)
    np.testing.assert_array_equal(by.grid.latitude, np.linspace(-90, 90, 31, dtype=np.float32))
    assert (by.rows[0] > 0).sum() == 3
    assert (by.rows[15] > 0).sum() == 5
    np.testing.assert_allclose(by.rows[15, 58:63], [0.125, 0.25, 0.25, 0.25, 0.125], rtol=1e-2)


def test_coarsening_turns_with_the_globe():
    grid, target = equiangular(13, 24), Grid(np.linspace(-75, 75, 6), 4.0 + np.arange(0, 360, 30.0))
    field = np.random.default_rng(0).normal(size=(13, 24, 1))
    by = coarsening(grid, target)
    np.testing.assert_allclose(coarsen(np.roll(field, 4, 1), by), np.roll(coarsen(field, by), 2, 1), atol=1e-6)


def test_coarsen_is_the_same_in_jax():
    grid = gaussian(6, 12)
    field = np.random.default_rng(0).normal(size=(2, 6, 12, 3)).astype(np.float32)
    by = coarsening(grid, 2)
    coarse = jax.jit(lambda x: coarsen(x, by))(field)
    assert coarse.dtype == coarsen(field, by).dtype == np.float32
    np.testing.assert_allclose(coarse, coarsen(field, by), atol=1e-6)


@pytest.mark.parametrize(
    ("grid", "target", "message"),
    [
        (equiangular(), 7, "by 7; factors that work are 2, 3, 4, 5, 6, 8,"),
        (equiangular(), 11, "121 rows with poles and 240 columns"),
        (gaussian(), 3, "factors that work are 2, 4, 8, 16, or"),
        (gaussian(), 1, "by 1"),
        (gaussian(), 0, "by 0"),
        (equiangular(5, 7), 2, "work are none"),
        (gaussian(), equiangular(7, 65), r"no more rows and columns .*\(32, 64\); got one of \(7, 65\)"),
    ],
)
def test_coarsening_rejects(grid, target, message):
    with pytest.raises(ValueError, match=message):
        coarsening(grid, target)


def test_coarsen_rejects_another_grid():
    with pytest.raises(ValueError, match=r"\(8, 12, 1\)"):
        coarsen(np.zeros((8, 12, 1)), coarsening(gaussian(6, 12), 2))


@pytest.mark.parametrize(
    ("latitude", "longitude", "message"),
    [([91.0], [0.0], "point 0 at latitude 91"), ([0.0], [np.inf], "finite"), ([0.0, 1.0], [0.0], "same")],
)
def test_bilinear_rejects(latitude, longitude, message):
    with pytest.raises(ValueError, match=message):
        bilinear(gaussian(), np.array(latitude), np.array(longitude))


@pytest.mark.parametrize("w", [12, 13])
def test_zonal_spectrum_obeys_parseval_and_finds_a_wave(w):
    x = np.random.default_rng(0).normal(size=(4, w, 2)).astype(np.float32)
    spectrum = zonal_spectrum(x, axis=-2)
    assert spectrum.shape == (4, w // 2 + 1, 2)
    np.testing.assert_allclose(spectrum.sum(axis=1), (x**2).mean(axis=1), rtol=1e-5)
    wave = jnp.asarray(3 * np.cos(2 * np.pi * 4 * np.arange(w) / w), jnp.float32)
    np.testing.assert_allclose(zonal_spectrum(wave), 4.5 * (np.arange(w // 2 + 1) == 4), atol=1e-5)
