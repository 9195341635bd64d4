"""Windows of consecutive frames by random access, and the grain pipeline that shuffles, batches and reads.

The stream of windows is one sequence, fixed by the seed. Global batch k is its k-th part of `batch_size`
windows, of which each process reads the rows that its devices hold: training does not depend on the number
of processes, and resumes exactly.
"""

import math
import weakref
from collections import deque
from collections.abc import Callable

import grain
import numpy as np
from jaxtyping import Float, Int

from wind_jax.data.normalize import Statistics
from wind_jax.data.store import TIME_STEP, Store, in_period

LEAST_THREADS = 4
Inputs = Callable[[np.ndarray], Float[np.ndarray, "t h w f"]]


def window_starts(times: np.ndarray, frames: int, period: tuple[str, str] | None = None, stride: int = 1) -> np.ndarray:
    """Indices at which a window of frames 6 h apart begins, without gap and all within the period.

    Args:
        times: (n,) datetime64, ascending.
        frames: length of a window.
        period: first and last date, both included whole; None for all times.
        stride: keep every stride-th of these windows.

    Returns:
        (n,) int64, some.

    Raises:
        ValueError: frames or stride not positive, a bad period, or no such window.
    """
    if frames < 1 or stride < 1:
        raise ValueError(f"frames and stride must be at least 1, got frames={frames}, stride={stride}")
    inside = in_period(times, period)
    # A window is whole if it contains no bad link and no time outside; both are counted by cumulative sums.
    bad_links = np.concatenate([[0], np.cumsum(np.diff(times) != TIME_STEP)])
    outside = np.concatenate([[0], np.cumsum(~inside)])
    starts = np.arange(max(times.size - frames + 1, 0), dtype=np.int64)
    whole = (bad_links[starts + frames - 1] == bad_links[starts]) & (outside[starts + frames] == outside[starts])
    starts = starts[whole][::stride]
    if starts.size == 0:
        raise ValueError(
            f"no window of {frames} frames 6 h apart among {int(inside.sum())} times "
            f"from {times[inside][0]} to {times[inside][-1]} (period {period})"
        )
    return starts


class Recycler:
    """Arrays of one size in memory that is used again once nothing refers to them: the system's is slow to get."""

    def __init__(self):
        self._free: deque[memoryview] = deque()

    def empty(self, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
        """A float32 array of any values."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = memoryview(np.empty(math.prod(shape), np.float32))
        array = np.frombuffer(memory, np.float32)  # every view of it refers to it, as its base
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array.reshape(shape)


class Batch:
    """Reads windows in model units with the network's other inputs.

    Args:
        store: the archive.
        statistics: for model units; must have the store's channels.
        inputs: of the network at some times, (t,) -> (t, h, w, f).
        frames: length of a window.
    """

    def __init__(self, store: Store, statistics: Statistics, inputs: Inputs, frames: int):
        if statistics.channels != store.channels:
            raise ValueError(
                f"statistics are of channels {[c.key for c in statistics.channels]}, "
                f"the store's are {[c.key for c in store.channels]}"
            )
        shape = inputs(store.times[:1]).shape
        if shape[:-1] != (1, *store.grid.shape):
            raise ValueError(f"inputs at one time must have shape {(1, *store.grid.shape)} + (f,), got shape {shape}")
        self._store, self._statistics, self._inputs, self._frames = store, statistics, inputs, frames
        self._memory = Recycler()

    def __call__(self, starts: Int[np.ndarray, "b"]) -> dict[str, np.ndarray]:
        """The batch of the windows that begin there, all of them read at once and straight into their places."""
        store = self._store
        states = self._memory.empty((len(starts), self._frames, *store.grid.shape, len(store.channels)))
        store.read_into(states, starts)
        times = [store.times[start : start + self._frames] for start in starts]
        return {
            "x": self._statistics.normalize(states, out=states),
            "inputs": np.stack([self._inputs(each) for each in times]),
            "start": starts,
        }


def windows(
    store: Store,
    statistics: Statistics,
    inputs: Inputs,
    *,
    frames: int,
    batch_size: int,
    period: tuple[str, str] | None = None,
    stride: int = 1,
    seed: int = 0,
    shuffle: bool = True,
    repeat: bool = True,
    rows: Int[np.ndarray, "rows"] | None = None,
    workers: int = 0,
) -> grain.IterDataset:
    """Batches of windows, or the rows of them that one process needs.

    Args:
        store: the archive.
        statistics: of the same channels.
        inputs: of the network at some times, (t,) -> (t, h, w, f): `Prior.inputs` at known static fields.
        frames: length of a window.
        batch_size: windows of a global batch.
        period: first and last date of the windows, both included whole; None for all.
        stride: use every stride-th window.
        seed: of the order; each epoch has its own.
        shuffle: in random order, else in time order.
        repeat: without end, else once, leaving out the windows of a last incomplete batch.
        rows: those of the global batch that are read, in this order: `mesh.process_rows`; None for all.
        workers: threads that each read a batch ahead, at least 4; more of them hide the latency of a remote archive,
            and the host holds a batch for each.

    Returns:
        A grain dataset of {"x": (b, t, h, w, c) model units, "inputs": (b, t, h, w, f), "start": (b,)}, b rows.
        Its iterator's get_state and set_state resume exactly.

    Raises:
        ValueError: sizes that do not fit, a bad period, statistics or inputs of another store.
    """
    rows = np.arange(batch_size) if rows is None else rows
    if rows.size == 0 or rows.min() < 0 or rows.max() >= batch_size:
        raise ValueError(f"batch_size {batch_size} must be positive, and its rows some of those, got rows {rows}")
    starts = window_starts(store.times, frames, period, stride)
    if not repeat and starts.size < batch_size:
        raise ValueError(f"{starts.size} windows do not fill one batch of {batch_size}")
    read = Batch(store, statistics, inputs, frames)
    dataset = grain.MapDataset.source(starts)
    if shuffle:
        dataset = dataset.shuffle(seed)
    if repeat:
        dataset = dataset.repeat()
    else:
        dataset = dataset.slice(slice(starts.size // batch_size * batch_size))
    dataset = dataset.batch(batch_size, drop_remainder=True).map(lambda batch: read(batch[rows]))
    # Threads, not processes: tensorstore and numpy release the interpreter while they work.
    threads = max(workers, LEAST_THREADS)
    return dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
