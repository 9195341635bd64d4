"""Whole jobs of several processes, as launch/local.sh starts them: they train as one, end as one, and can go on.

Each process has one CPU device; collectives go through gloo.
"""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import synthetic
import tiny

from wind_jax.prior import load_prior
from wind_jax.training.processes import Meetings, Termination, agree, alone, exchange, on_first, say

ROOT = Path(__file__).resolve().parents[2]


def test_one_process_agrees_with_itself():
    assert exchange("wind ↗") == ["wind ↗"]
    assert Meetings("here")("wind ↗", 1.0) == ["wind ↗"]
    agree({"seed": 1})
    assert on_first(lambda: 1) == 1


def test_what_process_0_finds_wrong_is_raised():
    def fail():
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        on_first(fail)


def test_what_is_said_is_shown_as_it_is(capsys):
    say("saved runs/[/x]: no space [source locations='a.cc:1'] on [red]")
    assert capsys.readouterr().out == "saved runs/[/x]: no space [source locations='a.cc:1'] on [red]\n"


def test_sigterm_that_was_lost_is_found_at_the_latest_where_it_is_held():
    with Termination() as termination:
        with contextlib.suppress(Termination.Interruption):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except Exception:
                pytest.fail("taken for an error")
        os.kill(os.getpid(), signal.SIGTERM)  # a second one is not raised in the middle of the end
        with pytest.raises(Termination.Interruption):
            termination.hold()


def test_sigterm_before_a_wait_ends_it_too():
    """As it comes while a step runs, mostly; a process that is alone has nobody to wait with."""
    with Termination() as termination:
        termination.hold()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Termination.Interruption), termination.waiting():
            pytest.fail("waited")


@pytest.mark.parametrize(("name", "value"), [("WIND_COORDINATOR", "auto"), ("SLURM_STEP_NUM_TASKS", "4")])
def test_a_command_for_one_process_is_refused_to_several(monkeypatch, name, value):
    alone()
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name} .*{value}"):
        alone()


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return tiny.write_archive(tmp_path_factory.mktemp("data") / "archive.zarr")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """One compilation for all jobs; one device a process."""
    return os.environ | {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }


@contextlib.contextmanager
def job(processes, config, environment, *arguments):
    """launch/local.sh, running; its output goes to files beside the config."""
    with open(f"{config}.out", "w") as out, open(f"{config}.err", "w") as err:
        command = ["bash", ROOT / "launch" / "local.sh", str(processes), "--config", config, *arguments]
        running = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        try:
            yield running
        finally:
            for _ in range(2):  # the second ends it at once
                running.terminate()
                time.sleep(0.1)
            running.wait(60)


def output(config):
    return Path(f"{config}.out").read_text()


def run(processes, config, environment, *arguments, status=0):
    with job(processes, config, environment, *arguments) as running:
        assert running.wait(400) == status, output(config) + Path(f"{config}.err").read_text()
    return output(config)


def losses(workdir):
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def wait_for(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def trainings(parent):
    """Process ids of a job's trainings, by WIND_PROCESS_ID."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    found = {}
    for pid in children:
        settings = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if b"wind_jax.train" in Path(f"/proc/{pid}/cmdline").read_bytes():
            found |= {int(s.split(b"=")[1]): int(pid) for s in settings if s.startswith(b"WIND_PROCESS_ID=")}
    return found


def checkpoints(workdir):
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.exists() else []


@pytest.fixture
def noting(environment, tmp_path):
    """Name of a job -> its environment, in which each process notes the windows that it reads, a batch a line."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if 'WIND_PROCESS_ID' in os.environ:\n"
        "    from wind_jax.data.windows import Batch\n"
        "    read = Batch.__call__\n"
        "    def noted(self, starts):\n"
        "        with open(os.environ['NOTES'] + os.environ['WIND_PROCESS_ID'], 'a') as file:\n"
        "            print(*starts, file=file)\n"
        "        return read(self, starts)\n"
        "    Batch.__call__ = noted\n"
    )
    return lambda job: environment | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "NOTES": f"{tmp_path}/read by {job} "}


def noted(tmp_path, job, process):
    """Batches of windows that a process has read."""
    return {tuple(line.split()) for line in (tmp_path / f"read by {job} {process}").read_text().splitlines()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "samples", "fsdp", "space"),
    [(2, 1, 1, 1), (4, 1, 1, 1), (2, 2, 1, 1), (2, 1, 2, 1), (2, 1, 1, 2)],
    ids=["two", "four", "rows", "fsdp", "space"],
)
def test_processes_train_as_one(archive, noting, tmp_path, processes, samples, fsdp, space):
    """The losses and prior of one process with as many devices: several samples on each, or a part of the state or of
    the longitudes; and each process reads its own part of a batch, or with others the whole of what they share."""
    parts = processes // space
    settings = {"batch_size": samples * parts, "mesh.fsdp": fsdp, "mesh.space": space}
    settings |= {"validation.windows": samples * parts, "optimizer.steps": 8, "log_every": 2, "data.in_memory": False}
    if fsdp > 1:
        settings["model.widths"] = (64, 64)  # of which some parameters are large enough to be split
    one = tiny.write_config(tmp_path / "one.py", archive, tmp_path / "one", **settings)
    environment = noting("one")
    devices = f"{environment['XLA_FLAGS']} --xla_force_host_platform_device_count={processes}"
    run(1, one, environment | {"XLA_FLAGS": devices})
    several = tiny.write_config(tmp_path / "several.py", archive, tmp_path / "several", **settings)
    run(processes, several, noting("several"))
    expected, found = losses(tmp_path / "one"), losses(tmp_path / "several")
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)
    params = [load_prior(tmp_path / name / "prior.npz").params for name in ("one", "several")]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *params)
    shardings = (tmp_path / "several" / "checkpoints" / "8" / "state" / "_sharding").read_text()
    assert bool(re.search(r"partition_spec[^]]*fsdp", shardings)) == (fsdp > 1)
    whole, each = noted(tmp_path, "one", 0), [noted(tmp_path, "several", index) for index in range(processes)]
    for index, read in enumerate(each):
        rows = slice(index // space * samples, (index // space + 1) * samples)
        assert len(read & {batch[rows] for batch in whole}) >= 8  # at least: those read ahead are a matter of time
    starts = [start for read in each[::space] for batch in read for start in batch]
    assert len(set(starts)) == len(starts)


@pytest.mark.slow
def test_one_process_that_cannot_read_ends_the_job(archive, environment, tmp_path):
    """Process 1 sees a copy of the archive, on a disk that fails while a save may be under way."""
    for index in range(2):
        shutil.copytree(archive, tmp_path / str(index) / "archive.zarr")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\ncd {tmp_path}/"${{WIND_PROCESS_ID:-0}}"\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    settings = {"batch_size": 2, "checkpoint_every": 2, "optimizer.steps": 10**6, "validation.windows": 2}
    settings["data.in_memory"] = False
    config = tiny.write_config(tmp_path / "config.py", "archive.zarr", tmp_path / "run", **settings)
    with job(2, config, environment | {"PYTHON": str(python)}) as running:
        wait_for(lambda: checkpoints(tmp_path / "run"))
        for chunk in (tmp_path / "1" / "archive.zarr").rglob("*.0"):
            chunk.write_bytes(b"")
        began = time.monotonic()
        assert running.wait(120) != 0
        assert time.monotonic() - began < 60
    assert re.search(r"\[1\] error: cannot read .*archive.zarr", output(config))
    assert "the others are stopped" in Path(f"{config}.err").read_text()


@pytest.mark.slow
def test_a_save_that_fails_on_one_process_alone_ends_nothing(archive, environment, tmp_path):
    """For a while, files of process 1 cannot grow beyond 16 KiB: both tell of it and train on; a later save is good."""
    settings = {"batch_size": 2, "mesh.fsdp": 2, "model.widths": (64, 64), "validation.windows": 2}
    settings |= {"checkpoint_every": 20, "optimizer.steps": 10**6, "validate_every": 10**6}
    config = tiny.write_config(tmp_path / "config.py", archive, tmp_path / "run", **settings)
    told = lambda index: f"[{index}] " in "".join(re.findall(".*could not be saved.*File too large.*", output(config)))
    with job(2, config, environment) as running:
        wait_for(lambda: checkpoints(tmp_path / "run"))
        one, (_, hard) = trainings(running.pid)[1], resource.getrlimit(resource.RLIMIT_FSIZE)
        limit = lambda size: resource.prlimit(one, resource.RLIMIT_FSIZE, (size, hard))
        limit(2**14)
        wait_for(lambda: told(0) and told(1), 120)
        limit(hard)
        failed = checkpoints(tmp_path / "run")[-1]
        wait_for(lambda: checkpoints(tmp_path / "run")[-1] > failed, 120)
        running.terminate()
        assert running.wait(100) == 0
    assert "SIGTERM: saved step" in output(config)


@pytest.mark.slow
def test_killing_one_process_ends_the_job_and_the_next_resumes(archive, environment, tmp_path):
    workdir = tmp_path / "run"
    settings = {"batch_size": 2, "checkpoint_every": 2, "optimizer.steps": 10**6, "validation.windows": 2}
    config = tiny.write_config(tmp_path / "config.py", archive, workdir, **settings)
    with job(2, config, environment) as running:
        wait_for(lambda: checkpoints(workdir))
        began = time.monotonic()
        os.kill(trainings(running.pid)[1], signal.SIGKILL)
        assert running.wait(60) == 137
        assert time.monotonic() - began < 60
    assert "process 1 was killed by SIGKILL; the others are stopped" in Path(f"{config}.err").read_text()
    with job(2, config, environment) as running:  # and now in order: SIGTERM to one of them
        wait_for(lambda: "training from step" in output(config))
        os.kill(trainings(running.pid)[1], signal.SIGTERM)
        assert running.wait(100) == 0
    assert "resumed from step" in output(config)
    assert f"SIGTERM: saved step {checkpoints(workdir)[-1]}" in output(config)
    # One process goes on where two were, and keeps to the config of the checkpoint.
    steps = checkpoints(workdir)[-1] + 2
    assert f"finished {steps} steps" in run(1, config, environment, f"--config.optimizer.steps={steps}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "what"),
    [
        (
            'exec {python} "$@" ${WIND_PROCESS_ID:+--config.seed=$WIND_PROCESS_ID}',
            "config .*: seed is 1, there it is 0",
        ),
        ('cd "$FOLDERS/${WIND_PROCESS_ID:-0}" && exec {python} "$@"', r"config.data .*: path is {.*\[1470, .*\[1480, "),
    ],
    ids=["settings", "archives"],
)
def test_processes_that_disagree_are_told_so_by_each(archive, environment, tmp_path, how, what):
    """In their settings, or in what they find under one name, as on disks of their own."""
    for index, times in enumerate((1480, 1470)):
        place = tmp_path / str(index) / "archive.zarr"
        synthetic.write_archive(place, synthetic.times(times), tiny.LATITUDE, tiny.LONGITUDE, levels=(500, 850))
    python = tmp_path / "python"
    python.write_text("#!/bin/bash\n" + how.replace("{python}", sys.executable) + "\n")
    python.chmod(0o755)
    config = tiny.write_config(tmp_path / "config.py", "archive.zarr", tmp_path / "run", batch_size=2)
    told = run(2, config, environment | {"PYTHON": str(python), "FOLDERS": str(tmp_path)}, status=2)
    for index in range(2):
        assert re.search(rf"\[{index}\] error: Process 1 of 2 has another {what}", told)
    assert not (tmp_path / "run" / "config.json").exists()  # written as the first step begins


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_kills_change_nothing(archive, environment, tmp_path):
    """SIGKILL at random moments, every other time during a save; the losses are those of an uninterrupted run."""
    settings = {"log_every": 2, "checkpoint_every": 2, "optimizer.steps": 2000, "validation.windows": 8}
    settings |= {"optimizer.final_learning_rate": 1e-2, "validate_every": 10**6}  # constant: steps may be changed
    workdir = tmp_path / "killed"
    config = tiny.write_config(tmp_path / "killed.py", archive, workdir, **settings)
    rng, during_a_save, reached = random.Random(0), 0, [0]
    for i in range(20):
        with job(1, config, environment) as running:
            before = reached[-1]
            wait_for(lambda before=before: (checkpoints(workdir) or [0])[-1] > before)
            if i % 2:
                wait_for(lambda: list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp")))
            time.sleep(rng.uniform(0, 0.1 if i % 2 else 2.0))
            os.kill(trainings(running.pid)[0], signal.SIGKILL)
            assert running.wait(60) == 137
        during_a_save += bool(list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp")))
        reached.append(checkpoints(workdir)[-1])
        assert "is not good" not in output(config)  # what looks like a checkpoint is one
    assert reached == sorted(reached)
    assert during_a_save >= 5
    steps = reached[-1] + 10
    last = [f"--config.optimizer.steps={steps}", "--config.checkpoint_every=1000"]
    assert f"resumed from step {reached[-1]}" in run(1, config, environment, *last)

    whole = tiny.write_config(tmp_path / "whole.py", archive, tmp_path / "whole", **settings)
    run(1, whole, environment, *last)
    expected, found = losses(tmp_path / "whole"), losses(workdir)
    assert list(found) == list(expected) == list(range(2, steps + 1, 2))
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)
