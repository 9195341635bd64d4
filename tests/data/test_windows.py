"""Windows never cross a gap; batches are the same whatever rows a process reads, and resume exactly."""

import functools
import itertools

import numpy as np
import pytest
import synthetic
import xarray

from wind_jax.channels import channels
from wind_jax.data.forcings import forcings, static_forcings
from wind_jax.data.normalize import compute_statistics
from wind_jax.data.store import open_store
from wind_jax.data.windows import Recycler, window_starts, windows

CHANNELS = channels(["temperature", "total_precipitation_6hr"], [500, 850])
FRAMES = 3
TIMES = synthetic.times(40)
TIMES[15:] += np.timedelta64(6, "h")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "a.zarr"
    synthetic.write_archive(path, TIMES, time_chunk=8)
    store = open_store(path, CHANNELS)
    return store, compute_statistics(store), functools.partial(forcings, static_forcings(store))


def stream(archive, **options):
    return windows(*archive, **{"frames": FRAMES, "batch_size": 4} | options)


def starts(dataset, batches):
    return np.stack([batch["start"] for batch in itertools.islice(dataset, batches)])


@pytest.mark.parametrize("frames", [1, 2, 3, 15, 25])
def test_window_starts_against_brute_force(frames):
    expected = [
        i for i in range(40 - frames + 1) if TIMES[i + frames - 1] - TIMES[i] == (frames - 1) * np.timedelta64(6, "h")
    ]
    np.testing.assert_array_equal(window_starts(TIMES, frames), expected)
    np.testing.assert_array_equal(window_starts(TIMES, frames, stride=2), expected[::2])


def test_window_starts_in_a_period():
    found = window_starts(TIMES, 3, ("2000-01-02", "2000-01-03"))
    np.testing.assert_array_equal(found, np.arange(4, 10))
    assert found.dtype == np.int64
    for arguments, message in [
        ((TIMES, 26), "no window of 26 frames"),
        ((TIMES, 50), "no window of 50 frames"),
        ((TIMES, 5, ("2000-01-02", "2000-01-02")), "among 4 times"),
        ((TIMES, 0), "frames=0"),
        ((TIMES, 2, None, 0), "stride=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            window_starts(*arguments)


def test_batch_holds_what_its_start_says(archive):
    store, statistics, inputs = archive
    batch = next(iter(stream(archive)))
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "x": ((4, 3, 7, 8, 3), "float32"),
        "inputs": ((4, 3, 7, 8, 10), "float32"),
        "start": ((4,), "int64"),
    }
    for x, f, start in zip(batch["x"], batch["inputs"], batch["start"]):
        np.testing.assert_array_equal(x, statistics.normalize(store.read(int(start), FRAMES)))
        np.testing.assert_array_equal(f, inputs(TIMES[start : start + FRAMES]))


def test_one_epoch_shows_every_window_once(archive):
    every = window_starts(TIMES, FRAMES)
    assert every.size == 36
    epoch = starts(stream(archive, repeat=False), 100)
    assert epoch.shape == (9, 4)
    np.testing.assert_array_equal(np.sort(epoch.ravel()), every)
    assert (epoch.ravel() != every).any()
    in_order = starts(stream(archive, repeat=False, shuffle=False), 100)
    np.testing.assert_array_equal(in_order.ravel(), every)
    with_remainder = starts(stream(archive, repeat=False, shuffle=False, batch_size=8), 100)
    np.testing.assert_array_equal(with_remainder.ravel(), every[:32])


def test_epochs_differ_and_seed_decides(archive):
    two = starts(stream(archive), 18).reshape(2, 36)
    np.testing.assert_array_equal(np.sort(two[0]), np.sort(two[1]))
    assert (two[0] != two[1]).any()
    np.testing.assert_array_equal(starts(stream(archive), 18).reshape(2, 36), two)
    assert (starts(stream(archive, seed=1), 9).ravel() != two[0]).any()


@pytest.mark.parametrize("repeat", [True, False])
@pytest.mark.parametrize("rows", [range(8), range(2, 4), (0, 1, 6, 7)])
def test_a_process_reads_its_rows_of_the_global_batch(archive, rows, repeat):
    options = {"batch_size": 8, "repeat": repeat}
    whole = starts(stream(archive, **options), 12)
    assert len(whole) == (12 if repeat else 4)
    np.testing.assert_array_equal(starts(stream(archive, **options, rows=np.array(rows)), 12), whole[:, rows])


def test_state_resumes_exactly_with_any_number_of_workers(archive):
    iterator = iter(stream(archive))
    for _ in range(7):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(5)]
    resumed = iter(stream(archive, workers=7))
    resumed.set_state(state)
    for want, got in zip(expected, [next(resumed) for _ in range(5)]):
        for key in want:
            np.testing.assert_array_equal(got[key], want[key])


@pytest.mark.parametrize("prepared", [False, True])
def test_layout_of_the_archive_makes_no_difference(archive, tmp_path, prepared):
    """Chunks of one time instead of eight; or one array of all channels, as `prepare` makes it."""
    store, statistics, inputs = archive
    if prepared:
        coordinates = {"time": TIMES, "latitude": synthetic.LATITUDE, "longitude": synthetic.LONGITUDE}
        state = (*coordinates, "channel"), store.read(0, 40), {"channels": [c.key for c in CHANNELS]}
        synthetic.write(xarray.Dataset({"state": state}, coordinates), tmp_path / "b.zarr", time_chunk=1)
    else:
        synthetic.write_archive(tmp_path / "b.zarr", TIMES, time_chunk=1, zarr_format=3)
    other = open_store(tmp_path / "b.zarr", CHANNELS), statistics, inputs
    for want, got in itertools.islice(zip(stream(archive), stream(other)), 10):
        for key in want:
            np.testing.assert_array_equal(got[key], want[key])


def test_batches_that_are_kept_stay_as_they_were(archive):
    """Though memory is used again."""
    store, statistics, _ = archive
    for batch in list(itertools.islice(stream(archive), 15)):
        expected = [statistics.normalize(store.read(int(start), FRAMES)) for start in batch["start"]]
        np.testing.assert_array_equal(batch["x"], expected)


def test_memory_is_used_again_only_when_nothing_refers_to_it():
    recycler = Recycler()
    array = recycler.empty((3, 4))
    address, part = array.ctypes.data, array[1:].T
    del array
    other = recycler.empty((3, 4))
    assert not np.shares_memory(part, other)
    del part
    assert recycler.empty((3, 4)).ctypes.data == address


def test_wrong_arguments(archive):
    store, statistics, inputs = archive
    for options, message in [
        ({"batch_size": 0}, "batch_size 0 must be positive"),
        ({"rows": np.array([], int)}, "batch_size 4 .* got rows"),
        ({"rows": np.array([3, 4])}, "batch_size 4 .* got rows .3 4."),
        ({"repeat": False, "batch_size": 64}, "36 windows do not fill one batch of 64"),
        ({"period": ("1950", "1951")}, "none of the archive's times"),
    ]:
        with pytest.raises(ValueError, match=message):
            stream(archive, **options)
    with pytest.raises(ValueError, match="inputs at one time must have shape"):
        stream((store, statistics, lambda times: inputs(times)[:, :-1]))
    with pytest.raises(ValueError, match="statistics are of channels"):
        stream((open_store(store.path, CHANNELS[:2]), statistics, inputs))
