"""A prepared archive holds the states of its source, coarsened and rounded as asked, and their statistics; a run that
was stopped goes on; nothing begins on bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import fsspec
import numpy as np
import pytest
import synthetic
import xarray

pytest.importorskip("apache_beam", reason="the extra `prepare` is not installed")
pytest.importorskip("xarray_beam", reason="the extra `prepare` is not installed")

from wind_jax.channels import channels
from wind_jax.data import pipeline
from wind_jax.data.climatology import Climatology
from wind_jax.data.normalize import Statistics, compute_statistics
from wind_jax.data.pipeline import Job, frame_moments, merge, round_to
from wind_jax.data.prepare import main, prepare
from wind_jax.data.store import STATIC_VARIABLES, open_store
from wind_jax.sphere import Grid, area_mean, coarsen, coarsening

VARIABLES = ["temperature", "geopotential", "total_precipitation_6hr"]
LEVELS = [300, 850]
CHANNELS = channels(VARIABLES, LEVELS)
PERIOD = ("2000-01-02", "2000-01-08")  # 28 times, from the fifth on
GRID = Grid(synthetic.LATITUDE, synthetic.LONGITUDE)
FIELDS = ("mean", "std", "difference_std")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of several pieces, from archives of few times."""
    monkeypatch.setattr(pipeline, "_BLOCK_FRAMES", 8)
    monkeypatch.setattr(pipeline, "_PIECE_BYTES", 1)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "a.zarr"
    synthetic.write_archive(path, synthetic.times(40), time_chunk=6)
    return str(path)


def assert_statistics(statistics, expected):
    assert statistics.channels == expected.channels
    for name in FIELDS:
        np.testing.assert_allclose(getattr(statistics, name), getattr(expected, name), rtol=1e-6, err_msg=name)


def test_same_states_in_small_chunks(source, tmp_path, capsys):
    target = str(tmp_path / "b.zarr")
    statistics = prepare(source, target, VARIABLES, LEVELS, period=PERIOD, chunk=4)
    before, after = open_store(source, CHANNELS), open_store(target, CHANNELS)
    np.testing.assert_array_equal(after.times, before.times[4:32])
    np.testing.assert_array_equal(after.read(0, 28), before.read(4, 28))
    for name in STATIC_VARIABLES:
        np.testing.assert_array_equal(after.static(name), before.static(name))
    assert_statistics(statistics, compute_statistics(before, PERIOD))
    assert_statistics(Statistics.load(Path(target) / "statistics.json"), statistics)
    opened = xarray.open_zarr(target)["state"]
    assert opened.encoding["chunks"] == (4, 7, 8, 5)
    assert opened.attrs["channel_units"] == ["K", "K", "m2 s-2", "m2 s-2", "m"]
    expected = xarray.open_zarr(source)["geopotential"].sel(time=slice(*PERIOD), level=850)
    xarray.testing.assert_equal(
        opened.sel(channel="geopotential_850").drop_vars("channel"), expected.drop_vars("level")
    )
    assert sorted(os.listdir(tmp_path)) == ["b.zarr"]

    # The same again does nothing; other settings are refused, and named.
    written = os.stat(target).st_mtime_ns
    assert_statistics(prepare(source, target, VARIABLES, LEVELS, period=PERIOD, chunk=4), statistics)
    assert "is there already" in capsys.readouterr().out
    assert os.stat(target).st_mtime_ns == written
    with pytest.raises(ValueError, match=r"other settings: chunk 4, now 1\. Give another target"):
        prepare(source, target, VARIABLES, LEVELS, period=PERIOD)


def test_coarse_rounded_and_about_a_climatology(source, tmp_path, monkeypatch):
    """By URL, where the archive is copied to its place; object stores, unlike a disk, have no folders to make."""
    monkeypatch.setitem(fsspec.config.conf, "file", {"auto_mkdir": True})
    before = open_store(source, CHANNELS)
    coarse = coarsening(before.grid, 2)
    rng = np.random.default_rng(0)
    usual = before.read(0, 1).mean((0, 1, 2)) * rng.uniform(0, 0.1, (7, *coarse.grid.shape, len(CHANNELS)))
    climatology = Climatology(CHANNELS, coarse.grid, usual.astype(np.float32))
    climatology.save(tmp_path / "c.npz")
    target, about = "file://" + str(tmp_path / "b.zarr"), str(tmp_path / "c.npz")
    statistics = prepare(source, target, VARIABLES, LEVELS, factor=2, rounding=1e-3, climatology=about)
    after = open_store(target, CHANNELS)
    assert after.grid == coarse.grid
    assert_statistics(statistics, compute_statistics(after, None, Climatology.load(about).at))
    assert (tmp_path / "b.zarr" / "climatology.npz").read_bytes() == (tmp_path / "c.npz").read_bytes()

    exact, rounded = coarsen(before.read(0, 40), coarse), after.read(0, 40)
    np.testing.assert_allclose(  # conservative: the area mean is the source's
        area_mean(exact, coarse.grid, (1, 2)), area_mean(before.read(0, 40), before.grid, (1, 2)), rtol=1e-5
    )
    error = np.abs(statistics.normalize(rounded) - statistics.normalize(exact)).max((0, 1, 2)) * statistics.std
    # The tolerance is kept with the change of a sample of times, which this small archive has nearly all of.
    assert (error < 1.1e-3 * statistics.difference_std + 2e-7 * np.abs(statistics.mean)).all()
    assert (error > 2e-4 * statistics.difference_std).all()  # and used: a looser power of two would break it
    attributes = xarray.open_zarr(target.removeprefix("file://"))["state"].attrs
    quanta = np.array(attributes["rounded_to_multiples_of"], np.float32)
    np.testing.assert_array_equal(np.modf(rounded / quanta[None, None, None])[0], 0)
    assert (np.log2(quanta) % 1 == 0).all()

    soil = after.static("soil_type")
    assert set(np.unique(soil)) <= {0.0, 3.0}  # a class, never a mean of classes
    np.testing.assert_allclose(
        after.static("land_sea_mask"), coarsen(before.static("land_sea_mask")[..., None], coarse)[..., 0]
    )


class Stop(Exception):
    pass


def test_goes_on_where_it_was_stopped(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "_ELEMENT_BYTES", 8)  # chunks of two channels: two of the third are not used
    target, written, groups = str(tmp_path / "b.zarr"), [], 3
    write = pipeline.xbeam.write_chunk_to_zarr

    def until(count):
        def write_some(key, *arguments):
            if len(written) == count:
                raise Stop
            written.append((key.offsets["time"], key.offsets["channel"]))
            write(key, *arguments)

        return write_some

    monkeypatch.setattr(pipeline.xbeam, "write_chunk_to_zarr", until(16))
    with pytest.raises(Exception, match="Stop"):
        prepare(source, target, VARIABLES, LEVELS, chunk=2)
    assert not Path(target).exists()
    blocks = len(list(Path(f"{target}.partial/blocks").iterdir()))
    assert blocks == 2  # the third was cut off between its channels
    with pytest.raises(ValueError, match=r"b.zarr.partial was made with other settings: chunk 2, now 1"):
        prepare(source, target, VARIABLES, LEVELS)

    monkeypatch.setattr(pipeline.xbeam, "write_chunk_to_zarr", until(None))
    statistics = prepare(source, target, VARIABLES, LEVELS, chunk=2)
    assert f"Going on with {target}.partial" in capsys.readouterr().out
    kept, again = set(written[:16]), written[16:]
    first = [key for key in kept if key not in again]
    assert len(first) == 4 * groups  # both pieces of the two whole blocks were not made again
    assert len(set(written)) == 7 * groups
    before, after = open_store(source, CHANNELS), open_store(target, CHANNELS)
    np.testing.assert_array_equal(after.read(0, 40), before.read(0, 40))
    assert_statistics(statistics, compute_statistics(before))


@pytest.mark.parametrize("stopped", ["in the copy", "in the removal"])
def test_a_bucket_is_made_whole_where_the_end_was_stopped(source, tmp_path, monkeypatch, capsys, stopped):
    """There nothing is renamed at once: what was copied is removed object by object, in any order."""
    monkeypatch.setitem(fsspec.config.conf, "file", {"auto_mkdir": True})
    target, calls = "file://" + str(tmp_path / "b.zarr"), []
    files = type(fsspec.filesystem("file"))
    copy = files.copy

    def stop_in_the_copy(self, old, new, **options):
        calls.append(old)
        if len(calls) > 1:  # the states are copied, their metadata are not
            raise Stop
        copy(self, old, new, **options)

    def stop_in_the_removal(self, path, recursive=False):
        for file in Path(path).rglob("prepare.json"):
            file.unlink()
        raise Stop

    with monkeypatch.context() as patch:
        if stopped == "in the copy":
            patch.setattr(files, "copy", stop_in_the_copy)
        else:
            patch.setattr(files, "rm", stop_in_the_removal)
        with pytest.raises(Stop):
            prepare(source, target, VARIABLES, LEVELS)
    assert Path(f"{tmp_path}/b.zarr.partial").exists()
    statistics = prepare(source, target, VARIABLES, LEVELS)
    assert ("is there already" in capsys.readouterr().out) == (stopped == "in the removal")
    assert sorted(os.listdir(tmp_path)) == ["b.zarr"]
    after = open_store(target, CHANNELS)
    np.testing.assert_array_equal(after.read(0, 40), open_store(source, CHANNELS).read(0, 40))
    assert_statistics(statistics, compute_statistics(after))


def test_nothing_begins_on_bad_input(source, tmp_path):
    target = str(tmp_path / "b.zarr")
    dataset = synthetic.fields(synthetic.times(12))
    gaps = synthetic.write(dataset.isel(time=[0, 1, 2, 5, 6, 9]), tmp_path / "gaps.zarr", time_chunk=2)
    dry = synthetic.write(dataset.drop_vars("total_precipitation_6hr"), tmp_path / "dry.zarr")
    calm = synthetic.write(dataset.assign({"2m_temperature": 0 * dataset["2m_temperature"]}), tmp_path / "calm.zarr")
    climatology = Climatology(
        CHANNELS, coarsening(open_store(source, CHANNELS).grid, 2).grid, np.zeros((7, 4, 4, 5), np.float32)
    )
    climatology.save(tmp_path / "c.npz")
    for arguments, options, message in [
        ((dry, target, VARIABLES, LEVELS), {}, "has no variable 'total_precipitation_6hr'; it has"),
        ((str(tmp_path / "no.zarr"), target), {}, "no Zarr archive at"),
        ((source, target, VARIABLES, [300, 400]), {}, "no level 400 hPa"),
        ((gaps, target, VARIABLES, LEVELS), {}, "2 gaps or other steps than 6 h .* 2000-01-01T12 to 2000-01-02T06"),
        ((source, target, VARIABLES, LEVELS), {"period": ("1990", "1991")}, "none of the archive's times"),
        ((source, target, VARIABLES, LEVELS), {"period": ("2000-01-01T06", "2000-01-01T06")}, "one time in the period"),
        ((source, target, VARIABLES, LEVELS), {"factor": 3}, "cannot be coarsened by 3"),
        ((source, target, VARIABLES, LEVELS), {"chunk": 0}, "chunk=0"),
        ((source, target, VARIABLES, LEVELS), {"rounding": 1.5}, "rounding=1.5"),
        ((calm, target, ["2m_temperature"]), {"rounding": 1e-3}, "difference_std of '2m_temperature' is 0"),
        ((source, target, VARIABLES, LEVELS), {"climatology": str(tmp_path / "d.npz")}, "no climatology file"),
        ((source, target, VARIABLES, LEVELS), {"climatology": str(tmp_path / "c.npz")}, r"\(4, 4\), the archive's is"),
        ((source, gaps, VARIABLES, LEVELS), {}, "exists and was not made by this command"),
    ]:
        with pytest.raises(ValueError, match=message):
            prepare(*arguments, **options)
        assert not Path(target).exists()
        assert not Path(f"{target}.partial").exists()
    with pytest.raises(ValueError, match="no level 50 hPa"):
        main(["--data", dry, "--out", target, "--", "--runner", "DirectRunner"])


def test_missing_data_stop_it_with_their_name(tmp_path):
    dataset = synthetic.fields(synthetic.times(12))
    dataset["geopotential"][7, 0, 3, 3] = np.nan
    path = synthetic.write(dataset, tmp_path / "a.zarr")
    with pytest.raises(
        ValueError, match="'geopotential' at 300 hPa has values that are not finite at time 2000-01-02T"
    ):
        prepare(path, str(tmp_path / "b.zarr"), VARIABLES, LEVELS)
    assert not (tmp_path / "b.zarr").exists()


@pytest.mark.parametrize("first", [0, 2, 3])
@pytest.mark.parametrize(("chunk", "source_chunk"), [(1, 1), (1, 20), (4, 10), (8, 1), (3, 100)])
def test_cuts_fall_between_chunks_of_both_archives(chunk, source_chunk, first):
    job = Job("", "", (), first, np.array([]), GRID, None, None, None, chunk, source_chunk)
    parts = job.cuts(0, 1001, 16)
    assert [parts[0][0], parts[-1][1]] == [0, 1001]
    assert all(a[1] == b[0] for a, b in pairwise(parts))
    assert all(stop - start >= 16 for start, stop in parts[:-1])
    assert all(start % chunk == 0 for start, _ in parts)
    if first % np.gcd(chunk, source_chunk) == 0 and (chunk, source_chunk) != (3, 100):
        assert all((first + start) % source_chunk == 0 for start, _ in parts[1:])
        assert max(stop - start for start, stop in parts) <= 16 + np.lcm(chunk, source_chunk)
    for start, stop in parts:  # pieces are cut by the same rule
        assert all((start + a) % chunk == 0 for a, _ in job.cuts(start, stop, 1))


def test_moments_in_any_parts_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 30, 2)) * [1.0, 0.01] + [0.0, 2e5]
    weights = rng.uniform(size=30)
    weights /= weights.sum()
    frames = [frame_moments(frame, weights) for frame in x]
    whole = merge(frames)
    mean = np.average(x.reshape(-1, 2), axis=0, weights=np.tile(weights, 12))
    variance = np.average((x.reshape(-1, 2) - mean) ** 2, axis=0, weights=np.tile(weights, 12))
    np.testing.assert_allclose(whole, [[12, 12], mean, 12 * variance], rtol=1e-8, atol=1e-12)
    parts = merge([merge(frames[5:]), np.zeros((3, 2)), merge(frames[:1]), merge(frames[1:5])])
    np.testing.assert_allclose(parts, whole, rtol=1e-8, atol=1e-12)


def test_rounding_is_to_the_nearest_multiple_and_happens_once():
    x = (np.random.default_rng(0).normal(size=(50, 2)) * [10, 3e-7] + [250, 3e-6]).astype(np.float32)
    quanta = np.float32([2.0**-9, 2.0**-33])
    rounded = round_to(x, quanta)
    assert rounded.dtype == np.float32
    assert (np.abs(rounded - x) <= quanta / 2).all()
    np.testing.assert_array_equal(np.modf(rounded.astype(float) / quanta)[0], 0)
    np.testing.assert_array_equal(round_to(rounded, quanta), rounded)


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(tmp_path):
    """SIGKILL, again and again, until a run gets to its end; the archive is that of one run."""
    source, target = str(tmp_path / "a.zarr"), tmp_path / "b.zarr"
    synthetic.write_archive(source, synthetic.times(1200), time_chunk=20)
    command = [sys.executable, "-m", "wind_jax.data.prepare", "--data", source, "--out", str(target)]
    command += ["--levels", "300", "850", "--chunk", "4"]
    kills, done = 0, set()
    while not target.exists():
        with open(tmp_path / "log", "ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        blocks = Path(f"{target}.partial/blocks")
        while process.poll() is None and not (blocks.exists() and len(set(blocks.glob("*.npy")) - done) >= 2):
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        assert process.returncode in (0, -signal.SIGKILL), (tmp_path / "log").read_text()
        if blocks.exists():
            assert done <= set(blocks.glob("*.npy"))
            done = set(blocks.glob("*.npy"))
    assert kills >= 3
    wanted = channels(None, [300, 850])
    before, after = open_store(source, wanted), open_store(target, wanted)
    np.testing.assert_array_equal(after.read(0, 1200), before.read(0, 1200))
    assert_statistics(Statistics.load(target / "statistics.json"), compute_statistics(before))
    assert json.loads((target / "prepare.json").read_text())["chunk"] == 4
