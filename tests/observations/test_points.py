"""Stations: the operator against closed forms, its errors and gradients, and quality control of a real report."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from wind_jax.channels import channels
from wind_jax.data.normalize import Statistics
from wind_jax.data.reports import Reports, read_stations
from wind_jax.data.store import open_store
from wind_jax.diffusion.likelihood import student_t
from wind_jax.embedded import embedded
from wind_jax.observations.observation import check, likelihood_grad
from wind_jax.observations.points import (
    LAPSE_RATE,
    equivalents,
    pad,
    place,
    quality_control,
    station_observation,
)
from wind_jax.physics import GRAVITY
from wind_jax.prior import load_prior
from wind_jax.sphere import Grid

GRID = Grid(np.linspace(-87.5, 87.5, 36), np.arange(0, 360, 5.0))
CHANNELS = channels(
    ["temperature", "2m_temperature", "10m_u_component_of_wind", "10m_v_component_of_wind", "total_precipitation_6hr"],
    [500, 850],
)
TIMES = np.datetime64("2018-11-02", "ns") + np.arange(3) * np.timedelta64(6, "h")
SHAPE = (3, *GRID.shape, len(CHANNELS))
LAT, LON = np.meshgrid(GRID.latitude, GRID.longitude, indexing="ij")
FLAT = np.zeros(GRID.shape, np.float32)


def reports(*rows):
    """Reports of (variable, value, latitude, longitude, hours, elevation, level, error), the last three optional."""
    columns = list(zip(*(row + (0.0, 0, np.nan)[len(row) - 5 :] for row in rows), strict=True))
    variable, value, latitude, longitude, hours, elevation, level, error = map(np.array, columns)
    time = TIMES[0] + (hours * 3600e9).astype("timedelta64[ns]")
    station = np.array([f"s{i}" for i in range(len(rows))])
    floats = (latitude, longitude, elevation)
    return Reports(station, time, *floats, variable, level, value.astype(float), error.astype(float))


def state(**values):
    """A state with the given fields, 0 elsewhere; keys like t500, t2m."""
    x = np.zeros(SHAPE, np.float32)
    for name, value in values.items():
        x[..., ["t500", "t850", "t2m", "u10", "v10", "tp"].index(name)] = value
    return jnp.asarray(x)


def test_linear_fields_are_met_exactly():
    """Bilinear in space and linear in time reproduces a + b latitude + c time, at either level."""
    hours = np.array([0, 6, 12])[:, None, None]
    x = state(t500=250 + 0.1 * LAT + 0.5 * hours, t850=270 - 0.2 * LAT - 0.25 * hours)
    where = [(12.3, 34.5, 0.0), (-70.1, 359.0, 5.0), (80.0, -3.0, 12.0), (0.0, 100.0, 6.0)]
    told = reports(*(("temperature", 0.0, *at, 0.0, level) for at in where for level in (500, 850)))
    found = equivalents(place(told, GRID, TIMES, CHANNELS, FLAT))(x)["temperature"]
    expected = [v for lat, _, h in where for v in (250 + 0.1 * lat + 0.5 * h, 270 - 0.2 * lat - 0.25 * h)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_2m_temperature_follows_the_lapse_rate():
    """Stations 1000 m above and 300 m below an orography of 500 m, in air of 280 K there."""
    told = reports(
        ("2m_temperature", 270.0, 10.0, 20.0, 3.0, 1500.0), ("2m_temperature", 280.0, 10.0, 20.0, 3.0, 200.0)
    )
    placed = place(told, GRID, TIMES, CHANNELS, FLAT + np.float32(500 * GRAVITY))
    found = equivalents(placed)(state(t2m=280.0))["2m_temperature"]
    np.testing.assert_allclose(found, [280 - 1000 * LAPSE_RATE, 280 + 300 * LAPSE_RATE], rtol=1e-6)
    np.testing.assert_allclose(placed["2m_temperature"].error, np.hypot(2.5, [2.0, 0.6]), rtol=1e-5)


def test_speed_of_a_flow_across_the_pole():
    """A uniform flow over the pole along 0 degrees east: u = sin(lon), v = cos(lon) turns with longitude, speed 10."""
    lon = np.deg2rad(LON)
    x = state(u10=10 * np.sin(lon), v10=10 * np.cos(lon))
    told = reports(*(("10m_wind_speed", 5.0, lat, lon, 2.0) for lat, lon in [(89.9, 0.0), (88.0, 90.0), (0.0, 45.0)]))
    found = equivalents(place(told, GRID, TIMES, CHANNELS, FLAT))(x)["10m_wind_speed"]
    np.testing.assert_allclose(found, 10.0, rtol=1e-3)
    calm = equivalents(place(told, GRID, TIMES, CHANNELS, FLAT))
    gradient = jax.jit(jax.grad(lambda x: calm(x)["10m_wind_speed"].sum()))(state())
    assert not np.asarray(gradient).any()  # finite, not 0 / 0


def test_precipitation_is_compared_as_the_prior_keeps_it():
    told = reports(
        ("total_precipitation_6hr", 9e-3, 0.0, 0.0, 0.0, 0.0, 0, 1e-3),
        ("total_precipitation_6hr", -1e-4, 0.0, 0.0, 0.0),
    )
    placed = place(told, GRID, TIMES, CHANNELS, FLAT)
    np.testing.assert_allclose(placed["total_precipitation_6hr"].y, [1.0, 0.0])
    # d log10(1000 tp + 1) = 1000 / ln 10 / (1000 tp + 1) d tp
    np.testing.assert_allclose(placed["total_precipitation_6hr"].error, [0.1 / np.log(10), 0.2], rtol=1e-5)
    found = equivalents(placed)(state(tp=99e-3))["total_precipitation_6hr"]
    np.testing.assert_allclose(found, 2.0, rtol=1e-6)


@pytest.fixture
def statistics():
    mean, std = np.array([250, 270, 285, 0, 1, 0.1]), np.array([5, 5, 8, 4, 4, 0.2])
    return Statistics(CHANNELS, mean, std, std)


@pytest.fixture
def told():
    return reports(
        ("2m_temperature", 290.0, 12.0, 34.0, 1.0, 50.0),
        ("2m_temperature", 275.0, 52.0, 4.0, 6.0, 10.0),
        ("10m_wind_speed", 6.0, 52.0, 4.0, 6.0),
        ("total_precipitation_6hr", 2e-3, -52.0, 4.0, 11.0),
        ("temperature", 255.0, 60.0, 200.0, 12.0, 0.0, 500),
    )  # fmt: skip


def test_the_gradient_is_right_and_points_to_the_reports(statistics, told):
    observation = station_observation(place(told, GRID, TIMES, CHANNELS, FLAT), statistics)
    x = jnp.asarray(0.1 * np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    check(observation, SHAPE, x)
    assert all((v > 0).all() for v in observation.variance.values())
    check_grads(observation.operator, (x,), 1, ("rev",), atol=2e-2, rtol=2e-2, eps=1e-2)
    gradient = likelihood_grad(observation)(x)
    misfit = jax.jit(
        lambda x: sum(
            (((observation.y[k] - v) ** 2) / observation.variance[k]).sum() for k, v in observation.operator(x).items()
        )
    )
    assert misfit(x + 1e-3 * gradient) < misfit(x)
    placed, robust = place(told, GRID, TIMES, CHANNELS, FLAT), student_t(4)
    other = station_observation(placed, statistics, "adaptive", robust)
    assert other.variance == "adaptive"
    assert other.log_likelihood is robust


def test_one_compilation_serves_all_tables_of_one_size(statistics, told):
    traces = []

    @jax.jit
    def gradient(placed, x):
        traces.append(1)
        return likelihood_grad(station_observation(placed, statistics))(x)

    sizes = {"2m_temperature": 4, "10m_wind_speed": 3, "total_precipitation_6hr": 1, "temperature": 2}
    x = jnp.asarray(0.1 * np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    whole = place(told, GRID, TIMES, CHANNELS, FLAT)
    part = place(told.select(told.variable == "2m_temperature"), GRID, TIMES, CHANNELS, FLAT)
    for placed in (whole, part):
        expected = likelihood_grad(station_observation(placed, statistics))(x)
        np.testing.assert_allclose(gradient(pad(placed, sizes), x), expected, rtol=1e-4, atol=1e-5)
    assert len(traces) == 1
    with pytest.raises(ValueError, match="2 reports of '2m_temperature' do not fit into 1"):
        pad(whole, sizes | {"2m_temperature": 1})
    with pytest.raises(ValueError, match=r"No size is given for \['temperature'\]"):
        pad(whole, {name: 5 for name in sizes if name != "temperature"})


def test_placing_refuses(told, statistics):
    early = reports(("2m_temperature", 280.0, 0.0, 0.0, -1.0), ("2m_temperature", 280.0, 0.0, 0.0, 1.0))
    with pytest.raises(ValueError, match=r"1 of 2 reports lie outside the window.*2018-11-01T23"):
        place(early, GRID, TIMES, CHANNELS, FLAT)
    century = TIMES[0] + np.arange(150_000) * np.timedelta64(6, "h")
    with pytest.raises(ValueError, match=r"2332800000 values"):
        place(told, GRID, century, CHANNELS, FLAT)
    with pytest.raises(ValueError, match=r"no channel.*300"):
        place(reports(("temperature", 250.0, 0.0, 0.0, 0.0, 0.0, 300)), GRID, TIMES, CHANNELS, FLAT)
    with pytest.raises(ValueError, match="2 reports of '2m_temperature' have no positive error"):
        place(told, GRID, TIMES, CHANNELS, FLAT, {"10m_wind_speed": 1.0})
    with pytest.raises(ValueError, match="'exact'"):
        station_observation({}, statistics, "exact")


def control(values, expected, threshold=5.0, name="temperature", error=1.0):
    told = reports(*((name, value, 0.0, 0.0, 0.0, 0.0, 500 if name == "temperature" else 0, error) for value in values))
    placed = place(told, GRID, TIMES, CHANNELS, FLAT)
    return quality_control(told, placed, {name: np.asarray(expected, np.float32)}, threshold)


def test_quality_control_draws_its_line_at_the_threshold():
    """Members 250 -+ 3 * sqrt(1/2) have a spread of 3; with an error of 4 the scale is 5 K."""
    members = 250 + np.array([[-1.0], [1.0]]) * 3 / np.sqrt(2) * np.ones((1, 4))
    keep, rejected = control([259.9, 260.1, 239.0, 250.0], members, 2.0, error=4.0)
    assert keep.tolist() == [True, False, False, True]
    assert [r.station for r in rejected] == ["s2", "s1"]  # the worst first
    worst = rejected[0]
    np.testing.assert_allclose(
        [worst.value, worst.expected, worst.spread, worst.departure], [239, 250, 3, 2.2], rtol=1e-5
    )
    assert (worst.variable, worst.reason) == ("temperature", "departure")


def test_bad_reports_do_not_shield_each_other():
    """With 45 % garbage of one kind the rest is still judged as if it were alone."""
    members = 250 + np.random.default_rng(0).normal(size=(20, 100))
    values = np.where(np.arange(100) < 45, 372.0, 250.0)
    assert control(values, members)[0].tolist() == (values == 250).tolist()


def test_what_cannot_be_negative():
    keep, rejected = control([-3.0, 2.0], [[2.0, 2.0], [4.0, 2.0]], 50.0, "10m_wind_speed")
    assert keep.tolist() == [False, True]
    assert rejected[0].reason == "impossible"


def test_quality_control_refuses():
    with pytest.raises(ValueError, match=r"rejects 12 of 12 reports of 'temperature': their median is 10 .*SI units"):
        control([10.0] * 12, np.array([[280.0], [282.0]]) * np.ones((1, 12)))
    for members in (np.ones((1, 2)), np.full((3, 2), np.nan)):
        with pytest.raises(ValueError, match="two or more finite members"):
            control([1.0, 1.0], members)
    with pytest.raises(ValueError, match="2 reports of 'temperature' but equivalents of shape"):
        control([1.0, 1.0], np.ones((3, 5)))
    with pytest.raises(ValueError, match="must be positive, got -1"):
        control([1.0], np.ones((2, 1)), -1.0)


def test_garbage_of_a_real_report_is_found(shared_data):
    """Free samples are the climatology of the date with the packaged noons' anomalies, four independent weeks."""
    names = ["2m_temperature", "10m_u_component_of_wind", "10m_v_component_of_wind", "mean_sea_level_pressure"]
    wanted = channels(names)
    store = open_store(embedded("sample.zarr"), wanted)
    climatology = load_prior(embedded("prior.npz")).climatology.select(wanted)
    noons = np.flatnonzero(store.times.astype("datetime64[h]").astype(int) % 24 == 12)
    told = read_stations(shared_data("synop_20181102T12.csv.gz"), wanted, ["10m_wind_speed", *names])
    placed = place(told, store.grid, told.time[:1], wanted, store.static("geopotential_at_surface"))
    operator, normal = jax.jit(lambda placed, x: equivalents(placed)(x)), climatology.at(told.time[:1])
    states = [normal + store.read(int(i), 1) - climatology.at(store.times[i : i + 1]) for i in noons]
    members = [operator(placed, jnp.asarray(x, jnp.float32)) for x in states]
    expected = {name: np.stack([member[name] for member in members]) for name in placed}
    keep, rejected = quality_control(told, placed, expected)
    found = {(r.station, r.variable, round(r.value, 1)) for r in rejected}
    assert {("67201", "2m_temperature", 372.2), ("89666", "10m_wind_speed", 349.0)} <= found
    assert min(keep[told.variable == name].mean() for name in placed) > 0.95
    assert len(rejected) == (~keep).sum()
