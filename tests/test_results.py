"""Results: the schema that plain xarray reads, and that they appear whole or not at all."""

import contextlib
import json
import shutil
from pathlib import Path

import cf_xarray  # noqa: F401  (the accessor `.cf`)
import numpy as np
import pytest
import xarray

from wind_jax.channels import channels
from wind_jax.results import ALL, ForecastFile, Position, results
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


def test_runs_of_one_event_are_told_apart(tmp_path):
    starts = np.repeat(STARTS, 2)
    file = ForecastFile(tmp_path / "x.zarr", CHANNELS, GRID, starts, LEADS, members=2, arms=["free", "storyline"] * 2)
    file.write(1, slice(0, 5), np.full((2, 5, 3, 4, 3), 7.0, np.float32), members=slice(0, 2))
    data = xarray.open_zarr(tmp_path / "x.zarr", chunks=None)
    assert data["arm"].dims == ("time",)
    storyline = data["2m_temperature"].isel(time=data["arm"].values == "storyline").sel(time=STARTS[0])
    assert (storyline == 7.0).all()
    assert data["2m_temperature"].dims == ("time", "number", "prediction_timedelta", "latitude", "longitude")


def test_attributes_are_those_of_the_cf_conventions(tmp_path):
    every = channels(None, [500, 850])
    ForecastFile(tmp_path / "posterior.zarr", every, GRID, STARTS, LEADS, members=3)
    data = xarray.open_zarr(tmp_path / "posterior.zarr", chunks=None)
    # cf_xarray finds axes and names by the conventions' own rules.
    assert data.cf.axes == {"X": ["longitude"], "Y": ["latitude"], "Z": ["level"], "T": ["time"]}
    assert data.cf.coordinates["vertical"] == ["level"]
    assert data.cf["realization"].name == "number"
    names = data.cf.standard_names
    assert names["forecast_reference_time"] == ["time"]
    assert names["forecast_period"] == ["prediction_timedelta"]
    assert names["air_pressure"] == ["level"]
    assert names["air_temperature"] == ["2m_temperature", "temperature"]
    assert names["eastward_wind"] == ["10m_u_component_of_wind", "u_component_of_wind"]
    # From the CF standard name table, with canonical units (kg kg-1 is 1).
    canonical = {
        "air_temperature": "K",
        "geopotential": "m2 s-2",
        "specific_humidity": "kg kg-1",
        "eastward_wind": "m s-1",
        "northward_wind": "m s-1",
        "air_pressure_at_mean_sea_level": "Pa",
        "lwe_thickness_of_precipitation_amount": "m",
    }
    assert {array.attrs["standard_name"] for array in data.values()} == canonical.keys()
    for array in data.values():
        assert array.attrs["units"] == canonical[array.attrs["standard_name"]]
        assert array.attrs["long_name"]
    assert (data["level"].attrs["units"], data["level"].attrs["positive"]) == ("hPa", "down")
    assert data["latitude"].attrs["units"] == "degrees_north"
    assert data["time"].encoding["units"] == "hours since 1970-01-01"
    assert data["prediction_timedelta"].encoding["units"] == "hours"
    assert data["prediction_timedelta"].dtype.kind == "m"
    assert data.attrs["Conventions"] == "CF-1.11"
    assert data.attrs["source"].startswith("wind_jax ")
    assert "posterior" in data.attrs["title"]
    assert str(tmp_path) not in json.dumps({"": data.attrs} | {name: x.attrs for name, x in data.variables.items()})


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


def test_what_a_new_run_does_not_make_does_not_stay(tmp_path):
    """A page of one run must not tell of another."""
    write(tmp_path, "old")
    with results(str(tmp_path), "a", "{}") as folder:
        (folder / "report.json").write_text("new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "report.json"]
    (tmp_path / "config.json").unlink()  # nobody's: what lies there may be the user's own
    with results(str(tmp_path), "a", "{}") as folder:
        (folder / "scores.json").write_text("newer")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "report.json", "scores.json"]


def test_a_run_that_fails_changes_nothing(tmp_path):
    write(tmp_path, "old")
    with pytest.raises(TypeError), results(str(tmp_path), "a", "{}") as folder:
        (folder / "scores.json").write_text(None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "figures", "scores.json"]
    assert (tmp_path / "scores.json").read_text() == "old"


@pytest.mark.parametrize("moves", range(9))
def test_complete_results_survive_a_stop_while_they_are_put_in_place(tmp_path, monkeypatch, moves):
    """The next run, whatever becomes of it, first finishes that: no old file beside new ones, none of them lost."""
    with results(str(tmp_path), "a", "{}") as folder:
        (folder / "report.json").write_text("old")
        (folder / "scores.json").write_text("old")
    left = iter(range(moves))
    with monkeypatch.context() as stopping, contextlib.suppress(KeyboardInterrupt):
        replace = Path.replace

        def stopped(path, target):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return replace(path, target)

        with results(str(tmp_path), "a", '{"seed": 1}') as folder:
            (folder / "figures").mkdir()
            (folder / "figures" / "new").write_text("new")
            (folder / "scores.json").write_text("new")
            Position(folder).mark(0, range(1), 1, np.ones(1))
            stopping.setattr(Path, "replace", stopped)
    with pytest.raises(TypeError), results(str(tmp_path), "a", '{"seed": 1}'):
        raise TypeError
    if moves == 0:  # stopped before they were complete: the old ones stay, and what was drawn can be gone on with
        assert sorted(p.name for p in tmp_path.iterdir()) == [".partial", "config.json", "report.json", "scores.json"]
        return
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "figures", "scores.json"]
    assert (tmp_path / "scores.json").read_text() == "new"
    assert json.loads((tmp_path / "config.json").read_text()) == {"experiment": "a", "seed": 1}


def test_what_a_killed_run_left_is_cleared(tmp_path):
    (tmp_path / ".partial" / "posterior.zarr").mkdir(parents=True)
    write(tmp_path, "new")
    assert not (tmp_path / "posterior.zarr").exists()
    assert not (tmp_path / ".partial").exists()


def unfinished(workdir, config):
    """A run that is stopped after its first window; what it printed."""
    said = []
    with contextlib.suppress(KeyboardInterrupt), results(str(workdir), "a", config, said.append) as folder:
        position = Position(folder)
        said.append(position.fresh)
        position.mark(0, range(1), 1, np.ones((1, 2)))
        (folder / "posterior").write_text(config)
        raise KeyboardInterrupt
    return said


def test_a_position_holds_for_other_batches(tmp_path):
    """Of case 1, members 0 to 3 are done, and 4 to 7 up to window 2."""
    known = np.arange(4.0)
    Position(tmp_path).mark(1, range(4, 8), 2, known)
    found = lambda case, *batch: Position(tmp_path).find(case, range(*batch))
    assert found(0, 4, 9)[0] == found(1, 0, 4)[0] == found(1, 0, 3)[0] == ALL
    windows, rows = found(1, 5, 7)
    assert windows == 2
    np.testing.assert_array_equal(rows, [1.0, 2.0])
    for other in ((1, 3, 6), (1, 6, 9), (1, 8, 12), (2, 0, 4)):
        assert found(*other) == (0, None)


def test_an_unfinished_run_of_other_settings_is_kept_and_named(tmp_path):
    """The same goes on; another, and yet another, find it and its own settings under a name of their own."""
    assert unfinished(tmp_path, '{"start": 0.9, "seed": 1}') == [True]
    assert unfinished(tmp_path, '{"start": 0.9, "seed": 1}') == [False]
    for number, (start, other) in enumerate([(0.8, 0.9), (0.7, 0.8)], 1):
        line, fresh = unfinished(tmp_path, f'{{"start": {start}, "seed": 1}}')
        assert fresh
        assert f'without "start": {start}: it is kept in {tmp_path}/unfinished-{number}' in line
        kept = tmp_path / f"unfinished-{number}"
        assert json.loads((kept / "begun.json").read_text())["start"] == other
        assert json.loads((kept / "posterior").read_text())["start"] == other
    shutil.rmtree(tmp_path / ".partial")
    write(tmp_path, "new")
    assert (tmp_path / "unfinished-1" / "posterior").exists()


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
