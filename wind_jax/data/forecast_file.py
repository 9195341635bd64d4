"""A Zarr of forecasts, filled piece by piece.

Files follow WeatherBench2's schema of forecasts: dimensions `time` (start), `number` (member),
`prediction_timedelta`, `level`, `latitude`, `longitude`; variables by their WeatherBench2 names. Their attributes are
those of the CF conventions (https://cfconventions.org): units, standard and long names, axes.
"""

import contextlib
import itertools
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import xarray
import zarr
from jaxtyping import Float

from wind_jax.channels import Channel, levels_of, positions
from wind_jax.sphere import Grid

CONVENTIONS = "CF-1.11"
_COORDINATES = {
    "time": {"standard_name": "forecast_reference_time", "long_name": "start of the forecast", "axis": "T"},
    "number": {"standard_name": "realization", "long_name": "ensemble member", "units": "1"},
    "prediction_timedelta": {"standard_name": "forecast_period", "long_name": "lead time"},
    "level": {
        "standard_name": "air_pressure",
        "long_name": "pressure",
        "units": "hPa",
        "positive": "down",
        "axis": "Z",
    },
    "latitude": {"standard_name": "latitude", "long_name": "latitude", "units": "degrees_north", "axis": "Y"},
    "longitude": {"standard_name": "longitude", "long_name": "longitude", "units": "degrees_east", "axis": "X"},
}
"""CF attributes; the units of times are in their encoding."""


class ForecastFile:
    """A Zarr of fields by start time, lead time and, where there are members, number; filled piece by piece.

    Cells never written read as NaN.

    Args:
        path: of the new Zarr (version 2, consolidated).
        channels: of the fields, in their order.
        grid: of the fields.
        starts: (n,) datetime64, dimension `time`.
        leads: (l,) timedelta64 since the start, dimension `prediction_timedelta`.
        members: size of dimension `number`; None for none.
        chunk: lead times in one chunk.
        arms: (n,) names, coordinate `arm` along `time`, where several runs are of one event.

    A file of the same run that is there already is kept, unless an array of it is lost: then it begins empty.
    """

    def __init__(
        self,
        path: Path,
        channels: Sequence[Channel],
        grid: Grid,
        starts: np.ndarray,
        leads: np.ndarray,
        members: int | None = None,
        chunk: int = 1,
        arms: Sequence[str] | None = None,
    ):
        self.path, self.channels, self.grid = path, tuple(channels), grid
        self.starts, self.leads, self.members, self.chunk = starts, leads, members, min(chunk, len(leads))
        self._levels = levels_of(self.channels)
        values = {
            "time": starts.astype("datetime64[ns]"),
            "number": np.arange(members or 0),
            "prediction_timedelta": leads.astype("timedelta64[ns]"),
            "level": self._levels,
            "latitude": grid.latitude,
            "longitude": grid.longitude,
        }
        arrays = self._open()
        if arrays is None:
            self._create({name: (name, x, _COORDINATES[name]) for name, x in values.items() if len(x)}, arms)
            arrays = self._open()
        self._arrays = arrays

    def _open(self) -> dict[str, zarr.Array] | None:
        """The arrays; None where the file is not there, or not all of it."""
        try:
            # Not by the consolidated metadata, which also lists what is lost.
            group = zarr.open_group(self.path, mode="r+", zarr_format=2, use_consolidated=False)
            return {name: group[name] for name in positions(self.channels)}
        except (OSError, KeyError, ValueError):
            return None

    def _create(self, coordinates: dict, arms: Sequence[str] | None) -> None:
        """Coordinates and empty arrays; in place only when whole."""
        partial = self.path.with_suffix(".partial")
        attributes = {
            "Conventions": CONVENTIONS,
            "title": f"{self.path.stem} of a run of wind_jax.infer",
            "source": f"wind_jax {version('wind_jax')}",
        }
        labels = {"arm": ("time", list(arms), {"long_name": "run of the event"})} if arms else {}
        xarray.Dataset(coords=coordinates | labels, attrs=attributes).to_zarr(
            partial,
            mode="w",
            zarr_format=2,
            consolidated=False,
            encoding={
                "time": {"units": "hours since 1970-01-01", "dtype": "int64"},
                "prediction_timedelta": {"units": "hours", "dtype": "int64"},
            },
        )
        group = zarr.open_group(partial, mode="r+", zarr_format=2)
        for variable in dict.fromkeys(c.variable for c in self.channels):
            dims = [d for d in coordinates if variable.on_levels or d != "level"]
            sizes = {d: len(coordinates[d][1]) for d in dims}
            chunks = {"time": 1, "number": 1, "prediction_timedelta": self.chunk}
            group.create_array(
                variable.name,
                shape=tuple(sizes.values()),
                chunks=tuple(chunks.get(d, size) for d, size in sizes.items()),
                dtype="float32",
                fill_value=math.nan,
                attributes={"_ARRAY_DIMENSIONS": dims, **variable.attributes("prediction_timedelta")},
            )
        zarr.consolidate_metadata(partial, zarr_format=2)
        if self.path.exists():
            shutil.rmtree(self.path)
        partial.rename(self.path)

    def write(self, start: int, lead: slice, values: Float[np.ndarray, "..."], members: slice | None = None) -> None:
        """Puts fields in their place.

        Args:
            start: position along `time`.
            lead: positions along `prediction_timedelta`.
            values: (l, h, w, c) in physical units; (m, l, h, w, c) with `members`.
            members: positions along `number`.
        """
        where = (start, lead) if members is None else (start, members, lead)
        for name, mine in positions(self.channels).items():
            fields = np.moveaxis(values[..., mine], -1, -3)
            if self.channels[mine[0]].level is None:
                self._arrays[name][where] = fields[..., 0, :, :]
                continue
            rows = [self._levels.index(self.channels[i].level) for i in mine]
            self._arrays[name].oindex[(*where, rows)] = fields

    def read(self, start: int, lead: slice, members: slice = slice(None)) -> Float[np.ndarray, "..."]:
        """What `write` wrote: (l, h, w, c), or (m, l, h, w, c)."""
        where = (start, lead) if self.members is None else (start, members, lead)
        fields = {name: array[where] for name, array in self._arrays.items()}
        pick = lambda c: fields[c.name] if c.level is None else fields[c.name][..., self._levels.index(c.level), :, :]
        return np.stack([pick(c) for c in self.channels], axis=-1)

    def whole(self, start: int, leads: int, members: slice = slice(None)) -> bool:
        """Whether the first `leads` lead times are all there and finite, read chunk by chunk."""
        try:
            return all(
                np.isfinite(self.read(start, slice(i, min(i + self.chunk, leads)), members)).all()
                for i in range(0, leads, self.chunk)
            )
        except Exception:  # a damaged chunk raises whatever its codec does
            return False

    def sync(self, start: int, lead: slice, members: slice) -> None:
        """Returns when the disk has what `write` put there, also after a power cut."""
        for path in self._files(start, lead, members):
            with contextlib.suppress(FileNotFoundError):  # a chunk of fill values has no file
                _sync(path)
        for name in self._arrays:
            _sync(self.path / name)

    def _files(self, start: int, lead: slice, members: slice) -> Iterator[Path]:
        """Files of the chunks of some members and lead times."""
        chunks = range(lead.start // self.chunk, math.ceil(lead.stop / self.chunk))
        for (name, array), member, i in itertools.product(
            self._arrays.items(), range(members.start, members.stop), chunks
        ):
            yield self.path / name / ".".join(map(str, (start, member, i, *[0] * (array.ndim - 3))))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
