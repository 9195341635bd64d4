"""The log of a run: whole lines only, none after the checkpoint, and it outlives a full disk."""

import json

import numpy as np
import pytest

from wind_jax.training.log import RunLog, summary


def steps(tmp_path):
    return [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    log = RunLog(str(tmp_path), 0)
    for step in (2, 4, 6):
        log.write(step, {"loss": 1.0 / step})
    RunLog(str(tmp_path), 4).write(5, {"loss": 0.1})
    assert steps(tmp_path) == [2, 4, 5]


def test_a_line_that_finds_no_room_comes_with_the_next(tmp_path, monkeypatch):
    log = RunLog(str(tmp_path), 0)

    def full(path, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("wind_jax.training.log.write_bytes", full)
        with pytest.warns(RuntimeWarning, match="Step 2: .*No space left"):
            log.write(2, {"loss": 1.0})
    log.write(4, {"loss": 0.5})
    assert steps(tmp_path) == [2, 4]


def test_summary_leaves_out_skipped_steps():
    made = [{"loss": np.float32(loss), "skipped": 0} for loss in (1.0, 3.0)]
    assert summary([*made, {"loss": np.float32("nan"), "skipped": 1}]) == {"loss": 2.0, "skipped": 1}
    assert np.isnan(summary([{"loss": np.float32("nan"), "skipped": 1}])["loss"])
