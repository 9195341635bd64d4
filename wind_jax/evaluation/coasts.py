"""Coastlines in degrees: Natural Earth's where cartopy is installed and has them on disk, else those of the mask.

Nothing is downloaded here. Natural Earth's (1:110 million) come once and for all by

    python -c "from cartopy.io.shapereader import natural_earth; natural_earth('110m', 'physical', 'coastline')"
"""

from functools import cache
from pathlib import Path

import contourpy
import numpy as np
import xarray
from jaxtyping import Float

Lines = Float[np.ndarray, "_ 2"]
"""Longitude and latitude of the vertices of lines, one after the other, with a row of NaN after each."""

_FILE = Path("shapefiles", "natural_earth", "physical", "ne_110m_coastline.shp")  # where cartopy keeps it


def coastlines(land: xarray.DataArray) -> Lines:
    """The coasts to draw on a map.

    Args:
        land: (latitude, longitude), 1 on land; its 0.5 contour is the coast where Natural Earth is not at hand.
    """
    lines = _natural_earth()
    return _contour(land) if lines is None else lines


def seen_from(lines: Lines, middle: float) -> Lines:
    """The lines with longitudes counted from `middle`, in [-180, 180), broken where they cross the edge of the map."""
    longitude = (lines[:, 0] - middle + 180) % 360 - 180
    jumps = np.flatnonzero(np.abs(np.diff(longitude)) > 180) + 1
    return np.insert(np.stack([longitude, lines[:, 1]], axis=1), jumps, np.nan, axis=0)


def _contour(land: xarray.DataArray) -> Lines:
    land = land.sortby("longitude").transpose("latitude", "longitude")
    x = np.asarray(land["longitude"], float)
    generator = contourpy.contour_generator(
        np.append(x, x[0] + 360), np.asarray(land["latitude"], float), np.c_[land.values, land.values[:, :1]]
    )
    return _join(generator.lines(0.5))


@cache
def _natural_earth() -> Lines | None:
    try:
        import cartopy
        from cartopy.io.shapereader import Reader
    except ImportError:
        return None
    folders = (Path(cartopy.config[key]) for key in ("pre_existing_data_dir", "data_dir"))
    path = next((folder / _FILE for folder in folders if (folder / _FILE).exists()), None)
    if path is None:
        return None
    parts = [part for shape in Reader(path).geometries() for part in getattr(shape, "geoms", [shape])]
    return _join([np.asarray(part.coords)[:, :2] for part in parts])


def _join(lines: list[np.ndarray]) -> Lines:
    gap = np.full((1, 2), np.nan)
    return np.concatenate([piece for line in lines for piece in (line, gap)] or [gap])
