"""Tables of station reports: one value a row, with its place and time; CSV or Parquet.

Columns: station, time (UTC), latitude, longitude (degrees), elevation (m), variable, value, and optionally error and
level (hPa). Names and units are those of `wind_jax.channels.LEXICON`, and 10m_wind_speed (m s-1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from jaxtyping import Array, Bool, Key

from wind_jax.channels import Channel

SPEED, DIRECTION, TEMPERATURE = "10m_wind_speed", "10m_wind_direction", "2m_temperature"
COMPONENTS = ("10m_u_component_of_wind", "10m_v_component_of_wind")
UNUSED = (DIRECTION, "2m_dewpoint_temperature")
"""Variables of surface reports that no prior has: left out, unless they are asked for."""

_COLUMNS = ("station", "time", "latitude", "longitude", "elevation", "variable", "value")


@dataclass(frozen=True, eq=False)
class Reports:
    """A table of checked reports, one value a row.

    Attributes:
        station: (n,) identifiers.
        time: (n,) datetime64[ns], UTC.
        latitude: (n,) degrees.
        longitude: (n,) degrees.
        elevation: (n,) m above sea level, NaN where unknown.
        variable: (n,) names.
        level: (n,) pressure in hPa, 0 at the surface.
        value: (n,) in the units of the variable.
        error: (n,) standard deviation in these units, NaN where the table gives none.
        dropped: why rows of the file were left out, and how many.
    """

    station: np.ndarray
    time: np.ndarray
    latitude: np.ndarray
    longitude: np.ndarray
    elevation: np.ndarray
    variable: np.ndarray
    level: np.ndarray
    value: np.ndarray
    error: np.ndarray
    dropped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.value.size

    def select(self, rows: Bool[np.ndarray, "n"]) -> "Reports":
        """The reports at which `rows` is true."""
        columns = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "dropped"}
        return Reports(**columns, dropped=self.dropped)


def read_stations(
    path: str | Path, channels: Sequence[Channel], variables: Sequence[str] = (), wind: str = "speed"
) -> Reports:
    """Reads a table of reports and checks it.

    Rows without a
    value, and 2m temperatures without an elevation, are dropped and counted.

    Args:
        path: .csv, .csv.gz or .parquet.
        channels: of the prior.
        variables: names of those to use; where it is empty, all but `UNUSED`.
        wind: "speed" uses 10m_wind_speed as it is; "components" turns speed and 10m_wind_direction (degrees from
            which it blows) into u and v, where both are reported.

    Raises:
        ValueError: no such file or format, missing columns, text for numbers, times that cannot be read, places off
            the globe, errors that are not positive, variables or levels that the prior does not have, nothing left.
    """
    if wind not in ("speed", "components"):
        raise ValueError(f'wind must be "speed" or "components", got {wind!r}.')
    known = {(c.name, c.level or 0) for c in channels}
    if {(name, 0) for name in COMPONENTS} <= known:
        known.add((SPEED, 0))
    names = sorted({name for name, _ in known})
    if missing := [name for name in variables if name not in names]:
        raise ValueError(f"The prior cannot tell {missing} at stations; it can tell {', '.join(names)}.")
    table = _checked(_load(Path(path)), path)
    dropped = {}

    def drop(rows, why):
        if rows.any():
            dropped[why] = int(rows.sum())
        return table[~rows]

    table = drop(table["value"].isna(), "no value")
    if wind == "components":
        table = _with_components(table)
    for name in sorted(set(table["variable"])):
        if name not in variables if variables else name in UNUSED:
            table = drop(table["variable"] == name, f"{name} is not used")
    table = drop((table["variable"] == TEMPERATURE) & table["elevation"].isna(), f"{TEMPERATURE} without elevation")
    found = pd.Series(list(zip(table["variable"], table["level"])), dtype=object).value_counts()
    if unknown := [
        f"{name}{f' at {level} hPa' if level else ''} ({n} rows)"
        for (name, level), n in found.items()
        if (name, level) not in known
    ]:
        raise ValueError(
            f"{path} reports what the prior does not have: {', '.join(unknown)}. It has {', '.join(names)}; name those "
            "to use in `variables`."
        )
    if table.empty:
        raise ValueError(f"{path} holds no report that can be used: {dropped or 'it is empty'}.")
    return Reports(
        **{name: table[name].to_numpy(str) for name in ("station", "variable")},
        time=table["time"].to_numpy("datetime64[ns]"),
        level=table["level"].to_numpy(int),
        **{name: table[name].to_numpy(float) for name in ("latitude", "longitude", "elevation", "value", "error")},
        dropped=dropped,
    )


def _load(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ValueError(f"No station table at {path}.")
    if path.name.endswith((".csv", ".csv.gz")):
        return pd.read_csv(path, dtype={"station": str, "variable": str})
    if path.suffix != ".parquet":
        raise ValueError(f"A station table must be .csv, .csv.gz or .parquet, got {path.name}.")
    try:
        return pd.read_parquet(path)
    except ImportError:
        raise ValueError(f"Reading {path} needs the package pyarrow; install it, or convert to .csv.") from None


def _checked(table: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    """The table with its types and all of its columns."""
    if missing := [name for name in _COLUMNS if name not in table]:
        raise ValueError(f"{path} lacks the columns {missing}; it has {list(table.columns)}.")

    def refuse(rows, what, column):
        if rows.any():
            raise ValueError(f"{path}: {int(rows.sum())} {what}; the first is '{table[column][rows].iloc[0]}'.")

    out = {"station": table["station"].astype(str), "variable": table["variable"].astype(str)}
    out["time"] = pd.to_datetime(table["time"], utc=True, errors="coerce", format="ISO8601").dt.tz_localize(None)
    refuse(out["time"].isna(), "times cannot be read", "time")
    for name in ("latitude", "longitude", "elevation", "value", "error", "level"):
        column = table.get(name, pd.Series(np.nan, table.index))
        out[name] = pd.to_numeric(column, errors="coerce").astype(float).replace([np.inf, -np.inf], np.nan)
        refuse(out[name].isna() & column.notna(), f"values of {name} are not finite numbers", name)
    refuse(~out["latitude"].between(-90, 90), "latitudes are outside [-90, 90] degrees", "latitude")
    refuse(~out["longitude"].between(-180, 360), "longitudes are outside [-180, 360] degrees", "longitude")
    refuse(out["error"] <= 0, "errors are not positive", "error")
    out["level"] = out["level"].fillna(0).round().astype(int)
    return pd.DataFrame(out)


def _with_components(table: pd.DataFrame) -> pd.DataFrame:
    """Replaces pairs of wind speed and direction by u and v; a station's k-th speed goes with its k-th direction."""
    key = ["station", "time", "latitude", "longitude", "copy"]
    table = table.assign(copy=table.groupby([*key[:-1], "variable"]).cumcount(), row=np.arange(len(table)))
    direction = table[(table["variable"] == DIRECTION) & table["value"].between(0, 360)]
    pairs = table[table["variable"] == SPEED].merge(direction[[*key, "value"]], on=key, suffixes=("", "_direction"))
    angle = np.deg2rad(pairs["value_direction"])
    winds = [
        pairs.assign(variable=name, value=-pairs["value"] * wave(angle))
        for name, wave in zip(COMPONENTS, (np.sin, np.cos))
    ]
    return pd.concat([table[~table["row"].isin(pairs["row"])], *winds], ignore_index=True)[list(table.columns[:-2])]


def leave_out(reports: Reports, fraction: float, key: Key[Array, ""]) -> tuple[Reports, Reports]:
    """Splits the stations, each with all of its reports, into those assimilated and those kept for verification.

    Args:
        reports: of all stations.
        fraction: of the stations that is withheld, in (0, 1).
        key: of the draw.

    Returns:
        The assimilated and the withheld reports.

    Raises:
        ValueError: a fraction outside (0, 1), or one that leaves either side empty.
    """
    names = np.unique(reports.station)
    count = round(fraction * names.size) if 0 < fraction < 1 else 0
    if not 0 < count < names.size:
        raise ValueError(f"The withheld fraction must leave stations on both sides, got {fraction} of {names.size}.")
    drawn = names[np.asarray(jax.random.permutation(key, names.size))[:count]]
    withheld = np.isin(reports.station, drawn)
    return reports.select(~withheld), reports.select(withheld)
