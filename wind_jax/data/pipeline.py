"""The Beam pipeline of `prepare`: blocks of times, each read, coarsened, rounded, written and summed up by one worker.

    blocks -> WriteBlock -> merge --> changes across the ends of blocks -> merge -> moments of the archive

Chunks go to Zarr through xarray-beam; moments are a Beam combine. A block that is written leaves a file of its
moments, by which a later run knows that it is there.
"""

import contextlib
import io
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numcodecs
import numpy as np
import xarray
from jaxtyping import Float

from wind_jax.channels import Channel
from wind_jax.data.climatology import Climatology
from wind_jax.data.normalize import Statistics
from wind_jax.data.store import STATE, STATIC_VARIABLES, Store
from wind_jax.files import is_url, join, read_bytes, write_bytes
from wind_jax.progress import Progress
from wind_jax.sphere import Coarsening, Grid, area_weights, coarsen

try:
    import apache_beam as beam
    import fsspec
    import xarray_beam as xbeam
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
except ImportError:  # without the extra, `check_installed` says so when a pipeline is asked for
    beam = None

BLOCKS, MOMENTS = "blocks", "moments.npy"
"""Files beside the arrays, only until the archive is whole."""

_BLOCK_FRAMES = 64  # at least, in what is done over when a worker dies; frames at its two ends are read twice
_PIECE_BYTES = 256 * 2**20  # of the channels of one chunk, read and written at once
_ELEMENT_BYTES = 255  # the longest that Blosc shuffles
_BLOCK_CELLS = 4096  # what Blosc compresses by itself, in cells: about half a megabyte
_STATE, _CHANGE, _ANOMALY = range(3)  # first axis of moments


def check_installed() -> None:
    """Raises ImportError where Apache Beam or xarray-beam are missing."""
    if beam is None:
        raise ImportError("preparing an archive needs Apache Beam and xarray-beam: pip install 'wind_jax[prepare]'")


def file_system(path: str) -> tuple["fsspec.AbstractFileSystem", str]:
    """The fsspec file system of a path or URL, and the path in it."""
    return fsspec.core.url_to_fs(path)


@dataclass(frozen=True, eq=False)
class Job:
    """What a worker has to know.

    Attributes:
        source: path or URL of the archive that is read.
        folder: path or URL of the one being made.
        channels: of its states.
        first: index in the source of its first time.
        times: (n,) its times.
        grid: its grid.
        coarsening: from the source's grid; None to keep that.
        quanta: (c,) values are rounded to whole multiples of these powers of two; None to keep them.
        climatology: file of the fields that anomalies are about; None without.
        chunk: times in a chunk of it.
        source_chunk: times in a chunk of the source.
    """

    source: str
    folder: str
    channels: tuple[Channel, ...]
    first: int
    times: np.ndarray
    grid: Grid
    coarsening: Coarsening | None
    quanta: np.ndarray | None
    climatology: str | None
    chunk: int
    source_chunk: int

    @property
    def groups(self) -> list[slice]:
        """Positions of the channels of each chunk."""
        length = channel_chunk(len(self.channels))
        return [slice(first, first + length) for first in range(0, len(self.channels), length)]

    def states(self, store: Store, start: int, stop: int, where: slice) -> Float[np.ndarray, "t h w c"]:
        """Coarse and rounded states of times start ... stop, of the channels of a store of the source."""
        states = store.read(self.first + start, stop - start)
        if self.coarsening:
            states = coarsen(states, self.coarsening)
        return states if self.quanta is None else round_to(states, self.quanta[where])

    def cuts(self, start: int, stop: int, least: int) -> list[tuple[int, int]]:
        """Splits start ... stop between chunks, of the source too where the two meet, into parts of `least` or more."""
        meet = math.lcm(self.chunk, self.source_chunk)
        aligned = self.first % math.gcd(self.chunk, self.source_chunk) == 0 and meet <= 4 * self.source_chunk
        least = least if aligned else max(least, self.source_chunk)
        cuts = [start]
        for at in range(start + self.chunk, stop, self.chunk):
            if at - cuts[-1] >= least and (not aligned or (self.first + at) % self.source_chunk == 0):
                cuts.append(at)
        return list(pairwise([*cuts, stop]))


def channel_chunk(count: int) -> int:
    """Channels in a chunk: as many as make one element of Blosc, in equal parts.

    >>> channel_chunk(25), channel_chunk(70)
    (25, 35)
    """
    return math.ceil(count / math.ceil(4 * count / _ELEMENT_BYTES))


def compressor(channels: int) -> numcodecs.Blosc:
    """Of chunks (time, latitude, longitude, channels) of float32.

    All channels of a cell are one element, so that the shuffle brings the values of each channel together. Read many
    times, written once: zstd is a tenth smaller and two to three times slower to read (docs/data.md).
    """
    size = 4 * channels
    shuffle = numcodecs.Blosc.BITSHUFFLE
    return numcodecs.Blosc("lz4", clevel=5, shuffle=shuffle, blocksize=size * _BLOCK_CELLS, typesize=size)


def round_to(x: Float[np.ndarray, "*batch c"], quanta: Float[np.ndarray, "c"]) -> Float[np.ndarray, "*batch c"]:
    """Values rounded to the nearest whole multiple of their channel's quantum, a power of two.

    The result is exact in float32 and ends in zero bits, which compression then finds: nothing is left to decode.

    >>> round_to(np.float32([[273.16, 1.3]]), np.float32([0.25, 1.0])).tolist()
    [[273.25, 1.0]]
    """
    quanta = quanta.reshape((1,) * (x.ndim - 1) + quanta.shape)
    return np.rint(x / quanta) * quanta


def frame_moments(x: Float[np.ndarray, "cells c"], weights: Float[np.ndarray, "cells"]) -> Float[np.ndarray, "3 c"]:
    """Of one frame: number 1, area mean and mean squared deviation from it."""
    mean = weights @ x
    return np.stack([np.ones_like(mean), mean, weights @ np.square(x - mean)])


def merge(parts: Iterable[Float[np.ndarray, "*kind 3 c"]]) -> Float[np.ndarray, "*kind 3 c"]:
    """Moments of several samples as one: number, mean, sum of squared deviations (Chan et al. 1983, eq. 2.1).

    Associative and commutative, so it is a Beam combine; means are never subtracted from sums of large squares.
    """
    number, mean, squares = np.moveaxis(np.stack(list(parts)), -2, 0)
    total = number.sum(0)
    average = (number * mean).sum(0) / np.maximum(total, 1)
    return np.stack([total, average, (squares + number * (mean - average) ** 2).sum(0)], axis=-2)


class WriteBlock:
    """(start, stop) -> moments (3, 3, c) of these frames and of the changes between them; writes them, once."""

    def __init__(self, job: Job, template: xarray.Dataset):
        self._job, self._template = job, template

    @cached_property
    def _stores(self) -> list[Store]:
        return [Store(self._job.source, self._job.channels[group]) for group in self._job.groups]

    @cached_property
    def _climatology(self) -> Climatology | None:
        return Climatology.load(self._job.climatology).select(self._job.channels) if self._job.climatology else None

    def __call__(self, block: tuple[int, int]) -> np.ndarray:
        mark = join(self._job.folder, f"{BLOCKS}/{block[0]}.npy")
        if done := read_bytes(mark):
            return np.load(io.BytesIO(done))
        parts = [self._write(store, group, *block) for store, group in zip(self._stores, self._job.groups)]
        moments = np.concatenate(parts, axis=-1)
        write_bytes(mark, _to_bytes(moments))
        return moments

    def _write(self, store: Store, where: slice, start: int, stop: int) -> np.ndarray:
        job = self._job
        transform, weights = transformation(store.channels), cell_weights(job.grid)
        climatology = self._climatology.select(store.channels) if self._climatology else None
        frame_bytes = 4 * len(store.channels) * math.prod(store.grid.shape)
        parts, previous = [], None
        for begin, end in job.cuts(start, stop, max(1, _PIECE_BYTES // frame_bytes)):
            states = job.states(store, begin, end, where)
            key = xbeam.Key({"time": begin, "channel": where.start}, {STATE})
            piece = xarray.Dataset({STATE: (self._template[STATE].dims, states)})
            xbeam.write_chunk_to_zarr(key, piece, job.folder, self._template)
            for time, state in zip(job.times[begin:end], states):
                x, moments = transform(state), np.zeros((3, 3, len(store.channels)))
                moments[_STATE] = frame_moments(x, weights)
                if previous is not None:
                    moments[_CHANGE] = frame_moments(x - previous, weights)
                if climatology:
                    moments[_ANOMALY] = frame_moments(x - transform(climatology.at(time[None])[0]), weights)
                parts.append(moments)
                previous = x
        return merge(parts)


class ChangeAcross:
    """Index of a block's first frame -> moments (3, 3, c) of the change to it, from what was written."""

    def __init__(self, job: Job):
        self._job = job

    @cached_property
    def _store(self) -> Store:
        return Store(self._job.folder, self._job.channels)

    def __call__(self, start: int, written: np.ndarray) -> np.ndarray:
        """`written`, the moments of all blocks, is asked for only so that this comes after them."""
        before, after = map(transformation(self._job.channels), self._store.read(start - 1, 2))
        moments = np.zeros_like(written)
        moments[_CHANGE] = frame_moments(after - before, cell_weights(self._job.grid))
        return moments


def run(job: Job, beam_options: Sequence[str]) -> Statistics:
    """Writes the blocks that are missing; statistics of all."""
    blocks = job.cuts(0, len(job.times), _BLOCK_FRAMES)
    combine = lambda parts: merge(parts)  # Beam would take the annotations of `merge` for its own type hints
    options = PipelineOptions(list(beam_options))
    if options.view_as(StandardOptions).runner is None:
        # Beam's own default would look for a portable runner on the network first.
        options.view_as(StandardOptions).runner = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
    with _progress(join(job.folder, BLOCKS), len(blocks)), beam.Pipeline(options=options) as pipeline:
        inner = (
            pipeline
            | "Blocks" >> beam.Create(blocks)
            | "Spread" >> beam.Reshuffle()
            | "Write" >> beam.Map(WriteBlock(job, _template(job)))
            | "MergeBlocks" >> beam.CombineGlobally(combine)
        )
        across = (
            pipeline
            | "Boundaries" >> beam.Create([start for start, _ in blocks[1:]])
            | "SpreadBoundaries" >> beam.Reshuffle()
            | "Changes" >> beam.Map(ChangeAcross(job), beam.pvalue.AsSingleton(inner))
        )
        _ = (
            (inner, across)
            | beam.Flatten()
            | "Merge" >> beam.CombineGlobally(combine)
            | "Save" >> beam.Map(lambda moments: write_bytes(join(job.folder, MOMENTS), _to_bytes(moments)))
        )
    number, mean, squares = np.moveaxis(np.load(io.BytesIO(read_bytes(join(job.folder, MOMENTS)))), 1, 0)
    std = np.sqrt(squares / np.maximum(number, 1))
    return Statistics(job.channels, mean[_STATE], std[_ANOMALY if job.climatology else _STATE], std[_CHANGE])


def _template(job: Job) -> xarray.Dataset:
    """The archive without its states."""
    keys = [c.key for c in job.channels]
    coordinates = {
        "time": ("time", job.times, {"standard_name": "time", "axis": "T"}),
        "latitude": ("latitude", job.grid.latitude, {"standard_name": "latitude", "units": "degrees_north"}),
        "longitude": ("longitude", job.grid.longitude, {"standard_name": "longitude", "units": "degrees_east"}),
        "channel": ("channel", keys, {"long_name": "variable, with its pressure in hPa"}),
    }
    dataset = xarray.Dataset(coords=coordinates)
    attributes = {"channels": keys, "channel_units": [c.units for c in job.channels]}
    if job.quanta is not None:
        attributes["rounded_to_multiples_of"] = job.quanta.tolist()
    zeros = np.broadcast_to(np.float32(0), [dataset.sizes[dim] for dim in coordinates])  # takes no memory
    dataset[STATE] = list(coordinates), zeros, attributes
    return xbeam.make_template(dataset)


def create(job: Job, store: Store) -> None:
    """Metadata, coordinates and static fields; what is there of the states stays."""
    template = _template(job)
    for name, units in zip(STATIC_VARIABLES, ("1", "1", "m2 s-2")):
        if store.has(name):
            template[name] = ("latitude", "longitude"), _static(store, name, job.coarsening), {"units": units}
    count = channel_chunk(len(job.channels))
    encoding = {
        STATE: {"compressors": (compressor(count),)},
        "time": {"units": "hours since 1900-01-01", "dtype": "int64"},
    }
    xbeam.setup_zarr(template, job.folder, {"time": job.chunk, "channel": count}, zarr_format=2, encoding=encoding)


def _static(store: Store, name: str, reduction: Coarsening | None) -> Float[np.ndarray, "h w"]:
    """A static field, coarsened: the mean of a quantity, but of soil types the one with the largest share."""
    field = store.static(name)
    if reduction is None:
        return field
    if name != "soil_type":
        return coarsen(field[..., None], reduction)[..., 0]
    types = np.unique(field)
    return types[coarsen((field[..., None] == types[None, None]).astype(np.float32), reduction).argmax(-1)]


def transformation(selected: tuple[Channel, ...]) -> Callable[[np.ndarray], Float[np.ndarray, "cells c"]]:
    """(h, w, c) physical -> (h * w, c) transformed as for model units, float64."""
    zeros, ones = np.zeros(len(selected)), np.ones(len(selected))
    unit = Statistics(selected, zeros, ones, ones)
    return lambda state: unit.normalize(state.reshape(-1, len(selected)).astype(np.float64))


def cell_weights(grid: Grid) -> Float[np.ndarray, "cells"]:
    """Share of each cell in the area mean, float64."""
    weights = np.broadcast_to(np.asarray(area_weights(grid), np.float64), grid.shape).reshape(-1)
    return weights / weights.sum()


def _to_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@contextlib.contextmanager
def _progress(folder: str, total: int) -> Iterator[None]:
    """Shows how many blocks are written, wherever the workers run: it counts their files."""
    files, root = file_system(folder)
    over = threading.Event()

    def watch() -> None:
        seen = 0
        with Progress("Preparing", total, "block") as bar:
            while True:
                done = over.wait(10 if is_url(folder) else 1)
                files.invalidate_cache()
                now = len(files.glob(f"{root}/*.npy"))  # else there are locks
                bar.update(now - seen)
                seen = now
                if done:
                    return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
