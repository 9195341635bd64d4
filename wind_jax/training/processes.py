"""Several processes as one program: joining, agreeing, and ending together. One process is a program of one."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # of the coordinator's client there is no public name
from jax.experimental import multihost_utils
from rich.console import Console

T = TypeVar("T")
SILENCE_SECONDS = 30  # after which a silent process counts as dead, and one that ends waits for the others no more


def join() -> None:
    """Join the other processes of this job, which the scripts of launch/ describe in the environment; first of all.

    WIND_COORDINATOR is "auto" where JAX finds the processes by itself (TPU, Slurm), else an address, with
    WIND_PROCESS_COUNT and WIND_PROCESS_ID; without it there is one process.
    """
    jax.config.update("jax_enable_preemption_service", False)  # `Termination` takes its place
    patience = {"heartbeat_timeout_seconds": SILENCE_SECONDS, "shutdown_timeout_seconds": SILENCE_SECONDS}
    match os.environ.get("WIND_COORDINATOR"):
        case None | "":
            return
        case "auto":
            jax.distributed.initialize(**patience)
        case coordinator:
            count, index = int(os.environ["WIND_PROCESS_COUNT"]), int(os.environ["WIND_PROCESS_ID"])
            jax.distributed.initialize(coordinator, count, index, **patience)


def alone() -> None:
    """Check that this process is no part of a job of several, for commands that do not join them.

    Raises:
        ValueError: it is; each of them would do the same.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks != "1" or os.environ.get("WIND_COORDINATOR"):
        raise ValueError(
            f"This command runs in one process, on all devices that it sees, and was started in several: "
            f"SLURM_STEP_NUM_TASKS is {tasks}, WIND_COORDINATOR {os.environ.get('WIND_COORDINATOR')!r}. Start it once."
        )


def say(text: str) -> None:
    """A line from process 0, as it is: in paths and messages there may be what rich takes for its markup."""
    if jax.process_index() == 0:
        Console().print(text, soft_wrap=True, markup=False, highlight=False)


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


class Meetings:
    """Exchanges of texts through the job's coordinator: from any thread, and none waits longer than it is told to.

    `exchange` goes through the devices, from the main thread alone, and waits for ever for one that does not come.

    Args:
        name: of its own, the same on all processes, which call it equally often.
    """

    def __init__(self, name: str):
        self._name, self._count = name, 0

    def __call__(self, text: str, seconds: float) -> list[str]:
        """The texts of all processes, in the order of the processes.

        Raises:
            TimeoutError: one of them did not come in time.
        """
        if jax.process_count() == 1:
            return [text]
        client, end = distributed.global_state.client, time.monotonic() + seconds
        self._count += 1
        place = f"{self._name}/{self._count}"
        wait_for = lambda key: client.blocking_key_value_get(key, max(int(1000 * (end - time.monotonic())), 1))
        client.key_value_set(f"{place}/{jax.process_index()}", text)
        try:
            if jax.process_index() == 0:
                texts = [wait_for(f"{place}/{index}") for index in range(jax.process_count())]
                client.key_value_set(f"{place}/all", json.dumps(texts))
                client.key_value_delete(f"{self._name}/{self._count - 1}/")  # who is here has read that
            return json.loads(wait_for(f"{place}/all"))
        except jax.errors.JaxRuntimeError:
            message = f"not all of {jax.process_count()} processes were there within {seconds:.0f} s"
            raise TimeoutError(message) from None


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """Where two settings differ, for a message: "seed is 1, there it is 0"; empty where they are the same."""
    names = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    return "; ".join(f"{name} is {here.get(name)!r}, there it is {there.get(name)!r}" for name in names)


def agree(settings: Mapping[str, Any], what: str = "config") -> None:
    """Check that all processes have the same settings, by name.

    Raises:
        ValueError: on every process, naming what differs and where.
    """
    texts = exchange(json.dumps(settings))
    for index, text in enumerate(texts):
        if lines := differences(json.loads(text), json.loads(texts[0])):
            raise ValueError(
                f"Process {index} of {len(texts)} has another {what} than process 0: {lines}. All processes of a job "
                "take the same arguments and see the same files."
            )


def on_first(action: Callable[[], T]) -> T | None:
    """Let process 0 alone do something; the others wait for it, and get None.

    Raises:
        Exception: on process 0, what `action` raised.
        ValueError: on the others, telling of it.
    """
    result, failure = None, None
    if jax.process_index() == 0:
        try:
            result = action()
        except Exception as error:
            failure = error
    message = exchange(f"{type(failure).__name__}: {failure}" if failure else "")[0]
    if failure:
        raise failure
    if message:
        raise ValueError(f"Process 0 ends with {message}")
    return result


class Termination(contextlib.AbstractContextManager):
    """Whether this process is asked to end by SIGTERM: by a user, a scheduler or the reclaiming of a spot machine.

    SIGTERM raises `Interruption` until `hold`, and is noted in `asked` from there on, where there is a state to save.
    That all processes of a job end after the same step is decided on the devices: the answer travels with the batch.
    """

    class Interruption(BaseException):
        """SIGTERM came before `hold`, or while a process that is alone waited. Not an error to be recovered from."""

    def __init__(self):
        self.asked, self._at_once = False, True

    def __enter__(self) -> "Termination":
        self._previous = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def hold(self) -> None:
        """From here on SIGTERM is noted, and ends a wait at most.

        Raises:
            Interruption: it has come already, where that could not be raised.
        """
        self._at_once = False
        if self.asked:
            raise self.Interruption

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what may take long, such as a read: SIGTERM ends it, unless other processes would miss this one.

        Raises:
            Interruption: so that it has ended.
        """
        before, self._at_once = self._at_once, self._at_once or jax.process_count() == 1
        if self.asked and self._at_once:  # before there was anything to wait for
            self._at_once = False
            raise self.Interruption
        try:
            yield
        finally:
            self._at_once = before and not self.asked

    def _ask(self, *_: object) -> None:
        self.asked = True
        if self._at_once:
            self._at_once = False  # while it ends, another one is noted only
            raise self.Interruption
