"""What a user would try before a learned prior: persistence, interpolation in space.

The third, climatology, is `wind_jax.data.climatology.Climatology.at`.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy.spatial import ConvexHull, QhullError, cKDTree

from wind_jax.sphere import Grid

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
