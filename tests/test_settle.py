"""The settling experiment's arithmetic: fractions of interpolation's errors and their intervals over cases."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import settle
from wind_jax.sphere import Grid, area_weights

GRID = Grid(np.linspace(-75, 75, 6), np.arange(24) * 15.0)
CASES, CHANNELS = 12, 2


@pytest.fixture(scope="module")
def found():
    """The posterior's three members err by half of what interpolation does, the specialist by a fifth of it."""
    rng, weights = np.random.default_rng(0), area_weights(GRID)
    cases = []
    for _ in range(CASES):
        truth = rng.normal(size=(2, *GRID.shape, CHANNELS))
        error = rng.normal(size=truth.shape)
        about = np.array([-1.0, 0.0, 1.0])[:, None, None, None, None]
        solved = {
            "posterior": truth[None] + 0.5 * error[None] + 0.25 * about,
            "specialist": (truth + 0.2 * error)[None],
            "anomalies": (truth + error)[None],
            "interpolation": (truth + error)[None],
            "climatology": np.zeros((1, *truth.shape)),
        }
        case = {method: settle.moments(x, truth, weights) for method, x in solved.items()}
        case["truth"] = {"power": settle.moments(truth[None], truth, weights)["power"]}
        cases.append(case)
    return {"settings": {"members": 3}, "channels": ["geopotential_500", "temperature_850"], "cases": cases}


def test_fractions_of_interpolations_errors(found):
    every = np.arange(CASES)
    for method, fraction in {"posterior": 0.5, "specialist": 0.2, "anomalies": 1.0}.items():
        for channel in (None, 0, 1):
            assert settle.relative(found, method, "mse", channel, every) == pytest.approx(fraction, rel=1e-5)
    assert settle.relative(found, "specialist", "crps", 1, every) == pytest.approx(0.2, rel=1e-5)
    assert np.sqrt(found["cases"][0]["posterior"]["variance"]) == pytest.approx(0.25, rel=1e-5)


def test_an_interval_is_of_cases_drawn_again():
    """Of a mean: 1.96 standard errors on both sides, about."""
    x = np.random.default_rng(1).normal(size=400)
    mean, low, high = settle.interval(lambda chosen: float(x[chosen].mean()), x.size)
    assert mean == x.mean()
    assert (high - low) / 2 == pytest.approx(1.96 * x.std() / 20, rel=0.1)


def test_table_and_figure_have_every_method(found):
    out = settle.table(found, "spatial_downscaling")
    headings = [column.header for column in out.columns]
    assert [f"CRPS {method}" in headings for method in settle.METHODS] == [True] * 4
    assert out.row_count == 3
    axes = settle.figure({"spatial_downscaling": found}).axes
    assert [line.get_label() for line in axes[0].get_lines()[:4]] == list(settle.METHODS)


def test_unlike_networks_are_not_compared():
    def network(samples, config="a"):
        statistics = SimpleNamespace(channels=("t",))
        return SimpleNamespace(config=config, statistics=statistics, provenance=json.dumps({"samples": samples}))

    settle.check_alike(network(8), network(8), "x")
    with pytest.raises(ValueError, match="trained on 8 windows, the specialist of x on 4"):
        settle.check_alike(network(8), network(4), "x")
    with pytest.raises(ValueError, match="another architecture"):
        settle.check_alike(network(8), network(8, "b"), "x")
