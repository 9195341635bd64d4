"""The log of a run: whole lines only, none after the checkpoint, and it outlives a full disk."""

import json
import resource
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from wind_jax.training.log import RunLog, summary


def steps(tmp_path):
    return [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    with RunLog(str(tmp_path), 0) as log:
        for step in (2, 4, 6):
            log.write(step, {"loss": 1.0 / step})
    with RunLog(str(tmp_path), 4) as log:
        log.write(5, {"loss": 0.1})
    assert steps(tmp_path) == [2, 4, 5]


@pytest.mark.parametrize(
    "damage", [b'{"step": 4, "lo', b"[]", b'{"loss": 1.0}', b"null", b"\xff\xfe", b'{"step": "x"}']
)
def test_a_damaged_line_stops_no_training(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 2, "loss": 0.5}\n' + damage + b"\n")
    with pytest.warns(RuntimeWarning, match=r"1 damaged lines of .*metrics\.jsonl"), RunLog(str(tmp_path), 4) as log:
        log.write(6, {"loss": 0.1})
    assert steps(tmp_path) == [2, 6]


def test_a_line_that_finds_no_room_comes_with_the_next(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    with RunLog(str(tmp_path), 0) as log:
        with monkeypatch.context() as patch:
            patch.setattr("wind_jax.training.log.write_bytes", full)
            with pytest.warns(RuntimeWarning, match="Step 2: .*No space left"):
                log.write(2, {"loss": 1.0})
        log.write(4, {"loss": 0.5})
    assert steps(tmp_path) == [2, 4]


def events(tmp_path):
    """(step, tag, value) of the scalars in a run's one file for TensorBoard, whose records must all be whole."""
    ((file),) = tmp_path.glob("events.out.tfevents.*")
    data, found = file.read_bytes(), []
    while data:
        (size,) = struct.unpack_from("<Q", data)
        event = Event.FromString(data[12 : 12 + size])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        assert len(data) >= size + 16
        data = data[size + 16 :]
    return found


def test_a_disk_that_is_full_for_long_costs_tensorboard_some_steps_and_the_run_nothing(tmp_path, monkeypatch):
    values = {f"validation/noise_left_t{i}": float(i) for i in range(20)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunLog(str(tmp_path), 0) as log, monkeypatch.context() as patch:
        log.write(1, values)
        patch.setattr("wind_jax.training.log.write_bytes", lambda path, data: None)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1536, hard))
        try:
            for step in range(2, 100):
                with pytest.warns(RuntimeWarning, match=f"Step {step}: .*Training goes on"):
                    log.write(step, values)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            patch.undo()
        log.write(100, values)
    assert steps(tmp_path) == [*range(1, 101)]
    shown = events(tmp_path)
    assert {(1, *value) for value in values.items()} | {(100, *value) for value in values.items()} <= {*shown}
    assert len(shown) % len(values) == 0


def test_summary_leaves_out_skipped_steps():
    made = [{"loss": np.float32(loss), "skipped": 0} for loss in (1.0, 3.0)]
    assert summary([*made, {"loss": np.float32("nan"), "skipped": 1}]) == {"loss": 2.0, "skipped": 1}
    assert np.isnan(summary([{"loss": np.float32("nan"), "skipped": 1}])["loss"])
