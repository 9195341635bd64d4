"""The benchmarks run, and print one JSON object."""

import json
import subprocess
import sys

import pytest

SMALL = {
    "model.widths": (32, 32), "model.blocks": ("res", "transformer"), "model.heads": 2, "model.embedding": 16,
    "data.grid": (8, 16), "data.levels": (500,), "batch_size": 8,  # one for each device of the test session
}  # fmt: skip


def run(script, *options):
    line = [sys.executable, f"benchmarks/{script}.py", "--repeats", "1", *options]
    done = subprocess.run(line, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(("script", "timed"), [("train_step", "seconds"), ("sample", "seconds"), ("guidance", "mmps")])
def test_a_benchmark_prints_one_json_object(script, timed):
    options = [f"--config.{key}={value}" for key, value in SMALL.items()]
    assert timed in json.dumps(run(script, "--config", "experiments/speedy.py", *options))


@pytest.mark.slow
def test_the_network_agrees_with_one_of_pytorch():
    pytest.importorskip("torch")
    sizes = {"batch_size": 1, "frames": 2, "width": 32, "depth": 1}
    result = run("peer", *(f"--{name}={size}" for name, size in sizes.items()))
    assert 0 < result["difference"] < 1e-4
    assert all(result["step bfloat16"]["seconds"][whose] > 0 for whose in ("ours", "torch"))
