"""Windows per second of the training pipeline, against plain tensorstore reads of the same chunks.

    python benchmarks/data.py [--times 50] [--latitudes 121] [--chunk 1] [--frames 5] [--batch_size 2] [--repeats 3]

Makes an archive of all 70 channels as `wind_jax.data.prepare` lays it out (about 255 MB with the defaults; random
values of half precision, which compress like rounded weather), reads each time of it once, in windows side by side
and in random order, and removes it. The pipeline makes batches in model units, checks that they are finite and adds the
forcings. It is compared with two loops over tensorstore that do nothing more, with as many windows in flight:

    raw    `read()` of each window, into memory that tensorstore allocates
    into   reads into arrays made beforehand and used again and again: the fastest there is

Both the time by the clock and that of the processor are given, per window; ratios are of runs that followed each other,
as least, median and largest.

Warm means from the operating system's page cache. Cold means that every file was dropped from that cache before the
pass, by posix_fadvise: the disk's own cache, or the host's below a virtual machine, stays as it is.
"""

import argparse
import collections
import functools
import itertools
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tensorstore as ts
import xarray
from measure import clocks, report

from wind_jax.channels import channels
from wind_jax.data.forcings import forcings
from wind_jax.data.normalize import Statistics
from wind_jax.data.pipeline import channel_chunk, compressor
from wind_jax.data.store import STATE, TIME_STEP, open_store
from wind_jax.data.windows import window_starts, windows

IN_FLIGHT = 4
"""Batches that the pipeline reads at once."""

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name, default in {"times": 50, "latitudes": 121, "chunk": 1, "frames": 5, "batch_size": 2, "repeats": 3}.items():
    parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
options = parser.parse_args()
if min(vars(options).values()) < 1 or options.times < options.frames * options.batch_size:
    parser.error(f"all must be positive, and times at least frames * batch_size, got {vars(options)}")


def write_archive(path: str) -> None:
    """Of random values, in chunks of `--chunk` times."""
    draw = np.random.default_rng(0)
    height, width = options.latitudes, 2 * (options.latitudes - 1)
    keys = [c.key for c in channels()]
    coordinates = {
        "time": np.datetime64("2000-01-01", "ns") + np.arange(options.times) * TIME_STEP,
        "latitude": np.linspace(-90, 90, height),
        "longitude": np.arange(width) * 360 / width,
        "channel": keys,
    }
    count = channel_chunk(len(keys))
    encoding = {STATE: {"chunks": (options.chunk, height, width, count), "compressors": (compressor(count),)}}
    shape = [len(values) for values in coordinates.values()]
    values = np.abs(draw.standard_normal(shape, np.float32).astype(np.float16).astype(np.float32))
    dataset = xarray.Dataset({STATE: (list(coordinates), values, {"channels": keys})}, coordinates)
    dataset.to_zarr(path, zarr_format=2, encoding=encoding, consolidated=True)


def drop_from_cache(path: str) -> None:
    """Asks the operating system to forget the files."""
    for file in filter(Path.is_file, Path(path).rglob("*")):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def drain(batches: Iterable[list[ts.Future | ts.WriteFutures]]) -> None:
    """Waits for the reads of batches, those of `IN_FLIGHT` at once."""
    waiting = collections.deque()
    for batch in batches:
        waiting.append(batch)
        while len(waiting) > IN_FLIGHT:
            _ = [read.result() for read in waiting.popleft()]
    _ = [read.result() for batch in waiting for read in batch]


def raw(array: ts.TensorStore, starts: np.ndarray) -> list[ts.Future]:
    return [array[start : start + options.frames].read() for start in starts.tolist()]


def into(array: ts.TensorStore, states: np.ndarray, starts: np.ndarray) -> list[ts.WriteFutures]:
    spans = [ts.d[0][start : start + options.frames].translate_to[0] for start in starts.tolist()]
    return [ts.array(window).write(array[span]) for window, span in zip(states, spans)]


with tempfile.TemporaryDirectory(prefix="wind_jax-bench-") as folder:
    path = f"{folder}/archive.zarr"
    write_archive(path)
    chosen = channels()
    store = open_store(path, chosen)
    zero = np.zeros(len(chosen), np.float32)
    units = Statistics(chosen, zero, zero + 1, zero + 1)
    inputs = functools.partial(forcings, np.zeros((*store.grid.shape, 6), np.float32))
    size = {"frames": options.frames, "stride": options.frames}
    pipeline = windows(store, units, inputs, batch_size=options.batch_size, repeat=False, **size)
    starts = window_starts(store.times, **size)
    count = len(starts) // options.batch_size * options.batch_size
    order = np.random.default_rng(1).permutation(starts)[:count].reshape(-1, options.batch_size)
    array = ts.open({"driver": "zarr", "kvstore": f"file://{path}/{STATE}/"}, open=True).result()
    ring = np.ones((IN_FLIGHT + 1, *order.shape[1:], options.frames, *array.shape[1:]), np.float32)
    readers = {
        "raw": lambda: drain(raw(array, batch) for batch in order),
        "into": lambda: drain(into(array, *each) for each in zip(itertools.cycle(ring), order)),
        "pipeline": lambda: collections.deque(pipeline, maxlen=0),
    }
    megabytes = 4e-6 * options.frames * len(chosen) * store.grid.shape[0] * store.grid.shape[1]
    stored = 1e-6 * sum(file.stat().st_size for file in Path(path).rglob("*"))
    result = {"times": options.times, "windows": count, "window_MB": megabytes, "archive_MB": stored}
    readers["pipeline"]()  # starts its threads' pools, and warms the cache
    for state in ("warm", "cold"):
        taken = collections.defaultdict(list)
        # In turn, so that what else the machine does meets both.
        for _, (name, run) in itertools.product(range(options.repeats), readers.items()):
            if state == "cold":
                drop_from_cache(path)
            taken[name].append(clocks(run))
        spread = lambda values: np.quantile(values, [0, 0.5, 1], axis=0).T.round(3).tolist()
        result[state] = {
            name: dict(zip(("ms", "processor_ms"), spread(1e3 * np.array(values) / count)))
            | {"windows_per_s": count / np.median(values, axis=0)[0]}
            | {"MB_per_s": count * megabytes / np.median(values, axis=0)[0]}
            for name, values in taken.items()
        }
        for name in ("raw", "into"):
            ratios = np.array(taken[name]) / np.array(taken["pipeline"])
            result[state][f"pipeline_of_{name}"] = dict(zip(("clock", "processor"), spread(ratios)))
report(result)
