"""Harmonic climatology: mean, annual, semi-annual and diurnal cycle of each cell and channel.

    x(time) = a_0 + a_1 cos(Y) + a_2 sin(Y) + a_3 cos(2Y) + a_4 sin(2Y) + a_5 cos(D) + a_6 sin(D) + anomaly

with Y the phase of the year and D of the day (UTC; each cell has its own phase). Fitted by least squares in
one streaming pass; a file of it is a few hundred kilobytes, small enough to be packaged.

    python -m wind_jax.data.climatology --data PATH --out climatology.npz --period 1979 2015
"""

import argparse
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from wind_jax.channels import Channel, channels
from wind_jax.command import command
from wind_jax.data.forcings import day_fraction, day_of_year
from wind_jax.data.store import Store, in_period, open_store
from wind_jax.files import read_bytes, write_bytes
from wind_jax.sphere import Grid

HARMONICS = ("mean", "cos_year", "sin_year", "cos_half_year", "sin_half_year", "cos_day", "sin_day")
"""What the first axis of the coefficients holds."""

_MAX_CONDITION = 100.0  # of the normal equations: 2 for whole years of 6-hourly times


def harmonics(times: np.ndarray) -> Float[np.ndarray, "t 7"]:
    """Values of `HARMONICS` at times (t,) of datetime64, float64."""
    year, day = 2 * np.pi / 365.25 * day_of_year(times), 2 * np.pi * day_fraction(times)
    waves = [f(phase) for phase in (year, 2 * year, day) for f in (np.cos, np.sin)]
    return np.stack([np.ones(times.shape), *waves], axis=-1)


@dataclass(frozen=True, eq=False)
class Climatology:
    """A fitted climatology.

    Attributes:
        channels: what the channel axis holds.
        grid: the horizontal grid.
        coefficients: (7, h, w, c) float32 in physical units, along `HARMONICS`.

    Raises:
        ValueError: the shapes do not match.
    """

    channels: tuple[Channel, ...]
    grid: Grid
    coefficients: np.ndarray

    def __post_init__(self):
        expected = (len(HARMONICS), *self.grid.shape, len(self.channels))
        if self.coefficients.shape != expected:
            raise ValueError(f"climatology coefficients must have shape {expected}, got {self.coefficients.shape}")

    def at(self, times: np.ndarray) -> Float[np.ndarray, "t h w c"]:
        """The climatology at times (t,) of datetime64, in physical units.

        It is linear and not clipped: precipitation and humidity may be slightly negative.
        """
        basis = harmonics(np.asarray(times)).astype(np.float32)
        return np.tensordot(basis, self.coefficients, axes=1)

    def select(self, wanted: tuple[Channel, ...]) -> "Climatology":
        """The same climatology restricted to some channels, in their order.

        Raises:
            ValueError: a channel it does not have.
        """
        if missing := [c.key for c in wanted if c not in self.channels]:
            there = [c.key for c in self.channels]
            raise ValueError(f"climatology lacks {missing}, or defines them otherwise; it has {there}")
        positions = [self.channels.index(c) for c in wanted]
        return Climatology(tuple(wanted), self.grid, self.coefficients[..., positions])

    def pack(self) -> dict[str, np.ndarray]:
        """The arrays of a file.

        Coefficients are rounded to 16 bits of each harmonic's range over the cells of a channel, an error
        below 1e-5 of that range.
        """
        low = self.coefficients.min(axis=(1, 2), keepdims=True).astype(np.float64)
        high = self.coefficients.max(axis=(1, 2), keepdims=True).astype(np.float64)
        scale = np.where(high > low, high - low, 1.0) / 65535
        return {
            "channels": np.array(json.dumps([c.to_dict() for c in self.channels])),
            "latitude": self.grid.latitude,
            "longitude": self.grid.longitude,
            "low": low,
            "scale": scale,
            "coefficients": np.rint((self.coefficients - low) / scale).astype(np.uint16),
        }

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray]) -> "Climatology":
        """Inverse of `pack`."""
        coefficients = (arrays["low"] + arrays["scale"] * arrays["coefficients"]).astype(np.float32)
        channels = tuple(Channel.from_dict(c) for c in json.loads(str(arrays["channels"])))
        return cls(channels, Grid(arrays["latitude"], arrays["longitude"]), coefficients)

    def save(self, path: str | Path) -> None:
        """Writes a compressed .npz, whole or not at all."""
        file = io.BytesIO()
        np.savez_compressed(file, **self.pack())
        write_bytes(path, file.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "Climatology":
        """Reads what `save` wrote, from a path or URL.

        Raises:
            ValueError: no such file, not a climatology, or a damaged one.
        """
        contents = read_bytes(path)
        if contents is None:
            raise ValueError(f"no climatology file at {path}")
        try:
            with np.load(io.BytesIO(contents)) as file:
                arrays = dict(file)
        except Exception as error:  # numpy, zipfile and zlib each raise their own
            again = "python -m wind_jax.data.climatology makes one; wind_jax.train makes that of its workdir again"
            raise ValueError(f"{path} is damaged: {error}. Remove it: {again}.") from error
        if "coefficients" not in arrays or "low" not in arrays:
            raise ValueError(f"{path} is not a climatology; it holds {sorted(arrays)}")
        return cls.unpack(arrays)


def fit_climatology(store: Store, period: tuple[str, str] | None = None) -> Climatology:
    """Fits the climatology of an archive in one streaming pass of float64 normal equations.

    Args:
        store: the archive.
        period: first and last date, both included whole; None for all of it.

    Raises:
        ValueError: a bad period, or one too short to tell the harmonics apart.
    """
    indices = np.flatnonzero(in_period(store.times, period))
    basis = harmonics(store.times[indices])
    normal = basis.T @ basis
    condition = np.linalg.cond(normal)
    if not condition < _MAX_CONDITION:
        first, last = np.datetime_as_string(store.times[indices[[0, -1]]], unit="D")
        raise ValueError(
            f"{len(indices)} times from {first} to {last} do not determine the annual, semi-annual and "
            f"diurnal cycle (condition number {condition:.1e}); a year or more of 6-hourly times is needed"
        )
    moments, offset, seen = np.zeros((len(HARMONICS), *store.grid.shape, len(store.channels))), None, 0
    for block, states in store.blocks(indices, "Climatology"):
        offset = states[0] if offset is None else offset  # kept apart: float32 sums then lose no digits
        waves = basis[seen : seen + len(block)].astype(np.float32)
        moments += np.tensordot(waves.T, states - offset, axes=1)
        seen += len(block)
    coefficients = np.tensordot(np.linalg.inv(normal), moments, axes=1)
    coefficients[0] += offset
    return Climatology(store.channels, store.grid, coefficients.astype(np.float32))


def main(arguments: list[str]) -> None:
    """Command line: fit and save."""
    parser = argparse.ArgumentParser(prog="python -m wind_jax.data.climatology", description=main.__doc__)
    parser.add_argument("--data", required=True, help="path or URL of the archive")
    parser.add_argument("--out", required=True, help="file to write, .npz")
    parser.add_argument("--variables", nargs="+", help="variable names; the paper's ten if left out")
    parser.add_argument("--levels", nargs="+", type=int, help="pressure levels in hPa; all thirteen if left out")
    parser.add_argument("--period", nargs=2, metavar=("FIRST", "LAST"), help="dates, both included whole")
    options = parser.parse_args(arguments)
    store = open_store(options.data, channels(options.variables, options.levels))
    period = tuple(options.period) if options.period else None
    fit_climatology(store, period).save(options.out)
    print(f"{options.out}: {len(store.channels)} channels, {Path(options.out).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    command(main)
