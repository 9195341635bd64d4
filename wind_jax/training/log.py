"""What a run tells about itself while it trains: metrics as JSON lines and TensorBoard events."""

import contextlib
import json
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from wind_jax.files import is_url, join, read_bytes, write_bytes


class RunLog(contextlib.AbstractContextManager):
    """Metrics of a run, `metrics.jsonl` in its workdir; on resuming, lines after the checkpoint are dropped.

    The file is replaced at each write, which an object store needs, and so never ends in half a line. A line that is
    damaged all the same is left out, with a warning: a log stops no training. Events for
    TensorBoard are written where the workdir is a directory.

    Args:
        workdir: path or URL.
        start: step of the checkpoint that the run goes on from.
    """

    def __init__(self, workdir: str, start: int):
        self._path = join(workdir, "metrics.jsonl")
        before = (read_bytes(self._path) or b"").decode(errors="replace").splitlines()
        steps = [_step(line) for line in before]
        self._lines = [line for line, step in zip(before, steps) if step is not None and step <= start]
        if None in steps:
            lost = f"{steps.count(None)} damaged lines of {self._path} are left out. Training goes on."
            warnings.warn(lost, RuntimeWarning, stacklevel=2)
        self._board = None
        if not is_url(workdir):
            # Not SummaryWriter: a full disk would end its thread, and what waits for that thread would wait for ever.
            self._board = EventsWriter(join(workdir, "events"))
            forget = Event(step=start + 1, session_log=SessionLog(status=SessionLog.START))
            self._board.write_event(forget)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add a line; where the disk is full, with a warning, and it is written with the next."""
        self._lines.append(json.dumps({"step": step, **values}))
        try:
            write_bytes(self._path, "".join(f"{line}\n" for line in self._lines).encode())
            if self._board is not None:
                self._board.flush()  # first what found no room before, so that its buffer always has some
                for name, value in values.items():
                    self._board.write_event(Event(step=step, wall_time=time.time(), summary=scalar(name, value)))
                self._board.flush()
        except OSError as error:
            warnings.warn(f"Step {step}: {error}. Training goes on.", RuntimeWarning, stacklevel=2)

    def __exit__(self, *_: object) -> None:
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()


def _step(line: str) -> int | None:
    """The step that a line is of; None where it is damaged."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def average(metrics: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean of metrics of the same names, as of several batches."""
    return {name: float(np.mean([m[name] for m in metrics])) for name in metrics[0]}


def summary(metrics: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of several training steps: the `average` of those made, and the number of those `skipped`."""
    made = [m for m in metrics if not m["skipped"]]
    return average(made or metrics) | {"skipped": len(metrics) - len(made)}


def in_a_row(metrics: Sequence[dict[str, Any]], before: int) -> list[int]:
    """How many steps were skipped one after the other up to each of some steps, where `before` were ahead of them."""
    counts = [before]
    for m in metrics:
        counts.append(counts[-1] + 1 if m["skipped"] else 0)
    return counts[1:]
