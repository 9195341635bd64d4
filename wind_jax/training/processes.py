"""Several processes as one program: joining, agreeing, and ending together. One process is a program of one."""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

HEARTBEAT_SECONDS = 30  # after which a process that is silent counts as dead, and the others end


def join() -> None:
    """Join the other processes of this job, which the scripts of launch/ describe in the environment; first of all.

    WIND_COORDINATOR is "auto" where JAX finds the processes by itself (TPU, Slurm), else an address, with
    WIND_PROCESS_COUNT and WIND_PROCESS_ID; without it there is one process.
    """
    jax.config.update("jax_enable_preemption_service", False)  # `Termination` takes its place
    match os.environ.get("WIND_COORDINATOR"):
        case None | "":
            return
        case "auto":
            jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
        case coordinator:
            count, index = int(os.environ["WIND_PROCESS_COUNT"]), int(os.environ["WIND_PROCESS_ID"])
            jax.distributed.initialize(coordinator, count, index, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)


def exchange(text: str) -> list[str]:
    """The texts of all processes, in the order of the processes. All must call it."""
    if jax.process_count() == 1:
        return [text]
    encoded = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(encoded.size))
    padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
    padded[: encoded.size] = encoded
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def agree(settings: Mapping[str, Any]) -> None:
    """Check that all processes were started with the same settings, by name.

    Raises:
        ValueError: on every process, naming what differs and where.
    """
    texts = exchange(json.dumps(settings))
    first = json.loads(texts[0])
    for index, other in enumerate(map(json.loads, texts)):
        if differing := sorted(k for k in first.keys() | other.keys() if first.get(k) != other.get(k)):
            lines = "; ".join(f"{k} is {other.get(k)!r}, there it is {first.get(k)!r}" for k in differing)
            raise ValueError(
                f"Process {index} of {len(texts)} has another config than process 0: {lines}. All processes of a job "
                "take the same arguments."
            )


def on_first(action: Callable[[], None]) -> None:
    """Let process 0 alone do something; the others wait for it.

    Raises:
        ValueError: on every process, where process 0 raised it.
    """
    error = ""
    if jax.process_index() == 0:
        try:
            action()
        except ValueError as failure:
            error = str(failure)
    if message := exchange(error)[0]:
        raise ValueError(message)


class Termination(contextlib.AbstractContextManager):
    """Whether this process is asked to end by SIGTERM: by a user, a scheduler or the reclaiming of a spot machine.

    That all processes of a job end after the same step is decided on the devices: the answer travels with the batch.
    """

    def __enter__(self) -> "Termination":
        self.asked = False
        self._previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _ask(self, *_: object) -> None:
        self.asked = True
