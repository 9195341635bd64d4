"""Archives behind plain HTTP and behind an S3-compatible server, both unreliable: reads are exact or fail in time."""

import functools
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import synthetic
import tiny

from wind_jax.channels import channels
from wind_jax.data.archive import Retries
from wind_jax.data.forcings import forcings, static_forcings
from wind_jax.data.normalize import compute_statistics
from wind_jax.data.store import open_store
from wind_jax.data.windows import windows
from wind_jax.files import read_bytes, write_bytes
from wind_jax.train import train

CHANNELS = channels(["temperature", "2m_temperature"], [500, 850])
TIMES = synthetic.times(16)
QUICK = Retries(attempts=24, initial_delay=0.01, max_delay=0.1, limit=60.0)
FAULTS = (500, 503, "unanswered", "cut short", "slow")


class Handler(BaseHTTPRequestHandler):
    """GET of what the server's `fetch` has, or one of its faults."""

    def do_GET(self):
        fault = self.server.fault(self)
        if fault == "unanswered":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault == "hanging":
            self.server.stopped.wait()
        elif isinstance(fault, int):
            self.send_error(fault)
        else:
            time.sleep(self.server.delay if fault == "slow" else 0)
            status, body, etag = self.server.fetch(self)
            self.send_response(status)
            self.send_header("ETag", etag)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if fault == "cut short" else body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """A server on loopback in a thread.

    Args:
        fetch: handler -> (status, body, ETag).
        faulty: whether the n-th request of a path (from 1) meets a fault; all `faults` take their turn.
    """

    request_queue_size = 128  # of connections: with the usual 5, some would have to knock again a second later

    def __init__(self, fetch, faulty=lambda n: False, faults=FAULTS):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.fetch, self.faulty, self.delay = fetch, faulty, 0.05
        self.requests, self.faults, self.headers = Counter(), Counter(), []
        self.stopped = threading.Event()
        self._next, self._lock = itertools.cycle(faults), threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})

    def fault(self, handler):
        with self._lock:
            self.requests[handler.path] += 1
            self.headers.append(handler.headers)
            if not self.faulty(self.requests[handler.path]):
                return None
            fault = next(self._next)
            self.faults[fault] += 1
            return fault

    def handle_error(self, *_):
        """A client that has gone away is no error here."""

    def __enter__(self):
        self._thread.start()
        return self

    def stop(self):
        self.stopped.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def __exit__(self, *_):
        if not self.stopped.is_set():
            self.stop()


def of_folder(folder):
    """Files of a folder."""

    def fetch(handler):
        path = Path(folder, handler.path.lstrip("/"))
        return (200, path.read_bytes(), '"1"') if path.is_file() else (404, b"", '""')

    return fetch


def of_server(url):
    """What another server has, asked with the same headers."""

    def fetch(handler):
        try:
            with urllib.request.urlopen(urllib.request.Request(url + handler.path, headers=handler.headers)) as reply:
                return reply.status, reply.read(), reply.headers["ETag"]
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), '""'

    return fetch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bucket")
    synthetic.write_archive(folder / "a.zarr", TIMES, time_chunk=4)
    return folder


@pytest.fixture(scope="module")
def moto(folder, tmp_path_factory):
    """URL of an S3-compatible server, a process of its own, that holds the archive as weather/a.zarr."""
    pytest.importorskip("moto")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("w") as output:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        put(f"{url}/weather", b"", lambda: process.poll() is None or pytest.fail(log.read_text()))
        upload(folder, f"{url}/weather")
        yield url
    finally:
        process.terminate()
        process.wait()


def upload(folder, url):
    """All files of a folder, to a bucket."""
    for file in folder.rglob("*"):
        if file.is_file():
            put(f"{url}/{file.relative_to(folder)}", file.read_bytes())


def put(url, body, check=lambda: None):
    """PUT, again while nobody listens there."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/octet-stream"}, method="PUT")
    for _ in range(600):
        try:
            return urllib.request.urlopen(request, timeout=60).close()
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionRefusedError):
                raise
        check()
        time.sleep(0.1)
    raise TimeoutError(url)


def batches(path, retries):
    """All the windows of an archive, through the pipeline of training."""
    store = open_store(path, CHANNELS, retries=retries)
    inputs = functools.partial(forcings, static_forcings(store))
    return list(windows(store, compute_statistics(store), inputs, frames=3, batch_size=2, repeat=False, seed=1))


def equal(read, expected):
    assert len(read) == len(expected) == 7
    for one, other in zip(read, expected):
        for key in other:
            np.testing.assert_array_equal(one[key], other[key])


def two_of_three(n):
    return n % 3 != 0


def test_windows_over_unreliable_http_equal_local_ones(folder):
    with Server(of_folder(folder), two_of_three) as server:
        read = batches(f"{server.url}/a.zarr", QUICK)
    equal(read, batches(folder / "a.zarr", QUICK))
    assert min(server.faults[fault] for fault in FAULTS) > 5


def test_windows_of_an_unreliable_bucket_equal_local_ones(folder, moto, monkeypatch):
    """Credentials and the endpoint come from the environment, as with every other tool for S3."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "forecaster")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    with Server(of_server(moto), two_of_three) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        read = batches("s3://weather/a.zarr", QUICK)
        with pytest.raises(ValueError, match=rf"no Zarr archive at s3://weather/b.zarr at {server.url}"):
            open_store("s3://weather/b.zarr", CHANNELS)
    equal(read, batches(folder / "a.zarr", QUICK))
    assert min(server.faults[fault] for fault in FAULTS) > 5
    assert all(
        "Credential=forecaster/" in headers["Authorization"] and "/eu-north-1/s3/" in headers["Authorization"]
        for headers in server.headers
    )


def test_files_of_a_bucket_at_an_endpoint(moto, monkeypatch):
    """What a run writes beside its checkpoints goes where its archive comes from."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "forecaster")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with Server(of_server(moto)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        assert read_bytes("s3://weather/run/statistics.json") is None
        assert read_bytes("s3://weather/a.zarr/.zgroup").startswith(b"{")
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    write_bytes("s3://weather/run/statistics.json", b"1")
    assert read_bytes("s3://weather/run/statistics.json") == b"1"


@pytest.mark.parametrize(
    ("attempts", "message"),
    [(4, ".* All 4 retry attempts failed: .* Could not connect"), (10_000, "nothing came within 2 s")],
)
def test_a_server_gone_for_good_is_named_within_the_limit(folder, attempts, message):
    retries = Retries(attempts, initial_delay=0.05, max_delay=0.2, limit=2.0)
    with Server(of_folder(folder)) as server:
        store = open_store(f"{server.url}/a.zarr", CHANNELS, retries=retries)
        store.read(0, 3)
        server.stop()
        began = time.monotonic()
        with pytest.raises(ValueError, match=rf"'\w+' at 2000-01-02T00 to .*T12 of {server.url}/a.zarr: {message}"):
            store.read(4, 3)
        assert time.monotonic() - began < 4
        if attempts == 4:
            with pytest.raises(ValueError, match=f"cannot open {server.url}/a.zarr: .* Could not connect"):
                open_store(f"{server.url}/a.zarr", CHANNELS)


def test_a_bucket_gone_for_good_is_named_within_the_limit(folder, moto, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "forecaster")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with Server(of_server(moto)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
        store = open_store("s3://weather/a.zarr", CHANNELS, retries=Retries(4, 0.05, 0.2, limit=2.0))
        store.read(0, 3)
        server.stop()
        began = time.monotonic()
        with pytest.raises(ValueError, match=rf"of s3://weather/a.zarr at {server.url}: .* Could not connect"):
            store.read(4, 3)
        assert time.monotonic() - began < 4


def test_a_server_that_never_answers(folder):
    """The stall is reported once, with what is waited for; then comes the limit."""
    with Server(of_folder(folder), faults=["hanging"]) as server:
        store = open_store(f"{server.url}/a.zarr", CHANNELS, retries=Retries(limit=1.5, stall=0.5))
        server.faulty = lambda n: True
        began = time.monotonic()
        where = rf"'temperature' at 2000-01-02T00 to 2000-01-02T12 of {server.url}/a.zarr"
        with (
            pytest.warns(RuntimeWarning, match=rf"waiting for {where} since 0.. s; gives up at 1.5 s") as stalls,
            pytest.raises(ValueError, match=rf"cannot read {where}: nothing came within 1.5 s"),
        ):
            store.read(4, 3)
        assert len(stalls) == 1
        assert 1.4 < time.monotonic() - began < 5
        with pytest.raises(ValueError, match=f"cannot open {server.url}/a.zarr: no answer within 0.5 s"):
            open_store(f"{server.url}/a.zarr", CHANNELS, retries=Retries(stall=0.5))


def test_closing_ends_the_reads_under_way_and_refuses_others(folder):
    with Server(of_folder(folder), faults=["hanging"]) as server:
        store = open_store(f"{server.url}/a.zarr", CHANNELS)
        server.faulty = lambda n: True
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(store.read, 4, 3)
            while not server.faults:
                time.sleep(0.01)
            assert not reading.done()
            store.close()
            with pytest.raises(RuntimeError, match=f"{server.url}/a.zarr is closed"):
                reading.result(5)
        with pytest.raises(RuntimeError, match=f"{server.url}/a.zarr is closed"):
            store.read(4, 3)


@pytest.mark.slow
def test_sigterm_ends_the_process_though_its_threads_wait_for_a_server(tmp_path):
    """Chunks stop to come in the middle of a training: it saves, and does not sit out the limit of a read."""
    tiny.write_archive(tmp_path / "a.zarr")
    with Server(of_folder(tmp_path), faults=["hanging"]) as server:
        settings = {"optimizer.steps": 10**6, "log_every": 1, "validation.windows": 8, "data.in_memory": False}
        path = tiny.write_config(tmp_path / "config.py", f"{server.url}/a.zarr", tmp_path / "run", **settings)
        command = [sys.executable, "-m", "wind_jax.train", "--config", path]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as training:
            log, seen, late = tmp_path / "run" / "metrics.jsonl", None, threading.Timer(300, training.kill)
            late.start()  # else a failure here would wait for the training
            while not log.exists() and training.poll() is None:
                time.sleep(0.1)
            server.faulty = lambda n: True
            while training.poll() is None and seen != (seen := log.read_bytes()):  # until it waits for a batch
                time.sleep(5)
            training.terminate()
            began = time.monotonic()
            assert "SIGTERM: saved step" in training.stdout.read()
            assert training.wait() == 0
            assert time.monotonic() - began < 60
            late.cancel()


def test_a_stall_that_passes_is_reported_and_harmless(folder):
    with Server(of_folder(folder), faults=["slow"]) as server:
        store = open_store(f"{server.url}/a.zarr", CHANNELS, retries=Retries(stall=0.3))
        server.faulty, server.delay = lambda n: True, 1.0
        with pytest.warns(RuntimeWarning, match="waiting for") as stalls:
            read = store.read(4, 3)
    assert len(stalls) == 1
    np.testing.assert_array_equal(read, open_store(folder / "a.zarr", CHANNELS).read(4, 3))


@pytest.mark.parametrize("status", [400, 403])
def test_a_refusal_is_not_tried_again(folder, status):
    with Server(of_folder(folder), faults=[status]) as server:
        store = open_store(f"{server.url}/a.zarr", CHANNELS[:1], retries=QUICK)
        server.requests.clear()
        server.faulty = lambda n: True
        with pytest.raises(ValueError, match=rf"of {server.url}/a.zarr: .*HTTP code {status}"):
            store.read(0, 3)
        # The chunk, and a look at the metadata; a refusal of one of these may cancel the others.
        assert server.requests["/a.zarr/temperature/0.0.0.0"] == 1
        assert max(server.requests.values()) == 1


@pytest.mark.slow
def test_a_connection_that_has_gone_quiet_is_given_up_and_tried_again(folder):
    """In a process of its own, for tensorstore reads the time that it allows once."""
    program = (
        "import sys, numpy as np; from wind_jax.data.store import open_store; "
        "from wind_jax.channels import channels; "
        "print(open_store(sys.argv[1], channels(['temperature'], [500])).read(4, 3).astype(np.float64).sum())"
    )
    environment = os.environ | {"TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "2"}
    with Server(of_folder(folder), lambda n: n == 1, ["hanging"]) as server:
        command = [sys.executable, "-c", program, f"{server.url}/a.zarr"]
        printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert server.faults["hanging"] > 3
    expected = open_store(folder / "a.zarr", channels(["temperature"], [500])).read(4, 3)
    assert float(printed) == expected.astype(np.float64).sum()


def goes_on(server, remote, folder):
    """Trains from an archive in a folder, then from where a server has it that fails every third request of each file.

    That begins with opening the archive. Nothing of it is kept in memory, so that steps need what comes meanwhile.
    """
    steps, losses, met = 24, [], []
    log = folder / "remote" / "metrics.jsonl"  # a line a step

    def faulty(n):
        if n % 3 == 1:
            met.append(len(log.read_text().splitlines()) if log.exists() else 0)
        return n % 3 == 1

    server.faulty = faulty
    settings = {"data.in_memory": False, "data.climatology": False, "optimizer.steps": steps, "log_every": 1}
    for name, path in (("local", folder / "a.zarr"), ("remote", remote)):
        train(tiny.config(str(path), folder / name, **settings))
        records = map(json.loads, (folder / name / "metrics.jsonl").read_text().splitlines())
        losses.append([record["loss"] for record in records if "loss" in record])
    assert len(losses[0]) == steps
    assert losses[0] == losses[1]
    # Batches are read about five steps ahead: what was met in the last eight may be of some that were never needed.
    assert sum(0 < step < steps - 8 for step in met) > 5 * len(FAULTS)


@pytest.fixture
def short_chunks(tmp_path, monkeypatch):
    """A folder with the archive of a small training, a.zarr, in chunks of a day: steps go on reading new ones."""
    monkeypatch.setattr("wind_jax.train.open_store", functools.partial(open_store, retries=QUICK))
    fields = synthetic.fields(synthetic.times(96), tiny.LATITUDE, tiny.LONGITUDE, levels=(500, 850))
    used = ["temperature", "2m_temperature", "land_sea_mask", "soil_type", "geopotential_at_surface"]
    synthetic.write(fields[used], tmp_path / "a.zarr", time_chunk=4)
    return tmp_path


@pytest.mark.slow
def test_training_goes_on(short_chunks):
    with Server(of_folder(short_chunks)) as server:
        goes_on(server, f"{server.url}/a.zarr", short_chunks)


def test_training_from_a_bucket_goes_on(short_chunks, moto, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "forecaster")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    upload(short_chunks, f"{moto}/weather/short")
    with Server(of_server(moto)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        goes_on(server, "s3://weather/short/a.zarr", short_chunks)


@pytest.mark.parametrize("changes", [{"attempts": 0}, {"limit": -1.0}, {"stall": 0.0}])
def test_patience_is_positive(changes):
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=f"{name} of Retries must be positive, got {value}"):
        Retries(**changes)
