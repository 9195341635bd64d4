"""Runs `infer` again and again in processes that are killed at random moments; a program, for tests/test_run.py.

    python tests/killing.py config.json folder kills seed

`folder/whole` receives the run that nothing stops, `folder/killed-0` and so on those that are killed until they finish.
Each process is forked after the imports and before JAX has started a thread.
"""

import itertools
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import jax
from ml_collections import ConfigDict

from wind_jax.infer import infer


def begin(settings: dict, workdir: Path) -> int:
    """A process of its own, whose output is kept beside the workdir; its id."""
    if process := os.fork():
        return process
    output = os.open(workdir.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    status = 1
    try:
        infer(ConfigDict(settings | {"workdir": str(workdir)}))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(process: int, seconds: float) -> bool:
    """Whether a process ends by itself within some time, which must then be in order."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            assert status == 0, "see the log beside the workdir"
            return True
        time.sleep(0.01)
    return False


def main(config: str, folder: str, kills: str, seed: str) -> None:
    settings, chance = json.loads(Path(config).read_text()), random.Random(int(seed))
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", f"{folder}/cache")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    for other in (1, 0):  # the second finds everything compiled, and says how long a run takes
        began = time.monotonic()
        assert ended(begin(settings | {"seed": other}, Path(folder, "whole")), 600)
    seconds, left = time.monotonic() - began, int(kills)
    for number in itertools.count():
        workdir = Path(folder, f"killed-{number}")
        while not ended(process := begin(settings, workdir), chance.uniform(0, seconds) if left else 600):
            assert left, "a run took 600 s"
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            left -= 1
        if not left:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
