"""Checkpoints of a training run: state, position in the data and config. The only file that imports orbax."""

import contextlib
import functools
import itertools
import json
import os
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from wind_jax.files import is_url
from wind_jax.training.processes import Meetings, differences, exchange, on_first
from wind_jax.training.state import TrainState

_SAVE_SECONDS = 1200
"""Time after which a save has failed."""
_TELL_SECONDS = 60.0
"""Time in which all processes come to tell of their part of a save, once they have waited for each other in orbax."""
_numbers = itertools.count()


class Checkpointer(contextlib.AbstractContextManager):
    """Saves and restores a run under `directory`, asynchronously and atomically. All processes call all methods.

    A save that was cut short leaves a temporary directory that is never taken for a checkpoint and goes with the next
    start. One that fails is told of by a warning, and the run goes on. Leaving the context waits for a save under way.

    Args:
        directory: where checkpoints go, a path or URL that all processes see; created.
        config: JSON-able settings, by name, that a resumed run must share (architecture, channels, diffusion, data).
        keep: number of most recent checkpoints kept.
        keep_every: checkpoints of steps that this divides are kept for good; 0: none.

    Raises:
        ValueError: the directory is not writable, or holds checkpoints of another config; it names what differs.
    """

    def __init__(self, directory: str | os.PathLike, config: dict[str, Any], keep: int = 2, keep_every: int = 0):
        self.directory = str(directory) if is_url(directory) else os.path.abspath(directory)
        self._kept = {"max_to_keep": keep, "keep_period": keep_every or None}
        self._config = json.loads(json.dumps(config))
        self._saving: int | None = None
        self._remains = False  # of a save that failed
        try:
            if not is_url(self.directory):
                os.makedirs(self.directory, exist_ok=True)
                if not os.access(self.directory, os.W_OK):
                    raise PermissionError(f"no permission to write in {self.directory}")
            self._manager = self._open(cleanup=True)
        except (OSError, ImportError) as error:  # of a bucket, whose package is an extra
            raise ValueError(f"workdir {self.directory!r} is not writable: {error}.") from error
        self._check_config()

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, None when there is none; `settle` first after a save."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, data: dict[str, Any]) -> None:
        """Begin to save `state` and the `data` position; returns as soon as the state may change.

        Args:
            step: of `state`.
            state: on any mesh.
            data: JSON-able; the same on all processes.
        """
        jax.block_until_ready(state)  # on CPU, collectives of a step and of `settle` may wait for each other for ever
        self.settle()
        if step == self.latest:
            return
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave(data | {"checksums": _checksums(state)}),
            config=ocp.args.JsonSave(self._config),
        )
        self._saving = step
        self._attempt(lambda: self._manager.save(step, args=arguments))

    def settle(self) -> None:
        """Wait for a save under way; where it has failed, say so, and clear what is left of it."""
        if self._saving is not None:
            self._attempt(self._manager.wait_until_finished)
            self._saving = None
        if self._remains:  # by now no thread writes there
            self._clear()

    def _attempt(self, action: Callable[[], Any]) -> None:
        """Part of a save; if it fails on one process, all start over with what is on the disk.

        Raises:
            TimeoutError: it has failed here, and the others do not come out of orbax; the job cannot go on.
        """
        if failed := _failures(action, functools.partial(self._told, seconds=_TELL_SECONDS)):
            self._reopen()
            warnings.warn(
                f"The checkpoint of step {self._saving} could not be saved in {self.directory!r}: {failed}. Training "
                f"goes on; the last good checkpoint is that of step {self.latest}.",
                RuntimeWarning,
                stacklevel=4,
            )
            self._saving = None

    def restore(self, abstract: TrainState, shardings: TrainState) -> tuple[int, TrainState, dict[str, Any]]:
        """The newest checkpoint that can be read and whose checksums hold; newer ones are set aside, with a warning.

        Where none is good, what is wrong may be memory or a disk that is away, so that nothing is set aside.

        Args:
            abstract: shapes and dtypes of the state.
            shardings: how it is laid out, whatever the mesh and the number of processes that saved it.

        Returns:
            step, state and data position.

        Raises:
            ValueError: there is no checkpoint, or none is good.
        """
        target = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore())
        steps = sorted(self._manager.all_steps(), reverse=True)
        wrong: dict[int, str] = {}
        for step in steps:
            restored, failed = self._read(step, arguments)
            if not failed:
                state, data = restored["state"], dict(restored["data"])
                if data.pop("checksums", None) in (None, _checksums(state)):
                    self._set_aside(wrong)
                    return step, state, data
                failed = "the checksums of its arrays do not hold"
                del restored, state  # the next one needs the memory
            wrong[step] = failed
        lines = "; ".join(f"that of step {step}: {failed}" for step, failed in wrong.items())
        raise ValueError(
            f"No good checkpoint in {self.directory!r}; found steps {steps}, and left them as they are. {lines}"
        )

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.settle()
            self._manager.close()
        else:  # perhaps on this process alone: the others do not answer, and the failure is what is to be told of
            with contextlib.suppress(Exception):
                self._manager.close()

    def _read(self, step: int, arguments: ocp.args.Composite) -> tuple[dict[str, Any], str]:
        """Items of a checkpoint, and what went wrong, if anything."""
        items: dict[str, Any] = {}
        failed = _failures(lambda: items.update(self._manager.restore(step, args=arguments).items()))
        return items, failed

    def _set_aside(self, wrong: dict[int, str]) -> None:
        for step, failed in wrong.items():
            path = self._manager.directory / str(step)
            on_first(lambda path=path: path.rename(f"{path}.broken"))
            warnings.warn(
                f"The checkpoint of step {step} in {self.directory!r} is not good: {failed}. It was renamed to "
                f"{step}.broken; the one before it is taken.",
                RuntimeWarning,
                stacklevel=3,
            )
        self._manager.reload()

    def _open(self, cleanup: bool) -> ocp.CheckpointManager:
        name = f"wind_jax/checkpoints/{next(_numbers)}"  # of a failed save's manager, threads may still be about
        self._told = Meetings(f"{name}/told")
        saving = ocp.AsyncOptions(timeout_secs=_SAVE_SECONDS, barrier_sync_fn=_Barrier(Meetings(f"{name}/barrier")))
        options = ocp.CheckpointManagerOptions(
            **self._kept, create=True, cleanup_tmp_directories=cleanup, async_options=saving
        )
        return ocp.CheckpointManager(self.directory, options=options)

    def _reopen(self) -> None:
        """Start over after a failed save, without what it has left, which would fill a full disk."""
        _failures(self._manager.close)
        self._clear()
        self._manager = self._open(cleanup=False)

    def _clear(self) -> None:
        """Remove what a failed save has left; where a thread of it still writes, the next call does."""
        paths = list(self._manager.directory.glob("*.orbax-checkpoint-tmp")) if jax.process_index() == 0 else []
        for path in paths:
            with contextlib.suppress(OSError):
                path.rmtree()
        self._remains = bool(paths)

    def _check_config(self) -> None:
        """Against the newest checkpoint whose config can be read; `restore` finds out about the others."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            restored, failed = self._read(step, ocp.args.Composite(config=ocp.args.JsonRestore()))
            if not failed:
                break
        else:
            return
        if lines := differences(self._config, restored["config"]):
            raise ValueError(
                f"{self.directory!r} holds a checkpoint of another config: {lines}. Use another workdir or the same "
                "config."
            )


def saved_average(directory: str, step: int, like: Any) -> tuple[Any, float]:
    """The average of a checkpoint, without the rest of its state, on one device.

    Args:
        directory: of checkpoints, a path or URL.
        step: of the checkpoint.
        like: arrays of the same shapes.

    Returns:
        the average, and seconds of training.

    Raises:
        ValueError: there is no such checkpoint, it is of another architecture, or its checksums do not hold.
    """
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = {"ema": jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), like)}
    part = ocp.args.PyTreeRestore(
        target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True
    )
    options = ocp.CheckpointManagerOptions(create=False)
    with contextlib.closing(ocp.CheckpointManager(directory, options=options)) as manager:
        if step not in (steps := sorted(manager.all_steps())):
            raise ValueError(f"{directory!r} has no checkpoint of step {step}; it has those of {steps}.")
        try:
            found = manager.restore(step, args=ocp.args.Composite(state=part, data=ocp.args.JsonRestore()))
        except Exception as error:  # orbax raises whatever it met
            raise ValueError(f"The checkpoint of step {step} in {directory!r} cannot be read: {error}") from error
    average, arrays = found["state"]["ema"], len(jax.tree.leaves(like))
    sums = found["data"].get("checksums")  # of step, parameters, average, and the optimizer's state
    if sums and sums[1 + arrays : 1 + 2 * arrays] != _checksums(average):
        raise ValueError(f"The checksums of the checkpoint of step {step} in {directory!r} do not hold.")
    return average, found["data"]["seconds"]


class _Barrier:
    """At which the threads in which orbax saves wait for those of other processes, one after the other.

    Orbax's own waits until the time is up for a process that has failed. That one goes on to a later barrier: where not
    all have come to the same, none of them waits any more, at this barrier and those after it.
    """

    class Apart(Exception):
        """Not all processes are at the same barrier."""

    def __init__(self, meet: Callable[[str, float], list[str]]):
        self._meet, self._apart = meet, False

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        together, self._apart = not self._apart, True
        if together:  # else there is nobody to meet
            self._apart = len(set(self._meet(key, timeout_ms / 1000))) > 1
        if self._apart:
            raise self.Apart("another process could not save its part")


def _failures(action: Callable[[], Any], exchange: Callable[[str], list[str]] = exchange) -> str:
    """Does something; what went wrong, on any process, empty if nothing did. Orbax raises whatever it met."""
    error = ""
    try:
        action()
    except Exception as failure:
        # What the file system said comes first, and is the cause of the rest; a barrier may have hidden it.
        while earlier := failure.__cause__ or (failure.__context__ if isinstance(failure, _Barrier.Apart) else None):
            failure = earlier
        error = f"{type(failure).__name__}: {' '.join(str(failure).split())}"
    return "; ".join(sorted(set(filter(None, exchange(error)))))


@jax.jit
def _bit_sums(tree: Any) -> jax.Array:
    """(n,) uint32: for each array the sum of its bits' words, modulo 2^32; the same on every mesh."""

    def bit_sum(leaf: jax.Array) -> jax.Array:
        words = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
        return jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32)

    return jnp.stack([bit_sum(leaf) for leaf in jax.tree.leaves(tree)])


def _checksums(tree: Any) -> list[int]:
    return np.asarray(_bit_sums(tree)).tolist()
