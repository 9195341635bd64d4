"""Results: the schema that plain xarray reads, and that they appear whole or not at all."""

import json

import numpy as np
import pytest
import xarray

from wind_jax.data.variables import channels
from wind_jax.results import ForecastFile, results
from wind_jax.sphere import Grid

GRID = Grid(np.linspace(-60, 60, 3), np.arange(4) * 90.0)
CHANNELS = channels(["temperature", "2m_temperature"], [500, 850])
STARTS = np.array(["2000-01-01T06", "2000-02-01T00"], "datetime64[ns]")
LEADS = np.arange(1, 6) * np.timedelta64(6, "h")


def test_xarray_reads_what_was_written(tmp_path):
    file = ForecastFile(tmp_path / "x.zarr", CHANNELS, GRID, STARTS, LEADS, members=3, chunk=2)
    x = np.random.default_rng(0).normal(size=(2, 2, 3, 4, 3)).astype(np.float32)
    file.write(1, slice(2, 4), x, members=slice(1, 3))
    data = xarray.open_zarr(tmp_path / "x.zarr", chunks=None)
    assert data["temperature"].dims == ("time", "number", "prediction_timedelta", "level", "latitude", "longitude")
    assert data["temperature"].attrs["units"] == "K"
    assert data["2m_temperature"].dims == ("time", "number", "prediction_timedelta", "latitude", "longitude")
    np.testing.assert_array_equal(data["time"], STARTS)
    np.testing.assert_array_equal(data["prediction_timedelta"], LEADS)
    written = data.sel(time=STARTS[1], number=[1, 2], prediction_timedelta=LEADS[2:4])
    np.testing.assert_array_equal(written["temperature"].sel(level=850), x[..., 1])
    np.testing.assert_array_equal(written["2m_temperature"], x[..., 2])
    assert int(np.isfinite(data["2m_temperature"]).sum()) == 2 * 2 * 12
    np.testing.assert_array_equal(file.read(1, slice(2, 4))[1:], x)


def test_a_file_without_members(tmp_path):
    file = ForecastFile(tmp_path / "x.zarr", CHANNELS[2:], GRID, STARTS, LEADS)
    x = np.ones((5, 3, 4, 1), np.float32)
    file.write(0, slice(None), x)
    np.testing.assert_array_equal(file.read(0, slice(0, 5)), x)
    assert list(xarray.open_zarr(tmp_path / "x.zarr", chunks=None).dims) == [
        "time", "prediction_timedelta", "latitude", "longitude"]  # fmt: skip


def write(workdir, text, experiment="a"):
    with results(str(workdir), experiment, '{"seed": 1}') as folder:
        (folder / "figures").mkdir()
        (folder / "figures" / text).write_text(text)
        (folder / "scores.json").write_text(text)


def test_results_replace_those_of_the_same_experiment(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    write(tmp_path, "old")
    write(tmp_path, "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "figures", "notes.txt", "scores.json"]
    assert [p.name for p in (tmp_path / "figures").iterdir()] == ["new"]
    assert json.loads((tmp_path / "config.json").read_text()) == {"experiment": "a", "seed": 1}


def test_a_run_that_fails_changes_nothing(tmp_path):
    write(tmp_path, "old")
    with pytest.raises(TypeError), results(str(tmp_path), "a", "{}") as folder:
        (folder / "scores.json").write_text(None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "figures", "scores.json"]
    assert (tmp_path / "scores.json").read_text() == "old"


def test_what_a_killed_run_left_is_cleared(tmp_path):
    (tmp_path / ".partial" / "posterior.zarr").mkdir(parents=True)
    write(tmp_path, "new")
    assert not (tmp_path / "posterior.zarr").exists()
    assert not (tmp_path / ".partial").exists()


def test_other_results_are_not_overwritten(tmp_path):
    write(tmp_path, "old", experiment="b")
    with pytest.raises(ValueError, match="experiment 'b', not of 'a'"):
        write(tmp_path, "new")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="'unknown'"):
        write(tmp_path, "new")
    assert (tmp_path / "scores.json").read_text() == "old"


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file/run' is not writable"):
        write(tmp_path / "file" / "run", "new")
