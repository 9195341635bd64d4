"""Checkpoints of a training run: state, position in the data and config. The only file that imports orbax."""

import contextlib
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
from wind_jax.training.processes import differences, exchange, on_first
from wind_jax.training.state import TrainState


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

    def _attempt(self, action: Callable[[], Any]) -> None:
        """Part of a save; if it fails on one process, all start over with what is on the disk."""
        if failed := _failures(action):
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
        options = ocp.CheckpointManagerOptions(**self._kept, create=True, cleanup_tmp_directories=cleanup)
        return ocp.CheckpointManager(self.directory, options=options)

    def _reopen(self) -> None:
        """Start over after a failed save, without what it has left, which would fill a full disk."""
        _failures(self._manager.close)
        if jax.process_index() == 0:
            for path in self._manager.directory.glob("*.orbax-checkpoint-tmp"):
                with contextlib.suppress(OSError):  # a thread of that save may still write; the next start removes it
                    path.rmtree()
        self._manager = self._open(cleanup=False)

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


def _failures(action: Callable[[], Any]) -> str:
    """Does something; what went wrong, on any process, empty if nothing did. Orbax raises whatever it met."""
    error = ""
    try:
        action()
    except Exception as failure:
        while failure.__cause__ is not None:  # what the file system said comes first, and is the cause of the rest
            failure = failure.__cause__
        error = f"{type(failure).__name__}: {' '.join(str(failure).split())}"
    return "; ".join(sorted(set(filter(None, exchange(error)))))


@jax.jit
def _bit_sums(tree: Any) -> jax.Array:
    """(n,) uint32: for each array the sum of its bits' words, modulo 2^32; the same on every mesh."""

    def bit_sum(leaf: jax.Array) -> jax.Array:
        words = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
        return jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32)

    return jnp.stack([bit_sum(leaf) for leaf in jax.tree.leaves(tree)])


def _checksums(state: TrainState) -> list[int]:
    return np.asarray(_bit_sums(state)).tolist()
