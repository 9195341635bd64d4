"""Scores against WeatherBench2's values, scoringrules on real members, brute force over cells and closed forms."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
import scoringrules
import xarray
from scipy.stats import entropy

from wind_jax.evaluation import metrics
from wind_jax.sphere import Grid, area_weights

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
    """Every value of the file; spectra, of 1e12, relative to their largest."""
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
    for entry in file:
        kind, _, name = entry.partition("/")
        if kind in ("per_time", "mean"):
            value = values[name] if kind == "per_time" else values[name].mean()
            np.testing.assert_allclose(value, file[entry], rtol=0, atol=1e-6, err_msg=entry)
    assert {f"per_time/{name}" for name in values} <= set(file)
    spectrum = metrics.zonal_energy_spectrum(truth, Grid(file["latitude"], file["longitude"]))
    exact = file["zonal_spectrum"]
    np.testing.assert_allclose(spectrum, exact, rtol=1e-6, atol=1e-6 * exact[:, 0].max())
    np.testing.assert_allclose(spectrum[:, 1:-1], exact[:, 1:-1], rtol=1e-6)


def brute_force(x, y, w, threshold):
    """Every score of one field: loops over its cells with members `x` (m, n), truth `y` (n,) and weights `w` (n,)."""
    cells, total = range(len(y)), sum(w)
    average = lambda f: sum(w[i] * f(i) for i in cells) / total
    centre = [sum(x[:, i]) / M for i in cells]
    distance = lambda i: sum(abs(a - b) for a, b in itertools.combinations(x[:, i], 2)) / math.comb(M, 2)
    variance = lambda i: sum((a - centre[i]) ** 2 for a in x[:, i]) / (M - 1)
    norm = lambda a, b: math.sqrt(average(lambda i: (a[i] - b[i]) ** 2))
    share = lambda i: sum(a > threshold for a in x[:, i]) / M
    out = {
        "bias": average(lambda i: centre[i] - y[i]),
        "mae": average(lambda i: abs(centre[i] - y[i])),
        "mse": average(lambda i: (centre[i] - y[i]) ** 2),
        "rmse": norm(centre, y),
        "acc": average(lambda i: (centre[i] - 0.3) * (y[i] - 0.3))
        / math.sqrt(average(lambda i: (centre[i] - 0.3) ** 2) * average(lambda i: (y[i] - 0.3) ** 2)),
        "crps_skill": average(lambda i: sum(abs(a - y[i]) for a in x[:, i]) / M),
        "crps_spread": average(distance),
        "ensemble_variance": average(variance),
        "energy_score": sum(norm(a, y) for a in x) / M - sum(norm(x[m], x[m + 1]) for m in range(M - 1)) / 2 / (M - 1),
        "brier_score": average(lambda i: (share(i) - (y[i] > threshold)) ** 2 - share(i) * (1 - share(i)) / (M - 1)),
        "rank_histogram": [average(lambda i: sum(a < y[i] for a in x[:, i]) == rank) for rank in range(M + 1)],  # noqa: B023
    }
    out["crps"] = out["crps_skill"] - out["crps_spread"] / 2
    out["ensemble_mean_mse"] = out["mse"]
    out["debiased_ensemble_mean_mse"] = out["mse"] - out["ensemble_variance"] / M
    return out


@pytest.mark.parametrize("masked", [False, True])
def test_every_score_by_brute_force(case, masked):
    ensemble, truth, weights = case
    mask = np.random.default_rng(4).random(truth.shape) < 0.6 if masked else None
    centre, threshold = ensemble.mean(0), 0.2
    forecast = {name: getattr(metrics, name)(centre, truth, weights, mask) for name in ("bias", "mae", "mse", "rmse")}
    members = (
        "crps_skill",
        "crps",
        "energy_score",
        "rank_histogram",
        "ensemble_mean_mse",
        "debiased_ensemble_mean_mse",
    )
    spread = {name: getattr(metrics, name)(ensemble, weights, mask) for name in ("crps_spread", "ensemble_variance")}
    scores = forecast | spread | {name: getattr(metrics, name)(ensemble, truth, weights, mask) for name in members}
    scores["acc"] = metrics.acc(centre, truth, np.full_like(truth, 0.3), weights, mask)
    scores["brier_score"] = metrics.brier_score(ensemble, truth, threshold, weights, mask)
    for time in range(len(truth)):
        counts = np.ones((H, W), bool) if mask is None else mask[time]
        cells = np.broadcast_to(weights, (H, W))[counts]
        exact = brute_force(ensemble[:, time, counts], truth[time, counts], cells, threshold)
        assert exact.keys() == scores.keys()
        for name, value in exact.items():
            np.testing.assert_allclose(scores[name][..., time], value, rtol=1e-12, err_msg=name)


@pytest.fixture
def real_members(shared_data, x64):
    """(m, case, h, w) of ERA5's ensemble of data assimilation, geopotential or temperature, and the cells' weights."""
    with xarray.open_dataset(shared_data("era5_ensemble_20170101.nc")) as data:
        data = (
            data.sortby("latitude").stack(case=("time", "level")).transpose("number", "case", "latitude", "longitude")
        )
        weights = area_weights(Grid(data["latitude"].values, data["longitude"].values))
        return {name: data[name].values for name in ("geopotential", "temperature")}, weights.astype(np.float64)


@pytest.mark.parametrize("name", ["geopotential", "temperature"])
def test_real_ensemble_against_scoringrules(real_members, name):
    """Nine members of ERA5's ensemble verified by the tenth."""
    fields, weights = real_members
    ensemble, truth = fields[name][:9], fields[name][9]
    crps = scoringrules.crps_ensemble(truth, ensemble, m_axis=0, estimator="fair", backend="numpy")
    np.testing.assert_allclose(metrics.pointwise_crps(ensemble, truth), crps, rtol=1e-9, atol=1e-9 * crps.max())
    np.testing.assert_allclose(metrics.crps(ensemble, truth, weights), mean(crps, weights), rtol=1e-9)
    threshold = np.broadcast_to(truth.mean((-2, -1), keepdims=True), truth.shape)
    probability = (ensemble > threshold).mean(0)
    plain = scoringrules.brier_score((truth > threshold).astype(int), probability, backend="numpy")
    fair = mean(plain - probability * (1 - probability) / 8, weights)
    np.testing.assert_allclose(metrics.brier_score(ensemble, truth, threshold, weights), fair, rtol=1e-9)
    one = metrics.crps(ensemble[:1], truth, weights)
    np.testing.assert_allclose(one, mean(np.abs(ensemble[0] - truth), weights), rtol=1e-9)


def test_real_ensemble_in_single_precision(real_members):
    """Geopotential of 5e4 m2 s-2 whose members differ by 10: float32 keeps four digits of the CRPS."""
    fields, weights = real_members
    ensemble, truth = fields["geopotential"][:9], fields["geopotential"][9]
    single = metrics.crps(ensemble.astype(np.float32), truth.astype(np.float32), weights.astype(np.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, metrics.crps(ensemble, truth, weights), rtol=1e-4)


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


def test_one_member_has_no_spread():
    with pytest.raises(ValueError, match="two members or more, got 1"):
        metrics.spread_skill_ratio(jnp.ones(1), jnp.ones(1), 1)


def test_brier_score_over_all_thresholds_is_the_crps(case):
    ensemble, truth, weights = case
    thresholds = np.arange(-6, 6, 0.01)
    every = lambda x: np.broadcast_to(x[..., None, :, :, :], (*x.shape[:-3], len(thresholds), *x.shape[-3:]))
    scores = metrics.brier_score(every(ensemble), every(truth), thresholds[:, None, None, None], weights)
    np.testing.assert_allclose(0.01 * scores.sum(0), metrics.crps(ensemble, truth, weights), rtol=2e-3)


@pytest.mark.parametrize("members", [2, 10])
def test_fair_brier_score_does_not_depend_on_the_number_of_members(x64, members):
    """Truth exceeds with probability 0.4, members with 0.3: the score of an infinite ensemble is 0.24 + 0.01."""
    rng = np.random.default_rng(5)
    ensemble, truth = rng.random((members, 400, 400)) - 0.7, rng.random((400, 400)) - 0.6
    score = metrics.brier_score(ensemble, truth, 0.0, np.ones((400, 1)))
    assert float(score) == pytest.approx(0.25, abs=0.004)  # without the correction of two members: 0.355


def test_brier_score_of_a_threshold_for_each_cell(case):
    """A threshold that moves with the fields leaves the event, and missing values are not dry."""
    ensemble, truth, weights = case
    shift = np.random.default_rng(6).normal(size=(H, W))
    moved = metrics.brier_score(ensemble + shift, truth + shift, 0.5 + shift, weights)
    np.testing.assert_allclose(moved, metrics.brier_score(ensemble, truth, 0.5, weights), rtol=1e-12)
    assert metrics.brier_score(ensemble * 0 + 9, truth, -9.0, weights).tolist() == [0, 0, 0]
    holes = np.where(shift > 1, np.nan, truth)
    assert np.isnan(metrics.brier_score(ensemble, holes, 0.5, weights)).all()
    assert np.isfinite(metrics.brier_score(ensemble, holes, 0.5, weights, np.isfinite(holes))).all()


@pytest.mark.parametrize("w", [9, 12])
def test_zonal_energy_of_a_wave_is_half_its_square_along_the_circle(x64, w):
    grid = Grid(np.array([-60.0, 0.0, 45.0]), np.arange(w) * 360 / w)
    wave = 5 + 3 * np.cos(2 * np.pi * 4 * np.arange(w) / w + 0.3) * np.ones((2, 3, 1))
    circle = 2 * np.pi * 6367.5e3 * np.cos(np.deg2rad([60, 0, 45]))
    exact = circle[:, None] * (25.0 * (np.arange(w // 2 + 1) == 0) + 4.5 * (np.arange(w // 2 + 1) == 4))
    spectrum = metrics.zonal_energy_spectrum(wave, grid)
    np.testing.assert_allclose(spectrum, np.broadcast_to(exact, spectrum.shape), rtol=1e-12, atol=1e-5)
    with pytest.raises(ValueError, match=r"\(3, 9\)|\(3, 12\)"):
        metrics.zonal_energy_spectrum(wave[..., :-1], grid)


def test_spectral_divergence_sees_the_shape_and_distance_the_amount(x64):
    rng = np.random.default_rng(7)
    forecast, truth = rng.random((2, 4, 20))
    exact = entropy(truth[:, 3:], forecast[:, 3:], axis=-1)  # which divides by the sums itself
    np.testing.assert_allclose(metrics.spectral_divergence(forecast, truth, first=3), exact, rtol=1e-12)
    assert (metrics.spectral_divergence(forecast, truth) > 0).all()
    np.testing.assert_allclose(metrics.spectral_divergence(0.5 * truth, truth), 0, atol=1e-15)
    half = 10 * math.log10(2)
    np.testing.assert_allclose(metrics.log_spectral_distance(0.5 * truth, truth), half, rtol=1e-12)
    damped = np.where(np.arange(20) > 10, truth / 4, truth)  # 9 of the 19 waves have lost 6 dB
    np.testing.assert_allclose(metrics.log_spectral_distance(damped, truth), 2 * half * math.sqrt(9 / 19), rtol=1e-12)
