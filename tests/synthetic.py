"""Small WeatherBench2-schema archives with smooth fields, for tests."""

import warnings
from pathlib import Path

import numpy as np
import xarray

from wind_jax.channels import LEXICON

LATITUDE = np.linspace(-90, 90, 7)
LONGITUDE = np.arange(0, 360, 45.0)
LEVELS = (300, 500, 850)
MEANS = {"temperature": 260, "geopotential": 5e4, "specific_humidity": 5e-3, "2m_temperature": 285,
         "mean_sea_level_pressure": 1.01e5, "surface_pressure": 9.7e4, "total_precipitation_6hr": 2e-3}  # fmt: skip


def times(n: int = 40, start: str = "2000-01-01") -> np.ndarray:
    """(n,) times 6 h apart."""
    return np.datetime64(start, "ns") + np.arange(n) * np.timedelta64(6, "h")


def fields(times, latitude=LATITUDE, longitude=LONGITUDE, levels=LEVELS, seed: int = 0) -> xarray.Dataset:
    """All variables as travelling waves about a mean, humidity and rain positive, and the static fields."""
    rng = np.random.default_rng(seed)
    phi, lam = np.deg2rad(np.asarray(latitude, float)), np.deg2rad(np.asarray(longitude, float))
    hours = (times - np.datetime64("2000-01-01", "ns")) / np.timedelta64(1, "h")
    dataset = xarray.Dataset(
        coords={"time": times, "level": list(levels), "latitude": latitude, "longitude": longitude}
    )
    for name, variable in LEXICON.items():
        mean = MEANS.get(name, 0.0)
        amplitude = 0.3 * mean if 0 < mean < 1 else 0.05 * mean if mean else 10.0
        count = len(levels) if variable.on_levels else 1
        phase = rng.uniform(0, 2 * np.pi, (count, 3))[:, None, :, None, None]
        wave = sum(
            np.cos(k * lam[None, None, None, :] - (0.02 + 0.013 * k) * hours[None, :, None, None] + phase[:, :, k - 1])
            * np.cos(phi)[None, None, :, None] ** k
            for k in (1, 2, 3)
        )
        values = (mean + amplitude * wave).astype(np.float32)  # (level, time, latitude, longitude)
        if variable.on_levels:
            dataset[name] = ("time", "level", "latitude", "longitude"), values.swapaxes(0, 1)
        else:
            dataset[name] = ("time", "latitude", "longitude"), values[0]
    land = (np.cos(2 * lam)[None, :] * np.cos(phi)[:, None] > 0).astype(np.float32)
    dataset["land_sea_mask"] = ("latitude", "longitude"), land
    dataset["soil_type"] = ("latitude", "longitude"), 3 * land
    dataset["geopotential_at_surface"] = (
        ("latitude", "longitude"),
        9806.65 * land * np.cos(phi)[:, None].astype(np.float32),
    )
    return dataset


def write(dataset: xarray.Dataset, path, zarr_format: int = 2, time_chunk: int = 20, consolidated: bool = True) -> str:
    """Writes a dataset as Zarr with whole fields in chunks of some times."""
    encoding = {
        name: {"chunks": tuple(min(time_chunk, n) if d == "time" else n for d, n in variable.sizes.items())}
        for name, variable in dataset.data_vars.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr warns that consolidated metadata is young in version 3
        dataset.to_zarr(path, mode="w", zarr_format=zarr_format, encoding=encoding, consolidated=consolidated)
    return str(Path(path))


def write_archive(path, times, latitude=LATITUDE, longitude=LONGITUDE, levels=LEVELS, *, seed: int = 0,
                  zarr_format: int = 2, time_chunk: int = 20) -> xarray.Dataset:  # fmt: skip
    """Writes an archive of all variables and static fields at a path; returns what it holds."""
    dataset = fields(times, latitude, longitude, levels, seed)
    write(dataset, path, zarr_format, time_chunk)
    return dataset
