"""One progress bar for every long command: rate and time left on a terminal, silence elsewhere.

Off a terminal (a batch job, a pipe, a test) nothing is written, except a plain line every so many seconds where the
environment variable WIND_LOG_EVERY asks for it, as the launchers do: a log is what one has of a job.
"""

import math
import operator
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

Item = TypeVar("Item")


def printer(width: int = 120) -> Callable[..., None]:
    """What prints text as it is, and rich's tables: as wide as the terminal, elsewhere `width`, so logs are whole."""
    return Console(width=None if sys.stdout.isatty() else width, markup=False).print


def _rate(task: Task) -> str:
    """Steps a second, or seconds a step where steps are slower than that; empty until two steps are timed."""
    speed, unit = task.speed, task.fields["unit"]
    if not speed:
        return ""
    return f"{speed:.3g} {unit}/s" if speed >= 1 else f"{1 / speed:.3g} s/{unit}"


def _values(task: Task) -> str:
    """`loss=0.123 step=7`: integers and text as they are, anything else as a number of four digits."""
    shown = {k: v if isinstance(v, int | str) else f"{float(v):.4g}" for k, v in task.fields["values"].items()}
    return " ".join(f"{name}={value}" for name, value in shown.items())


def _log_every() -> float:
    """Seconds between plain lines."""
    text = os.environ.get("WIND_LOG_EVERY", "inf")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise ValueError(f"WIND_LOG_EVERY is {text!r}; expected a number of seconds, 0 or more.")
    return seconds


class _RateAndValues(ProgressColumn):
    """Formats at each refresh, not at each update: reading a device array would hold up every step."""

    def render(self, task: Task) -> Text:
        return Text(f"{_rate(task)} {_values(task)}".strip())


class Progress:
    """Context manager around one bar on stderr.

    Args:
      description: what is being done, at the left of the bar.
      total: number of steps, or None where it is not known (then there is no time left to show).
      unit: name of one step, for the rate.
      shown: whether to show anything at all: one of many processes does.

    Raises:
      ValueError: if WIND_LOG_EVERY is no number of seconds, 0 or more.
    """

    def __init__(self, description: str, total: int | None = None, unit: str = "it", shown: bool = True) -> None:
        terminal = sys.stderr.isatty()
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            _RateAndValues(),
            console=Console(stderr=True),
            disable=not (shown and terminal),
            get_time=time.monotonic,
            speed_estimate_period=300,
        )
        self._log_every = _log_every() if shown and not terminal else math.inf
        self._logged = time.monotonic()
        self._bar.add_task(description, total=total, unit=unit, values={})
        self._task = self._bar.tasks[0]

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def update(self, advance: int = 1, **fields: object) -> None:
        """Counts `advance` steps; `fields` (`loss=0.1`) are shown at the right until others replace them."""
        self._bar.update(self._task.id, advance=advance, **({"values": fields} if fields else {}))
        if time.monotonic() - self._logged >= self._log_every:
            self._logged = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        task = self._task
        done = f"{task.completed:g}" if task.total is None else f"{task.completed:g}/{task.total:g}"
        left = "" if task.time_remaining is None else f"{task.time_remaining:.0f} s left"
        return ", ".join(filter(None, (f"{task.description}: {done}", _rate(task), left, _values(task))))


def track(
    iterable: Iterable[Item],
    description: str,
    total: int | None = None,
    unit: str = "it",
) -> Iterator[Item]:
    """Yields the items of `iterable` and counts each one done when the next is asked for.

    Args:
      iterable: anything; its length, where it tells one, is the default of `total`.
      description: as for `Progress`, like `total` and `unit`.

    Example:
      >>> sum(track([1, 2, 3], "adding"))
      6
    """
    total = total if total is not None else operator.length_hint(iterable) or None
    with Progress(description, total, unit) as progress:
        for item in iterable:
            yield item
            progress.update()
