"""Kriging: the exact Gaussian posterior, calibrated, and better than linear interpolation on held-out weather."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.special import eval_legendre
from scipy.stats import norm

from wind_jax.channels import channels
from wind_jax.data.climatology import HARMONICS, Climatology
from wind_jax.data.normalize import Statistics
from wind_jax.data.store import Store, open_store
from wind_jax.embedded import embedded
from wind_jax.evaluation import metrics
from wind_jax.evaluation.baselines import gaussian_members, interpolation
from wind_jax.evaluation.kriging import Covariance, fit_covariance, kriging
from wind_jax.evaluation.metrics import cell_mean
from wind_jax.observations.gridded import Placed, cell_errors
from wind_jax.observations.gridded import dense as on_grid
from wind_jax.observations.twins import draw_cells, measure
from wind_jax.prior import load_prior
from wind_jax.sphere import Grid, area_mean, area_weights

GRID = Grid(np.linspace(-78.75, 78.75, 8), np.arange(16) * 22.5)
TIMES = np.datetime64("2001-01-01", "ns") + np.arange(4) * np.timedelta64(6, "h")
DEGREES = np.array([0.1, 0.2, 0.25, 0.2, 0.1, 0.1, 0.05])
DRIFT = 12.0


def covariance(names=("temperature", "u_component_of_wind"), levels=(500,)):
    """The same for all channels, of a known shape."""
    selected = channels(names, levels)
    persistence = np.zeros(14)
    persistence[[3, 9]] = 0.4, 0.6
    amplitude = 1 + 0.5 * np.sin(np.deg2rad(GRID.latitude.astype(np.float64))) ** 2
    repeated = lambda a: np.repeat(a[:, None], len(selected), axis=1)
    return Covariance(
        selected, GRID.latitude.astype(np.float64), repeated(amplitude), repeated(DEGREES), repeated(persistence),
        np.full(len(selected), DRIFT),
    )  # fmt: skip


def dense(frames):
    """Covariance matrix of all cells in all frames, by another formula of every part."""
    t, latitude, longitude = (
        a.ravel()
        for a in np.meshgrid(
            np.arange(frames), np.deg2rad(GRID.latitude, dtype=float), np.deg2rad(GRID.longitude, dtype=float),
            indexing="ij",
        )
    )  # fmt: skip
    moved = longitude - np.deg2rad(DRIFT) * t / 4
    cosine = np.sin(latitude)[:, None] * np.sin(latitude)[None]
    cosine = cosine + np.cos(latitude)[:, None] * np.cos(latitude)[None] * np.cos(moved[:, None] - moved[None])
    space = sum(b * eval_legendre(n, cosine) for n, b in enumerate(DEGREES))
    hours = 6 * np.abs(t[:, None] - t[None])
    time = 0.4 * np.exp(-hours / 48) + 0.6 * (1 + hours / 12) * np.exp(-hours / 12)
    amplitude = 1 + 0.5 * np.sin(latitude) ** 2
    return amplitude[:, None] * amplitude[None] * space * time


def draw(rng, count, frames=4):
    values = (
        rng.standard_normal((count, frames * 128)) @ np.linalg.cholesky(dense(frames) + 1e-9 * np.eye(frames * 128)).T
    )
    return values.reshape(count, frames, 8, 16)


def some(truth, fraction, rng):
    return np.where(rng.uniform(size=truth.shape) < fraction, truth, np.nan).astype(np.float32)


def test_equals_the_posterior_of_dense_linear_algebra():
    rng = np.random.default_rng(0)
    observed = some(np.moveaxis(draw(rng, 2), 0, -1), 0.1, rng)
    background = rng.normal(size=observed.shape).astype(np.float32)
    error = np.array([0.1, 0.5], np.float32)
    mean, deviation = kriging(observed + background, background, TIMES, GRID, covariance(), error)
    prior = dense(4)
    for c in range(2):
        y = observed[..., c].ravel()
        known = np.isfinite(y)
        gain = np.linalg.solve(prior[np.ix_(known, known)] + error[c] ** 2 * np.eye(known.sum()), prior[known]).T
        np.testing.assert_allclose((mean - background)[..., c].ravel(), gain @ y[known], atol=2e-5)
        variance = np.diag(prior - gain @ prior[known])
        np.testing.assert_allclose(deviation[..., c].ravel(), np.sqrt(variance), atol=2e-5)


def test_without_error_observations_are_met_and_without_observations_there_is_climatology():
    rng = np.random.default_rng(1)
    observed = some(np.moveaxis(draw(rng, 2), 0, -1), 0.03, rng)
    observed[..., 1] = np.nan
    mean, deviation = kriging(observed, np.zeros_like(observed), TIMES, GRID, covariance(), np.zeros(2, np.float32))
    known = np.isfinite(observed)
    np.testing.assert_allclose(mean[known], observed[known], atol=1e-4)
    assert deviation[known].max() < 2e-3
    assert (mean[..., 1] == 0).all()
    np.testing.assert_allclose(deviation[..., 1], np.broadcast_to(covariance().amplitude[:, :1], (4, 8, 16)), rtol=1e-6)


def test_deviation_is_calibrated():
    rng = np.random.default_rng(2)
    many = covariance(
        ("temperature", "geopotential", "u_component_of_wind", "v_component_of_wind"), range(100, 1100, 100)
    )
    truth = np.moveaxis(draw(rng, 40), 0, -1).astype(np.float32)
    observed = some(truth, 0.05, rng) + 0.2 * rng.standard_normal(truth.shape).astype(np.float32)
    mean, deviation = kriging(observed, np.zeros_like(observed), TIMES, GRID, many, np.full(40, 0.2, np.float32))
    hidden = np.isnan(observed)
    ratio = np.sqrt(np.mean(deviation[hidden] ** 2) / np.mean((truth - mean)[hidden] ** 2))
    assert 0.95 < ratio < 1.05
    assert 0.88 < np.mean(np.abs(truth - mean)[hidden] < 1.645 * deviation[hidden]) < 0.92


def test_members_score_as_the_gaussian_they_are_of():
    """The fair CRPS is that of N(mean, deviation^2) in closed form, the error of the mean that of the field."""
    rng, grid = np.random.default_rng(0), Grid(np.linspace(-85, 85, 18), np.arange(36) * 10.0)
    statistics = Statistics(channels(("temperature",), (500,)), np.array([250.0]), np.array([10.0]), np.ones(1))
    mean = rng.normal(size=(2, *grid.shape, 1)).astype(np.float32)
    deviation = rng.uniform(0.5, 2.0, (1, grid.shape[0], 1, 1)).astype(np.float32)
    truth = mean + 1.3 * deviation * rng.normal(size=mean.shape).astype(np.float32)
    members = gaussian_members(mean, deviation, statistics, (0,))
    z = (truth - mean) / deviation
    expected = 10 * deviation * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    weights = area_weights(grid)
    found = metrics.crps(members[..., 0], statistics.denormalize(truth)[..., 0], weights)
    np.testing.assert_allclose(found, cell_mean(expected[..., 0], weights), rtol=0.03)
    np.testing.assert_allclose(members.mean(0), statistics.denormalize(mean), rtol=1e-6)


def test_the_mean_of_members_is_the_field_where_units_are_not_linear():
    """Rain is Gaussian in its logarithm, and like humidity never negative: drawn as it comes its mean is too wet."""
    some = channels(("specific_humidity", "total_precipitation_6hr"), (850,))
    statistics = Statistics(some, np.array([4e-3, 0.2]), np.array([4e-3, 0.3]), np.ones(2))
    mean = np.random.default_rng(0).normal(size=(2, 4, 8, 2)).astype(np.float32)
    members = gaussian_members(mean, np.full((1, 1, 1, 2), 0.9, np.float32), statistics, (0,))
    np.testing.assert_allclose(members.mean(0), statistics.physical(mean), rtol=1e-5, atol=1e-9)
    assert members.min() >= 0
    assert (members.std(0)[statistics.physical(mean) > 0] > 0).all()


def test_deviation_of_rows_is_interpolated():
    c = covariance()
    between = Grid((GRID.latitude[1:] + GRID.latitude[:-1]) / 2, GRID.longitude)
    np.testing.assert_allclose(c.deviation(GRID)[:, 0], c.amplitude, rtol=1e-6)
    np.testing.assert_allclose(c.deviation(between)[:, 0], (c.amplitude[1:] + c.amplitude[:-1]) / 2, rtol=1e-6)


def test_tiles_agree_with_all_observations_at_once():
    rng = np.random.default_rng(3)
    observed = some(np.moveaxis(draw(rng, 2), 0, -1), 0.4, rng)
    given = observed, np.zeros_like(observed), TIMES, GRID, covariance(), np.full(2, 0.3, np.float32)
    (mean, deviation), (tiled, wider) = kriging(*given), kriging(*given, exact=100)
    assert np.sqrt(np.mean((tiled - mean) ** 2)) < 0.25 * deviation.mean()
    assert (wider >= deviation - 1e-5).all()  # fewer observations never tell more
    assert wider.mean() < 1.1 * deviation.mean()


class Drawn(Store):
    """Fields of the covariance above, in windows of four frames with a gap after each."""

    def __init__(self, count):
        self.path, self.channels, self.grid = "drawn", channels(["temperature"], [500]), GRID
        day = np.datetime64("2001-01-01", "ns") + np.arange(count) * np.timedelta64(48, "h")
        self.times = (day[:, None] + (TIMES - TIMES[0])[None]).ravel()
        self.states = draw(np.random.default_rng(4), count).reshape(-1, 8, 16, 1).astype(np.float32)

    def read(self, start, frames):
        return self.states[start : start + frames]


def test_fit_finds_the_covariance(tmp_path):
    store, one = Drawn(800), np.ones(1)
    climatology = Climatology(store.channels, GRID, np.zeros((len(HARMONICS), 8, 16, 1), np.float32))
    statistics = Statistics(store.channels, 0 * one, one, one)
    fitted = fit_covariance(store, climatology, statistics, windows=800, frames=4, cells=128)
    known = covariance(["temperature"])
    np.testing.assert_allclose(fitted.amplitude, known.amplitude, rtol=0.05)
    np.testing.assert_allclose(fitted.degrees[:7, 0], DEGREES, atol=0.03)
    assert abs(fitted.drift[0] - DRIFT) <= 3
    again = fit_covariance(store, climatology, statistics, windows=800, frames=4, cells=128)
    assert again.to_dict() == fitted.to_dict()
    fitted.save(tmp_path / "covariance.json")
    assert Covariance.load(tmp_path / "covariance.json").to_dict() == fitted.to_dict()
    with pytest.raises(ValueError, match="two or more windows, frames and cells, got 1, 4"):
        fit_covariance(store, climatology, statistics, windows=1, frames=4)
    other = Climatology(store.channels, Grid(GRID.latitude, np.arange(8) * 45.0), np.zeros((7, 8, 8, 1), np.float32))
    with pytest.raises(ValueError, match=r"the climatology the same grid, got \(8, 8\)"):
        fit_covariance(store, other, statistics)


@pytest.mark.slow
def test_packaged_covariance_beats_linear_interpolation_on_held_out_weather():
    prior, fitted = load_prior(embedded("prior.npz")), Covariance.load(embedded("covariance.json"))
    statistics, grid = prior.statistics, prior.grid
    store = open_store(embedded("sample.zarr"), statistics.channels)
    error, squares = cell_errors(0.05, statistics), []
    for case, start in enumerate((10, 70)):
        key, times = jax.random.fold_in(jax.random.key(0), case), store.times[start : start + 5]
        truth = statistics.normalize(store.read(start, 5))
        cells = draw_cells(key, truth.shape, statistics.channels, 0.01)
        y = measure(truth, cells, error, key)
        observed = on_grid({name: Placed(where, y[name], y[name]) for name, where in cells.items()}, truth.shape)
        normal = statistics.normalize(prior.climatology.at(times))
        mean, deviation = kriging(observed, normal, times, grid, fitted, error)
        square = lambda x: area_mean(x**2, grid, (-3, -2)).mean(0)
        triangles = interpolation(observed, grid)
        squares.append([square(mean - truth), square(triangles - truth), square(normal - truth), square(deviation)])
    kriged, linear, normal, spread = np.mean(squares, axis=0)
    assert (kriged < linear).all()
    assert (kriged < normal).mean() > 0.9  # every channel but such as rain, which 1 % of the cells say little of
    assert 0.8 < np.sqrt(spread / kriged).mean() < 1.25


def test_bad_input():
    right = covariance()
    zeros = np.zeros((4, 8, 16, 2), np.float32)
    error = np.full(2, 0.1, np.float32)
    for change, message in [
        ({"degrees": np.tile([[1.5], [-0.5]], (1, 2))}, "0 or more and sum to 1"),
        ({"persistence": right.persistence * 2}, "0 or more and sum to 1"),
        ({"amplitude": right.amplitude[:5]}, r"of shape \(8, 2\), got \(5, 2\)"),
        ({"amplitude": -right.amplitude}, "must be positive, got -"),
    ]:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(right, **change)
    with pytest.raises(ValueError, match="lacks"):
        Covariance.from_dict({"channels": []})
    with pytest.raises(ValueError, match="no covariance file at"):
        Covariance.load("nowhere.json")
    with pytest.raises(ValueError, match=r"got \(4, 8, 16, 2\)"):
        kriging(zeros, zeros, TIMES[:3], GRID, right, error)
    with pytest.raises(ValueError, match="error of 0 or more"):
        kriging(zeros, zeros, TIMES, GRID, right, -error)
    with pytest.raises(ValueError, match="finite background"):
        kriging(zeros, zeros * np.nan, TIMES, GRID, right, error)
