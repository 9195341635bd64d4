"""Scores against WeatherBench2's values, brute force over pairs and closed forms."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from wind_jax.evaluation import metrics

H, W, M = 6, 8, 5


@pytest.fixture
def case(x64):
    rng = np.random.default_rng(0)
    weights = np.cos(np.linspace(-1.4, 1.4, H))[:, None]
    return rng.normal(size=(M, 3, H, W)), rng.normal(size=(3, H, W)), weights


def mean(field, weights, mask=None):
    share = np.broadcast_to(weights, field.shape) * (1 if mask is None else mask)
    return (share * field).sum((-2, -1)) / share.sum((-2, -1))


def test_weatherbench2(reference, x64):
    file = np.load(reference("weatherbench2_metrics.npz"))
    ensemble, truth, weights = file["forecast"], file["truth"], file["latitude_weights"][:, None]
    centre = ensemble.mean(0)
    values = {
        "crps": metrics.crps(ensemble, truth, weights),
        "crps_skill": metrics.crps_skill(ensemble, truth, weights),
        "crps_spread": metrics.crps_spread(ensemble, weights),
        "ensemble_mean_mse": metrics.ensemble_mean_mse(ensemble, truth, weights),
        "debiased_ensemble_mean_mse": metrics.debiased_ensemble_mean_mse(ensemble, truth, weights),
        "ensemble_variance": metrics.ensemble_variance(ensemble, weights),
        "energy_score": metrics.energy_score(ensemble, truth, weights),
        "mse": metrics.mse(centre, truth, weights),
        "mae": metrics.mae(centre, truth, weights),
        "bias": metrics.bias(centre, truth, weights),
        "acc": metrics.acc(centre, truth, np.broadcast_to(file["climatology"], truth.shape), weights),
    }
    for name, value in values.items():
        np.testing.assert_allclose(value, file[f"per_time/{name}"], rtol=0, atol=1e-6, err_msg=name)
        if f"mean/{name}" in file:
            np.testing.assert_allclose(value.mean(), file[f"mean/{name}"], rtol=0, atol=1e-6, err_msg=name)


def test_crps_by_brute_force(case):
    ensemble, truth, weights = case
    skill = sum(np.abs(x - truth) for x in ensemble) / M
    pairs = sum(np.abs(a - b) for a, b in itertools.combinations(ensemble, 2)) / math.comb(M, 2)
    np.testing.assert_allclose(metrics.crps(ensemble, truth, weights), mean(skill - pairs / 2, weights), rtol=1e-12)


def test_fair_crps_of_a_gaussian(x64):
    """E CRPS of N(0, s) at y: s (z (2 Phi(z) - 1) + 2 phi(z) - 1/sqrt(pi)), whatever the number of members."""
    s, y = 1.7, 0.6
    z = y / s
    phi, cumulative = math.exp(-z * z / 2) / math.sqrt(2 * math.pi), 0.5 * (1 + math.erf(z / math.sqrt(2)))
    exact = s * (z * (2 * cumulative - 1) + 2 * phi - 1 / math.sqrt(math.pi))
    for members in (2, 10):
        ensemble = s * np.random.default_rng(1).normal(size=(members, 500, 500))
        score = metrics.crps(ensemble, np.full((500, 500), y), np.ones((500, 1)))
        assert float(score) == pytest.approx(exact, abs=0.01)


def test_one_member_is_a_deterministic_forecast(case):
    ensemble, truth, weights = case
    one = ensemble[:1]
    np.testing.assert_allclose(metrics.crps(one, truth, weights), metrics.mae(one[0], truth, weights))
    np.testing.assert_allclose(metrics.energy_score(one, truth, weights), metrics.rmse(one[0], truth, weights))
    assert not metrics.ensemble_variance(one, weights).any()


def test_reliable_ensemble_has_ratio_one_and_a_flat_histogram(x64):
    rng = np.random.default_rng(2)
    members = 3  # few, so that the factor (M + 1) / M matters: without it the ratio is 0.87
    ensemble, truth = rng.normal(size=(members, 400, 400)), rng.normal(size=(400, 400))
    weights = np.ones((400, 1))
    variance = metrics.ensemble_variance(ensemble, weights)
    error = metrics.ensemble_mean_mse(ensemble, truth, weights)
    assert float(metrics.spread_skill_ratio(variance, error, members)) == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(metrics.rank_histogram(ensemble, truth, weights), 1 / (members + 1), atol=0.005)


def test_rank_histogram_shares_ties():
    ensemble, truth = jnp.zeros((3, 1, 1)), jnp.zeros((1, 1))
    np.testing.assert_allclose(metrics.rank_histogram(ensemble, truth, jnp.ones((1, 1))), 0.25)
    low = metrics.rank_histogram(ensemble + 1, truth, jnp.ones((1, 1)))
    np.testing.assert_array_equal(low, [1, 0, 0, 0])


def test_mask_selects_cells(case):
    """Masked scores do not see the other cells, not even NaN there, and equal the scores of the cells alone."""
    ensemble, truth, weights = case
    mask = np.random.default_rng(3).random((3, H, W)) < 0.5
    holes = np.where(mask, truth, np.nan)
    for metric in (metrics.crps, metrics.ensemble_mean_mse, metrics.energy_score, metrics.rank_histogram):
        score = metric(ensemble, holes, weights, mask)
        assert np.isfinite(score).all()
        np.testing.assert_allclose(score, metric(ensemble, truth, weights, mask))
    error = (ensemble.mean(0) - truth) ** 2
    np.testing.assert_allclose(metrics.ensemble_mean_mse(ensemble, truth, weights, mask), mean(error, weights, mask))
    assert np.isnan(metrics.mse(truth, truth, weights, np.zeros((H, W), bool))).all()


def test_acc_is_one_for_a_scaled_anomaly(case):
    _, truth, weights = case
    climatology = np.full_like(truth, 0.3)
    np.testing.assert_allclose(metrics.acc(climatology + 2 * (truth - climatology), truth, climatology, weights), 1)
    np.testing.assert_allclose(metrics.acc(2 * climatology - truth, truth, climatology, weights), -1)
