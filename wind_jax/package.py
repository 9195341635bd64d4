"""Assemble the files that the package embeds: held-out sample and prior.

    python -m wind_jax.package --prior runs/speedy/prior.npz --held_out data/speedy_heldout.zarr

The sample is an excerpt of the held-out archive, one spell of days in each season, its mantissas rounded so that it
compresses; the prior's parameters are stored as float16.
"""

import argparse
import shutil
import warnings
from pathlib import Path

import numpy as np
import xarray
import zarr

from wind_jax.channels import levels_of, positions
from wind_jax.command import command
from wind_jax.embedded import resolve
from wind_jax.files import open_zarr
from wind_jax.prior import Prior, load_prior, save_prior

STATIC = ("land_sea_mask", "soil_type", "geopotential_at_surface")
MANTISSA_BITS = 13  # of 23: geopotential at 500 hPa to 4 m2 s-2, temperature to 0.02 K
MONTHS = (1, 4, 7, 10)


def excerpt(archive: xarray.Dataset, prior: Prior, days: int) -> xarray.Dataset:
    """`days` days from the 10th of every third month, the prior's variables and levels, static fields.

    Args:
        archive: of the WeatherBench2 schema.
        prior: names the channels.
        days: length of a spell.

    Returns:
        The excerpt, values rounded to 13 bits of mantissa.
    """
    names, levels = list(positions(prior.statistics.channels)), levels_of(prior.statistics.channels)
    times = archive.time.dt
    chosen = archive[names + list(STATIC)].sel(level=levels)
    chosen = chosen.isel(time=np.isin(times.month, MONTHS) & (times.day >= 10) & (times.day < 10 + days))
    return chosen.map(lambda field: field.copy(data=round_mantissa(field.values)), keep_attrs=True)


def round_mantissa(values: np.ndarray, bits: int = MANTISSA_BITS) -> np.ndarray:
    """Float32 values rounded to the nearest with `bits` bits of mantissa, ties away from zero."""
    dropped = 23 - bits
    integers = np.asarray(values, np.float32).view(np.uint32) + np.uint32(1 << (dropped - 1))
    return (integers & np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)).view(np.float32)


def write_sample(sample: xarray.Dataset, path: Path) -> None:
    """Write as Zarr with one chunk a variable: few files, all read at once."""
    shutil.rmtree(path, ignore_errors=True)
    sample = sample.drop_encoding()
    codec = zarr.codecs.BloscCodec(cname="zstd", clevel=9, shuffle="shuffle")
    encoding = {name: {"chunks": field.shape, "compressors": codec} for name, field in sample.data_vars.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Cc]onsolidated metadata")  # not yet of the Zarr 3 standard
        sample.to_zarr(path, encoding=encoding, zarr_format=3, consolidated=True)


def main(argv: list[str]) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="wind_jax.package", description=__doc__.splitlines()[0])
    parser.add_argument("--prior", help="prior.npz of a training run")
    parser.add_argument("--held_out", help="archive that it never saw, for the sample")
    parser.add_argument("--days", type=int, default=7, help="days of the sample in each season")
    given = parser.parse_args(argv)

    prior = load_prior(given.prior or resolve("embedded", "prior.npz"))
    folder = Path(__file__).parent / "embedded"
    if given.held_out:
        write_sample(excerpt(open_zarr(given.held_out), prior, given.days), folder / "sample.zarr")
    if given.prior:
        save_prior(folder / "prior.npz", prior, dtype="float16")


if __name__ == "__main__":
    command(main)
