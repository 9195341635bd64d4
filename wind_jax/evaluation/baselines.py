"""What a user would try before a learned prior: persistence, interpolation in space and time.

The third, climatology, is `wind_jax.data.climatology.Climatology.at`.
"""

from collections.abc import Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.spatial import ConvexHull, QhullError, cKDTree

from wind_jax.data.variables import ACCUMULATIONS, Channel
from wind_jax.sphere import Grid, bilinear, interpolate

_TOLERANCE = 1e-9


def persistence(initial: Float[np.ndarray, "h w c"], leads: int) -> Float[np.ndarray, "t h w c"]:
    """The last known state at every lead, (leads, h, w, c)."""
    return np.broadcast_to(initial[None], (leads, *initial.shape))


def interpolation(observations: Float[np.ndarray, "t h w c"], grid: Grid) -> Float[np.ndarray, "t h w c"]:
    """Linear interpolation in space of each frame and channel by itself.

    The observed cells are triangulated on the sphere (their convex hull is its Delaunay triangulation), and each
    cell takes the barycentric mean of the corners of the triangle it lies in. Longitude has no seam and the poles
    are points like others. Where the observations surround no triangle (fewer than four, all on one side of the
    Earth, or all on one circle) a cell takes the nearest observation.

    Args:
        observations: (t, h, w, c), physical units, NaN where nothing was observed.
        grid: of the fields.

    Returns:
        (t, h, w, c): observed cells keep their values; NaN for a field without any observation.

    Raises:
        ValueError: fields of another shape than the grid's.
    """
    if observations.shape[1:3] != grid.shape:
        raise ValueError(f"observations have {observations.shape[1:3]} cells, expected {grid.shape} of the grid.")
    out = np.empty_like(observations)
    for frame in range(observations.shape[0]):
        for channel in range(observations.shape[-1]):
            field = observations[frame, ..., channel].ravel()
            out[frame, ..., channel] = _interpolate(field, grid).reshape(grid.shape)
    return out


def upsample(
    y: Float[Array | np.ndarray, "*batch H W c"], coarse: Grid, fine: Grid, *, vector: bool = False
) -> Float[Array | np.ndarray, "*batch h w c"]:
    """Coarse fields brought back to a fine grid by bilinear interpolation, across the poles too.

    Args:
        y: (..., H, W, c), means over the coarse cells.
        coarse: grid of y.
        fine: grid of the result.
        vector: y is a component of wind, which changes its sign across a pole.

    Raises:
        ValueError: fields of another shape than the coarse grid's.
    """
    if y.shape[-3:-1] != coarse.shape:
        raise ValueError(f"fields have {y.shape[-3:-1]} cells, expected {coarse.shape} of the coarse grid.")
    latitude, longitude = np.meshgrid(fine.latitude, fine.longitude, indexing="ij")
    values = interpolate(y, *bilinear(coarse, latitude.ravel(), longitude.ravel(), vector=vector))
    return values.reshape(*y.shape[:-3], *fine.shape, y.shape[-1])


def refine_in_time(
    y: Float[Array | np.ndarray, "m h w c"], n: int, method: str = "linear", accumulated: bool = False
) -> Float[Array | np.ndarray, "t h w c"]:
    """Frames from means, or sums, over each n of them.

    Args:
        y: (m, h, w, c).
        n: frames that one of y is over.
        method: "repeat", each frame takes its mean; "linear", interpolated between the middles of the groups,
            and constant before the first and after the last.
        accumulated: y holds sums: each frame takes its part of them.

    Returns:
        (m * n, h, w, c).

    Raises:
        ValueError: another method.
    """
    if method not in ("repeat", "linear"):
        raise ValueError(f"method must be 'repeat' or 'linear', got {method!r}")
    means = y / n if accumulated else y
    m = y.shape[0]
    if method == "repeat":
        return means.repeat(n, axis=0)
    position = np.clip((np.arange(m * n) - (n - 1) / 2) / n, 0, m - 1)
    before = np.minimum(position.astype(int), max(m - 2, 0))
    weight = (position - before).astype(y.dtype)[:, None, None, None]
    return (1 - weight) * means[before] + weight * means[np.minimum(before + 1, m - 1)]


def upsampled(
    y: Float[Array | np.ndarray, "*batch H W c"], coarse: Grid, fine: Grid, channels: Sequence[Channel]
) -> Float[Array | np.ndarray, "*batch h w c"]:
    """Fields of all channels, scalars and components of wind, by `upsample`."""
    vector = np.array([c.name.endswith("component_of_wind") for c in channels])
    scalars, vectors = (upsample(y, coarse, fine, vector=flag) for flag in (False, True))
    return _where(vector, vectors, scalars)


def refined(
    y: Float[Array | np.ndarray, "m h w c"], n: int, channels: Sequence[Channel]
) -> Float[Array | np.ndarray, "t h w c"]:
    """Fields of all channels, means and sums, by `refine_in_time`."""
    sums = np.array([c.name in ACCUMULATIONS for c in channels])
    means, parts = (refine_in_time(y, n, accumulated=flag) for flag in (False, True))
    return _where(sums, parts, means)


def _where(channel: np.ndarray, yes, no):
    """Some channels (c,) of one array, the others of another; numpy or jax like these."""
    xp = jnp if isinstance(yes, jax.Array) else np
    return xp.where(np.broadcast_to(channel, yes.shape), yes, no)


def _interpolate(field: np.ndarray, grid: Grid) -> np.ndarray:
    """One field (h * w,) with NaN where unknown."""
    cells, tree = _cells(grid)
    known = np.flatnonzero(np.isfinite(field))
    if known.size in (0, field.size):
        return field
    points = cells[known]
    out = field[known][cKDTree(points).query(cells)[1]]
    try:
        hull = ConvexHull(points)
    except (QhullError, ValueError):  # fewer than four points, or all in one plane
        return out
    # Facets that face away from the origin are spherical triangles; others close the hull of one side of the Earth.
    for corners, (*normal, offset) in zip(hull.simplices, hull.equations, strict=True):
        if offset > -_TOLERANCE:
            continue
        # The cap that the facet's plane cuts off holds its triangle.
        near = np.array(tree.query_ball_point(normal, np.sqrt(2 + 2 * offset) + _TOLERANCE), int)
        barycentric = cells[near] @ np.linalg.inv(points[corners])
        inside = (barycentric >= -_TOLERANCE).all(-1)
        weights = barycentric[inside] / barycentric[inside].sum(-1, keepdims=True)
        out[near[inside]] = weights @ field[known[corners]]
    out[known] = field[known]
    return out


@lru_cache(maxsize=4)
def _cells(grid: Grid) -> tuple[np.ndarray, cKDTree]:
    """Unit vectors (h * w, 3) of the cells and their search tree."""
    latitude, longitude = np.deg2rad(np.meshgrid(grid.latitude, grid.longitude, indexing="ij"))
    z, x, y = np.sin(latitude), np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude)
    cells = np.stack([x, y, z], axis=-1).reshape(-1, 3).astype(np.float64)
    return cells, cKDTree(cells)
