"""Files of forecasts: the schema that plain xarray reads, and that what is lost is noticed."""

import json
import shutil

import cf_xarray  # noqa: F401  (the accessor `.cf`)
import numpy as np
import pytest
import xarray

from wind_jax.channels import channels
from wind_jax.data.forecast_file import ForecastFile
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


def test_what_is_lost_or_damaged_is_not_whole(tmp_path):
    file = ForecastFile(tmp_path / "x.zarr", CHANNELS, GRID, STARTS, LEADS, members=2, chunk=2)
    file.write(0, slice(0, 5), np.ones((2, 5, 3, 4, 3), np.float32), members=slice(0, 2))
    file.sync(0, slice(0, 5), slice(0, 2))
    assert file.whole(0, 5)
    assert file.whole(1, 0)
    assert not file.whole(1, 1)
    chunk = tmp_path / "x.zarr" / "temperature" / "0.1.2.0.0.0"  # of member 1, the last lead time
    contents = chunk.read_bytes()
    for damage in (b"", contents[: len(contents) // 2]):
        chunk.write_bytes(damage)
        assert not file.whole(0, 5)
        assert file.whole(0, 4)
        assert file.whole(0, 5, slice(0, 1))
    chunk.unlink()
    assert not file.whole(0, 5)


@pytest.mark.parametrize("lost", ["2m_temperature", "temperature/.zarray", ".zgroup"])
def test_a_file_that_lost_an_array_begins_empty(tmp_path, lost):
    arguments = (tmp_path / "x.zarr", CHANNELS, GRID, STARTS, LEADS, 1)
    ForecastFile(*arguments).write(0, slice(0, 5), np.ones((1, 5, 3, 4, 3), np.float32), members=slice(0, 1))
    assert ForecastFile(*arguments).whole(0, 5)
    path = tmp_path / "x.zarr" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert not ForecastFile(*arguments).whole(0, 5)
    assert xarray.open_zarr(tmp_path / "x.zarr", chunks=None)["2m_temperature"].shape == (2, 1, 5, 3, 4)


def test_files_to_sync_are_those_that_were_written(tmp_path):
    file = ForecastFile(tmp_path / "x.zarr", CHANNELS, GRID, STARTS, LEADS, members=3, chunk=2)
    file.write(1, slice(2, 5), np.ones((2, 3, 3, 4, 3), np.float32), members=slice(1, 3))
    made = set((tmp_path / "x.zarr").glob("*temperature/[0-9]*"))
    assert set(file._files(1, slice(2, 5), slice(1, 3))) == made
    assert len(made) == 8
