"""Open and check an archive of the atmosphere: a Zarr of the WeatherBench2 schema, read by tensorstore.

The archive may lie on disk or behind gs://, s3:// or http(s)://, be Zarr version 2 or 3 with or without
consolidated metadata, hold latitude and longitude in either order and direction, and be float16, float32 or
float64. What is read from it is always float32, (time, latitude, longitude, channel), south to north.

An archive made by `prepare` holds its states like that already, as one array of all channels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import tensorstore as ts
from jaxtyping import Float, Int

from wind_jax.channels import LEXICON, Channel, positions
from wind_jax.data.archive import RETRIES, Archive, Retries, one_ahead
from wind_jax.progress import track
from wind_jax.sphere import Grid

TIME_STEP = np.timedelta64(6, "h")
"""Time between consecutive frames everywhere in the package."""

STATE = "state"
"""Array (time, latitude, longitude, channel) of a prepared archive; its attribute `channels` lists their keys."""
STATIC_VARIABLES = ("land_sea_mask", "soil_type", "geopotential_at_surface")
COORDINATES = ("time", "level", "latitude", "longitude")
_BLOCK_BYTES = 64 * 2**20


class Store:
    """A checked archive, restricted to some channels; made by `open_store`.

    Pickled, it takes only how it was opened along, and opens the archive anew.

    Attributes:
        path: path or URL.
        channels: channels of every state read, in this order.
        grid: the horizontal grid.
        times: (n,) datetime64[ns], ascending; may have gaps.
        retries: patience with its server.
    """

    def __init__(self, path: str | Path, channels: Iterable[Channel], retries: Retries = RETRIES):
        self.path = str(path)
        self.channels = tuple(channels)
        self.retries = retries
        if not self.channels:
            raise ValueError(f"no channels selected from {self.path}")
        if len({c.key for c in self.channels}) < len(self.channels):
            raise ValueError(f"channels must be distinct, got {[c.key for c in self.channels]}")
        known = {*COORDINATES, STATE, *LEXICON, *(c.name for c in self.channels), *STATIC_VARIABLES}
        self._archive = Archive(self.path, known, retries)
        self._archives = (self._archive,)
        prepared = STATE in self._archive.names
        self._keys = self._archive.attributes(STATE)["channels"] if prepared else None
        on_levels = not prepared and any(c.level is not None for c in self.channels)
        self._levels = self._archive.coordinate("level") if on_levels else np.array([])
        (self._check_state if prepared else self._check_variables)()

        self.times = self._archive.times()
        latitude = self._archive.coordinate("latitude")
        longitude = self._archive.coordinate("longitude") % 360.0
        self._flip = latitude[0] > latitude[-1]
        self._columns = np.argsort(longitude, kind="stable")
        self._roll = (np.diff(self._columns) != 1).any()
        self.grid = Grid(latitude[::-1] if self._flip else latitude, longitude[self._columns])

        self._fields = self._open_fields()
        self._states: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # 16-bit steps, lowest value, step

    def __reduce__(self):
        return Store, (self.path, self.channels, self.retries)

    def __len__(self) -> int:
        return self.times.size

    def read(self, start: int, frames: int) -> Float[np.ndarray, "t h w c"]:
        """States of consecutive times in physical units.

        Args:
            start: index into `times`.
            frames: how many.

        Raises:
            ValueError: beyond the archive, a read that fails for good (see `Retries`), an archive that has changed
                (see `check_unchanged`), or a value that is not finite (its variable and time are named).
        """
        states = np.empty((max(frames, 0), *self.grid.shape, len(self.channels)), np.float32)
        self.read_into(states[None], np.array([start]))
        return states

    def read_into(self, states: Float[np.ndarray, "b t h w c"], starts: Int[np.ndarray, "b"]) -> None:
        """As `read`, from several starts into given float32 arrays; all at once, so that latencies overlap."""
        for finish in [self._begin(start, window) for start, window in zip(starts.tolist(), states)]:
            finish()

    def _begin(self, start: int, states: Float[np.ndarray, "t h w c"]) -> Callable[[], None]:
        """Begins to read into `states`; what it returns waits for the end and checks the values."""
        self._check_range(start, len(states))
        span = slice(start, start + len(states))
        if self._states is not None:
            self._from_memory(span, states)
            return lambda: None
        # Chunks go straight into place, by threads of tensorstore that do not need the interpreter.
        target = ts.array(states)
        reads = {
            name: target[ts.d[3][where].translate_to[0]].write(array[ts.d[0][span].translate_to[0]])
            for name, (where, array) in self._fields.items()
        }

        def finish() -> None:
            first, last = np.datetime_as_string(self.times[span][[0, -1]], unit="h")
            for _ in self._archive.results(reads, f" at {first} to {last}"):
                pass
            if self._roll:
                states[...] = states[:, :, self._columns]
            self._check_finite(states, start)

        return finish

    def _check_range(self, start: int, frames: int) -> None:
        if frames < 1 or start < 0 or start + frames > len(self):
            raise ValueError(f"cannot read {frames} frames from index {start}: {self.path} has {len(self)} times")

    def blocks(self, indices: np.ndarray, description: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Streams the states at ascending time indices, for statistics of long archives; the next block is read ahead.

        Args:
            indices: (n,) ascending indices into `times`.
            description: what the progress bar says.

        Yields:
            (indices of the block, states (t, h, w, c)), with about 64 MiB a block.
        """
        state_bytes = 4 * len(self.channels) * self.grid.latitude.size * self.grid.longitude.size
        length = max(1, _BLOCK_BYTES // state_bytes)
        runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)
        blocks = [run[i : i + length] for run in runs for i in range(0, len(run), length)]
        states = one_ahead(lambda block: self.read(int(block[0]), len(block)), blocks)
        yield from zip(track(blocks, description, total=len(blocks), unit="block"), states, strict=True)

    def check_unchanged(self) -> None:
        """Raises ValueError where the archive's metadata are no longer those found at opening, with the difference.

        Reading calls it once a minute and where it fails; a long job calls it before it begins.
        """
        for archive in self._archives:
            archive.check_unchanged()

    def close(self) -> None:
        """Ends the reads that other threads wait for, and refuses new ones: a process ends only after its threads."""
        for archive in self._archives:
            archive.close()

    def only(self, paths: str) -> "Store":
        """As `JoinedStore.only`."""
        if paths != self.path:
            raise ValueError(f"{paths!r} is not the archive {self.path!r}")
        return self

    def has(self, name: str) -> bool:
        """Whether the archive holds a variable of this name."""
        return name in self._archive.names

    def static(self, name: str) -> Float[np.ndarray, "h w"]:
        """A field that does not change in time, such as "land_sea_mask".

        Raises:
            ValueError: the archive has no such field, or it depends on more than latitude and longitude, or
                is not finite.
        """
        dims = self._archive.dims(name)
        if sorted(dims) != ["latitude", "longitude"]:
            raise ValueError(
                f"{name!r} in {self.path} has dimensions {dims}; a static field has latitude and longitude"
            )
        axes = [dims.index("latitude"), dims.index("longitude")]
        values = np.transpose(self._archive.read(name), axes)[:: -1 if self._flip else 1, self._columns]
        field = np.ascontiguousarray(values, np.float32)
        if not np.isfinite(field).all():
            raise ValueError(f"static field {name!r} in {self.path} has values that are not finite")
        return field

    @property
    def time_chunk(self) -> int:
        """Times in one chunk, of the array with the most."""
        return max(array.chunk_layout.read_chunk.shape[0] for _, array in self._fields.values())

    def _check_state(self) -> None:
        """The one array of a prepared archive has every channel, and a name for each of its own."""
        dims = self._archive.dims(STATE)
        if dims != ("time", "latitude", "longitude", "channel"):
            raise ValueError(
                f"{STATE!r} in {self.path} has dimensions {dims}; expected time, latitude, longitude and channel"
            )
        if missing := [c.key for c in self.channels if c.key not in self._keys]:
            raise ValueError(f"{self.path} has no channel {missing[0]!r}; it has {', '.join(self._keys)}")

    def _check_variables(self) -> None:
        """Every channel's variable exists and has the right dimensions and levels."""
        for channel in self.channels:
            dims = self._archive.dims(channel.name)
            expected = ["latitude", "longitude", "time"] + ["level"] * (channel.level is not None)
            if sorted(dims) != sorted(expected) or dims[0] != "time":
                raise ValueError(
                    f"{channel.name!r} in {self.path} has dimensions {dims}; expected time first, then "
                    f"{' and '.join(sorted(expected[:2] + expected[3:]))} in any order"
                )
            if channel.level is not None and channel.level not in self._levels:
                raise ValueError(
                    f"{self.path} has no level {channel.level} hPa for {channel.name!r}; "
                    f"its levels are {', '.join(f'{level:g}' for level in self._levels)}"
                )

    def _open_fields(self) -> dict[str, tuple[slice | list[int], ts.TensorStore]]:
        """By array: positions of its fields on the channel axis, and itself as (time, h, w, channel) of these."""
        places = positions(self.channels) if self._keys is None else {STATE: np.arange(len(self.channels))}
        opened = {name: self._archive.open(name) for name in places}
        fields = {}
        for name, array in self._archive.results(opened):
            where = places[name].tolist()
            dims = self._archive.dims(name)
            for dim, size in zip(("time", "latitude", "longitude"), (len(self), *self.grid.shape)):
                if array.shape[dims.index(dim)] != size:
                    raise ValueError(
                        f"{name!r} in {self.path} has shape {array.shape} over {dims}, "
                        f"but coordinate {dim!r} has {size} values"
                    )
            axes = [dims.index(dim) for dim in ("time", "latitude", "longitude")]
            if len(dims) == 4:
                (last,) = {*range(4)}.difference(axes)
                wanted = [self._position(self.channels[i]) for i in where]
                array = array[ts.d[last][_as_slice(wanted)]].transpose([*axes, last])
            else:
                array = array.transpose(axes)[..., ts.newaxis]
            array = ts.cast(array, ts.float32)[ts.d[1][:: -1 if self._flip else 1]]
            fields[name] = _as_slice(where), array[ts.d[:].translate_to[0]]
        return fields

    def _position(self, channel: Channel) -> int:
        """Where its array holds a channel: on the axis of channels, or of levels."""
        if self._keys is not None:
            return self._keys.index(channel.key)
        return int(np.flatnonzero(self._levels == channel.level)[0])

    def _check_finite(self, states: np.ndarray, start: int) -> None:
        # The sum of squares is finite only if all values are; where it overflows, they are looked at.
        if np.isfinite(np.vdot(states, states)) or np.isfinite(states).all():
            return
        self.check_unchanged()
        t, _, _, c = np.argwhere(~np.isfinite(states))[0]
        channel, time = self.channels[c], np.datetime_as_string(self.times[start + t], unit="m")
        level = "" if channel.level is None else f" at {channel.level} hPa"
        raise ValueError(
            f"{channel.name!r}{level} has values that are not finite at time {time} in {self.path}; "
            "choose a period or channels without missing data"
        )

    def load(self) -> None:
        """Reads all states now and keeps them: random access to an archive with long chunks becomes many times faster.

        A value takes 2 bytes: every field is rounded to 65,536 equal steps between its least and its largest value, an
        error below 1e-5 of that range.

        Raises:
            ValueError: as `read`.
        """
        shape = (len(self), *self.grid.shape, len(self.channels))
        steps, low, width = np.empty(shape, np.uint16), *np.empty((2, shape[0], 1, 1, shape[3]), np.float32)
        for block, states in self.blocks(np.arange(len(self)), "Reading the archive into memory"):
            span = slice(block[0], block[-1] + 1)
            low[span] = states.min(axis=(1, 2), keepdims=True)
            width[span] = (states.max(axis=(1, 2), keepdims=True) - low[span]) / 65535
            steps[span] = np.rint((states - low[span]) / np.maximum(width[span], np.finfo(np.float32).tiny))
        self._states = steps, low, width

    def _from_memory(self, span: slice, out: Float[np.ndarray, "t h w c"]) -> Float[np.ndarray, "t h w c"]:
        steps, low, width = self._states
        return np.add(np.multiply(steps[span], width[span], out=out), low[span], out=out)


class JoinedStore(Store):
    """Several archives of one grid as one, in the order of their times; windows never cross from one to the next.

    Args:
        stores: opened with the same channels; each begins after the one before has ended, by more than 6 h.

    Raises:
        ValueError: grids that differ, or times that overlap or follow on.
    """

    def __init__(self, stores: Sequence[Store]):
        first = stores[0]
        for left, right in pairwise(stores):
            if right.grid != first.grid:
                raise ValueError(
                    f"{right.path} has another grid than {first.path}; archives are joined on one grid only"
                )
            if right.times[0] <= left.times[-1] + TIME_STEP:
                raise ValueError(
                    f"{right.path} begins at {right.times[0]}, before {left.path} has ended, at {left.times[-1]}, "
                    "or right after it; name archives in the order of their times, with a gap between them"
                )
        self.path = ",".join(store.path for store in stores)
        self.channels, self.grid, self.retries = first.channels, first.grid, first.retries
        self.times = np.concatenate([store.times for store in stores])
        self._states, self._stores = None, tuple(stores)
        self._archives = tuple(store._archive for store in stores)
        self._bounds = [0, *np.cumsum([len(store) for store in stores]).tolist()]

    def __reduce__(self):
        return JoinedStore, (self._stores,)

    def _begin(self, start: int, states: Float[np.ndarray, "t h w c"]) -> Callable[[], None]:
        """As `Store._begin`; a read across the end of an archive is put together."""
        self._check_range(start, len(states))
        parts = []
        for store, (first, end) in zip(self._stores, pairwise(self._bounds)):
            low, high = max(first, start), min(end, start + len(states))
            if low < high:
                parts.append(store._begin(low - first, states[low - start : high - start]))

        def finish() -> None:
            for part in parts:
                part()

        return finish

    def load(self) -> None:
        """As `Store.load`, of each archive."""
        for store in self._stores:
            store.load()

    def only(self, paths: str) -> Store:
        """The archives of some of the paths, separated by commas; they share memory with this store.

        Raises:
            ValueError: a path that is none of this store's.
        """
        by_path = {store.path: store for store in self._stores}
        if unknown := [path for path in paths.split(",") if path not in by_path]:
            raise ValueError(f"{unknown[0]!r} is none of the archives {self.path!r}")
        chosen = [by_path[path] for path in paths.split(",")]
        return chosen[0] if len(chosen) == 1 else JoinedStore(chosen)

    def has(self, name: str) -> bool:
        """Whether the first archive holds a variable of this name; static fields are taken from it."""
        return self._stores[0].has(name)

    def static(self, name: str) -> Float[np.ndarray, "h w"]:
        """As `Store.static`, of the first archive."""
        return self._stores[0].static(name)


def open_store(path: str | Path, channels: Iterable[Channel], *, retries: Retries = RETRIES) -> Store:
    """Opens an archive and checks all of it that can be checked without reading fields.

    Credentials for s3:// are taken from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or ~/.aws, those for gs:// from
    Google's application default. A store of its own that speaks S3 (MinIO, Ceph) is named as everywhere else, by
    AWS_ENDPOINT_URL=http://host:9000, and its region, if it needs one, by AWS_REGION.

    Args:
        path: directory, or gs://, s3://, http:// or https:// URL, of a Zarr of the WeatherBench2 schema; several of
            them, separated by commas, are joined in time.
        channels: channels wanted, from `wind_jax.channels.channels`.
        retries: patience with a server that fails or is slow.

    Raises:
        ValueError: nothing there or no answer, a variable or level is missing (what exists is listed), dimensions, grid
            or times are not as expected, packed integers.
    """
    stores = [Store(part, channels, retries) for part in str(path).split(",")]
    return stores[0] if len(stores) == 1 else JoinedStore(stores)


def in_period(times: np.ndarray, period: tuple[str, str] | None) -> np.ndarray:
    """Which times lie in a period, both ends included whole: ("1979", "2015-06") ends with June 2015.

    Args:
        times: (n,) datetime64.
        period: ISO 8601 dates of any precision; None for all times.

    Returns:
        (n,) bool, some of it true.

    Raises:
        ValueError: not dates, in the wrong order, or without any of the times.
    """
    if period is None:
        return np.ones(times.shape, bool)
    first, end = span(period)
    inside = (times >= first) & (times < end)
    if not inside.any():
        first, last = np.datetime_as_string(times[[0, -1]], unit="h")
        raise ValueError(f"period {tuple(period)} has none of the archive's times, {first} to {last}")
    return inside


def span(period: Sequence[str]) -> tuple[np.datetime64, np.datetime64]:
    """Beginning of the first date of a period and end of the last, which is included whole.

    >>> [str(time) for time in span(("1979", "2015-06"))]
    ['1979', '2015-07']

    Raises:
        ValueError: not two dates.
    """
    try:
        first, last = (np.datetime64(date) for date in period)
        return first, last + np.timedelta64(1, np.datetime_data(last.dtype)[0])
    except (TypeError, ValueError) as error:
        raise ValueError(f"period must be two dates like ('1979', '2015-12-31'), got {period!r}") from error


def _as_slice(indices: list[int]) -> slice | list[int]:
    """A contiguous list of indices as a slice, which tensorstore and numpy read faster."""
    contiguous = indices == list(range(indices[0], indices[0] + len(indices)))
    return slice(indices[0], indices[-1] + 1) if contiguous else indices
