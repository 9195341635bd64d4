"""The launchers start what they say, with the arguments they were given, and clean up after a failure."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[1] / "launch"


def launch(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", LAUNCH / script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )


def started(*arguments: str, **environment: str) -> subprocess.Popen:
    """launch/local.sh, running in a process group of its own."""
    return subprocess.Popen(
        ["bash", LAUNCH / "local.sh", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        process_group=0,
    )


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def interpreter(tmp_path):
    """A stand-in for Python that runs the given lines in place of the training."""

    def write(lines: str) -> str:
        path = tmp_path / "python"
        path.write_text(f"#!{sys.executable}\nimport os, sys, time\nme = int(os.environ['WIND_PROCESS_ID'])\n{lines}")
        path.chmod(0o755)
        return str(path)

    return write


def test_local_gives_every_process_its_place(interpreter):
    python = interpreter(
        "print(os.environ['WIND_COORDINATOR'], os.environ['WIND_PROCESS_COUNT'], *sys.argv[1:], end='')"
    )
    done = launch("local.sh", "3", "--config", "a b.py", PYTHON=python, PORT="4321")
    assert (done.returncode, done.stderr) == (0, "")
    expected = "127.0.0.1:4321 3 -u -m wind_jax.train --config a b.py"
    assert sorted(done.stdout.splitlines()) == [f"[{i}] {expected}" for i in range(3)]


@pytest.mark.parametrize(
    ("given", "seen"), [(None, ["0", "1"]), ("3,5,7", ["3", "5"]), ("GPU-a,GPU-b", ["GPU-a", "GPU-b"]), ("", ["", ""])]
)
def test_local_shares_out_the_gpus_that_it_is_given(interpreter, monkeypatch, given, seen):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    python = interpreter("print(os.environ['CUDA_VISIBLE_DEVICES'])")
    given = {} if given is None else {"CUDA_VISIBLE_DEVICES": given}
    done = launch("local.sh", "2", PYTHON=python, PORT="4321", **given)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"[{i}] {gpu}" for i, gpu in enumerate(seen)]


def test_local_needs_a_gpu_for_each_process():
    done = launch("local.sh", "3", CUDA_VISIBLE_DEVICES="3,5")
    assert done.returncode == 2
    assert "3 processes need as many GPUs, found CUDA_VISIBLE_DEVICES=3,5" in done.stderr


def test_local_stops_all_when_one_fails(interpreter, tmp_path):
    python = interpreter(
        f"os.chdir({str(tmp_path)!r})\n"
        "with open(f'{me}.part', 'w') as file:\n    file.write(str(os.getpid()))\n"
        "os.rename(f'{me}.part', f'{me}')\n"
        "while me == 1 and not (os.path.exists('0') and os.path.exists('2')):\n    time.sleep(0.01)\n"
        "if me == 1:\n    sys.exit(7)\n"
        "time.sleep(600)"
    )
    began = time.monotonic()
    done = launch("local.sh", "3", PYTHON=python, PORT="4321")
    assert done.returncode == 7
    assert "process 1 failed with status 7; the others are stopped" in done.stderr
    assert time.monotonic() - began < 30
    for process in (0, 2):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / str(process)).read_text()), 0)


@pytest.fixture
def heeded():
    """SIGINT is ignored where pytest runs in the background; the script would inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def two_waiting(interpreter, folder, asked):
    """local.sh of two processes that wait, and do as they are asked to on SIGTERM; once both are there."""
    python = interpreter(
        f"import signal\nos.chdir({str(folder)!r})\ndef end(*_):\n    {asked}\n"
        "signal.signal(signal.SIGTERM, end)\nopen(f'{me}', 'w').close()\nwhile True:\n    time.sleep(600)"
    )
    with started("2", PYTHON=python, PORT="4321") as running:
        wait_for(lambda: all((folder / name).exists() for name in "01"))
        yield running


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["script", "group"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_local_has_all_end_in_order(interpreter, tmp_path, heeded, send, number):
    """As Ctrl-C and schedulers ask for it, who signal the whole group: what is printed after that still appears."""
    asked = "time.sleep(0.3); print('saving', flush=True); print('saved'); sys.exit(0)"
    with two_waiting(interpreter, tmp_path, asked) as running:
        send(running.pid, number)
        out, err = running.communicate(timeout=30)
    assert (running.returncode, err) == (0, "")
    assert sorted(out.splitlines()) == [f"[{i}] {word}" for i in range(2) for word in ("saved", "saving")]


def test_local_leaves_nobody_behind_however_often_it_is_asked(interpreter, tmp_path, heeded):
    with two_waiting(interpreter, tmp_path, "print('asked', flush=True)") as running:
        for _ in range(4):
            os.killpg(running.pid, signal.SIGINT)
            time.sleep(0.2)
        out, _ = running.communicate(timeout=30)  # to the end of output, which comes with that of the processes
    assert running.returncode == 130
    assert set(out.splitlines()) == {"[0] asked", "[1] asked"}


@pytest.mark.parametrize("count", ["", "0", "two"])
def test_local_needs_a_number(count):
    done = launch("local.sh", count)
    assert done.returncode == 2
    assert f"found '{count}'" in done.stderr


@pytest.fixture
def no_gcloud(tmp_path):
    """A PATH whose gcloud tells on whoever calls it."""
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(f"#!/bin/sh\necho called > {tmp_path}/called\nexit 1\n")
    gcloud.chmod(0o755)
    yield f"{tmp_path}:{os.environ['PATH']}"
    assert not (tmp_path / "called").exists()


def test_tpu_dry_run_prints_and_runs_nothing(no_gcloud):
    place = ["--name", "wind", "--zone", "us-west4-a"]
    training = ["--config", "experiments/era5.py", "--config.workdir=gs://bucket/a run"]
    done = launch("tpu.sh", "--dry-run", "all", *place, "--spot", "--", *training, PATH=no_gcloud)
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line[2:]) for line in done.stderr.splitlines() if line.startswith("+ ")]
    gcloud = [c[3:] for c in commands if c[0] == "gcloud"]
    assert all(c[-1] == "--zone=us-west4-a" for c in gcloud)
    assert [c[:2] for c in gcloud] == [
        ["queued-resources", "create"],
        ["queued-resources", "describe"],
        ["tpu-vm", "scp"],
        ["tpu-vm", "ssh"],
        ["tpu-vm", "ssh"],
        ["tpu-vm", "ssh"],
        ["tpu-vm", "ssh"],
    ]
    assert {"wind", "--node-id=wind", "--accelerator-type=v5litepod-32", "--spot"} <= set(gcloud[0])
    run = next(a for a in gcloud[5] if a.startswith("--command="))
    started = re.search(r"-m wind_jax\.train (.*) >> train\.log", run)[1]
    assert shlex.split(started) == training
    assert "--worker=all" in gcloud[5]


@pytest.fixture
def gcloud(tmp_path):
    """A PATH whose gcloud runs the given lines, and whose sleep takes no time."""

    def write(lines: str) -> str:
        for name, text in (("gcloud", lines), ("sleep", "exit 0")):
            (tmp_path / name).write_text(f"#!/bin/bash\ncd {tmp_path}\n{text}\n")
            (tmp_path / name).chmod(0o755)
        return f"{tmp_path}:{os.environ['PATH']}"

    return write


PLACE = ("--name", "wind", "--zone", "us-west4-a")


def test_tpu_waits_on_when_gcloud_fails_now_and_then(gcloud):
    """It fails at every other look, and the slice is there at the sixth."""
    looks = "[[ $4 == describe ]] || exit 0\necho >> looks\nlooks=$(wc -l < looks)\n"
    done = launch(
        "tpu.sh", "create", *PLACE, PATH=gcloud(looks + "((looks % 2)) && exit 1\n((looks < 6)) || echo ACTIVE")
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(" describe wind") == 6
    done = launch("tpu.sh", "create", *PLACE, PATH=gcloud("[[ $4 == create ]]"))
    assert done.returncode == 2
    assert "could not describe wind 10 times in a row" in done.stderr


def test_tpu_run_keeps_the_log_and_refuses_a_second_training(gcloud, tmp_path):
    """What `run` has a worker do, done here."""
    python, log, pid = (tmp_path / "wind_jax" / name for name in (".venv/bin/python", "train.log", "train.pid"))
    python.parent.mkdir(parents=True)
    python.write_text(f"#!{sys.executable}\nimport time\nprint('here', flush=True)\ntime.sleep(60)\n")
    python.chmod(0o755)
    path = gcloud('for a; do\n[[ $a != --command=* ]] || exec bash -c "${a#*=}"\ndone')
    run = lambda: launch("tpu.sh", "run", *PLACE, "--", "--config", "a.py", PATH=path)
    for times in (1, 2):
        assert run().returncode == 0
        try:
            wait_for(lambda times=times: log.exists() and log.read_text() == times * "here\n")
            again = run()
            assert again.returncode == 1
            assert "training runs here already" in again.stderr
        finally:
            os.kill(int(pid.read_text()), signal.SIGKILL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "--zone", "z"], "--name and --zone are needed"),
        (["--name", "n", "--zone", "z"], "no action"),
        (["fly", "--name", "n", "--zone", "z"], "unknown action 'fly'"),
        (["create", "--name", "n", "--zone", "z", "--size", "4"], "unknown option '--size'"),
        (["create", "stop"], "one action, found 'create' and 'stop'"),
        (["run", "--name", "n", "--zone", "z"], "needs the training arguments"),
        (["run", "--name"], "--name needs a value"),
    ],
)
def test_tpu_refuses(arguments, message, no_gcloud):
    done = launch("tpu.sh", *arguments, PATH=no_gcloud)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize("script", ["local.sh", "tpu.sh"])
def test_help(script):
    done = launch(script, "--help")
    assert done.returncode == 0
    assert f"launch/{script}" in done.stdout
    assert "set -euo" not in done.stdout
