"""Forecasts: from known frames, free or with something conserved."""

from collections.abc import Callable, Mapping

import numpy as np

from wind_jax.columns import Columns, total
from wind_jax.evaluation.baselines import persistence
from wind_jax.observations.observation import chosen_variance, observe
from wind_jax.observations.totals import conservation_operator
from wind_jax.problems.problem import Fields, Problem, Setting, archive_states, case_starts, told_nothing
from wind_jax.tasks.forecast import lead_times, window_count


def forecast(s: Setting, context: int, leads: int, conserve: Mapping[str, float] | None = None) -> Problem:
    """From known frames alone; y, if anything, is what is conserved.

    Args:
        s: the setting.
        context: known frames at the start of each window.
        leads: new frames, 6 h apart.
        conserve: relative error by quantity ("dry_air_mass", "total_water", "energy") to which each frame is held
            at its value in the last known frame.
    """
    windows = window_count(leads, s.prior.frames, context)
    starts = case_starts(s, context + leads)
    last = lambda case: s.store.read(int(starts[case]) + context - 1, 1)
    observe_constraint, told = (None, told_nothing) if not conserve else _conserved(s, conserve, last)
    return Problem(
        starts=starts,
        context=context,
        overlap=context,
        windows=windows,
        leads=lead_times(leads),
        observe=observe_constraint,
        told=told,
        seen=None,
        baseline=lambda case, lead: {"persistence": persistence(last(case)[0], lead.stop - lead.start)},
        states=archive_states(s, starts),
    )


def _conserved(s: Setting, conserve: Mapping[str, float], initial: Callable[[int], Fields]):
    """Observation of the conserved quantities, and the values that each case is told: those of its initial frame."""
    if s.surface_geopotential is None:
        raise ValueError(f"Conservation needs geopotential_at_surface; {s.store.path} has none.")
    if wrong := {name: error for name, error in conserve.items() if not (np.isfinite(error) and error > 0)}:
        raise ValueError(f"The relative errors of conserved quantities must be positive, got {wrong}.")
    columns = Columns(s.prior.statistics.channels, s.prior.grid, s.surface_geopotential)
    amounts = {name: [float(total(initial(case), columns, name)[0]) for case in range(s.cases)] for name in conserve}
    # Operators are departures from one reference, in which float32 resolves 1e-8; each case has its own y.
    operators = {name: conservation_operator(columns, amounts[name][0], name) for name in conserve}
    variance = chosen_variance(s.variance, {name: float(error) ** 2 for name, error in conserve.items()})

    def observation(y):
        return observe(lambda x: {name: f(x) for name, f in operators.items()}, y, variance, s.prior.statistics)

    def told(case, window):
        departure = {name: values[case] / values[0] - 1 for name, values in amounts.items()}
        return {name: np.full(s.prior.frames, value, np.float32) for name, value in departure.items()}

    return observation, told
