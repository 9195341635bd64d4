"""Verification scores of deterministic and ensemble forecasts: pure functions of arrays, as WeatherBench2 defines them.

Every function averages over the last two axes (latitude, longitude) with the weights of the cells and keeps the
axes before them. An ensemble carries its members on the first axis. `mask` is true where cells count: with it, a
reconstruction is scored over the cells that were not observed.

Squares are averaged over cases first, roots and ratios are taken last: the root of `mse(...).mean()` is the RMSE of
many forecasts, `spread_skill_ratio` takes averaged variance and error.

Source: Rasp et al. (2024), WeatherBench 2, arXiv 2308.15560, section 4.
"""

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import rel_entr
from jaxtyping import Array, ArrayLike, Bool, Float

from wind_jax import sphere

Field = Float[ArrayLike, "*batch h w"]
Ensemble = Float[ArrayLike, "m *batch h w"]
Score = Float[Array, "*batch"]
Weights = Float[ArrayLike, "h #w"]
Mask = Bool[ArrayLike, "*#batch h w"] | None
Spectrum = Float[ArrayLike, "*batch k"]

_RADIUS = 6.3675e6  # m, WeatherBench2's Earth: half way between the polar and the equatorial radius


def cell_mean(field: Field, weights: Weights, mask: Mask = None) -> Score:
    """Mean of `field` over the cells of the grid.

    Args:
        field: (..., h, w).
        weights: weight of each cell, (h, 1) or (h, w), as from `wind_jax.sphere.area_weights`; any scale.
        mask: (..., h, w), broadcast from the left: the cells that count, all where it is None.

    Returns:
        (...): NaN where no cell counts.
    """
    field, weights = jnp.asarray(field), jnp.asarray(weights)
    share = jnp.broadcast_to(weights.astype(field.dtype), field.shape[-2:])
    share = jnp.broadcast_to(share[(None,) * (field.ndim - 2)], field.shape)
    if mask is not None:
        mask = jnp.asarray(mask)
        share = jnp.where(mask[(None,) * (field.ndim - mask.ndim)], share, 0)
        field = jnp.where(share > 0, field, 0)
    return (share * field).sum((-2, -1)) / share.sum((-2, -1))


def bias(forecast: Field, truth: Field, weights: Weights, mask: Mask = None) -> Score:
    """Mean of forecast minus truth."""
    return cell_mean(jnp.asarray(forecast) - jnp.asarray(truth), weights, mask)


def mae(forecast: Field, truth: Field, weights: Weights, mask: Mask = None) -> Score:
    """Mean absolute error; the CRPS of a deterministic forecast."""
    return cell_mean(jnp.abs(jnp.asarray(forecast) - jnp.asarray(truth)), weights, mask)


def mse(forecast: Field, truth: Field, weights: Weights, mask: Mask = None) -> Score:
    """Mean squared error."""
    return cell_mean((jnp.asarray(forecast) - jnp.asarray(truth)) ** 2, weights, mask)


def rmse(forecast: Field, truth: Field, weights: Weights, mask: Mask = None) -> Score:
    """Root mean squared error of each field."""
    return jnp.sqrt(mse(forecast, truth, weights, mask))


def acc(forecast: Field, truth: Field, climatology: Field, weights: Weights, mask: Mask = None) -> Score:
    """Anomaly correlation coefficient: uncentred correlation of the departures from `climatology`."""
    f = jnp.asarray(forecast) - jnp.asarray(climatology)
    y = jnp.asarray(truth) - jnp.asarray(climatology)
    norm = cell_mean(f**2, weights, mask) * cell_mean(y**2, weights, mask)
    return cell_mean(f * y, weights, mask) / jnp.sqrt(norm)


def pairwise_difference(ensemble: Float[ArrayLike, "m *batch"]) -> Float[Array, "*batch"]:
    """Unbiased E|X - X'| over pairs of different members at each point; 0 for one member.

    With the members sorted, the sum over pairs of |x_i - x_j| is sum_i (2 i - M - 1) x_i for i = 1..M: M log M
    operations and no array of pairs.
    """
    ensemble = jnp.asarray(ensemble)
    members = ensemble.shape[0]
    if members == 1:
        return jnp.zeros_like(ensemble[0])
    rank = (2 * jnp.arange(members, dtype=ensemble.dtype) - (members - 1)).reshape(-1, *(1,) * (ensemble.ndim - 1))
    deviation = jnp.sort(ensemble - ensemble[:1], axis=0)  # keeps the digits of a pressure of 1e5 Pa
    return (rank * deviation).sum(0) * (2 / (members * (members - 1)))


def pointwise_crps(ensemble: Float[ArrayLike, "m *batch"], truth: Float[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
    """Fair continuous ranked probability score at each point, E|X - y| - E|X - X'| / 2.

    Unbiased in the number of members (Zamo & Naveau 2018, eq. eFAIR); the absolute error for one member.
    """
    error = jnp.abs(jnp.asarray(ensemble) - jnp.asarray(truth)[None])
    return error.mean(0) - pairwise_difference(ensemble) / 2


def crps_skill(ensemble: Ensemble, truth: Field, weights: Weights, mask: Mask = None) -> Score:
    """E|X - y|: mean absolute error of the members."""
    error = jnp.abs(jnp.asarray(ensemble) - jnp.asarray(truth)[None])
    return cell_mean(error.mean(0), weights, mask)


def crps_spread(ensemble: Ensemble, weights: Weights, mask: Mask = None) -> Score:
    """Mean over cells of `pairwise_difference`."""
    return cell_mean(pairwise_difference(ensemble), weights, mask)


def crps(ensemble: Ensemble, truth: Field, weights: Weights, mask: Mask = None) -> Score:
    """Mean over cells of `pointwise_crps`."""
    return cell_mean(pointwise_crps(ensemble, truth), weights, mask)


def ensemble_mean_mse(ensemble: Ensemble, truth: Field, weights: Weights, mask: Mask = None) -> Score:
    """Mean squared error of the ensemble mean."""
    return mse(jnp.asarray(ensemble).mean(0), truth, weights, mask)


def ensemble_variance(ensemble: Ensemble, weights: Weights, mask: Mask = None) -> Score:
    """Mean over cells of the unbiased variance of the members; 0 for one member."""
    ensemble = jnp.asarray(ensemble)
    return cell_mean(ensemble.var(0, ddof=min(1, ensemble.shape[0] - 1)), weights, mask)


def debiased_ensemble_mean_mse(ensemble: Ensemble, truth: Field, weights: Weights, mask: Mask = None) -> Score:
    """Estimate of the error of an infinite ensemble's mean: MSE of the mean minus variance / M."""
    excess = ensemble_variance(ensemble, weights, mask) / jnp.asarray(ensemble).shape[0]
    return ensemble_mean_mse(ensemble, truth, weights, mask) - excess


def spread_skill_ratio(
    variance: Float[ArrayLike, "..."], mean_mse: Float[ArrayLike, "..."], members: int
) -> Float[Array, "..."]:
    """sqrt((M + 1) / M * variance / MSE of the ensemble mean): 1 for a reliable ensemble of M members.

    The factor is there because the truth and M exchangeable members give a mean squared error of (1 + 1/M) times
    the variance (Fortin et al. 2014, eq. 15). Average both arguments over all cases before.

    Args:
        variance: averaged `ensemble_variance`.
        mean_mse: averaged `ensemble_mean_mse`.
        members: M.

    Raises:
        ValueError: one member, which has no spread.
    """
    if members < 2:
        raise ValueError(f"the spread of an ensemble needs two members or more, got {members}")
    return jnp.sqrt((members + 1) / members * jnp.asarray(variance) / jnp.asarray(mean_mse))


def energy_score(ensemble: Ensemble, truth: Field, weights: Weights, mask: Mask = None) -> Score:
    """E||X - y|| - E||X - X'|| / 2 with the area-weighted L2 norm of the whole field.

    The spread is averaged over consecutive members, as WeatherBench2 does: unbiased, M - 1 pairs.
    """
    ensemble = jnp.asarray(ensemble)
    skill = jnp.sqrt(cell_mean((ensemble - jnp.asarray(truth)[None]) ** 2, weights, mask)).mean(0)
    if ensemble.shape[0] == 1:
        return skill
    spread = jnp.sqrt(cell_mean((ensemble[1:] - ensemble[:-1]) ** 2, weights, mask)).mean(0)
    return skill - spread / 2


def rank_histogram(ensemble: Ensemble, truth: Field, weights: Weights, mask: Mask = None) -> Float[Array, "..."]:
    """Share of the cells whose truth has rank 0..M among the M members; flat for a reliable ensemble.

    Where `r` members equal the truth (a dry cell), the cell counts equally in the r + 1 ranks it may have.

    Returns:
        (M + 1, ...): sums to 1 over the first axis.
    """
    ensemble, truth = jnp.asarray(ensemble), jnp.asarray(truth)
    below = (ensemble < truth[None]).sum(0)[None]
    equal = (ensemble == truth[None]).sum(0)[None]
    rank = jnp.arange(ensemble.shape[0] + 1).reshape(-1, *(1,) * truth.ndim)
    possible = ((rank >= below) & (rank <= below + equal)).astype(truth.dtype)
    return cell_mean(possible / (equal + 1).astype(truth.dtype), weights, mask)


def brier_score(
    ensemble: Ensemble, truth: Field, threshold: Float[ArrayLike, "..."], weights: Weights, mask: Mask = None
) -> Score:
    """Fair Brier score of the event that a value exceeds a threshold, (p - o)^2 - p (1 - p) / (M - 1).

    p is the share of the M members that exceed it, o is 1 where the truth does. Unbiased in the number of members
    (Ferro 2014, Q. J. R. Meteorol. Soc. 140, 1917-1923); (p - o)^2 for one member. It is the fair CRPS of the event's
    indicator, and its integral over thresholds is the fair CRPS.

    Args:
        ensemble: (m, ..., h, w).
        truth: (..., h, w).
        threshold: one number, or one for each cell, (..., h, w) broadcast from the left, such as a climatological
            quantile. Values must lie above it; NaN counts as missing.
        weights: of the cells.
        mask: cells that count.
    """
    ensemble, truth = jnp.asarray(ensemble), jnp.asarray(truth)
    threshold = jnp.asarray(threshold, truth.dtype)
    departure = truth - threshold[(None,) * (truth.ndim - threshold.ndim)]
    excess = ensemble - threshold[(None,) * (ensemble.ndim - threshold.ndim)]
    event, events = (jnp.where(jnp.isnan(x), x, (x > 0).astype(x.dtype)) for x in (departure, excess))
    return crps(events, event, weights, mask)


def zonal_energy_spectrum(field: Field, grid: sphere.Grid) -> Float[Array, "*batch h k"]:
    """Energy at each zonal wavenumber of a latitude circle of circumference C, in the field's units squared times m.

    S_0 = C |F_0|^2 and S_k = 2 C |F_k|^2 with F the discrete Fourier transform over w columns divided by w. The sum is
    the integral of the square along the circle, but for the last wavenumber of an even w, which WeatherBench2 counts
    twice like the others. Average spectra, never members, over cases, members and rows (`jnp.average` over axis -2 with
    the weights of the rows) before they are compared.

    Args:
        field: (..., h, w).
        grid: its grid.

    Returns:
        (..., h, w // 2 + 1).

    Raises:
        ValueError: a field of another shape than the grid's.
    """
    field = jnp.asarray(field)
    if field.shape[-2:] != grid.shape:
        raise ValueError(f"a field of shape {field.shape} is not (..., h, w) on a grid of {grid.shape}")
    scale = np.full((grid.shape[0], grid.shape[1] // 2 + 1), 2 * np.pi * _RADIUS)
    scale *= np.cos(np.deg2rad(grid.latitude.astype(np.float64)))[:, None]
    if grid.shape[1] % 2 == 0:
        scale[:, -1] *= 2
    return sphere.zonal_spectrum(field) * jnp.asarray(scale, field.dtype)[(None,) * (field.ndim - 2)]


def spectral_divergence(forecast: Spectrum, truth: Spectrum, first: int = 1) -> Score:
    """Kullback-Leibler divergence of the shape of two spectra, sum of s log(s / s_f) over wavenumbers k >= first.

    s and s_f are the spectra of truth and forecast, each divided by its sum over these wavenumbers (SpecDiv of
    ChaosBench, Nathaniel et al. 2024, arXiv 2402.00712, which takes the highest tenth of the wavenumbers). It does not
    see a loss of energy that all of them share; `log_spectral_distance` does.

    Args:
        forecast: (..., k) averaged energy, from wavenumber 0 on.
        truth: the same.
        first: lowest wavenumber that counts; 1 leaves out the zonal mean.
    """
    shares = ((x / x.sum(-1, keepdims=True)) for x in (jnp.asarray(s)[..., first:] for s in (truth, forecast)))
    return rel_entr(*shares).sum(-1)


def log_spectral_distance(forecast: Spectrum, truth: Spectrum, first: int = 1) -> Score:
    """Root mean square, over wavenumbers k >= first, of the ratio of two spectra in decibels, 10 log10(S_f / S).

    Every wavenumber counts alike: half the energy everywhere is 3 dB (RALSD of Harris et al. 2022, J. Adv. Model.
    Earth Syst. 14, e2022MS003120, here of zonal spectra).

    Args:
        forecast: (..., k) averaged energy, from wavenumber 0 on.
        truth: the same.
        first: lowest wavenumber that counts.
    """
    ratio = jnp.asarray(forecast)[..., first:] / jnp.asarray(truth)[..., first:]
    return jnp.sqrt(((10 * jnp.log10(ratio)) ** 2).mean(-1))
