"""Warming storylines: an event of the archive, its large scale warmer, beside free runs and the event as it was."""

from collections.abc import Mapping, Sequence

import numpy as np

from wind_jax.problems.problem import Problem, Setting, archive_states, case_starts
from wind_jax.sphere import coarsening
from wind_jax.tasks.forecast import lead_hours, lead_times, window_count
from wind_jax.tasks.warming import (
    LARGE_SCALE,
    large_scale_observation,
    precipitation_scaling,
    region,
    shift,
    signal_kept,
)

ARMS = {"control": (False, False), "anchored": (False, True), "free": (True, False), "storyline": (True, True)}
"""Whether a run is warmer, and whether it is guided."""
PAIRS = {"free": "control", "storyline": "anchored"}
"""A warmer run and what it is compared with: guided both or neither, so that guidance is no part of the change."""


def warming(
    s: Setting,
    context: int,
    leads: int,
    kelvin: float | Mapping[str, float],
    factor: int,
    error: float,
    variables: Sequence[str] = LARGE_SCALE,
    latitude: tuple[float, float] = (-90.0, 90.0),
    longitude: tuple[float, float] = (0.0, 360.0),
) -> Problem:
    """y: the large scale of the event, warmer at constant relative humidity; see `tasks.warming`.

    Every case has four arms of the same noise, one after the other along `time`, whose coordinate `arm` names them.
    "control" starts from the event's frames and runs free, "anchored" is guided by its large scale; "free" and
    "storyline" start from the warmer frames, the one free, the other guided by the warmer large scale.

    Args:
        s: the setting.
        context: known frames at the start of each window.
        leads: new frames, 6 h apart.
        kelvin: dT, one number, or by level ({"850": 2.0}).
        factor: rows and columns of the fine grid in one coarse cell.
        error: of the coarse means, as a share of each channel's standard deviation.
        variables: observed ones.
        latitude, longitude: the box in which it is warmer, degrees.
    """
    if s.surface_geopotential is None:
        raise ValueError(f"A storyline needs geopotential_at_surface; {s.store.path} has none.")
    prior, statistics = s.prior, s.prior.statistics
    windows = window_count(leads, prior.frames, context)
    new, frames = prior.frames - context, context + windows * (prior.frames - context)
    starts = np.repeat(case_starts(s, frames), len(ARMS))
    by_level = {int(level): dT for level, dT in kelvin.items()} if isinstance(kelvin, Mapping) else kelvin
    near_surface = by_level[max(by_level)] if isinstance(by_level, Mapping) else by_level
    if not near_surface:
        raise ValueError(f"A storyline needs a warming other than 0 K near the surface, got {kelvin}.")
    names = {c.name for c in statistics.channels}
    if missing := sorted({"2m_temperature", "total_precipitation_6hr"} - names):
        raise ValueError(f"A storyline's report needs {missing}, which the prior does not have.")
    mask = region(prior.grid, latitude, longitude)
    cells = coarsening(prior.grid, factor)
    event = archive_states(s, starts)
    arm = lambda case: list(ARMS)[case % len(ARMS)]
    is_warmer, is_guided = (lambda case, i=i: ARMS[arm(case)][i] for i in (0, 1))

    def warmer(case, first, count):
        return shift(event(case, first, count), statistics.channels, by_level, s.surface_geopotential, mask)

    def states(case, first, count):
        return (warmer if is_warmer(case) else event)(case, first, count)

    def told(case, window):
        return states(case, window * new, prior.frames).astype(np.float32)

    def report(posterior):
        hours, out, lines = lead_hours(lead_times(leads)), [], []
        for first in range(0, len(starts), len(ARMS)):
            runs = {name: posterior(first + i).mean(0) for i, name in enumerate(ARMS)}
            imposed = warmer(first, context, leads) - event(first, context, leads)
            for name, base in PAIRS.items():
                kept = signal_kept(runs[name], runs[base], imposed, prior.grid, mask)
                rain = precipitation_scaling(
                    runs[name], runs[base], statistics.channels, prior.grid, near_surface, mask
                )
                out.append(
                    {
                        "case": first // len(ARMS),
                        "arm": name,
                        "lead_hours": hours,
                        "signal_kept": {
                            channel.key: kept[:, i].tolist()
                            for i, channel in enumerate(statistics.channels)
                            if np.isfinite(kept[:, i]).all()
                        },
                        "precipitation_percent_per_kelvin": float(rain.total),
                        "clausius_clapeyron_percent_per_kelvin": rain.clausius_clapeyron,
                    }
                )
                warm = out[-1]["signal_kept"]
                key = "temperature_850" if "temperature_850" in warm else next(iter(warm))
                lines.append(
                    f"case {first // len(ARMS)}, {name}: of the warming of {key}, {warm[key][0]:.0%} is kept at "
                    f"{hours[0]} h and {warm[key][-1]:.0%} at {hours[-1]} h; precipitation {rain.total:+.1f} %/K "
                    f"(Clausius-Clapeyron {rain.clausius_clapeyron:+.1f} %/K)"
                )
        return {"storylines": out}, lines

    return Problem(
        starts=starts,
        context=context,
        overlap=context,
        windows=windows,
        leads=lead_times(leads),
        observe=lambda fields: large_scale_observation(fields, cells, statistics, variables, error, mask, s.variance),
        told=told,
        seen=None,
        baseline=lambda case, lead: {},
        states=states,
        guided=is_guided,
        event=lambda case: case // len(ARMS),
        scored=False,
        report=report,
        arms=[arm(case) for case in range(len(starts))],
    )
