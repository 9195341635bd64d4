"""A task as an inverse problem on cases from an archive: what is known, what each window is told, what is true."""

import hashlib
import inspect
import itertools
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from wind_jax.data.store import TIME_STEP, Store, span
from wind_jax.data.windows import window_starts
from wind_jax.evaluation.kriging import Covariance
from wind_jax.prior import Prior
from wind_jax.sphere import Grid
from wind_jax.tasks.observation import Observation

Fields = Float[np.ndarray, "l h w c"]
Ensemble = Float[np.ndarray, "m l h w c"]


class Setting(NamedTuple):
    """What every task starts from.

    Attributes:
        prior: p(x) of one window.
        store: archive of the truth, with the prior's channels and grid.
        static: (h, w, 6) from `static_forcings`.
        surface_geopotential: (h, w) m2 s-2; None where the archive has none.
        cases: number of problems, spread evenly over the period.
        period: first and last day, empty for all.
        key: of everything that is drawn.
        variance: "nominal" or "adaptive": of the observations, as guidance sees it.
        covariance: of anomalies, for the baselines that have a spread; None: without it.
    """

    prior: Prior
    store: Store
    static: np.ndarray
    surface_geopotential: np.ndarray | None
    cases: int
    period: Sequence[str]
    key: Key[Array, ""]
    variance: str
    covariance: Covariance | None = None


class Seen(NamedTuple):
    """Observations as fields, for the file and the figures of a run.

    Attributes:
        grid: of the fields.
        leads: (l,) timedelta64.
        values: of a case, (l, H, W, c) physical units, NaN where nothing was observed.
        masked: scores leave the observed cells out.
    """

    grid: Grid
    leads: np.ndarray
    values: Callable[[int], Fields]
    masked: bool


class Problem(NamedTuple):
    """One task on some cases.

    Attributes:
        starts: (cases,) positions in the archive of the first frame of all, or in times of the task's own.
        context: known frames at the start, 0 for none.
        overlap: frames that neighbouring windows share.
        windows: their number.
        leads: (l,) timedelta64 of the frames drawn, since the last known frame or else the first.
        observe: what a window is told -> its observation; None for a free run.
        told: (case, window) -> arrays, the same shapes for all.
        seen: observations as fields, where they are such.
        baseline: (case, positions among the leads) -> by method a field (l, h, w, c), NaN where it has none, or members
            (m, l, h, w, c).
        states: (case, first frame, number) -> what is true, or is taken as the start; None where no one knows.
        guided: whether a case is; all are, unless it says otherwise.
        event: number whose noise a case shares: runs that are to be compared differ in nothing else.
        scored: whether the posterior is compared with `states`.
        report: (posterior of a case (m, l, h, w, c), all physical) -> what else to say, JSON-able, and lines to print.
        times: (cases,) datetime64 of the first frames, where they are not the archive's.
        arms: name of each case, where several are of one event.
    """

    starts: np.ndarray
    context: int
    overlap: int
    windows: int
    leads: np.ndarray
    observe: Callable[[PyTree], Observation] | None
    told: Callable[[int, int], PyTree]
    seen: Seen | None
    baseline: Callable[[int, slice], Mapping[str, Fields | Ensemble]]
    states: Callable[[int, int, int], Fields] | None
    guided: Callable[[int], bool] = lambda case: True
    event: Callable[[int], int] = lambda case: case
    scored: bool = True
    report: Callable[[Callable[[int], np.ndarray]], tuple[dict, list[str]]] | None = None
    times: np.ndarray | None = None
    arms: Sequence[str] | None = None


def case_starts(s: Setting, frames: int, times: np.ndarray | None = None) -> np.ndarray:
    """Positions (cases,) of the first frames of windows spread evenly over the period.

    Args:
        s: the setting.
        frames: of a window.
        times: in which positions are; None for the archive's.

    Raises:
        ValueError: more cases than windows, or none.
    """
    possible = window_starts(s.store.times if times is None else times, frames, tuple(s.period) or None)
    if not 1 <= s.cases <= possible.size:
        raise ValueError(
            f"config.cases is {s.cases}; {'the period' if s.period else s.store.path} has 1 to {possible.size} windows "
            f"of {frames} frames."
        )
    return possible[np.linspace(0, possible.size - 1, s.cases).round().astype(int)]


def calendar(period: Sequence[str]) -> np.ndarray:
    """Times (n,) 6 h apart from the first date to the end of the last, where no archive gives any.

    Raises:
        ValueError: not two dates.
    """
    try:
        first, end = (date.astype("datetime64[ns]") for date in span(period))
        return np.arange(first, end, TIME_STEP)
    except ValueError:
        raise ValueError(
            "Without a truth config.data.period gives the times, as two dates like ('2018-11-02T00', '2018-11-03'); "
            f"got {tuple(period)}."
        ) from None


def archive_states(s: Setting, starts: np.ndarray) -> Callable[[int, int, int], Fields]:
    """The archive's own states, from each case's first frame on."""
    return lambda case, first, frames: s.store.read(int(starts[case]) + first, frames)


def told_nothing(case: int, window: int) -> None:
    """What a window of a free run is told."""


def fingerprint(task: Mapping[str, Any], prior: Prior, problem: Problem, *fields: np.ndarray) -> dict[str, str]:
    """Digests of what a configuration names but does not hold: a run resumes only with the same content.

    Of the archive they are of `fields`, and of the known frames of each case, or its first one.

    Args:
        task: settings of the task.
        prior: what members are drawn from.
        problem: what is solved.
        fields: static fields, times, climatology.
    """
    cases = range(len(problem.starts)) if problem.states else ()
    states = (problem.states(case, 0, max(problem.context, 1)) for case in cases)
    out = {"prior": prior.digest(), "archive": _digest(itertools.chain(fields, states))}
    if path := task.get("path"):
        out["table"] = _digest([Path(path).read_bytes()])
    if operator := task.get("operator"):
        try:  # the whole file: an operator calls functions beside it
            out["operator"] = _digest([Path(inspect.getsourcefile(operator)).read_bytes()])
        except (TypeError, OSError):
            out["operator"] = f"unknown {uuid.uuid4()}"  # nothing that is known to be the same
    return out


def _digest(parts: Iterable[np.ndarray | bytes]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(np.asarray(part).tobytes())
    return whole.hexdigest()
