"""What is written to a terminal and, above all, what is not written elsewhere."""

import contextlib
import io
import os
import pty
import re
import subprocess
import sys

import pytest

from wind_jax import progress
from wind_jax.progress import Progress, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


@pytest.fixture
def log_every(monkeypatch):
    return lambda text: monkeypatch.setenv("WIND_LOG_EVERY", text)


def test_silent_off_a_terminal(capfd):
    assert list(track(range(3), "steps")) == [0, 1, 2]
    with Progress("steps", total=2) as bar:
        bar.update(loss=1.0)
    assert capfd.readouterr() == ("", "")


def test_text_is_printed_as_it_is(capsys):
    """Square brackets are no markup: paths may have them."""
    progress.printer(40)("results are in runs/[bold]1[/bold]")
    assert capsys.readouterr().out == "results are in runs/[bold]1[/bold]\n"


def test_a_field_is_not_read_where_it_is_not_shown():
    class Unread:
        def __float__(self) -> float:
            raise AssertionError("formatting a device array holds up the step")

    with Progress("steps") as bar:
        bar.update(loss=Unread())


def test_log_line_every_n_seconds(capsys, clock, log_every):
    log_every("20")
    for _ in track(range(6), "fit", unit="step"):
        clock(10.0)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["fit: 2/6", "fit: 4/6", "fit: 6/6"]
    assert lines[1] == "fit: 4/6, 10 s/step, 20 s left"


def test_log_line_shows_the_latest_fields(capsys, log_every):
    log_every("0")
    with Progress("fit", shown=False) as bar:
        bar.update()
    with Progress("fit") as bar:
        bar.update(loss=0.123456, step=12345)
        bar.update()
    assert capsys.readouterr().err.splitlines()[1].endswith("loss=0.1235 step=12345")


def test_bar_on_a_terminal(monkeypatch):
    stderr = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", stderr)
    with Progress("fit [a]", total=2) as bar:
        bar.update(2, loss=0.5)
    shown = stderr.getvalue()
    assert "fit [a]" in shown
    assert "2/2" in shown
    assert "loss=0.5" in shown


def test_rate_and_time_left_on_a_real_terminal():
    """A process whose stderr is a pseudo-terminal shows a bar; what it prints stays apart from it."""
    program = (
        "import time; from wind_jax.progress import track\n"
        "for i in track(range(8), 'steps', unit='step'): time.sleep(0.15)\n"
        "print('done')"
    )
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=theirs, env=environment
    ) as run:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
            while part := os.read(ours, 4096):
                shown += part
        printed = run.stdout.read()
    os.close(ours)
    assert (run.returncode, printed) == (0, b"done\n")
    text = shown.decode()
    assert "8/8" in text
    assert re.search(r"\d step/s|\d s/step", text)  # rate
    assert re.search(r"0:00:0\d", text)  # time left


def test_total_is_the_length_unless_given(capsys, log_every):
    log_every("0")
    list(track("abcd", "all"))
    list(track(iter("abcd"), "some", total=9))
    list(track((c for c in "ab"), "unknown"))
    starts = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert starts[3] == "all: 4/4"
    assert starts[7] == "some: 4/9"
    assert starts[9] == "unknown: 2"


def test_leaving_a_loop_early_closes_the_bar(monkeypatch):
    closed = []
    monkeypatch.setattr(progress.RichProgress, "stop", lambda bar: closed.append(bar))
    for item in track(range(3), "steps"):
        if item == 1:
            break
    assert len(closed) == 1


@pytest.mark.parametrize("text", ["-1", "nan", "a minute"])
def test_log_intervals_that_are_none(log_every, text):
    log_every(text)
    with pytest.raises(ValueError, match=f"WIND_LOG_EVERY is '{text}'"):
        Progress("fit")
