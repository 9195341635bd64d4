"""Windows per second of the training pipeline, against plain tensorstore reads of the same bytes.

    python benchmarks/data.py [--times 50] [--latitudes 121] [--chunk 1] [--frames 5] [--batch_size 2] [--repeats 3]

Makes an archive of all 70 channels as `wind_jax.data.prepare` lays it out (about 255 MB with the defaults; random
values of half precision, which compress like rounded weather), reads each time of it once, in windows side by side
and in random order, and removes it. A raw read asks tensorstore for a window's variables and drops them; as many
windows are in flight as the pipeline has. The pipeline also puts the channels together, goes to model units, adds
the forcings and makes batches.

Warm means from the operating system's page cache. Cold means that every file was dropped from that cache before the
pass, by posix_fadvise: the disk's own cache, or the host's below a virtual machine, stays as it is.
"""

import argparse
import collections
import functools
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import tensorstore as ts
import xarray
from measure import report

from wind_jax.data.forcings import forcings
from wind_jax.data.normalize import Statistics
from wind_jax.data.store import TIME_STEP, open_store
from wind_jax.data.variables import LEVELS, PRESSURE_VARIABLES, SURFACE_VARIABLES, channels
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
    coordinates = {
        "time": np.datetime64("2000-01-01", "ns") + np.arange(options.times) * TIME_STEP,
        "level": list(LEVELS),
        "latitude": np.linspace(-90, 90, height),
        "longitude": np.arange(width) * 360 / width,
    }
    for i, name in enumerate((*PRESSURE_VARIABLES, *SURFACE_VARIABLES)):
        dims = [dim for dim in coordinates if dim != "level" or name in PRESSURE_VARIABLES]
        shape = [len(coordinates[dim]) for dim in dims]
        values = draw.standard_normal(shape, np.float32).astype(np.float16).astype(np.float32)
        dataset = xarray.Dataset({name: (dims, np.abs(values))}, {dim: coordinates[dim] for dim in dims})
        encoding = {name: {"chunks": (options.chunk, *shape[1:])}}
        dataset.to_zarr(path, mode="a" if i else "w", zarr_format=2, encoding=encoding, consolidated=True)


def drop_from_cache(path: str) -> None:
    """Asks the operating system to forget the files."""
    for file in filter(Path.is_file, Path(path).rglob("*")):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_raw(arrays: list[ts.TensorStore], starts: Iterable[int]) -> None:
    """Windows of all arrays, those of `IN_FLIGHT` batches at once."""
    waiting = collections.deque()
    for start in starts:
        waiting.append([array[start : start + options.frames].read() for array in arrays])
        while len(waiting) > IN_FLIGHT * options.batch_size:
            _ = [read.result() for read in waiting.popleft()]
    _ = [read.result() for reads in waiting for read in reads]


def seconds(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


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
    order = np.random.default_rng(1).permutation(starts)[:count].tolist()
    arrays = [
        ts.open({"driver": "zarr", "kvstore": f"file://{path}/{name}/"}, open=True).result()
        for name in dict.fromkeys(c.name for c in chosen)
    ]
    readers = {
        "raw": lambda: read_raw(arrays, order),
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
            taken[name].append(seconds(run))
        median = {name: statistics.median(values) for name, values in taken.items()}
        result[state] = {
            name: {"windows_per_s": count / median[name], "MB_per_s": count * megabytes / median[name]}
            for name in readers
        } | {"pipeline_of_raw": median["raw"] / median["pipeline"], "seconds": dict(taken)}
report(result)
