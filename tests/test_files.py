"""Files by path or URL: whole or not at all, missing ones told apart from unreachable ones."""

import functools
import http.server
import json
import os
import pickle
import resource
import socket
import threading

import pytest

from wind_jax.embedded import embedded
from wind_jax.evaluation.fields import Fields
from wind_jax.files import join, locate, open_zarr, read_bytes, write_bytes
from wind_jax.prior import load_prior


@pytest.fixture
def server(tmp_path):
    """The URL of a web server for a folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path))
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    serving.server_close()


def test_write_then_read(tmp_path):
    path = tmp_path / "new" / "file"
    assert read_bytes(path) is None
    write_bytes(path, b"first")
    write_bytes(path, b"second")
    assert read_bytes(path) == b"second"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**10, hard))
    try:
        with pytest.raises(OSError, match="Cannot write"):
            write_bytes(path, bytes(2**12))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_bytes(path) == b"before"


def test_join():
    assert join("gs://bucket/run/", "prior.npz") == "gs://bucket/run/prior.npz"
    assert join("/a/run", "prior.npz") == "/a/run/prior.npz"


def test_an_endpoint_of_its_own_is_for_s3_alone(monkeypatch):
    assert locate("s3://bucket/run/a") == ("s3://bucket/run/a", "s3://bucket/run/a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://host:9000/")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    spec = {"driver": "s3", "bucket": "bucket", "endpoint": "http://host:9000", "aws_region": "eu-north-1"}
    assert locate("s3://bucket/run/a")[0] == spec | {"path": "run/a"}
    assert locate("s3://bucket")[0] == spec | {"path": ""}
    assert locate("gs://bucket/a")[0] == "gs://bucket/a"
    assert locate("/a")[0] == {"driver": "file", "path": "/a"}


def test_a_prior_by_url(server, tmp_path):
    (tmp_path / "prior.npz").symlink_to(embedded("prior.npz"))
    prior = load_prior(f"{server}/prior.npz")
    assert prior.config == load_prior(embedded("prior.npz")).config
    with pytest.raises(ValueError, match=r"none\.npz' does not exist"):
        load_prior(f"{server}/none.npz")


@pytest.fixture
def silent():
    """Host and port of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_a_host_that_accepts_and_says_nothing(silent, monkeypatch):
    monkeypatch.setattr("wind_jax.files._LIMIT", 0.5)
    with pytest.raises(ValueError, match=rf"Cannot read 'http://{silent}/a': no answer within 0.5 s"):
        read_bytes(f"http://{silent}/a")
    for name, value in {"ENDPOINT_URL": f"http://{silent}", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(OSError, match=rf"Cannot write 's3://bucket/a at http://{silent}': no answer within 0.5 s"):
        write_bytes("s3://bucket/a", b"data")


def test_tensorstore_finds_its_limits_at_its_first_request():
    """Whichever module makes it: files read before any archive is opened count too."""
    assert {"TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", "TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES"} <= os.environ.keys()


@pytest.mark.slow  # it tries again for some seconds
def test_a_host_that_does_not_answer():
    with pytest.raises(ValueError, match="Could not connect"):
        load_prior("http://127.0.0.1:9/prior.npz")


def test_a_zarr_that_would_run_code_is_refused(tmp_path):
    """An array of objects with a pickle filter, as somebody's forecast: nothing of it is decoded."""
    folder, mark = tmp_path / "evil.zarr", tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {mark}",)

    array = folder / "number"
    array.mkdir(parents=True)
    (folder / ".zgroup").write_text('{"zarr_format": 2}')
    filters = [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 4}]
    about = {"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "fill_value": None, "order": "C"}
    (array / ".zarray").write_text(json.dumps(about | {"compressor": None, "filters": filters}))
    (array / ".zattrs").write_text('{"_ARRAY_DIMENSIONS": ["number"]}')
    (array / "0").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"arrays of objects, \['number'\]"):
        open_zarr(folder)
    with pytest.raises(ValueError, match=r"forecast .*arrays of objects"):
        Fields("forecast", str(folder))
    assert not mark.exists()
