"""Inputs that are known for any place and time: surface, position, season and local time of day."""

import numpy as np
from jaxtyping import Float

from wind_jax.data.store import STATIC_VARIABLES, Store
from wind_jax.physics import GRAVITY
from wind_jax.sphere import Grid

FORCING_NAMES = (
    "land_sea_mask",
    "soil_type",
    "orography",
    "sin_latitude",
    "cos_latitude_cos_longitude",
    "cos_latitude_sin_longitude",
    "sin_day_of_year",
    "cos_day_of_year",
    "sin_local_time",
    "cos_local_time",
)
"""What the forcing axis holds, in order; the first six do not change in time."""


def static_forcings(store: Store, missing: str = "error") -> Float[np.ndarray, "h w 6"]:
    """The inputs that do not change in time, each of order one.

    Soil type (ERA5's classes 0 to 7) is divided by 7, orography is in km.

    Args:
        store: an archive with `land_sea_mask`, `soil_type` and `geopotential_at_surface`.
        missing: "error", or "zeros" to take fields that the archive lacks as zero.

    Raises:
        ValueError: a field is missing and may not be, or `missing` is neither of these.
    """
    if missing not in ("error", "zeros"):
        raise ValueError(f"missing must be 'error' or 'zeros', got {missing!r}")
    lacking = [name for name in STATIC_VARIABLES if not store.has(name)]
    if lacking and missing == "error":
        raise ValueError(
            f"{store.path} has no static field {', '.join(map(repr, lacking))}; "
            "add it, or set missing='zeros' to train and infer without it"
        )
    zeros = np.zeros(store.grid.shape, np.float32)
    mask, soil, geopotential = (zeros if name in lacking else store.static(name) for name in STATIC_VARIABLES)
    surface = np.stack([mask, soil / 7, geopotential / (1000 * GRAVITY)], axis=-1)
    return np.concatenate([surface, _position(store.grid)], axis=-1).astype(np.float32)


def _position(grid: Grid) -> np.ndarray:
    """(h, w, 3): the unit vector to each grid point (z, x, y)."""
    latitude = np.deg2rad(grid.latitude.astype(np.float64))[:, None]
    longitude = np.deg2rad(grid.longitude.astype(np.float64))[None, :]
    z = np.broadcast_to(np.sin(latitude), grid.shape)
    return np.stack([z, np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude)], axis=-1)


def day_of_year(times: np.ndarray) -> Float[np.ndarray, "t"]:
    """Days since 1 January 00 UTC, with the fraction of the day."""
    return (times - times.astype("datetime64[Y]")) / np.timedelta64(1, "D")


def day_fraction(times: np.ndarray) -> Float[np.ndarray, "t"]:
    """Universal time of day in [0, 1)."""
    return (times - times.astype("datetime64[D]")) / np.timedelta64(1, "D")


def forcings(static: Float[np.ndarray, "h w 6"], times: np.ndarray) -> Float[np.ndarray, "t h w 10"]:
    """All inputs at some times, in the order of `FORCING_NAMES`.

    Args:
        static: from `static_forcings`; the longitude of each column is read off its position vector.
        times: (t,) datetime64, UTC.

    Raises:
        ValueError: times of another kind.
    """
    times = np.asarray(times)
    if times.ndim != 1 or not np.issubdtype(times.dtype, np.datetime64):
        raise ValueError(f"times must be (t,) datetime64, got {times.dtype} of shape {times.shape}")
    h, w, _ = static.shape
    # A row away from the poles, where the position vector tells the longitude well.
    middle = static[h // 2]
    longitude = np.arctan2(middle[:, 5].astype(np.float64), middle[:, 4].astype(np.float64))
    year = (2 * np.pi / 365.25) * day_of_year(times)
    local = 2 * np.pi * day_fraction(times)[:, None] + longitude[None, :]
    out = np.empty((times.size, h, w, len(FORCING_NAMES)), np.float32)
    out[..., :6] = static
    out[..., 6] = np.sin(year)[:, None, None]
    out[..., 7] = np.cos(year)[:, None, None]
    out[..., 8] = np.sin(local)[:, None, :]
    out[..., 9] = np.cos(local)[:, None, :]
    return out
