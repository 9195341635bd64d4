"""Checkpoints of a training run: state, position in the data and config. The only file that imports orbax."""

import json
import os
from typing import Any

import jax
import orbax.checkpoint as ocp

from wind_jax.training.state import TrainState


class Checkpointer:
    """Saves and restores a run under `directory`, asynchronously and atomically.

    A save that was cut short leaves a temporary directory that is never taken for a checkpoint.

    Args:
        directory: where checkpoints go; created.
        config: JSON-able settings that a resumed run must share (architecture, channels, diffusion, data).
        keep: number of most recent checkpoints kept.

    Raises:
        ValueError: the directory is not writable, or holds checkpoints of another config; it names what differs.
    """

    def __init__(self, directory: str | os.PathLike, config: dict[str, Any], keep: int = 2):
        directory = os.path.abspath(directory)
        try:
            os.makedirs(directory, exist_ok=True)
            if not os.access(directory, os.W_OK):
                raise PermissionError(f"no permission to write in {directory}")
        except OSError as error:
            raise ValueError(f"workdir {directory!r} is not writable: {error}.") from error
        self._config = json.loads(json.dumps(config))
        self._manager = ocp.CheckpointManager(
            directory, options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        )
        if self.latest is not None:
            self._check_config(directory)

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, None when there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data: dict[str, Any], wait: bool = False) -> None:
        """Save `state` and the data iterator's `data` position; returns at once unless `wait`."""
        step = int(state.step)
        if step == self.latest:
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=ocp.args.JsonSave(data),
                config=ocp.args.JsonSave(self._config),
            ),
        )
        if wait:
            self._manager.wait_until_finished()

    def restore(self, abstract: TrainState, shardings: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """State, laid out as `shardings` says whatever the mesh it was saved from, and the data position."""
        target = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
        restored = self._manager.restore(
            self.latest,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore()),
        )
        return restored["state"], restored["data"]

    def close(self) -> None:
        """Wait for a save under way and free its threads."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _check_config(self, directory: str) -> None:
        saved = self._manager.restore(self.latest, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]
        if saved != self._config:
            here, there = _flatten(self._config), _flatten(saved)
            wrong = sorted(k for k in here.keys() | there.keys() if here.get(k) != there.get(k))
            lines = "; ".join(f"{k} is {here.get(k)!r}, the checkpoint has {there.get(k)!r}" for k in wrong)
            raise ValueError(
                f"{directory!r} holds a checkpoint of another config: {lines}. Use another workdir or the same config."
            )


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, sub in tree.items() for k, v in _flatten(sub, f"{prefix}.{key}".strip(".")).items()}
