"""The benchmarks run, and print one JSON object."""

import json
import subprocess
import sys

import pytest

SMALL = {
    "model.widths": (32, 32), "model.blocks": ("res", "transformer"), "model.heads": 2, "model.embedding": 16,
    "data.grid": (8, 16), "data.levels": (500,), "batch_size": 8,  # one for each device of the test session
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("script", "timed"), [("train_step", "seconds"), ("sample", "seconds"), ("guidance", "mmps")])
def test_a_benchmark_prints_one_json_object(script, timed):
    options = [f"--config.{key}={value}" for key, value in SMALL.items()]
    line = [sys.executable, f"benchmarks/{script}.py", "--config", "experiments/speedy.py", "--repeats", "1", *options]
    done = subprocess.run(line, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    assert timed in json.dumps(json.loads(done.stdout))
