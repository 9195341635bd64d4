"""Forecasts: from known frames, free or with something conserved."""

from collections.abc import Callable, Mapping

from wind_jax.columns import Columns
from wind_jax.evaluation.baselines import persistence
from wind_jax.observations.totals import amounts, check_error, departures, totals_observation
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
    check_error(conserve)
    columns = Columns(s.prior.statistics.channels, s.prior.grid, s.surface_geopotential)
    targets = [amounts(initial(case), columns, conserve) for case in range(s.cases)]
    references = {name: float(values[0]) for name, values in targets[0].items()}

    def observation(y):
        return totals_observation(columns, y, references, conserve, s.prior.statistics, s.variance)

    def told(case, window):
        return departures({name: values[0] for name, values in targets[case].items()}, references, s.prior.frames)

    return observation, told
