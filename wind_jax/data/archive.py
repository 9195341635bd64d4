"""One Zarr group on disk or behind a URL: its metadata, its arrays by name, and patience with its server.

Knows Zarr, not the atmosphere. Requests to gs://, s3:// and http(s):// that fail for a passing reason (429, 5xx, a
connection refused, reset or cut short) are tried again by tensorstore; what is waited for is bounded in time and named.
"""

import json
import math
import reprlib
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import tensorstore as ts
import xarray
from jaxtyping import Float, Shaped

from wind_jax.files import locate

Item, Read = TypeVar("Item"), TypeVar("Read")
_CHECK_SECONDS = 60
"""Time between looks at the metadata of an archive that is being read."""
_POLL_SECONDS = 0.5
"""Time in which a read that waits notices that the archive was closed."""


@dataclass(frozen=True)
class Retries:
    """Patience with reads; times in seconds.

    Delays double from `initial_delay` to `max_delay`: the defaults go on for nine minutes.

    Attributes:
        attempts: of one request before its error is raised.
        initial_delay: before the second attempt.
        max_delay: longest between two attempts.
        limit: of one read in all. Holds for files on disk too, which may lie on a network.
        stall: time after which a read is reported, as a RuntimeWarning that says what it waits for. Also the time that
            an archive has to answer when it is opened.
    """

    attempts: int = 24
    initial_delay: float = 0.5
    max_delay: float = 30.0
    limit: float = 600.0
    stall: float = 30.0

    def __post_init__(self):
        for field in fields(self):
            if not (value := getattr(self, field.name)) > 0:
                raise ValueError(f"{field.name} of Retries must be positive, got {value}")

    def context(self) -> ts.Context:
        """What tensorstore has to know of it."""
        retries = {
            "max_retries": self.attempts,
            "initial_delay": f"{self.initial_delay}s",
            "max_delay": f"{self.max_delay}s",
        }
        return ts.Context({f"{driver}_request_retries": retries for driver in ("gcs", "http", "s3")})


RETRIES = Retries()
_OPENING = Retries(attempts=6, initial_delay=0.2, max_delay=2.0)  # an unreachable host should fail in seconds


class Archive:
    """A Zarr group of version 2 or 3, with or without consolidated metadata.

    Args:
        path: directory or URL, as of `open_store`.
        known: names of arrays to look for where the metadata are not consolidated.
        retries: patience with its server.

    Raises:
        ValueError: no answer, or nothing there.
    """

    def __init__(self, path: str, known: Iterable[str], retries: Retries):
        self.path, self.retries = path, retries
        self._closed = threading.Event()
        (spec, _), (_, self._where) = locate(f"{path.rstrip('/')}/"), locate(path)
        try:
            self._store = ts.KvStore.open(spec, context=_OPENING.context()).result()
            self._documents: dict[str, dict] = {}
            self._metadata, self._driver = self._read_metadata(tuple(known))
        except TimeoutError as error:
            raise ValueError(f"cannot open {self._where}: no answer within {retries.stall:g} s") from error
        except ValueError as error:
            raise ValueError(f"cannot open {self._where}: {error}") from error
        if not self._metadata:
            raise ValueError(
                f"no Zarr archive at {self._where}: "
                "expected a directory or URL that holds zarr.json, .zmetadata or .zgroup"
            )
        group = self._documents.get(".zmetadata", {}).get("metadata", {}).get(".zattrs")
        group = group or self._documents.get("zarr.json", {}).get("attributes") or {}
        if group.get("complete") is False:  # as wind_jax.data.speedy says
            warnings.warn(
                f"{path} is not complete: the command that writes it was stopped, or goes on; what is there is taken. "
                "The same command again completes it.",
                stacklevel=2,
            )
        self._context = retries.context()
        self._checked = time.monotonic()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._metadata))

    def dims(self, name: str) -> tuple[str, ...]:
        if name not in self._metadata:
            raise ValueError(f"{self.path} has no variable {name!r}; it has {', '.join(self.names)}")
        return self._metadata[name][0]

    def attributes(self, name: str) -> dict[str, Any]:
        self.dims(name)
        return self._metadata[name][1]

    def open(self, name: str) -> ts.Future:
        if packed := {"scale_factor", "add_offset"}.intersection(self.attributes(name)):
            raise ValueError(f"{name!r} in {self.path} is packed ({', '.join(sorted(packed))}); rewrite it as float32")
        kvstore = (self._store / f"{name}/").spec().to_json()
        return ts.open({"driver": self._driver, "kvstore": kvstore}, context=self._context, open=True, read=True)

    def close(self) -> None:
        """Ends the reads under way in other threads, which would hold up the end of the process, and refuses more."""
        self._closed.set()

    def results(self, futures: Mapping[str, ts.Future | ts.WriteFutures], when: str = "") -> Iterator[tuple[str, Any]]:
        """Waits for what is in flight, together no longer than the limit of `Retries`.

        Args:
            futures: by the name of their array.
            when: of which times they are, for messages.

        Yields:
            (name, result) in the order given.

        Raises:
            ValueError: no success within the limit or after all attempts, or the archive has changed.
            RuntimeError: the archive was closed.
        """
        if time.monotonic() - self._checked > _CHECK_SECONDS:
            self.check_unchanged()
        began = time.time()
        deadline = began + self.retries.limit
        report = began + min(self.retries.stall, self.retries.limit)
        for name, future in futures.items():
            what = f"{name!r}{when} of {self._where}"
            try:
                try:
                    result = self._result(future, report)
                except TimeoutError:
                    if report < deadline:
                        warnings.warn(
                            f"waiting for {what} since {time.time() - began:.1f} s; gives up at "
                            f"{self.retries.limit:g} s",
                            RuntimeWarning,
                            stacklevel=2,
                        )
                        report = deadline
                    result = self._result(future, deadline)
            except TimeoutError as error:
                for waiting in futures.values():
                    waiting.cancel()
                raise ValueError(f"cannot read {what}: nothing came within {self.retries.limit:g} s") from error
            except ValueError as error:
                self.check_unchanged(deadline)
                raise ValueError(f"cannot read {what}: {error}") from error
            yield name, result

    def read(self, name: str) -> Shaped[np.ndarray, "..."]:
        """All of a small array."""
        ((_, array),) = self.results({name: self.open(name)})
        ((_, values),) = self.results({name: array.read()})
        return values

    def check_unchanged(self, deadline: float = math.inf) -> None:
        """Compares the metadata with those found at opening; a server that does not answer is no change.

        Called once a minute while the archive is read, and where a read has failed. Values rewritten under the same
        metadata are not noticed.

        Args:
            deadline: Unix time at which it is given up.

        Raises:
            ValueError: they differ; the first difference is given.
        """
        self._checked = time.monotonic()
        try:
            now = self._json(self._documents, deadline)
        except (ValueError, TimeoutError):
            return
        if difference := _difference(self._documents, now, ""):
            raise ValueError(
                f"{self._where} has changed since it was opened: {difference}; finish writing it, then start again"
            )

    def coordinate(self, name: str) -> Float[np.ndarray, "n"]:
        """Values of a coordinate, as float64."""
        if self.dims(name) != (name,):
            raise ValueError(
                f"coordinate {name!r} in {self.path} has dimensions {self.dims(name)}, expected ({name!r},)"
            )
        values = self.read(name).astype(np.float64)
        if not np.isfinite(values).all() or np.unique(values).size < values.size:
            raise ValueError(f"coordinate {name!r} in {self.path} must be finite and distinct, got {values}")
        return values

    def times(self) -> Shaped[np.ndarray, "n"]:
        """Times as datetime64[ns], checked to ascend strictly."""
        raw, attributes = self.read("time"), self._metadata["time"][1]
        decoded = xarray.decode_cf(xarray.Dataset({"time": ("time", raw, attributes)}))["time"]
        if not np.issubdtype(decoded.dtype, np.datetime64):
            raise ValueError(
                f"times of {self.path} must be of the standard calendar with CF units such as "
                f"'hours since 1959-01-01', got attributes {attributes}"
            )
        times = decoded.values.astype("datetime64[ns]")
        wrong = np.flatnonzero(~(np.diff(times) > np.timedelta64(0, "ns")))
        if times.size == 0 or wrong.size:
            at = f"; {times[wrong[0]]} is followed by {times[wrong[0] + 1]}" if wrong.size else ", got none"
            raise ValueError(f"times of {self.path} must ascend strictly{at}")
        return times

    def _result(self, future: ts.Future | ts.WriteFutures, deadline: float) -> Any:
        """Of one of tensorstore's futures, waited for until a Unix time."""
        while not self._closed.is_set():
            try:
                return future.result(deadline=min(deadline, time.time() + _POLL_SECONDS))
            except TimeoutError:
                if time.time() >= deadline:
                    raise
        future.cancel()
        raise RuntimeError(f"{self._where} is closed")

    def _json(self, keys: Iterable[str], deadline: float = math.inf) -> dict[str, dict]:
        """Those of the keys that exist, parsed."""
        deadline = min(deadline, time.time() + self.retries.stall)
        reads = {key: self._store.read(key) for key in keys}
        values = {key: self._result(read, deadline).value for key, read in reads.items()}
        return {key: json.loads(value) for key, value in values.items() if value}

    def _look(self, keys: Iterable[str]) -> dict[str, dict]:
        """As `_json`, and remembers what it found."""
        found = self._json(keys)
        self._documents |= found
        return found

    def _read_metadata(self, known: tuple[str, ...]) -> tuple[dict[str, tuple[tuple[str, ...], dict]], str]:
        """Dimensions and attributes of each array, and the tensorstore driver for them."""
        roots = self._look(["zarr.json", ".zmetadata", ".zgroup"])
        if root := roots.get("zarr.json"):
            consolidated = (root.get("consolidated_metadata") or {}).get("metadata")
            if not consolidated:
                found = self._look(f"{name}/zarr.json" for name in known)
                consolidated = {key.removesuffix("/zarr.json"): value for key, value in found.items()}
            return {
                name: (tuple(array.get("dimension_names") or ()), array.get("attributes", {}))
                for name, array in consolidated.items()
                if array["node_type"] == "array"
            }, "zarr3"
        if root := roots.get(".zmetadata"):
            documents = root["metadata"]
        elif ".zgroup" in roots:
            documents = self._look(f"{name}/{key}" for name in known for key in (".zattrs", ".zarray"))
        else:
            return {}, ""
        return {
            key.removesuffix("/.zattrs"): (tuple(value["_ARRAY_DIMENSIONS"]), value)
            for key, value in documents.items()
            if key.endswith("/.zattrs") and "_ARRAY_DIMENSIONS" in value
        }, "zarr"


def _difference(old: Any, new: Any, where: str) -> str | None:
    """The first place at which two JSON documents differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = ((old.get(key), new.get(key), f"{where}/{key}".lstrip("/")) for key in sorted(old.keys() | new.keys()))
        return next((found for pair in pairs if (found := _difference(*pair))), None)
    # By their text, in which NaN equals itself.
    return None if repr(old) == repr(new) else f"{where} was {reprlib.repr(old)}, is {reprlib.repr(new)}"


def one_ahead(read: Callable[[Item], Read], items: Sequence[Item]) -> Iterator[Read]:
    """Reads the items one after the other, each while the one before is used."""
    reader = futures.ThreadPoolExecutor(1)
    try:
        ahead = None
        for item in items:
            ready, ahead = ahead, reader.submit(read, item)
            if ready:
                yield ready.result()
        if ahead:
            yield ahead.result()
    finally:
        reader.shutdown(wait=False, cancel_futures=True)  # what it still waits for ends with the archive's `close`
