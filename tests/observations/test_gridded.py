"""Gridded observations: the operator by brute force and in exact posteriors, how datasets are read, bad input."""

import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic
import xarray

from wind_jax.channels import channels, unstack
from wind_jax.data.normalize import Statistics
from wind_jax.diffusion.guidance import guide
from wind_jax.diffusion.samplers import heun, sample
from wind_jax.diffusion.schedule import rectified, time_grid
from wind_jax.observations.gridded import NOWHERE, gridded, mean_errors, read
from wind_jax.observations.observation import check, compose, likelihood_grad
from wind_jax.observations.twins import observe_cells, observe_means
from wind_jax.sphere import Grid, cell_area, coarsening

RAIN = "total_precipitation_6hr"
GRID = Grid(np.linspace(-90, 90, 13), np.arange(0, 360, 15.0))
CHANNELS = channels(["temperature", "geopotential", "2m_temperature", RAIN], [500, 850])
STATISTICS = Statistics(
    CHANNELS, np.array([250, 280, 5.5e4, 1.4e4, 285, 0.2]), np.array([8, 10, 2e3, 1e3, 12, 0.3]), np.ones(6)
)
BY = coarsening(GRID, 3)
FRAMES = 4
TIMES = synthetic.times(FRAMES)
HOUR = np.timedelta64(1, "h")


@pytest.fixture
def z():
    z = np.random.default_rng(0).normal(size=(FRAMES, *GRID.shape, len(CHANNELS))).astype(np.float32)
    z[..., 5] = np.abs(z[..., 5])  # rain above 0
    return z


@pytest.fixture
def x(z):
    return STATISTICS.denormalize(z)


def observation(dataset, error=None, times=TIMES, variance="nominal"):
    found = gridded(dataset, STATISTICS, GRID, error)
    return found.observation(found.window(times), variance)


def spatial(x, **options):
    return observe_means(x, STATISTICS, GRID, TIMES, **{"error": 0.1, "target": BY} | options)


def temporal(x, **options):
    return observe_means(x, STATISTICS, GRID, TIMES, **{"error": 0.1, "every": 2} | options)


def same(one, other):
    """Whether the observations of two datasets are equal, bit by bit."""
    one, other = (gridded(dataset, STATISTICS, GRID).window(TIMES) for dataset in (one, other))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    return jax.tree.structure(one) == jax.tree.structure(other)


# ------------------------------------------------------------------------------------------------------------- operator
def test_a_fraction_is_one_deviation_above_the_mean_in_physical_units():
    error = mean_errors(0.1, STATISTICS)
    np.testing.assert_allclose(error["geopotential"], [200.0, 100.0], rtol=1e-6)
    np.testing.assert_allclose(error[RAIN], 0.1 * (10**0.5 - 10**0.2) / 1000, rtol=1e-6)
    np.testing.assert_allclose(mean_errors(0.1, STATISTICS, frames=4)[RAIN], 4 * error[RAIN])
    np.testing.assert_allclose(mean_errors(0.1, STATISTICS, frames=4)["temperature"], error["temperature"])


def test_the_truth_explains_what_is_made_of_it(z, x):
    both = observation(spatial(x)), observation(temporal(x), variance="adaptive")
    assert both[1].variance == "adaptive"
    for one in both:
        y_hat = jax.jit(one.operator)(z)
        for name, values in mean_errors(0.1, STATISTICS).items():
            assert np.abs(np.asarray(y_hat[name]) - one.y[name]).max() < 1e-3 * values.max()
    check(compose(*both), z.shape)


def test_gradients_agree_with_finite_differences(z, x):
    """Rain too, whose mean is nonlinear in the model's units; all variables pull in units of their own error."""
    with jax.enable_x64(True):
        both = compose(observation(1.001 * spatial(x), 0.1), observation(temporal(x), 0.1))
        z, direction = jnp.asarray(z, jnp.float64), np.random.default_rng(1).normal(size=z.shape)

        def log_likelihood(z):
            terms = jax.tree.map(
                lambda y, y_hat, v: jnp.sum((y.astype(y_hat.dtype) - y_hat) ** 2 / jnp.asarray(v, y_hat.dtype)),
                both.y, both.operator(z), both.variance,
            )  # fmt: skip
            return -0.5 * sum(jax.tree.leaves(terms))

        @jax.jit
        def slopes(z):
            ahead, behind = (log_likelihood(z + s * direction) for s in (1e-5, -1e-5))
            return (likelihood_grad(both)(z) * direction).sum(), (ahead - behind) / 2e-5

        np.testing.assert_allclose(*slopes(z), rtol=1e-5)


def test_guidance_brings_a_flat_guess_to_the_coarse_field(z, x):
    """From no knowledge of the field to within the error of its means, and only what is observed moves."""
    names = ("temperature", "2m_temperature")
    coarse = observation(spatial(x, variables=names, error=0.01))
    schedule = rectified()
    shrink = lambda x_t, t: x_t * schedule.alpha(t) / (schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2)
    denoise = guide(shrink, coarse, schedule, "mmps", iterations=12)
    answer = jax.jit(denoise)(jnp.zeros((1, *z.shape)), jnp.asarray(0.9))[0]
    for name, value in coarse.operator(answer).items():
        assert np.sqrt(np.mean((value - coarse.y[name]) ** 2 / coarse.variance[name])) < 1.0
    assert (np.asarray(answer)[..., 2:4] == 0).all()


def overlap(fine, coarse):
    """Share of each coarse cell in one dimension that each fine one covers, cell by cell; degrees or sines of them."""
    shares = np.zeros((len(coarse) - 1, len(fine) - 1))
    for i in range(len(coarse) - 1):
        for j in range(len(fine) - 1):
            for turn in (-360, 0, 360) if max(fine) > 2 else (0,):
                common = min(coarse[i + 1], fine[j + 1] + turn) - max(coarse[i], fine[j] + turn)
                shares[i, j] += max(common, 0) / (coarse[i + 1] - coarse[i])
    return shares


def edges(centres, ends):
    return np.concatenate([ends[:1], (centres[1:] + centres[:-1]) / 2, ends[1:]])


def test_coarse_daily_means_that_divide_nothing():
    """64 x 32 cells, 24 x 12 means of two days: area mean of time mean by brute force, and the transpose of both."""
    grid = Grid(np.linspace(-87.1875, 87.1875, 32), np.arange(64) * 5.625)
    coarse = Grid(np.linspace(-82.5, 82.5, 12), np.arange(24) * 15.0)
    chosen = channels(["2m_temperature", RAIN], [])
    statistics = Statistics(chosen, np.array([280.0, 0.2]), np.array([10.0, 0.3]), np.ones(2))
    times = synthetic.times(9)
    begin = times[[0, 4]]
    rng = np.random.default_rng(2)
    y = rng.uniform(1e-3, 300, (2, *coarse.shape, 2)) * [1, 1e-5]
    dataset = unstack(y, chosen, coarse, begin)
    dataset["time"].attrs["bounds"] = "time_bnds"
    dataset["time_bnds"] = ("time", "bnds"), np.stack([begin, begin + 24 * HOUR], -1)
    found = gridded(dataset, statistics, grid, {"2m_temperature": 0.5, RAIN: 1e-3})
    one = found.observation(found.window(times))

    sines = [np.sin(np.deg2rad(edges(np.asarray(g.latitude, float), [-90, 90]))) for g in (grid, coarse)]
    degrees = [
        np.arange(g.longitude.size + 1) * 360 / g.longitude.size - 180 / g.longitude.size for g in (grid, coarse)
    ]
    rows, columns = overlap(*sines), overlap(*degrees)
    z = rng.normal(size=(9, *grid.shape, 2))
    x = statistics.denormalize(z)
    x[..., 1] = x[..., 1].clip(0)
    days = {"2m_temperature": [x[0:4, ..., 0].mean(0), x[4:8, ..., 0].mean(0)],
            RAIN: [x[1:5, ..., 1].sum(0), x[5:9, ..., 1].sum(0)]}  # fmt: skip
    with jax.enable_x64(True):
        y_hat, pullback = jax.vjp(one.operator, jnp.asarray(z))
        for name, fields in days.items():
            expected = np.stack([rows @ field @ columns.T for field in fields])
            np.testing.assert_allclose(y_hat[name].reshape(expected.shape), expected, rtol=1e-6)
        # The transpose, for temperature: a cell's share of each mean, its weight in time, the channel's deviation.
        pull = {name: np.zeros(values.shape) for name, values in y_hat.items()}
        pull["2m_temperature"] = rng.normal(size=y_hat["2m_temperature"].shape)
        (back,) = pullback(jax.tree.map(jnp.asarray, pull))
    spread = np.einsum("Hh,nHW,Ww->nhw", rows, pull["2m_temperature"].reshape(2, *coarse.shape), columns)
    expected = np.concatenate([np.repeat(spread, 4, 0) / 4 * 10.0, np.zeros((1, *grid.shape))])
    np.testing.assert_allclose(back[..., 0], expected, rtol=1e-5, atol=1e-7)
    assert (np.asarray(back[..., 1]) == 0).all()
    assert cell_area(coarse).size == 12


def test_posterior_of_a_gaussian_through_coarse_cells_and_spans_with_gaps(x64):
    """Heun's chain under MMPS is an affine map of its start: mean and covariance have no sampling error."""
    chosen = channels(["2m_temperature", "mean_sea_level_pressure"], [])
    grid = Grid(np.array([-60.0, -20.0, 20.0, 60.0]), np.arange(4) * 90.0)
    statistics = Statistics(chosen, np.array([280.0, 1e5]), np.array([10.0, 800.0]), np.ones(2))
    shape, times, rng = (3, *grid.shape, 2), synthetic.times(3), np.random.default_rng(4)
    size = int(np.prod(shape))
    root = rng.standard_normal((size, size)) / np.sqrt(size)
    mean, covariance = 0.3 * rng.standard_normal(size), root @ root.T + 0.2 * np.eye(size)
    coarse = Grid(np.array([-45.0, 45.0]), np.array([45.0, 225.0]))
    y = statistics.denormalize(rng.normal(size=(1, 2, 2, 2)))
    y[0, 0, 1] = np.nan  # a gap
    means = unstack(y, chosen, coarse, times[:1])
    means["time"].attrs["bounds"] = "time_bnds"
    means["time_bnds"] = ("time", "bnds"), np.array([[times[0], times[2]]])  # the first two frames
    cells = observe_cells(
        statistics.denormalize(rng.normal(size=shape).astype(np.float32)), statistics, grid, times, 0.05, 0.3,
        jax.random.key(0), ["2m_temperature"],
    )  # fmt: skip
    parts = [gridded(means, statistics, grid, 0.2), gridded(cells, statistics, grid)]
    both = compose(*(part.observation(part.window(times)) for part in parts))
    flat = lambda tree: jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    matrix = np.asarray(jax.jacobian(lambda v: flat(both.operator(v.reshape(shape))))(jnp.zeros(size)))
    offset = np.asarray(flat(both.operator(jnp.zeros(shape))))
    told, variance = np.asarray(flat(both.y)) - offset, np.asarray(flat(both.variance))
    assert len(told) == 6 + 3
    gain = covariance @ matrix.T @ np.linalg.inv(matrix @ covariance @ matrix.T + np.diag(variance))

    schedule = rectified()

    def denoise(x_t, t):
        t = jnp.ravel(jnp.asarray(t, x_t.dtype))[0]  # one noise level for all
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        marginal = alpha**2 * covariance + sigma**2 * jnp.eye(size)
        pulled = alpha * jnp.linalg.solve(marginal, jnp.asarray(covariance))
        return (mean[None] + (x_t.reshape(-1, size) - alpha * mean[None]) @ pulled).reshape(x_t.shape)

    guided = guide(denoise, both, schedule, "mmps", iterations=len(told))
    start = jnp.concatenate([jnp.zeros((1, size)), jnp.eye(size)]).reshape(-1, *shape)
    drawn = jax.jit(lambda s: sample(guided, s, time_grid(128, start=1.0), schedule, heun()))(start)
    drawn = np.asarray(drawn).reshape(-1, size)
    spread = (drawn[1:] - drawn[0]).T
    np.testing.assert_allclose(drawn[0], mean + gain @ (told - matrix @ mean), atol=5e-3)
    np.testing.assert_allclose(spread @ spread.T, covariance - gain @ matrix @ covariance, atol=5e-3)


# -------------------------------------------------------------------------------------------------------------- windows
def swath(x):
    """2 m temperature and rain on the grid, seen along a path that moves with time; the last frame sees nothing."""
    dataset = unstack(x.astype(float), CHANNELS, GRID, TIMES)[["2m_temperature", RAIN]]
    middle = xarray.DataArray(90 * np.arange(FRAMES), {"time": TIMES}, ("time",))
    return dataset.where(((dataset["longitude"] - middle) % 360 < 60) & (dataset["time"] < TIMES[-1]))


def test_a_swath_with_gaps(z, x):
    dataset = swath(x)
    one = observation(dataset, 0.1)
    seen = np.isfinite(dataset["2m_temperature"].values)
    assert 0 < seen.sum() < seen.size / 4
    np.testing.assert_allclose(one.y["2m_temperature"], z[..., 4][seen], atol=2e-5)
    np.testing.assert_array_equal(one.operator(jnp.asarray(z))["2m_temperature"], z[..., 4][seen])
    np.testing.assert_array_equal(one.operator(jnp.asarray(z))[RAIN], z[..., 5][seen])


def test_windows_of_other_observations_have_the_same_shapes(z, x):
    """Padding changes neither the likelihood's value nor its gradient, and no window lacks its own observations."""
    dataset = swath(x)
    found = gridded(dataset, STATISTICS, GRID, 0.1)
    windows = found.windows([TIMES[:2], TIMES[2:]])
    assert jax.tree.map(np.shape, windows[0]) == jax.tree.map(np.shape, windows[1])
    for window, part in zip(windows, (slice(0, 2), slice(2, 4)), strict=True):
        here = gridded(dataset.isel(time=part), STATISTICS, GRID, 0.1)
        alone = here.observation(here.window(TIMES[part]))
        padded = found.observation(window)
        np.testing.assert_array_equal(likelihood_grad(padded)(z[part]), likelihood_grad(alone)(z[part]))
    assert (windows[1][RAIN].places == NOWHERE).any()
    assert not (windows[0][RAIN].places == NOWHERE).any()


def daily(begin, end, names=("2m_temperature",), method=None):
    """A mean or sum over one span, 1 everywhere."""
    chosen = [c for c in CHANNELS if c.name in names]
    dataset = unstack(np.ones((1, *GRID.shape, len(chosen))), chosen, GRID, TIMES[:1])
    for name in names:
        dataset[name].attrs.pop("cell_methods", None)
        dataset[name].attrs |= {"cell_methods": f"time: {method}"} if method else {}
    dataset["time"].attrs["bounds"] = "time_bnds"
    dataset["time_bnds"] = ("time", "bnds"), np.array([[TIMES[0] + begin * HOUR, TIMES[0] + end * HOUR]])
    return dataset


@pytest.mark.parametrize(
    ("begin", "end", "name", "method", "weights"),
    [
        (0, 12, "2m_temperature", None, [1 / 2, 1 / 2, 0, 0]),
        (1, 13, "2m_temperature", "mean", [0, 1 / 2, 1 / 2, 0]),
        (0, 12, "2m_temperature", "sum", [1, 1, 0, 0]),
        (0, 12, RAIN, None, [0, 1, 1, 0]),
        (-6, 6, RAIN, "sum", [1, 1, 0, 0]),
        (0, 18, RAIN, "mean", [0, 1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_frames_of_a_span(begin, end, name, method, weights):
    found = gridded(daily(begin, end, (name,), method), STATISTICS, GRID, 0.1)
    np.testing.assert_allclose(found.window(TIMES)[name].weights, [weights])


def test_each_window_takes_the_spans_that_it_covers():
    dataset = daily(0, 12)
    found = gridded(dataset, STATISTICS, GRID, 0.1)
    windows = found.windows([TIMES[:2], TIMES[1:3]])
    assert windows[0]["2m_temperature"].weights.tolist() == [[0.5, 0.5]]
    assert windows[1]["2m_temperature"].weights.tolist() == [[0, 0]]
    assert (windows[1]["2m_temperature"].places == NOWHERE).all()


# -------------------------------------------------------------------------------------------------------------- reading
def files(x):
    return {
        "cells": observe_cells(x, STATISTICS, GRID, TIMES, 0.1, 0.1, jax.random.key(0)),
        "coarse spans": observe_means(x, STATISTICS, GRID, TIMES, 0.1, (), BY, 2),
    }


@pytest.mark.parametrize("kind", ["cells", "coarse spans"])
@pytest.mark.parametrize("name", ["observations.nc", "observations.zarr"])
def test_a_file_holds_the_same_observations(x, kind, name, tmp_path):
    dataset, path = files(x)[kind], tmp_path / name
    if name.endswith(".nc"):
        dataset.to_netcdf(path)
    else:
        dataset.to_zarr(path, zarr_format=2, consolidated=True)
    assert same(read(path), dataset)


@pytest.mark.parametrize("kind", ["cells", "coarse spans"])
def test_orientation_does_not_matter(x, kind):
    dataset = files(x)[kind]
    turned = dataset.sortby("latitude", ascending=False).sortby("level", ascending=False)
    turned = turned.assign_coords(longitude=(turned["longitude"].values + 180) % 360 - 180).sortby("longitude")
    assert turned["longitude"].min() < 0
    assert same(turned.transpose("longitude", ..., "latitude"), dataset)


def test_a_region_of_the_prior_s_grid(x):
    whole = unstack(x.astype(float), CHANNELS, GRID, TIMES)[["2m_temperature"]]
    box = whole.sel(latitude=slice(15, 60), longitude=slice(30, 90))
    placed = gridded(box, STATISTICS, GRID, 0.1).window(TIMES)["2m_temperature"]
    assert placed.y.size == FRAMES * 4 * 5
    inside = whole["latitude"].isin(box["latitude"]) & whole["longitude"].isin(box["longitude"])
    expected = gridded(whole.where(inside), STATISTICS, GRID, 0.1).window(TIMES)["2m_temperature"]
    np.testing.assert_array_equal(placed.places, expected.places)
    np.testing.assert_array_equal(placed.y, expected.y)


def test_one_level_and_fields_of_errors(x):
    dataset = unstack(x.astype(float), CHANNELS, GRID, TIMES)[["temperature", RAIN]].sel(level=850)
    dataset["temperature_error"] = 0.5 + 0 * dataset["time"].astype(float)
    dataset[f"{RAIN}_error"] = xarray.full_like(dataset[RAIN], 1e-3).assign_attrs(units="m")
    placed = gridded(dataset, STATISTICS, GRID).window(TIMES)
    np.testing.assert_allclose(placed["temperature"].error, 0.05, rtol=1e-6)
    assert (placed["temperature"].places % 6 == 1).all()
    slope = 1000 / (np.log(10) * (1000 * x[..., 5] + 1))  # of log10(1000 tp + 1)
    np.testing.assert_allclose(placed[RAIN].error, (1e-3 * slope / 0.3).ravel(), rtol=1e-4)


# ------------------------------------------------------------------------------------------------------------ bad input
def wrong(x, change):
    dataset = unstack(x.astype(float), CHANNELS, GRID, TIMES)[["2m_temperature"]]
    return change(dataset)


def finer(dataset):
    return dataset.interp(longitude=np.arange(0, 345, 7.5)).reindex(longitude=np.arange(0, 360, 7.5))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: d.rename({"2m_temperature": "t2m"}), 0.1, r"\['t2m'\] are not among the prior's: temperature"),
        (lambda d: d.drop_vars("2m_temperature"), 0.1, "no variable"),
        (finer, 0.1, r"\(13, 48\) is finer than the prior's \(13, 24\)"),
        (lambda d: d.assign_coords(latitude=d["latitude"] + 5), 0.1, "latitude must ascend strictly within"),
        (lambda d: d.drop_vars("longitude"), 0.1, "no coordinate 'longitude'"),
        (lambda d: d.sel(latitude=slice(0, 60)).assign_coords(latitude=[1, 16, 31, 46, 59]), 0.1, "part of the globe"),
        (lambda d: d.assign_coords(longitude=d["longitude"] // 30 * 30), 0.1, "longitude 0 occurs twice"),
        (lambda d: d * np.nan, 0.1, "no value that is not NaN"),
        (lambda d: d.where(d["time"] > TIMES[0], np.inf), 0.1, "infinite"),
        (lambda d: d, -0.1, "positive, got -0.1"),
        (lambda d: d, {"2m_temperature": 0.0}, "positive, got .*0.0"),
        (lambda d: d.astype(str), 0.1, "holds <U.*, expected numbers"),
        (lambda d: d.isel(time=0), 0.1, r"dimensions \('latitude', 'longitude'\), expected time"),
        (lambda d: d.isel(longitude=slice(0, 5)).assign_coords(longitude=np.arange(5) + 0.5), 0.1, "part of the globe"),
        (lambda d: d, {"temperature": 1.0}, r"wrong or missing: \['2m_temperature'\]"),
        (lambda d: d, None, "has no error: give"),
        (lambda d: d.assign({"2m_temperature_error": 0 * d["2m_temperature"]}), None, "positive and finite, got 0"),
        (
            lambda d: d.assign({"2m_temperature": d["2m_temperature"].assign_attrs(units="degC")}),
            0.1,
            "'degC', expected",
        ),
        (lambda d: d.expand_dims("number"), 0.1, r"dimensions \('number', 'time'"),
        (lambda d: d.assign_coords(time=[1, 2, 3, 4]), 0.1, "no times along 'time'"),
    ],
)
def test_a_wrong_dataset_is_named(x, change, error, message):
    with pytest.raises(ValueError, match=f"my temperatures: .*{message}"):
        gridded(wrong(x, change), STATISTICS, GRID, error, "my temperatures")


@pytest.mark.parametrize(
    ("dataset", "windows", "message"),
    [
        (daily(0, 18), [TIMES[:2], TIMES[2:]], "more frames than a window, 2"),
        (daily(0, 12), [TIMES[1:3], TIMES[2:]], "lies in no window as a whole"),
        (daily(30, 42), [TIMES], "outside of the run's times, 2000-01-01T00:00 to 2000-01-01T18:00"),
        (daily(1, 5), [TIMES], "holds no frame"),
        (daily(-3, 9, (RAIN,)), [TIMES], "not that of a frame, or of the accumulations of some"),
    ],
)
def test_spans_that_do_not_fit_the_windows_are_named(dataset, windows, message):
    with pytest.raises(ValueError, match=f"rain gauge: the observation of '.*' at .* {message}"):
        gridded(dataset, STATISTICS, GRID, 0.1, "rain gauge").windows(windows)


def test_instants_must_be_those_of_frames(x):
    dataset = unstack(x.astype(float), CHANNELS, GRID, TIMES - 3 * HOUR)[["2m_temperature"]].isel(time=[2])
    with pytest.raises(ValueError, match="2000-01-01T09:00 is not that of a frame"):
        gridded(dataset, STATISTICS, GRID, 0.1).windows([TIMES])
    with pytest.raises(ValueError, match="is a maximum over time"):
        gridded(daily(0, 12, method="maximum"), STATISTICS, GRID, 0.1)
    with pytest.raises(ValueError, match="'exact'"):
        observation(spatial(x), variance="exact")


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(ValueError, match=r"Cannot read observations from .*nothing\.nc"):
        read(tmp_path / "nothing.nc")
    with pytest.raises(ValueError, match=r"Cannot read observations from .*nothing\.zarr"):
        read(tmp_path / "nothing.zarr")


class Evil:
    """What a pickle may do when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_zarr_of_objects_is_refused_unread(x, tmp_path):
    path, mark = tmp_path / "evil.zarr", tmp_path / "pwned"
    files(x)["cells"].to_zarr(path, zarr_format=2, consolidated=False)
    folder = path / "number"
    folder.mkdir()
    (folder / ".zarray").write_text(
        json.dumps(
            {"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "fill_value": None, "order": "C",
             "compressor": None, "filters": [{"id": "pickle"}]}
        )
    )  # fmt: skip
    (folder / ".zattrs").write_text(json.dumps({"_ARRAY_DIMENSIONS": ["number"]}))
    (folder / "0").write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(ValueError, match=r"Cannot read observations from .*evil\.zarr"):
        read(path)
    assert not mark.exists()
