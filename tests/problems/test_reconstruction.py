"""Baselines of the downscaling tasks on a small atmosphere."""

import dataclasses

import numpy as np
import pytest

from wind_jax.data.climatology import Climatology
from wind_jax.problems.registry import make_problem

TASKS = {
    "spatial_downscaling": ({"factor": 2, "error": 0.1}, {"interpolation", "bicubic"}, "bicubic_anomaly"),
    "temporal_downscaling": ({"mean_over": 3, "error": 0.1}, {"interpolation"}, "cubic_anomaly"),
}


class Perfect(Climatology):
    """A climatology that is the weather itself."""

    def __init__(self, store):
        self.store = store

    def at(self, times):
        return self.store.read(int(np.searchsorted(self.store.times, times[0])), len(times))


@pytest.mark.parametrize("task", TASKS)
def test_interpolation_of_anomalies_adds_nothing_to_a_perfect_climatology(setting, task):
    options, plain, anomaly = TASKS[task]
    assert make_problem(setting, task, **options).baseline(1, slice(0, 3)).keys() == plain
    informed = setting._replace(prior=dataclasses.replace(setting.prior, climatology=Perfect(setting.store)))
    problem = make_problem(informed, task, **options)
    found = problem.baseline(1, slice(1, 3))
    assert found.keys() == plain | {anomaly}
    truth = problem.states(1, 1, 2)
    channels = setting.prior.statistics.channels
    expected = np.where([c.non_negative for c in channels], truth.clip(0), truth)
    np.testing.assert_allclose(found[anomaly], expected, rtol=1e-4, atol=1e-6)
    assert np.abs(found["interpolation"] - truth)[..., 0].mean() > 1.0
