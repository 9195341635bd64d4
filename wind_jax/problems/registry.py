"""Every task by its name in `config.task.name`."""

import inspect
from collections.abc import Callable

from wind_jax.observations.observation import chosen_variance
from wind_jax.problems.forecasts import forecast
from wind_jax.problems.network import stations
from wind_jax.problems.problem import Problem, Setting
from wind_jax.problems.reconstruction import (
    custom,
    reanalysis,
    sparse_obs,
    spatial_downscaling,
    temporal_downscaling,
)
from wind_jax.problems.storylines import warming

PROBLEMS: dict[str, Callable[..., Problem]] = {
    "forecast": forecast,
    "sparse_obs": sparse_obs,
    "spatial_downscaling": spatial_downscaling,
    "temporal_downscaling": temporal_downscaling,
    "reanalysis": reanalysis,
    "stations": stations,
    "warming": warming,
    "custom": custom,
}


def make_problem(s: Setting, name: str, **task) -> Problem:
    """The problem that `config.task` names, with its other entries.

    Raises:
        ValueError: an unknown task, entries that are not its own, or another variance than "nominal" and "adaptive".
    """
    if name not in PROBLEMS:
        raise ValueError(f"Unknown task {name!r}: expected one of {', '.join(PROBLEMS)}.")
    known = [p for p in inspect.signature(PROBLEMS[name]).parameters if p != "s"]
    if unknown := sorted(set(task) - set(known)):
        raise ValueError(f"config.task of {name} has no entry {unknown}; it has {known}.")
    chosen_variance(s.variance, None)  # refused here, before anything is read
    return PROBLEMS[name](s, **task)
