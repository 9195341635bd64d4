"""Storms are where they were put; changes that are known by construction come back; intervals cover."""

import numpy as np
import pytest
from scipy import stats

from wind_jax.channels import channels
from wind_jax.columns import Columns
from wind_jax.evaluation.counterfactual import DAY, Pair, Storm, box, compare, strongest_storms, summary
from wind_jax.sphere import Grid
from wind_jax.tasks.warming import shift

GRID = Grid(np.linspace(-82.5, 82.5, 12), np.arange(0, 360, 15.0))
LEVELS = (250, 500, 850)
WINDS = ("u_component_of_wind", "v_component_of_wind")
CHANNELS = channels(
    ("temperature", "geopotential", "specific_humidity", *WINDS, "2m_temperature", "total_precipitation_6hr"), LEVELS
)
COLUMN = {c.key: i for i, c in enumerate(CHANNELS)}
GROUND = np.zeros(GRID.shape, np.float32)
RAIN = COLUMN["total_precipitation_6hr"]


def event(frames=12, members=1, seed=0):
    """A moist atmosphere in rest and motion: (m, t, h, w, c)."""
    rng = np.random.default_rng(seed)
    x = np.zeros((members, frames, *GRID.shape, len(CHANNELS)), np.float32)
    for level in LEVELS:
        x[..., COLUMN[f"temperature_{level}"]] = 290 * (level / 1000) ** 0.19
        x[..., COLUMN[f"geopotential_{level}"]] = 287 * 270 * np.log(1000 / level)
        x[..., COLUMN[f"specific_humidity_{level}"]] = 0.01 * (level / 1000) ** 3
        for wind in "uv":
            x[..., COLUMN[f"{wind}_component_of_wind_{level}"]] = rng.normal(0, 10, x.shape[:-1])
    x[..., COLUMN["2m_temperature"]] = 288
    x *= rng.normal(1, 1e-4, x.shape).astype(np.float32)
    x[..., RAIN] = rng.gamma(0.5, 2e-3, x.shape[:-1])
    return x


def values(records, quantity, channel=None, **where):
    where |= {"quantity": quantity, "channel": channel}
    return [r["value"] for r in records if all(r[key] == value for key, value in where.items())]


def test_the_strongest_storms_are_those_that_were_put_there():
    rain = np.zeros((60, *GRID.shape), np.float32)
    put = {12: (8, 3, 0.02), 24: (9, 20, 0.04), 36: (2, 7, 0.03)}  # branch: row, column, m in each 6 h of a day
    for start, (row, column, depth) in put.items():
        rain[start + 6 : start + 10, row, column] = depth
    rain[24:28, 9, 1] = 1.0  # too early in its branch
    rain[36 + 6 : 36 + 10, 6, 0] = 1.0  # in the tropics
    storms = strongest_storms(rain, GRID, [12, 24, 36, 48], 12, (20, 70), 3)
    assert [(s.start, s.frame) for s in storms] == [(24, 9), (36, 9), (12, 9)]
    assert [(s.latitude, s.longitude) for s in storms] == [(52.5, 300.0), (-52.5, 105.0), (37.5, 45.0)]
    np.testing.assert_allclose([s.rain for s in storms], [160, 120, 80], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 3}, "3 storms were asked for; there are 2 branches"),
        ({"frames": 7}, "Branches of 7 frames"),
        ({"starts": [12, 30]}, r"starts \[12, 30\]"),
        ({"latitudes": (1, 2)}, "between 1 and 2 degrees"),
    ],
)
def test_storms_that_cannot_be(change, message):
    asked = {"starts": [0, 12], "frames": 12, "latitudes": (0, 90), "count": 2} | change
    with pytest.raises(ValueError, match=message):
        strongest_storms(np.ones((36, *GRID.shape), np.float32), GRID, **asked)


def test_a_box_crosses_greenwich_and_ends_at_the_pole():
    inside = box(Storm(0, 8, 82.5, 0.0, 1.0), GRID) > 0
    assert GRID.longitude[inside.any(0)].tolist() == [0, 15, 345]
    assert GRID.latitude[inside.any(1)].tolist() == [67.5, 82.5]


@pytest.fixture(scope="module")
def compared():
    """An arm that is the imposed signal, with 10 % more rain and 4 % more wind, and one that lost half of all."""
    control = event(members=2)
    imposed = (shift(control[0], CHANNELS, 2.0, GROUND) - control[0]).astype(np.float32)
    warm = control + imposed[None]
    warm[..., RAIN] *= 1.1
    wind = np.array([i for i, c in enumerate(CHANNELS) if c.name in WINDS])
    warm[..., wind] *= 1.04
    half = control + np.float32(0.5) * (warm - control)
    arms = {"truth": Pair(warm, control), "half": Pair(half, control)}
    mask = box(Storm(0, 8, 37.5, 45.0, 1.0), GRID)
    return compare(arms, imposed, Columns(CHANNELS, GRID, GROUND), 2.0, mask)


@pytest.mark.parametrize("region", ["globe", "storm"])
def test_changes_by_construction_come_back(compared, region):
    for arm, share in (("truth", 1.0), ("half", 0.5)):
        where = {"arm": arm, "region": region}
        for key in ("temperature_250", "specific_humidity_850", "geopotential_500", "2m_temperature"):
            kept = values(compared, "signal_kept", key, **where)
            np.testing.assert_allclose(kept, np.full(12, share), rtol=2e-3)
        for quantity in ("precipitation_mean", "precipitation_p99", "precipitation_heaviest"):
            np.testing.assert_allclose(values(compared, quantity, lead_hours=None, **where), 5 * share, rtol=1e-3)
        np.testing.assert_allclose(values(compared, "wind_speed", "850", **where), 2 * share, rtol=1e-3)
    assert not values(compared, "signal_kept", "u_component_of_wind_850")  # nothing was imposed on it


def test_energy_grows_with_the_square_and_is_relative_to_the_first_arm(compared):
    for band in ("1-3", "4-9", "10-21"):
        for arm, factor in (("truth", 1.04), ("half", 1.02)):
            change = values(compared, f"energy_change_{band}", "u_component_of_wind_500", arm=arm)
            ratio = values(compared, f"energy_ratio_{band}", "u_component_of_wind_500", arm=arm)
            np.testing.assert_allclose(change, factor**2, rtol=1e-4)
            np.testing.assert_allclose(ratio, (factor / 1.04) ** 2, rtol=1e-4)


def test_water_and_evaporation_close(compared):
    """With a constant column evaporation is the rain: 10 % more of it in the warm run."""
    warm, control = (values(compared, f"implied_evaporation_{run}", arm="truth")[0] for run in ("warm", "control"))
    np.testing.assert_allclose(warm / control, 1.1, rtol=1e-3)
    humidity = 50 * ((1 + 0.01 * values(compared, "clausius_clapeyron", arm="truth")[0] * 2) - 1)
    assert humidity - 1 < values(compared, "column_water", arm="truth")[0] < humidity + 3  # colder aloft: more


def test_heaviest_rain_is_that_of_a_day_after_the_first():
    control = event(members=1)
    control[..., RAIN] = 1e-4 * (1 + 1e-6 * np.arange(GRID.shape[1]))[None, None, None]
    warm = control.copy()
    warm[:, :DAY, 5, 5, RAIN] = 1.0  # in the first day
    warm[:, 6 : 6 + DAY, 8, 3, RAIN] = 2e-4
    records = compare(
        {"one": Pair(warm, control)},
        shift(control[0], CHANNELS, 2.0, GROUND) - control[0],
        Columns(CHANNELS, GRID, GROUND),
        2.0,
        np.ones(GRID.shape, np.float32),
    )
    np.testing.assert_allclose(values(records, "precipitation_heaviest", region="globe"), 50.0, rtol=1e-4)


def test_runs_of_another_shape_are_named():
    control = event()
    with pytest.raises(ValueError, match=r"short has runs of shape \(1, 11, 12, 24"):
        compare(
            {"short": Pair(control[:, :11], control[:, :11])},
            control[0],
            Columns(CHANNELS, GRID, GROUND),
            2.0,
            np.ones(GRID.shape, np.float32),
        )


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    draws, hits = 500, 0
    for _ in range(draws):
        cases = [[{"arm": "a", "quantity": "q", "value": value}] for value in rng.normal(3, 2, 8)]
        (found,) = summary(cases)
        hits += found["low"] < 3 < found["high"]
    assert stats.binomtest(hits, draws, 0.95).pvalue > 1e-3


def test_a_summary_counts_finite_values_only():
    cases = [[{"arm": "a", "value": value}] for value in (1.0, 3.0, float("nan"))]
    (found,) = summary(cases)
    assert (found["mean"], found["cases"]) == (2.0, 2)
    (alone,) = summary(cases[:1])
    assert (alone["mean"], alone["low"], alone["high"], alone["cases"]) == (1.0, None, None, 1)
