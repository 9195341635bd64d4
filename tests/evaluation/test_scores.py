"""Records: pooled before roots are taken, and the table says who is better."""

import numpy as np
import pytest
from rich.console import Console

from wind_jax.data.variables import channels
from wind_jax.evaluation import scores

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
    assert len(found) == 3 * 2 * 2


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
