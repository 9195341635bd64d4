"""Stations on an atmosphere of white noise: what they report, what is rejected, withheld, and told of tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy.interpolate import RegularGridInterpolator

from wind_jax.evaluation.kriging import Covariance
from wind_jax.observations.points import ERRORS
from wind_jax.physics import GRAVITY
from wind_jax.problems.network import made_up
from wind_jax.problems.registry import make_problem

OPTIONS = {
    "path": "", "count": 150, "variables": ("2m_temperature",), "gross_errors": 0.0, "withheld": 0.2, "threshold": 0.0,
    "background_members": 8, "degrees_of_freedom": 0.0, "error_scale": 2.0,
}  # fmt: skip
FRAMES = 3


def stations(setting, **options):
    return make_problem(setting, "stations", **OPTIONS | options)


def departures(problem, setting, case=0):
    """(y - A(truth)) / error of everything that a case is told, by variable."""
    observation = problem.observe(problem.told(case, 0))
    truth = setting.store.read(int(problem.starts[case]), FRAMES)
    y_hat = observation.operator(jnp.asarray(setting.prior.statistics.normalize(truth)))
    return jax.tree.map(lambda y, a, v: np.asarray((y - a) / jnp.sqrt(v)), observation.y, y_hat, observation.variance)


@pytest.mark.parametrize("gross", [0.0, 0.2])
def test_made_up_reports_are_the_truth_with_their_errors(setting, gross):
    """Against scipy's interpolation: departures of variance 1, and a share of them of variance 60^2."""
    truth, times = setting.store.read(0, FRAMES), setting.store.times[:FRAMES]
    names = ("2m_temperature", "mean_sea_level_pressure", "10m_wind_speed")
    reports = made_up(setting, truth, times, 400, names, ERRORS, gross, jax.random.key(1))
    assert len(reports) == 3 * FRAMES * 400
    grid = setting.prior.grid
    around = np.append(grid.longitude, 360.0)
    axes = np.arange(FRAMES), grid.latitude, around
    at = np.stack([(reports.time - times[0]) / np.timedelta64(6, "h"), reports.latitude, reports.longitude], -1)
    channel = {c.name: i for i, c in enumerate(setting.store.channels)}
    field = lambda name: np.concatenate([truth[..., channel[name]], truth[:, :, :1, channel[name]]], axis=2)
    within = np.abs(reports.latitude) < 75
    ground = np.concatenate([setting.surface_geopotential, setting.surface_geopotential[:, :1]], 1) / GRAVITY
    height = RegularGridInterpolator((grid.latitude, around), ground)(at[within, 1:])
    np.testing.assert_allclose(reports.elevation[within], height, atol=0.1)
    assert (reports.value[reports.variable == "10m_wind_speed"] >= 0).all()
    for name in names[:2]:
        rows = within & (reports.variable == name)
        z = (reports.value[rows] - RegularGridInterpolator(axes, field(name))(at[rows])) / ERRORS[name]
        share = (np.abs(z) > 5).mean()
        expected = gross * 0.9336  # 5 / 60 of a standard deviation or more
        assert abs(share - expected) < 5 * np.sqrt(max(expected, 1e-4) / z.size)
        fine = z[np.abs(z) < 5]
        assert abs(fine.mean()) < 5 / np.sqrt(fine.size)
        assert fine.std() == pytest.approx(1.0, abs=0.1)


def test_kriging_of_reports_is_the_field_where_stations_are_dense(setting):
    """White noise in space, two reports in a cell: the cell's value where it is reported, else the climatology."""
    shape, grid = (len(setting.prior.statistics.channels),), setting.prior.grid
    covariance = Covariance(
        setting.prior.statistics.channels, grid.latitude.astype(float), np.ones((grid.shape[0], *shape)),
        np.tile(np.arange(30)[:, None] * 2 + 1.0, shape) / 900, np.tile(np.eye(14)[0][:, None], shape), np.zeros(shape),
    )  # fmt: skip
    informed = setting._replace(covariance=covariance)
    assert stations(setting, withheld=0.0, error_scale=0.5).baseline(0, slice(0, FRAMES)) == {}
    problem = stations(informed, withheld=0.0, error_scale=0.5)
    members = problem.baseline(0, slice(1, FRAMES))["kriging"]
    assert members.shape == (50, FRAMES - 1, *grid.shape, *shape)
    statistics, t2m = setting.prior.statistics, [c.key for c in setting.store.channels].index("2m_temperature")
    seen = problem.seen.values(0)[1:, ..., t2m]
    there = np.isfinite(seen)
    mean, spread = members[..., t2m].mean(0), members[..., t2m].std(0)
    assert np.corrcoef(mean[there], seen[there])[0, 1] > 0.95
    assert spread[there].mean() < 0.5 * spread[~there].mean()
    other = (t2m + 1) % shape[0]
    np.testing.assert_allclose(members[..., other].mean(0), statistics.mean[other], rtol=1e-3)


def test_quality_control_takes_out_what_is_grossly_wrong(setting):
    """One report in ten errs by 60 errors: assimilated as they are, and with what departs from the prior rejected."""
    rms = {}
    for threshold in (0.0, 4.0):
        problem = stations(setting, gross_errors=0.1, threshold=threshold)
        rms[threshold] = np.sqrt(np.mean(departures(problem, setting)["2m_temperature"] ** 2))
    assert rms[0.0] > 10
    assert rms[4.0] < 1.5
    posterior = lambda case: setting.store.read(int(problem.starts[case]), FRAMES)[None]
    said, lines = problem.report(posterior)
    record = said["stations"][0]
    assert 0.06 < len(record["rejected"]) / (150 * FRAMES) < 0.14
    assert min(r["departure"] for r in record["rejected"]) > 4
    total = record["assimilated"] + record["withheld"]["2m_temperature"]["reports"] + len(record["rejected"])
    assert total == 150 * FRAMES
    assert f"{len(record['rejected'])} rejected" in lines[0]


def test_withheld_stations_verify_the_posterior(setting):
    """Of the truth they measure their own errors, of a posterior 10 K too warm both, of the mean its spread besides."""
    problem = stations(setting, count=400)
    truth = lambda case: setting.store.read(int(problem.starts[case]), FRAMES)[None]
    warm = lambda case: truth(case) + 10.0 * np.array([c.name == "2m_temperature" for c in setting.store.channels])
    right, wrong = (problem.report(x)[0]["stations"][0]["withheld"]["2m_temperature"] for x in (truth, warm))
    assert right["reports"] == 80 * FRAMES
    assert right["posterior"] == pytest.approx(5.0, rel=0.15)
    assert wrong["posterior"] == pytest.approx(np.hypot(5.0, 10.0), rel=0.15)
    assert 5.3 < right["climatology"] == wrong["climatology"] < 7.1  # of variance 25 and up to 25 between cells


def test_cases_have_their_own_reports_of_one_shape(setting):
    """What quality control leaves differs in number; what is told does not, and the rest weighs nothing."""
    problem = stations(setting, gross_errors=0.1, threshold=4.0, withheld=0.0)
    told = [problem.told(case, 0) for case in (0, 1)]
    shapes = [jax.tree.map(np.shape, x) for x in told]
    assert shapes[0] == shapes[1]
    assert np.abs(told[0]["2m_temperature"].y - told[1]["2m_temperature"].y).max() > 1
    assert all(np.sqrt(np.mean(departures(problem, setting, case)["2m_temperature"] ** 2)) < 1.5 for case in (0, 1))


def test_a_students_t_and_an_adaptive_variance_are_passed_on(setting):
    told = stations(setting, degrees_of_freedom=4.0)
    log_likelihood = told.observe(told.told(0, 0)).log_likelihood
    np.testing.assert_allclose(log_likelihood(jnp.asarray(2.0), jnp.asarray(1.0)), -2.5 * np.log(2.0), rtol=1e-6)
    told = stations(setting._replace(variance="adaptive"))
    assert told.observe(told.told(0, 0)).variance == "adaptive"


@pytest.fixture
def table(tmp_path, setting):
    """Writes reports of 2m temperature at cell centres, (row, column, hours after a time, value), on the ground."""

    def write(rows, begin):
        grid, ground = setting.prior.grid, setting.surface_geopotential / GRAVITY
        records = [
            {
                "station": f"s{i}", "time": begin + np.timedelta64(hours, "h"), "latitude": grid.latitude[row],
                "longitude": grid.longitude[column], "elevation": ground[row, column], "variable": "2m_temperature",
                "value": value,
            }
            for i, (row, column, hours, value) in enumerate(rows)
        ]  # fmt: skip
        path = tmp_path / "reports.csv"
        pd.DataFrame(records).to_csv(path, index=False)
        return str(path)

    return write


def test_a_table_is_read_where_and_when_it_says(setting, table):
    """Reports at cell centres meet those cells; those of other days stay out, and the figures show the same."""
    begin = setting.store.times[0]
    rows = [(1, 2, 0, 271.0), (4, 11, 6, 282.5), (0, 0, 12, 275.0), (3, 3, 24, 300.0)]
    problem = stations(setting._replace(cases=1), path=table(rows, begin), withheld=0.0)
    observation = problem.observe(problem.told(0, 0))
    np.testing.assert_allclose(observation.y["2m_temperature"], [271.0, 282.5, 275.0])
    truth = setting.store.read(0, FRAMES)
    y_hat = observation.operator(jnp.asarray(setting.prior.statistics.normalize(truth)))["2m_temperature"]
    t2m = [c.name for c in setting.store.channels].index("2m_temperature")
    np.testing.assert_allclose(y_hat, [truth[f, r, c, t2m] for f, (r, c, *_) in enumerate(rows[:3])], atol=0.01)
    seen = problem.seen.values(0)
    assert np.isfinite(seen).sum() == 3
    assert [seen[f, r, c, t2m] for f, (r, c, *_) in enumerate(rows[:3])] == [271.0, 282.5, 275.0]


def test_a_table_without_a_truth(setting, table):
    """Days that the archive does not have: the period gives the times, and nothing is scored."""
    begin = np.datetime64("2018-11-02T06", "ns")
    path = table([(1, 2, 0, 271.0), (4, 11, 12, 282.5)], begin)
    alone = setting._replace(cases=1, period=("2018-11-02T06", "2018-11-02T18"))
    problem = stations(alone, path=path, withheld=0.0, truth="none")
    assert problem.times.tolist() == [begin.astype(int)]
    assert problem.states is None
    assert not problem.scored
    observation = problem.observe(problem.told(0, 0))
    np.testing.assert_allclose(observation.y["2m_temperature"], [271.0, 282.5])
    members = np.broadcast_to(setting.store.read(0, FRAMES), (2, FRAMES, *setting.prior.shape[1:]))
    assert problem.report(lambda case: members)[0]["stations"][0]["assimilated"] == 2
    for period, message in (((), "config.data.period gives the times"), (("2018-11-05", "2018-11-06"), "no report")):
        with pytest.raises(ValueError, match=message):
            stations(alone._replace(period=period), path=path, withheld=0.0, truth="none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truth": "maybe"}, "'maybe'"),
        ({"truth": "none"}, '"none" with a table'),
        ({"error_scale": 0.0}, "positive, got 0.0"),
        ({"error_scale": -1.0}, "positive, got -1.0"),
        ({"variables": ("ozone",)}, r"do not report \['ozone'\]"),
        ({"count": 0}, "got 0"),
        ({"gross_errors": 1.0}, r"\[0, 1\)"),
        ({"withheld": 1.0}, "both sides"),
        ({"threshold": -1.0}, "positive, got -1"),
        ({"threshold": 5.0, "background_members": 1}, "two or more"),
        ({"degrees_of_freedom": -4.0}, "got -4"),
        ({"path": "nowhere.csv"}, "No station table at nowhere.csv"),
    ],
)
def test_bad_networks_are_named(setting, options, message):
    with pytest.raises(ValueError, match=message):
        stations(setting, **options)


def test_tables_that_do_not_fit_are_named(setting, table):
    late = table([(1, 2, 0, 271.0)], np.datetime64("2018-11-02", "ns"))
    with pytest.raises(ValueError, match=r"reports.csv has no report between 2000-01-01T00.*the times of case 0"):
        stations(setting, path=late)
    with pytest.raises(ValueError, match=r"cannot tell \['ozone'\]"):
        stations(setting, path=late, variables=("ozone",))
    with pytest.raises(ValueError, match="weather has none"):
        stations(setting._replace(surface_geopotential=None))
