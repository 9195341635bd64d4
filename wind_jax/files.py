"""Whole files and Zarr datasets, on disk or in an object store, by one name: a path, gs://, s3:// or http(s)://."""

import os
from typing import Any

import tensorstore as ts
import xarray
import zarr

# Without these, tensorstore waits for ever on a connection gone quiet; it reads them at its first request.
os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", "60")
os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "256")
_LIMIT = 600.0
"""Time in seconds for one file in all; holds for the disk too, which may lie on a network."""
# An unreachable host should fail in seconds.
_CONTEXT = {f"{driver}_request_retries": {"max_retries": 5, "max_delay": "2s"} for driver in ("http", "gcs", "s3")}


def is_url(path: str | os.PathLike) -> bool:
    """Whether `path` names an object of a store rather than a file."""
    return "://" in str(path)


def join(folder: str | os.PathLike, name: str) -> str:
    """The path of a file in a folder, which may be a URL."""
    return f"{str(folder).rstrip('/')}/{name}" if is_url(folder) else os.path.join(os.path.abspath(folder), name)


def read_bytes(path: str | os.PathLike) -> bytes | None:
    """Contents of a file; None where there is no such file.

    Raises:
        ValueError: it cannot be read, or the store does not answer.
    """
    try:
        result = _in_time(_open(path).read(""))
    except Exception as error:
        raise ValueError(f"Cannot read {locate(path)[1]!r}: {error}") from error
    return result.value if result.state == "value" else None


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write a file whole or not at all; its folder is made. It is on the disk when this returns.

    Raises:
        OSError: it could not be written: a full disk, no permission, no answer.
    """
    try:
        _in_time(_open(path).write("", data))
    except Exception as error:
        raise OSError(f"Cannot write {locate(path)[1]!r}: {error}") from error


def open_zarr(path: str | os.PathLike, **options: Any) -> xarray.Dataset:
    """A Zarr of anybody's as a dataset, not read yet.

    Arrays of objects are refused before anything is decoded: what decodes them may run code that the file holds.

    Args:
        path: directory, or URL that fsspec opens.
        **options: of `xarray.open_zarr`.

    Raises:
        ValueError: no Zarr, or one with an array that is not of numbers, times or text of fixed length.
    """
    try:
        arrays = dict(zarr.open_group(path, mode="r").arrays())
    except Exception as error:  # zarr, fsspec and the codecs each raise their own
        raise ValueError(f"Cannot open the Zarr {path}: {error}") from error
    if wrong := [name for name, array in arrays.items() if array.dtype.kind not in "biufMmSU"]:
        raise ValueError(f"The Zarr {path} has arrays of objects, {wrong}: expected numbers, times or plain text.")
    return xarray.open_zarr(path, chunks=None, **options)


def locate(path: str | os.PathLike) -> tuple[str | dict[str, str], str]:
    """What tensorstore opens for a path or URL, and how messages name it.

    A store of its own that speaks S3 (MinIO, Ceph) is named by AWS_ENDPOINT_URL, as for every other tool.
    """
    path = str(path)
    if not is_url(path):
        return {"driver": "file", "path": path}, path
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not (endpoint and path.startswith("s3://")):
        return path, path
    bucket, _, key = path.removeprefix("s3://").partition("/")
    # With its region given, the bucket is not asked for it; that request would not be tried again.
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    spec = {"driver": "s3", "bucket": bucket, "path": key, "endpoint": endpoint.rstrip("/"), "aws_region": region}
    return spec, f"{path} at {endpoint}"


def _open(path: str | os.PathLike) -> ts.KvStore:
    spec, _ = locate(path if is_url(path) else os.path.abspath(path))
    return _in_time(ts.KvStore.open(spec, context=ts.Context(_CONTEXT)))


def _in_time(future: ts.Future | ts.WriteFutures) -> Any:
    try:
        return future.result(timeout=_LIMIT)
    except TimeoutError:
        future.cancel()
        raise TimeoutError(f"no answer within {_LIMIT:g} s") from None
