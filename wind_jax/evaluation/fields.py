"""Files to score: any of the WeatherBench2 schema, opened by xarray, checked against one another, read by the piece.

Unlike `wind_jax.data.store`, which feeds the prior, this takes variables and levels of others, members and lead times,
and values that are missing.
"""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import pandas
from jaxtyping import Float

from wind_jax.channels import LEXICON, index
from wind_jax.data.climatology import Climatology
from wind_jax.files import open_zarr
from wind_jax.sphere import Grid

LEAD = "prediction_timedelta"
MEMBER = ("number", "realization", "sample")  # what forecasts call the dimension of their members

Levels = list[int | float | None]
Chosen = Mapping[str, Levels]
"""The levels in hPa of every variable that is scored; [None] for a surface field."""
Where = Mapping[str, object]
"""Positions along dimensions."""


class Fields:
    """A file of fields, opened and not read; what is read of it runs from south to north and from 0 to 360 degrees.

    Args:
        role: what it is, for errors: "forecast", "truth".
        path: directory, or URL that fsspec opens.

    Attributes:
        name: role and path.
        data: the file, with its members along `number`.
        members: how many; None without such a dimension.
        grid: horizontal.

    Raises:
        ValueError: no Zarr, or coordinates that are missing or not as expected.
    """

    def __init__(self, role: str, path: str):
        self.name = f"{role} {path}"
        try:
            data = open_zarr(path, decode_timedelta={LEAD: True})
        except (OSError, ValueError, ImportError) as error:
            raise ValueError(f"Cannot open the {self.name}: {error} (a gs:// path needs the extra gcs).") from error
        for axis in {"latitude", "longitude"} | {"time", LEAD, "level"}.intersection(data.dims):
            kinds = {"time": "M", LEAD: "m"}.get(axis, "iuf")
            if axis not in data.indexes or data[axis].dtype.kind not in kinds or not data.indexes[axis].is_unique:
                kind = {"time": "times", LEAD: "time differences, with units"}.get(axis, "numbers")
                raise ValueError(f"The {self.name} has no coordinate {axis!r} of distinct {kind}.")
        self.data = data.rename({name: "number" for name in MEMBER[1:] if name in data.dims})
        self.members = self.data.sizes.get("number")
        latitude, longitude = data["latitude"].to_numpy(), data["longitude"].to_numpy() % 360
        self._cells = np.ix_(np.argsort(latitude), np.argsort(longitude))
        try:
            self.grid = Grid(np.sort(latitude), np.sort(longitude))
        except ValueError as error:
            raise ValueError(f"The grid of the {self.name} is not global: {error}") from error

    @property
    def times(self) -> np.ndarray:
        """(n,) datetime64."""
        if "time" not in self.data.dims:
            raise ValueError(f"The {self.name} has no dimension 'time'; it has {list(self.data.dims)}.")
        return self.data["time"].to_numpy()

    @property
    def leads(self) -> np.ndarray:
        """(l,) timedelta64; 0 where there is no such dimension."""
        return self.data[LEAD].to_numpy() if LEAD in self.data.dims else np.zeros(1, "timedelta64[ns]")

    @property
    def variables(self) -> list[str]:
        """Names of those that change in time and have a horizontal grid."""
        return [name for name, array in self.data.items() if {"time", "latitude", "longitude"} <= {*array.dims}]

    def levels(self, variable: str) -> Levels:
        """Of a variable."""
        return whole(self.data["level"].to_numpy()) if "level" in self.data[variable].dims else [None]

    def units(self, variable: str) -> str:
        """Of a variable, without the ** of "m s**-1"; those of the lexicon where the file does not say."""
        known = LEXICON[variable].units if variable in LEXICON else ""
        return str(self.data[variable].attrs.get("units") or known).replace("**", "")

    def read(self, variable: str, levels: Levels, where: Where) -> Float[np.ndarray, "m t h w c"]:
        """Fields at some positions along the other dimensions, in float32; NaN where there is no value."""
        array = self.data[variable].isel(where)
        if levels != self.levels(variable):
            array = array.sel(level=levels)
        frames = LEAD if LEAD in array.dims else "time"
        array = array.expand_dims([name for name in ("number", frames, "level") if name not in array.dims])
        values = array.transpose("number", frames, "level", "latitude", "longitude").to_numpy()
        return np.moveaxis(values[(..., *self._cells)], 2, -1).astype(np.float32)


def agree(first: Fields, second: Fields, chosen: Chosen) -> None:
    """Checks that two files can be compared; warns of variables that have units on one side alone.

    Raises:
        ValueError: grids, variables, dimensions, levels or units that differ; both sides are named.
    """
    agree_in_grid(first.name, first.grid, second.name, second.grid)
    unsaid = []
    for variable, levels in chosen.items():
        if variable not in second.data:
            names = f"{list(second.data)}. Choose among {first.variables}"
            raise ValueError(f"The {second.name} lacks {variable!r} of the {first.name}; it has {names}.")
        for fields in (first, second):
            dims = {*fields.data[variable].dims} - {"level"}
            expected = {*fields.data.dims} & {"time", LEAD, "number", "dayofyear", "hour", "latitude", "longitude"}
            if dims != expected:
                raise ValueError(f"{variable!r} of the {fields.name} has dimensions {dims}; expected {expected}.")
        there = first.levels(variable), second.levels(variable)
        if lacking := [level for level in levels if level not in there[0] or level not in there[1]]:
            one, other = ("no levels" if own == [None] else own for own in there)
            raise ValueError(
                f"The levels {lacking} hPa of {variable!r} are not in both files: the {first.name} has {one}, the "
                f"{second.name} has {other}. Choose what both have with --levels and --variables."
            )
        units = first.units(variable), second.units(variable)
        if all(units) and _factors(units[0]) != _factors(units[1]):
            raise ValueError(
                f"{variable!r} is in {units[0]!r} in the {first.name} and in {units[1]!r} in the {second.name}."
            )
        if any(units) and not all(units):
            one, other = (f"{unit!r}" if unit else "no units" for unit in units)
            unsaid.append(f"{variable!r} has {one} in the {first.name} and {other} in the {second.name}")
    if unsaid:
        warnings.warn(f"Taken to be in the same units: {'; '.join(unsaid)}.", stacklevel=2)


def _factors(units: str) -> dict[str, int]:
    """Powers of the factors of units, in whichever spelling; what is no factor with a power stands for itself.

    >>> _factors("m2 s-2") == _factors("m^2/s^2") == {"m": 2, "s": -2}
    True
    >>> _factors("kg/kg") == _factors("1") == {}
    True
    """
    powers = Counter()
    for over, factor in re.findall(r"(/?)\s*((?:[^\s/*.]|\.\d)+)", units):
        parts = re.fullmatch(r"(\D+?)\^?([+-]?\d+)", factor)
        name, power = parts.groups() if parts else (factor, 1)
        powers[name] += -int(power) if over else int(power)
    return {name: power for name, power in powers.items() if power and name != "1"}


def agree_in_grid(first: str, grid: Grid, second: str, other: Grid) -> None:
    """As `agree`; coordinates may differ by rounding."""
    close = lambda x, y: x.size == y.size and np.abs(x - y).max() < 1e-3
    if not (close(grid.latitude, other.latitude) and close(grid.longitude, other.longitude)):
        show = lambda grid: " x ".join(
            f"{axis.size} from {axis[0]:g} to {axis[-1]:g}" for axis in (grid.latitude, grid.longitude)
        )
        raise ValueError(f"The {first} has a grid of {show(grid)} degrees, the {second} of {show(other)}; regrid one.")


def locate(fields: Fields, starts: np.ndarray, leads: np.ndarray, forecast: Fields) -> Callable[[int, slice], Where]:
    """Where a file has the frames of a start and a block of lead times.

    Args:
        fields: by start and lead time, or by valid time.
        starts: (n,) datetime64 of the forecast.
        leads: (l,) timedelta64 of the forecast.
        forecast: named in errors.

    Raises:
        ValueError: the file lacks any of them.
    """
    by_lead = LEAD in fields.data.dims
    needed = {"time": starts, LEAD: leads} if by_lead else {"time": starts[:, None] + leads[None, :]}
    found = {}
    for axis, values in needed.items():
        index = fields.data.indexes[axis]
        found[axis] = index.get_indexer(values.ravel()).reshape(values.shape)
        if (lacking := np.unique(values[found[axis] < 0])).size:
            raise ValueError(
                f"The {fields.name} lacks {lacking.size} of the {np.unique(values).size} values of {axis!r} that the "
                f"{forecast.name} needs, from {_text(values.min())} to {_text(values.max())}: the first one is "
                f"{_text(lacking[0])}, and it has {_text(index.min())} to {_text(index.max())}. Choose what both have "
                "with --period and --leads."
            )
    if by_lead:
        return lambda case, block: {"time": found["time"][case], LEAD: found[LEAD][block]}
    return lambda case, block: {"time": found["time"][case, block]}


def open_climatology(
    path: str, forecast: Fields, chosen: Chosen, starts: np.ndarray, leads: np.ndarray
) -> Callable[[str, np.ndarray], Float[np.ndarray, "t h w c"]]:
    """The climatology of a variable at times (t,), from a Zarr by day and hour or an .npz of `data.climatology`.

    Raises:
        ValueError: it does not suit the forecast, or lacks a day or hour of it.
    """
    if path.endswith(".npz"):
        fitted = Climatology.load(path)
        agree_in_grid(forecast.name, forecast.grid, f"climatology {path}", fitted.grid)
        where = {name: [index(fitted.channels, name, level) for level in levels] for name, levels in chosen.items()}
        parts = {name: fitted.select(tuple(fitted.channels[i] for i in some)) for name, some in where.items()}
        return lambda variable, times: parts[variable].at(times)
    fields = Fields("climatology", path)
    if absent := {"dayofyear", "hour"}.difference(fields.data.indexes):
        raise ValueError(f"The {fields.name} has no coordinate {sorted(absent)}; it has {list(fields.data.indexes)}.")
    agree(forecast, fields, chosen)

    def positions(times: np.ndarray) -> list[dict[str, int]]:
        stamps = pandas.DatetimeIndex(times)
        days = fields.data.indexes["dayofyear"].get_indexer(stamps.day_of_year)
        hours = fields.data.indexes["hour"].get_indexer(stamps.hour)
        if (wrong := stamps[(days < 0) | (hours < 0)]).size:
            raise ValueError(
                f"The {fields.name} has no day of the year and hour of {wrong[0]}, which the {forecast.name} has."
            )
        return [{"dayofyear": day, "hour": hour} for day, hour in zip(days.tolist(), hours.tolist())]

    positions((starts[:, None] + leads[None, :]).ravel())
    return lambda variable, times: np.concatenate(
        [fields.read(variable, chosen[variable], where)[0] for where in positions(times)]
    )


def whole(values: np.ndarray) -> list[int | float]:
    """Numbers, as integers where they are."""
    return [int(value) if value == int(value) else value for value in values.tolist()]


def _text(value: object) -> str:
    """A time or a lead time, to be read."""
    return str(
        pandas.Timedelta(value) if isinstance(value, np.timedelta64 | pandas.Timedelta) else pandas.Timestamp(value)
    )
