"""Any layout of an archive reads as the same states; anything wrong with it is said when it is opened."""

import pickle
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import synthetic
import xarray

from wind_jax.channels import channels
from wind_jax.data.store import in_period, open_store

TIMES = synthetic.times(12)
CHANNELS = channels(["temperature", "geopotential", "2m_temperature"], [300, 850])  # not neighbouring levels
EVERY = channels(["temperature", "geopotential", "2m_temperature"], [300, 500, 850])


@pytest.fixture(scope="module")
def dataset():
    names = ["temperature", "geopotential", "2m_temperature", "land_sea_mask"]
    return synthetic.fields(TIMES)[names]


@pytest.fixture(scope="module")
def states(dataset):
    """What every layout has to give, taken from xarray."""
    columns = [dataset[c.name].sel(level=c.level) if c.level else dataset[c.name] for c in CHANNELS]
    return np.stack([c.transpose("time", "latitude", "longitude").values for c in columns], axis=-1)


def flipped(dataset):
    return dataset.isel(latitude=slice(None, None, -1))


def longitude_first(dataset):
    return dataset.transpose("time", "level", "longitude", "latitude")


def level_last(dataset):
    return dataset.transpose("time", "latitude", "longitude", "level")


def west_of_greenwich(dataset):
    return dataset.assign_coords(longitude=(dataset.longitude + 180) % 360 - 180).sortby("longitude")


def shuffled_levels(dataset):
    return dataset.isel(level=[1, 2, 0])


def double(dataset):
    return dataset.astype(np.float64)


def prepared(dataset):
    """As `prepare` writes it: one array of all channels, of which the test wants some."""
    fields = [dataset[c.name].sel(level=c.level, drop=True) if c.level else dataset[c.name] for c in EVERY]
    state = xarray.concat(fields, "channel", coords="minimal").transpose(..., "channel").rename("state")
    state = state.assign_attrs(channels=[c.key for c in EVERY])
    return xarray.merge([state, dataset["land_sea_mask"]])


def check(path, dataset, states):
    store = open_store(path, CHANNELS)
    np.testing.assert_array_equal(store.grid.latitude, synthetic.LATITUDE)
    np.testing.assert_array_equal(store.grid.longitude, synthetic.LONGITUDE)
    np.testing.assert_array_equal(store.times, TIMES)
    read = store.read(3, 6)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, states[3:9])
    np.testing.assert_array_equal(store.static("land_sea_mask"), dataset["land_sea_mask"].values)


@pytest.mark.parametrize("consolidated", [True, False])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zarr_formats(tmp_path, dataset, states, zarr_format, consolidated):
    check(synthetic.write(dataset, tmp_path / "a.zarr", zarr_format, 5, consolidated), dataset, states)


@pytest.mark.parametrize(
    "layout",
    [flipped, longitude_first, level_last, west_of_greenwich, shuffled_levels, double, prepared],
    ids=lambda f: f.__name__,
)
def test_every_layout_reads_the_same(tmp_path, dataset, states, layout):
    check(synthetic.write(layout(dataset), tmp_path / "a.zarr", time_chunk=5), dataset, states)


@pytest.mark.parametrize("loaded", [False, True])
def test_memory_and_pickle(tmp_path, dataset, states, loaded):
    store = open_store(synthetic.write(dataset, tmp_path / "a.zarr"), CHANNELS)
    if loaded:
        store.load()
    check_rounded(store.read(3, 6), states[3:9], 1 if loaded else 0)
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.read(3, 6), states[3:9])
    several = np.zeros((3, 2, *states.shape[1:]), np.float32)
    store.read_into(several, np.array([7, 0, 7]))
    check_rounded(several, states[[[7, 8], [0, 1], [7, 8]]], 1 if loaded else 0)


def check_rounded(read, states, steps):
    """Within half of the 65,535 steps of each field's range, and float32's own rounding."""
    step = np.ptp(states, axis=(-3, -2), keepdims=True) / 65535
    assert (np.abs(read - states) <= steps * (0.51 * step + 2e-7 * np.abs(states))).all()


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_archive_that_was_not_finished_is_named(tmp_path, dataset, zarr_format):
    path = synthetic.write(dataset.assign_attrs(complete=False), tmp_path / "a.zarr", zarr_format)
    with pytest.warns(UserWarning, match=r"a\.zarr is not complete"):
        open_store(path, CHANNELS)
    open_store(synthetic.write(dataset.assign_attrs(complete=True), tmp_path / "b.zarr", zarr_format), CHANNELS)


def test_large_values_are_finite(tmp_path, dataset):
    path = synthetic.write(dataset.assign(geopotential=dataset["geopotential"] * 1e30), tmp_path / "a.zarr")
    assert open_store(path, CHANNELS).read(3, 4).max() > 1e30


def test_half_precision_reads_as_float32(tmp_path, dataset):
    path = synthetic.write(dataset[["temperature"]].astype(np.float16), tmp_path / "half.zarr")
    read = open_store(path, channels(["temperature"], [500])).read(0, 2)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read[..., 0], dataset["temperature"].sel(level=500).values[:2], rtol=2**-11)


@pytest.fixture
def server(tmp_path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_http(tmp_path, server, dataset, states, zarr_format):
    synthetic.write(dataset, tmp_path / "a.zarr", zarr_format, 5)
    for url in (f"{server}/a.zarr", f"{server}/a.zarr/"):
        np.testing.assert_array_equal(open_store(url, CHANNELS).read(4, 3), states[4:7])
    with pytest.raises(ValueError, match="no Zarr archive at http://127"):
        open_store(f"{server}/b.zarr", CHANNELS)


def test_blocks_cover_the_indices_in_order_and_never_span_a_gap(tmp_path, dataset, states):
    store = open_store(synthetic.write(dataset, tmp_path / "a.zarr"), CHANNELS)
    indices = np.array([1, 2, 3, 7, 8])
    blocks = list(store.blocks(indices, "test"))
    np.testing.assert_array_equal(np.concatenate([block for block, _ in blocks]), indices)
    np.testing.assert_array_equal(np.concatenate([values for _, values in blocks]), states[indices])


def test_missing_data_is_named(tmp_path, dataset):
    broken = dataset.copy(deep=True)
    broken["geopotential"].loc[{"time": TIMES[5], "level": 850}] = np.nan
    path = synthetic.write(broken, tmp_path / "a.zarr")
    store = open_store(path, CHANNELS)
    for read in (lambda: store.read(3, 4), store.load):
        with pytest.raises(ValueError, match=r"'geopotential' at 850 hPa .* 2000-01-02T06:00"):
            read()
    store.read(6, 2)


@pytest.mark.parametrize("consolidated", [True, False])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_archive_that_changes_while_it_is_read_is_named(
    tmp_path, dataset, states, zarr_format, consolidated, monkeypatch
):
    path = tmp_path / "a.zarr"
    store = open_store(synthetic.write(dataset, path, zarr_format, 5, consolidated), CHANNELS)
    in_memory = open_store(path, CHANNELS)
    in_memory.load()
    monkeypatch.setattr("wind_jax.data.archive._CHECK_SECONDS", -1)
    np.testing.assert_array_equal(store.read(3, 6), states[3:9])
    store.check_unchanged()
    synthetic.write(dataset.isel(time=slice(8)), path, zarr_format, 5, consolidated)
    message = rf"{path} has changed since it was opened: .*/shape was \[12, .*\], is \[8, "
    for read in (store.check_unchanged, lambda: store.read(0, 2)):
        with pytest.raises(ValueError, match=message):
            read()
    check_rounded(in_memory.read(3, 6), states[3:9], 1)


def test_a_read_that_fails_looks_for_a_change_at_once(tmp_path, dataset):
    path = tmp_path / "a.zarr"
    store = open_store(synthetic.write(dataset, path, time_chunk=5), CHANNELS)
    for file in (path / "temperature").glob("1.*"):
        file.write_bytes(b"no chunk")
    with pytest.raises(ValueError, match=r"cannot read 'temperature' at 2000-01-02T06 to 2000-01-02T12 of .*a.zarr: "):
        store.read(5, 2)
    synthetic.write(dataset.astype(np.float64), path, time_chunk=5)
    with pytest.raises(ValueError, match=r"changed since it was opened: .*2m_temperature/.zarray/dtype was '<f4', is"):
        store.read(5, 2)


def without(name):
    return lambda d: d.drop_vars(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("geopotential"), "no variable 'geopotential'; it has .*temperature"),
        (lambda d: d.sel(level=[300, 500]), r"no level 850 hPa for 'temperature'; its levels are 300, 500"),
        (lambda d: d.rename(latitude="lat"), r"dimensions \('time', 'level', 'lat', 'longitude'\)"),
        (lambda d: d.transpose("level", "time", ...), "time first"),
        (lambda d: d.isel(time=[0, 2, 1]), "2000-01-01T12.* is followed by 2000-01-01T06"),
        (lambda d: d.isel(time=[0, 1, 1]), "ascend strictly"),
        (lambda d: d.isel(longitude=slice(0, 4)), "steps of 360 / 4"),
        (lambda d: d.isel(latitude=[0, 2, 1]), "latitude must ascend"),
        (lambda d: d.assign(temperature=d["temperature"].assign_attrs(scale_factor=2.0)), "packed"),
        (lambda d: prepared(d).transpose("time", "channel", ...), r"'state' in .* \('time', 'channel', 'latitude'"),
        (
            lambda d: xarray.merge([prepared(d)["state"].assign_attrs(channels=["temperature_300"] * 7)]),
            "no channel 'temperature_850'; it has temperature_300",
        ),
    ],
)
def test_what_is_wrong_is_said_at_opening(tmp_path, dataset, change, message):
    path = synthetic.write(change(dataset), tmp_path / "a.zarr")
    with pytest.raises(ValueError, match=message):
        open_store(path, CHANNELS)


def test_wrong_requests(tmp_path, dataset):
    path = synthetic.write(dataset, tmp_path / "a.zarr")
    with pytest.raises(ValueError, match=r"no Zarr archive at .*nowhere"):
        open_store(tmp_path / "nowhere", CHANNELS)
    with pytest.raises(ValueError, match="cannot open nothing://x"):
        open_store("nothing://x", CHANNELS)
    with pytest.raises(ValueError, match="no channels"):
        open_store(path, ())
    with pytest.raises(ValueError, match="distinct"):
        open_store(path, CHANNELS + CHANNELS)
    store = open_store(path, CHANNELS)
    for start, frames in [(-1, 2), (11, 2), (0, 0)]:
        with pytest.raises(ValueError, match=f"cannot read {frames} frames from index {start}"):
            store.read(start, frames)
    with pytest.raises(ValueError, match="no variable 'ozone'"):
        store.static("ozone")
    with pytest.raises(ValueError, match="a static field has"):
        store.static("2m_temperature")


def test_period_includes_both_ends_whole():
    times = synthetic.times(4 * 800)
    for period, days in [
        (("2000", "2000"), 366),
        (("2000-02", "2000-03"), 60),
        (("2000-01-05", "2000-01-05"), 1),
    ]:
        assert in_period(times, period).sum() == 4 * days
    assert in_period(times, None).all()
    for period, message in [
        (("2010", "2011"), "none of the archive's times, 2000-01-01T00 to"),
        (("2001", "2000"), "none"),
        (("yesterday", "2000"), "two dates"),
        (("2000", "2000-13"), "two dates"),
    ]:
        with pytest.raises(ValueError, match=message):
            in_period(times, period)


def test_archives_are_joined_in_time(tmp_path):
    first, second = synthetic.times(10), synthetic.times(8, "2000-02-01")
    for name, when in (("a", first), ("b", second)):
        synthetic.write_archive(tmp_path / name, when, seed=len(when))
    chosen = channels(("temperature", "2m_temperature"), (500,))
    joined = open_store(f"{tmp_path / 'a'},{tmp_path / 'b'}", chosen)
    parts = [open_store(tmp_path / name, chosen) for name in "ab"]
    np.testing.assert_array_equal(joined.times, np.concatenate([first, second]))
    whole = np.concatenate([part.read(0, len(part)) for part in parts])
    np.testing.assert_array_equal(joined.read(0, 18), whole)
    np.testing.assert_array_equal(joined.read(8, 5), whole[8:13])
    np.testing.assert_array_equal(joined.read(12, 2), whole[12:14])
    several = np.zeros((2, 5, *whole.shape[1:]), np.float32)
    joined.read_into(several, np.array([11, 7]))
    np.testing.assert_array_equal(several, [whole[11:16], whole[7:12]])
    np.testing.assert_array_equal(joined.static("land_sea_mask"), parts[0].static("land_sea_mask"))
    with pytest.raises(ValueError, match="cannot read"):
        joined.read(16, 3)
    joined.close()
    with pytest.raises(RuntimeError, match="b is closed"):
        joined.read(12, 2)
    with pytest.raises(ValueError, match="order of their times"):
        open_store(f"{tmp_path / 'b'},{tmp_path / 'a'}", chosen)
