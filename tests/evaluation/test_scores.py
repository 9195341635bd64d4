"""Records: pooled before roots are taken, and the table says who is better."""

import numpy as np
import pytest
from rich.console import Console

from wind_jax.channels import channels
from wind_jax.evaluation import scores
from wind_jax.sphere import Grid

CHANNELS = channels(["temperature", "2m_temperature"], [500])
WEIGHTS = np.array([[0.5], [1.5]], np.float32)


def field(*values):
    """Frames with one value a channel in the first, and twice it in the second."""
    return (
        np.broadcast_to(np.array(values, np.float32), (2, 2, 3, 2)) * np.array([1, 2], np.float32)[:, None, None, None]
    )


@pytest.fixture
def cases():
    truth = np.zeros((2, 2, 3, 2), np.float32)
    return [scores.moments(np.stack([field(a, 1) + 1, field(a, 1) - 1]), truth, WEIGHTS) for a in (3.0, 4.0)]


def test_squares_are_pooled_before_the_root(cases):
    found = scores.records("posterior", cases, CHANNELS, members=2)
    rmse = scores.select(found, method="posterior", metric="rmse", lead_hours=None)
    assert rmse["temperature", 500] == pytest.approx(np.sqrt((9 + 36 + 16 + 64) / 4))
    ratio = scores.select(found, metric="spread_skill_ratio")
    assert ratio["temperature", 500] == pytest.approx(np.sqrt(1.5 * 2 / (125 / 4)))
    assert {r["unit"] for r in found} == {"K", "1"}


def test_by_lead_time(cases):
    found = scores.records("posterior", cases, CHANNELS, members=2, lead_hours=[6, 12])
    assert scores.select(found, metric="rmse", lead_hours=12)["temperature", 500] == pytest.approx(np.sqrt(50))
    assert len(found) == 4 * 2 * 2


def test_undefined_scores_have_no_record():
    truth = np.zeros((2, 2, 3, 2), np.float32)
    holes = field(1, np.nan)[None]
    found = scores.records("interpolation", [scores.moments(holes, truth, WEIGHTS)], CHANNELS, members=1)
    assert {(r["variable"], r["metric"]) for r in found} == {("temperature", "rmse"), ("temperature", "crps")}


def test_only_masked_cells_count():
    mask = np.zeros((2, 2, 3, 2), bool)
    mask[:, 0] = True
    x = field(1, 1)
    x[:, 1] = 100
    assert (scores.moments(x[None], 0 * x, WEIGHTS, mask)["mse"] == [[1, 1], [4, 4]]).all()


def test_correlation_is_of_anomalies():
    rng = np.random.default_rng(0)
    y, normal = rng.normal(size=(2, 1, 2, 3, 2)).astype(np.float32)
    acc = scores.moments((normal + 3 * (y - normal))[None], y, WEIGHTS, climatology=normal)["acc"]
    np.testing.assert_allclose(acc, 1, rtol=1e-5)


DEGREE = Grid(np.arange(-89.5, 90), np.arange(0.0, 360))  # cell edges at whole latitudes and half longitudes


@pytest.mark.parametrize(
    ("region", "latitudes", "degrees"),
    [
        (scores.REGIONS["global"], (-90, 90), 360),
        (scores.REGIONS["tropics"], (-20, 20), 360),
        (scores.REGIONS["northern-hemisphere"], (20, 90), 360),
        (scores.REGIONS["southern-hemisphere"], (-90, -20), 360),
        (scores.REGIONS["europe"], (35, 75), 55),
        (scores.REGIONS["north-pacific"], (25, 60), 86),  # cells whose centres are 145 .. 230
        (scores.REGIONS["ausnz"], (-45, -12), 56),  # a box ends at the centre of a row, which is in it
        (scores.REGIONS["antarctic"], (-90, -60), 360),
        (((-10.0, 10.0, 170.5, -170.5),), (-10, 10), 19),  # across the date line, spelled in two ways
        (((-10.0, 10.0, 170.5, 189.5),), (-10, 10), 19),
        (((-10.0, 10.0, -20.5, 9.5),), (-10, 10), 30),  # across Greenwich
        (((-10.0, 10.0, -180.0, 180.0),), (-10, 10), 360),
        (((-10.0, 10.0, 10.5, 30.5), (-10.0, 10.0, 20.5, 50.5)), (-10, 10), 40),  # what two share counts once
    ],
)
def test_regions_have_the_area_of_their_boxes(region, latitudes, degrees):
    south, north = np.sin(np.deg2rad(latitudes))
    share = (north - south) / 2 * degrees / 360
    weights = scores.region_weights(DEGREE, {"region": region})
    assert weights.shape == (1, 180, 360)
    assert weights.astype(float).sum() / weights[0].size == pytest.approx(share, rel=1e-5)


def test_a_box_across_the_date_line_has_the_cells_on_both_sides():
    weights = scores.region_weights(DEGREE, {"box": ((0.0, 1.0, 178.0, -178.0),)})[0]
    assert sorted(DEGREE.longitude[weights.any(0)]) == [178, 179, 180, 181, 182]
    assert DEGREE.latitude[weights.any(1)] == [0.5]


@pytest.mark.parametrize(
    "box", [(20.0, 10.0, 0.0, 9.0), (-91.0, 0.0, 0.0, 9.0), (0.0, np.nan, 0.0, 9.0), (0.0, 9.0, 0.0, 400.0)]
)
def test_boxes_that_are_none(box):
    with pytest.raises(ValueError, match=r"'somewhere'.* is no box: expected south:north:west:east"):
        scores.region_weights(DEGREE, {"somewhere": ((0.0, 9.0, 0.0, 9.0), box)})


def test_a_box_between_cell_centres():
    with pytest.raises(ValueError, match=r"'small', 0.6:0.9:0:9, holds no cell centre of the grid of 180 x 360"):
        scores.region_weights(DEGREE, {"small": ((0.6, 0.9, 0.0, 9.0),)})


def test_the_extra_tropics_are_both_hemispheres_by_their_areas():
    """On rows from -88 to 83 degrees the southern cells reach nearer to the equator and have more area."""
    rng = np.random.default_rng(0)
    grid = Grid(np.arange(-88.0, 84, 9.5), np.arange(12) * 30.0)
    x, y = rng.normal(size=(3, 2, 19, 12, 2)).astype(np.float32), rng.normal(size=(2, 19, 12, 2)).astype(np.float32)
    y[:, :9] *= 3
    names = ("extra-tropics", "southern-hemisphere", "northern-hemisphere")
    weights = scores.region_weights(grid, {name: scores.REGIONS[name] for name in names})
    both, south, north = scores.moments(x, y, weights)["mse"]
    area = weights.sum((1, 2))
    assert area[1] > 1.05 * area[2]
    np.testing.assert_allclose(both, (area[1] * south + area[2] * north) / (area[1] + area[2]), rtol=1e-5)
    rows = abs(grid.latitude) >= 20
    errors = ((x.mean(0) - y)[:, rows] ** 2).mean(2)  # (t, rows, c)
    np.testing.assert_allclose(both, np.average(errors, axis=1, weights=weights[0, rows, 0]), rtol=1e-5)


def test_regions_at_once_are_regions_one_by_one():
    rng = np.random.default_rng(0)
    grid = Grid(np.linspace(-80, 80, 9), np.arange(12) * 30.0)
    weights = scores.region_weights(grid, scores.REGIONS)
    x, y = rng.normal(size=(3, 2, 9, 12, 2)).astype(np.float32), rng.normal(size=(2, 9, 12, 2)).astype(np.float32)
    wanted = (*scores.DETERMINISTIC, *scores.ENSEMBLE, scores.RANKS)
    together = scores.moments(x, y, weights, None, y - 1, wanted, grid)
    assert {name: value.shape[:3] for name, value in together.items()} == dict.fromkeys(together, (13, 2, 2))
    assert together[scores.RANKS].shape[3:] == (4,)
    for i, weight in enumerate(weights):
        for name, value in scores.moments(x, y, weight, None, y - 1, wanted, grid).items():
            np.testing.assert_allclose(together[name][i], value, rtol=1e-5, err_msg=name)
    whole = {name for name, spectrum in zip(scores.REGIONS, together["spectrum"]) if not np.isnan(spectrum).any()}
    boxes = {"europe", "north-america", "north-atlantic", "north-pacific", "east-asia", "ausnz"}
    assert whole == {*scores.REGIONS} - boxes  # which have no whole latitude circle


def test_rank_histograms_of_cases_are_averaged_where_they_have_a_value():
    nan = [np.nan] * 3
    cases = [{scores.RANKS: np.array(ranks)} for ranks in ([[[1, 0, 0], nan]], [[[0, 0.5, 0.5], nan]], [[nan, nan]])]
    np.testing.assert_array_equal(scores.rank_histogram(cases), [[[0.5, 0.25, 0.25], nan]])
    assert scores.records("posterior", cases, CHANNELS, members=2, lead_hours=[6], wanted=[scores.RANKS]) == []


def test_cases_without_a_value_are_not_counted(cases):
    holes = [dict(case) for case in [*cases, cases[0]]]
    holes[2]["mse"] = np.array([[np.nan, 5.0], [np.nan, 5.0]], np.float32)
    found = scores.records("posterior", holes, CHANNELS, members=2, lead_hours=[6, 12])
    by = {(r["variable"], r["lead_hours"], r["metric"]): r for r in found}
    assert (by["temperature", 6, "rmse"]["cases"], by["2m_temperature", 6, "rmse"]["cases"]) == (2, 3)
    assert by["temperature", 6, "rmse"]["value"] == pytest.approx(np.sqrt((9 + 16) / 2))
    assert by["2m_temperature", 6, "rmse"]["value"] == pytest.approx(np.sqrt((1 + 1 + 5) / 3))
    pooled = scores.records("posterior", holes, CHANNELS, members=2)
    assert [r["cases"] for r in pooled if r["metric"] == "rmse"] == [2, 3]


def test_table_counts_who_is_better(cases):
    truth = np.zeros((2, 2, 3, 2), np.float32)
    other = [scores.moments(field(2, 2)[None], truth, WEIGHTS)] * 2
    found = scores.records("posterior", cases, CHANNELS, 2) + scores.records("climatology", other, CHANNELS, 1)
    table, line = scores.table(found)
    assert line == "posterior better than climatology for 1 of 2 variables"
    console = Console(width=120, record=True, quiet=True)
    console.print(table)
    assert table.row_count == 2
    assert scores.table(found, shown=[("2m_temperature", None)])[0].row_count == 1
