"""The table of channels: one atmospheric field at one level, with its units and transform.

Names and units are those of WeatherBench2 and ERA5; a channel axis anywhere in the package follows the order
fixed here: pressure-level variables in table order, each with its levels ascending, then the surface fields.
"""

from collections.abc import Iterable
from dataclasses import dataclass

LEVELS = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)
"""The thirteen pressure levels of WeatherBench2 in hPa."""

PRESSURE_VARIABLES = {
    "temperature": "K",
    "geopotential": "m2 s-2",
    "specific_humidity": "kg kg-1",
    "u_component_of_wind": "m s-1",
    "v_component_of_wind": "m s-1",
}
"""Variables on pressure levels and their units."""

SURFACE_VARIABLES = {
    "2m_temperature": "K",
    "mean_sea_level_pressure": "Pa",
    "surface_pressure": "Pa",
    "10m_u_component_of_wind": "m s-1",
    "10m_v_component_of_wind": "m s-1",
    "total_precipitation_6hr": "m",
}
"""Variables at one height and their units."""

_CF_NAMES = {
    "temperature": ("air_temperature", "temperature"),
    "geopotential": ("geopotential", "geopotential"),
    "specific_humidity": ("specific_humidity", "specific humidity"),
    "u_component_of_wind": ("eastward_wind", "eastward wind"),
    "v_component_of_wind": ("northward_wind", "northward wind"),
    "2m_temperature": ("air_temperature", "temperature 2 m above the surface"),
    "mean_sea_level_pressure": ("air_pressure_at_mean_sea_level", "mean sea level pressure"),
    "10m_u_component_of_wind": ("eastward_wind", "eastward wind 10 m above the surface"),
    "10m_v_component_of_wind": ("northward_wind", "northward wind 10 m above the surface"),
    "total_precipitation_6hr": ("lwe_thickness_of_precipitation_amount", "precipitation of the last 6 h"),
}

_TRANSFORMS = {"total_precipitation_6hr": "log_precipitation"}


NON_NEGATIVE = ("specific_humidity", "total_precipitation_6hr")
"""Variables that cannot be below 0."""
ACCUMULATIONS = ("total_precipitation_6hr",)
"""Variables that add up over frames, where others have a mean."""

CF_ATTRIBUTES = {
    name: {"standard_name": standard, "long_name": long}
    | ({"cell_methods": "prediction_timedelta: sum"} if name in ACCUMULATIONS else {})
    for name, (standard, long) in _CF_NAMES.items()
}
"""Attributes of each variable by the CF conventions, beside its units."""


@dataclass(frozen=True)
class Channel:
    """One field of the state.

    Attributes:
        name: WeatherBench2 variable name.
        level: pressure in hPa, or None for a surface field.
        units: units of the field in the archive.
        transform: "none", or "log_precipitation" for log10(1000 tp + 1) before standardising.
    """

    name: str
    level: int | None
    units: str
    transform: str = "none"

    @property
    def key(self) -> str:
        """Name with level: "temperature_500", "2m_temperature"."""
        return self.name if self.level is None else f"{self.name}_{self.level}"


def channel(name: str, level: int | None = None) -> Channel:
    """The channel of one variable at one level (hPa; None for a surface field).

    Raises:
        ValueError: the name is not in the table, or the level does not suit it.

    >>> channel("temperature", 500).key
    'temperature_500'
    """
    if name in SURFACE_VARIABLES:
        if level is not None:
            raise ValueError(f"{name!r} is a surface field and has no level, got level {level!r}")
        return Channel(name, None, SURFACE_VARIABLES[name], _TRANSFORMS.get(name, "none"))
    if name not in PRESSURE_VARIABLES:
        known = ", ".join((*PRESSURE_VARIABLES, *SURFACE_VARIABLES))
        raise ValueError(f"unknown variable {name!r}; expected one of {known}")
    if level is None or int(level) != level or level <= 0:
        raise ValueError(f"{name!r} needs a pressure level in whole hPa, such as 500; got {level!r}")
    return Channel(name, int(level), PRESSURE_VARIABLES[name])


def channels(variables: Iterable[str] | None = None, levels: Iterable[int] | None = None) -> tuple[Channel, ...]:
    """Channels of the given variables at the given levels, in the order of the table.

    Args:
        variables: variable names in any order; None for all ten.
        levels: pressure levels in hPa in any order; None for the thirteen of `LEVELS`.

    Raises:
        ValueError: an unknown variable, a bad level, or nothing selected.

    >>> [c.key for c in channels(["2m_temperature", "temperature"], [850, 500])]
    ['temperature_500', 'temperature_850', '2m_temperature']
    >>> len(channels())
    70
    """
    known = (*PRESSURE_VARIABLES, *SURFACE_VARIABLES)
    if isinstance(variables, str):
        raise ValueError(f"variables must be a list of names, got the string {variables!r}")
    names = set(known if variables is None else variables)
    if unknown := names.difference(known):
        raise ValueError(f"unknown variable {sorted(unknown)[0]!r}; expected one of {', '.join(known)}")
    levels = sorted(set(LEVELS if levels is None else levels))
    selected = [channel(name, level) for name in PRESSURE_VARIABLES if name in names for level in levels]
    selected += [channel(name) for name in SURFACE_VARIABLES if name in names]
    if not selected:
        raise ValueError(f"no channel selected by variables {sorted(names)} and levels {levels}")
    return tuple(selected)
