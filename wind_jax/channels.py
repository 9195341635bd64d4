"""Channels of the state, and the lexicon of variables that they are of.

A variable is a field with a name, units and a transform to model units; a channel is a variable at one level. The
lexicon has the variables that the package knows by name, with the names and units of WeatherBench2 and ERA5; a config
may add its own, and files carry the definition of their channels in full. This is the only module in which names,
levels and units meet positions on the channel axis.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import xarray
from jaxtyping import Float

from wind_jax.sphere import Grid

LEVELS = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)
"""The thirteen pressure levels of WeatherBench2 in hPa."""

TRANSFORMS = ("none", "log_precipitation")
"""What is done to a field before it is standardised: nothing, or log10(1000 tp + 1) with tp in m."""


@dataclass(frozen=True)
class Variable:
    """One entry of the lexicon.

    Attributes:
        name: of the variable in archives.
        units: of the field in archives; "1" for a number without units.
        on_levels: whether the field is on pressure levels, or else at one height.
        transform: one of `TRANSFORMS`.
        standard_name: of the CF conventions; empty where they have none.
        long_name: for people; empty: the name.
        accumulation: whether the field adds up over frames, where others have a mean.
        non_negative: whether the field cannot be below 0.

    Raises:
        ValueError: no name or units, or an unknown transform.
    """

    name: str
    units: str
    on_levels: bool
    transform: str = "none"
    # Two names for the same field do not make it another one, so they do not count in comparisons.
    standard_name: str = field(default="", compare=False)
    long_name: str = field(default="", compare=False)
    accumulation: bool = False
    non_negative: bool = False

    def __post_init__(self):
        if not self.name or "/" in self.name:
            raise ValueError(f"a variable needs a name without slashes, got {self.name!r}")
        if not self.units.strip():
            raise ValueError(f"the variable {self.name!r} has no units; expected such as 'kg kg-1', or '1' for none")
        if self.transform not in TRANSFORMS:
            raise ValueError(
                f"the variable {self.name!r} has the transform {self.transform!r}; "
                f"expected one of {', '.join(TRANSFORMS)}"
            )

    @classmethod
    def from_dict(cls, name: str, definition: Any) -> "Variable":
        """A variable of the entries of a config or a file, by the names of the attributes.

        Raises:
            ValueError: not a mapping, an unknown entry, no units or `on_levels`, a value of another type, or what the
                class itself refuses.
        """
        known = {entry.name: entry.type for entry in dataclasses.fields(cls) if entry.name != "name"}
        if not isinstance(definition, Mapping):
            raise ValueError(f"the variable {name!r} must be defined by {', '.join(known)}; got {definition!r}")
        if unknown := sorted(set(definition) - set(known)):
            raise ValueError(f"the variable {name!r} has the entries {unknown}; expected some of {', '.join(known)}")
        if missing := [entry for entry in ("units", "on_levels") if entry not in definition]:
            raise ValueError(f"the variable {name!r} has no {' and no '.join(missing)}; got {dict(definition)}")
        for entry, value in definition.items():
            if not isinstance(value, known[entry]):
                kind = {str: "text", bool: "True or False"}[known[entry]]
                raise ValueError(f"{entry} of the variable {name!r} must be {kind}, got {value!r}")
        return cls(name, **definition)

    def attributes(self, time: str = "time") -> dict[str, str]:
        """Units and names for a file, by the CF conventions.

        Args:
            time: dimension along which an accumulation is a sum.
        """
        return {
            "units": self.units,
            **({"standard_name": self.standard_name} if self.standard_name else {}),
            "long_name": self.long_name or self.name.replace("_", " "),
            **({"cell_methods": f"{time}: sum"} if self.accumulation else {}),
        }


_KNOWN = (
    Variable("temperature", "K", True, "none", "air_temperature", "temperature"),
    Variable("geopotential", "m2 s-2", True, "none", "geopotential", "geopotential"),
    Variable("specific_humidity", "kg kg-1", True, "none", "specific_humidity", "specific humidity",
             non_negative=True),
    Variable("u_component_of_wind", "m s-1", True, "none", "eastward_wind", "eastward wind"),
    Variable("v_component_of_wind", "m s-1", True, "none", "northward_wind", "northward wind"),
    Variable("2m_temperature", "K", False, "none", "air_temperature", "temperature 2 m above the surface"),
    Variable("mean_sea_level_pressure", "Pa", False, "none", "air_pressure_at_mean_sea_level",
             "mean sea level pressure"),
    Variable("surface_pressure", "Pa", False, "none", "surface_air_pressure", "surface pressure"),
    Variable("10m_u_component_of_wind", "m s-1", False, "none", "eastward_wind",
             "eastward wind 10 m above the surface"),
    Variable("10m_v_component_of_wind", "m s-1", False, "none", "northward_wind",
             "northward wind 10 m above the surface"),
    Variable("total_precipitation_6hr", "m", False, "log_precipitation", "lwe_thickness_of_precipitation_amount",
             "precipitation of the last 6 h", accumulation=True, non_negative=True),
)  # fmt: skip

LEXICON: Mapping[str, Variable] = MappingProxyType({variable.name: variable for variable in _KNOWN})
"""The variables that the package knows, by name; channels are in this order."""

PAPER = tuple(name for name in LEXICON if name != "surface_pressure")
"""The ten variables of WIND (arXiv 2602.03924): 70 channels on the thirteen levels."""


@dataclass(frozen=True)
class Channel:
    """One field of the state: a variable at one level. Two channels are equal where their definitions are.

    Attributes:
        variable: its definition.
        level: pressure in whole hPa, or None for a surface field.

    Raises:
        ValueError: a level that does not suit the variable.

    >>> Channel(LEXICON["temperature"], 500).key
    'temperature_500'
    """

    variable: Variable
    level: int | None = None

    def __post_init__(self):
        if not self.variable.on_levels:
            if self.level is not None:
                raise ValueError(f"{self.name!r} is a surface field and has no level, got level {self.level!r}")
        elif self.level is None or int(self.level) != self.level or self.level <= 0:
            raise ValueError(f"{self.name!r} needs a pressure level in whole hPa, such as 500; got {self.level!r}")
        else:
            object.__setattr__(self, "level", int(self.level))

    @property
    def name(self) -> str:
        """Of the variable."""
        return self.variable.name

    @property
    def units(self) -> str:
        """Of the field in archives."""
        return self.variable.units

    @property
    def transform(self) -> str:
        """One of `TRANSFORMS`."""
        return self.variable.transform

    @property
    def accumulation(self) -> bool:
        """Whether the field adds up over frames."""
        return self.variable.accumulation

    @property
    def non_negative(self) -> bool:
        """Whether the field cannot be below 0."""
        return self.variable.non_negative

    @property
    def key(self) -> str:
        """Name with level: "temperature_500", "2m_temperature"."""
        return self.name if self.level is None else f"{self.name}_{self.level}"

    def to_dict(self) -> dict[str, Any]:
        """The definition in full, for JSON."""
        return {"level": self.level, **dataclasses.asdict(self.variable)}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any] | Sequence) -> "Channel":
        """Inverse of `to_dict`; also reads the pair (name, level) of older files, defined by `LEXICON`.

        Raises:
            ValueError: no channel, or a pair that the lexicon does not know.

        >>> Channel.from_dict(["temperature", 500]) == Channel.from_dict(channels()[7].to_dict())
        True
        """
        if not isinstance(d, Mapping):
            name, level = d
            return cls(_look_up(name, LEXICON), level)
        if missing := {"name", "level"}.difference(d):
            raise ValueError(f"a channel lacks {sorted(missing)}; got {dict(d)}")
        definition = {key: value for key, value in d.items() if key not in ("name", "level")}
        return cls(Variable.from_dict(d["name"], definition), d["level"])


def _look_up(name: str, lexicon: Mapping[str, Variable]) -> Variable:
    if name not in lexicon:
        raise ValueError(f"unknown variable {name!r}; expected one of {', '.join(lexicon)}")
    return lexicon[name]


def lexicon(additions: Mapping[str, Any]) -> Mapping[str, Variable]:
    """`LEXICON` with variables of a config; one that is known is replaced, in its place.

    Args:
        additions: by name, a dict of the other entries of `Variable`; `units` and `on_levels` are needed.

    Raises:
        ValueError: a variable without units, with an unknown transform or another wrong entry; it is named.

    >>> own = lexicon({"ozone": {"units": "kg kg-1", "on_levels": True, "non_negative": True}})
    >>> [c.key for c in channels(["ozone", "2m_temperature"], [50, 100], own)]
    ['ozone_50', 'ozone_100', '2m_temperature']
    """
    own = {name: Variable.from_dict(name, definition) for name, definition in additions.items()}
    return MappingProxyType({**LEXICON, **own})


def channels(
    variables: Iterable[str] | None = None,
    levels: Iterable[int] | None = None,
    lexicon: Mapping[str, Variable] = LEXICON,
) -> tuple[Channel, ...]:
    """Channels of the given variables at the given levels: fields on levels first, each in the order of the lexicon.

    Args:
        variables: variable names in any order; None for those of `PAPER`.
        levels: pressure levels in hPa in any order; None for the thirteen of `LEVELS`.
        lexicon: definitions of the variables.

    Raises:
        ValueError: an unknown variable, a bad level, or nothing selected.

    >>> [c.key for c in channels(["2m_temperature", "temperature"], [850, 500])]
    ['temperature_500', 'temperature_850', '2m_temperature']
    >>> len(channels())
    70
    """
    if isinstance(variables, str):
        raise ValueError(f"variables must be a list of names, got the string {variables!r}")
    names = set(PAPER if variables is None else variables)
    for name in sorted(names):
        _look_up(name, lexicon)
    levels = sorted(set(LEVELS if levels is None else levels))
    wanted = [variable for name, variable in lexicon.items() if name in names]
    selected = [Channel(variable, level) for variable in wanted if variable.on_levels for level in levels]
    selected += [Channel(variable) for variable in wanted if not variable.on_levels]
    if not selected:
        raise ValueError(f"no channel selected by variables {sorted(names)} and levels {levels}")
    return tuple(selected)


def index(channels: Sequence[Channel], name: str, level: int | None = None) -> int:
    """Position of a variable at a level on the channel axis.

    Raises:
        ValueError: there is none.
    """
    for i, channel in enumerate(channels):
        if channel.name == name and channel.level == level:
            return i
    wanted = name if level is None else f"{name}_{level}"
    raise ValueError(f"no channel {wanted!r}; the channels are {', '.join(c.key for c in channels)}")


def positions(channels: Sequence[Channel]) -> dict[str, np.ndarray]:
    """Positions on the channel axis by variable, in the order of the axis.

    >>> positions(channels(["geopotential", "2m_temperature"], [500, 850]))
    {'geopotential': array([0, 1]), '2m_temperature': array([2])}
    """
    found: dict[str, list[int]] = {}
    for i, channel in enumerate(channels):
        found.setdefault(channel.name, []).append(i)
    return {name: np.array(where) for name, where in found.items()}


def levels_of(channels: Sequence[Channel], name: str | None = None) -> list[int]:
    """Pressure levels of a variable in hPa, ascending; of all of them without a name; none of a surface field."""
    return sorted({c.level for c in channels if c.level is not None and name in (None, c.name)})


def stack(dataset: xarray.Dataset, channels: Sequence[Channel]) -> Float[np.ndarray, "*t h w c"]:
    """Fields of a dataset along one axis of channels, float32, from south to north.

    Args:
        dataset: of variables over latitude, longitude, for fields on levels `level` (hPa), and time or any others.
        channels: which ones, in this order.

    Raises:
        ValueError: a variable or level that the dataset does not have, or dimensions that differ between variables.
    """
    dataset, dims, fields = dataset.sortby("latitude"), None, []
    for channel in channels:
        if channel.name not in dataset:
            raise ValueError(f"the dataset has no variable {channel.name!r}; it has {', '.join(dataset.data_vars)}")
        values = dataset[channel.name]
        if channel.level is not None:
            levels = values["level"].values.tolist() if "level" in values.dims else []
            if channel.level not in levels:
                raise ValueError(f"the dataset has no level {channel.level} hPa of {channel.name!r}, only {levels}")
            values = values.sel(level=channel.level)
        dims = dims or [*(d for d in values.dims if d not in ("latitude", "longitude")), "latitude", "longitude"]
        if set(values.dims) != set(dims):
            raise ValueError(f"{channel.key!r} has the dimensions {values.dims} of the dataset, expected {dims}")
        fields.append(values.transpose(*dims).values)
    return np.stack(fields, axis=-1).astype(np.float32)


def unstack(
    array: Float[np.ndarray, "t h w c"], channels: Sequence[Channel], grid: Grid, times: np.ndarray
) -> xarray.Dataset:
    """Inverse of `stack`: variables (time, level, latitude, longitude) with units and CF attributes.

    Args:
        array: fields in physical units.
        channels: what the last axis holds.
        grid: of the fields.
        times: (t,) datetime64.

    Returns:
        The dataset; its levels are those of all variables together, NaN where one of them has none.

    Raises:
        ValueError: an array of another shape.
    """
    expected = (len(times), *grid.shape, len(channels))
    if array.shape != expected:
        raise ValueError(f"expected an array (t, h, w, c) of shape {expected}, got {array.shape}")
    levels = levels_of(channels)
    coordinates: dict[str, Any] = {
        "time": ("time", np.asarray(times, "datetime64[ns]"), {"standard_name": "time"}),
        "latitude": ("latitude", grid.latitude, {"standard_name": "latitude", "units": "degrees_north"}),
        "longitude": ("longitude", grid.longitude, {"standard_name": "longitude", "units": "degrees_east"}),
    }
    if levels:
        coordinates["level"] = "level", levels, {"standard_name": "air_pressure", "units": "hPa"}
    dataset = xarray.Dataset(coords=coordinates)
    for name, where in positions(channels).items():
        variable, fields = channels[where[0]].variable, np.moveaxis(np.asarray(array)[..., where], -1, 1)
        dims = ("time", "latitude", "longitude")
        if not variable.on_levels:
            dataset[name] = dims, fields[:, 0], variable.attributes()
            continue
        whole = np.full((len(times), len(levels), *grid.shape), np.nan, fields.dtype)
        whole[:, [levels.index(channels[i].level) for i in where]] = fields
        dataset[name] = (dims[0], "level", *dims[1:]), whole, variable.attributes()
    return dataset
