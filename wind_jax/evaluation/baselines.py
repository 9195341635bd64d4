"""What a user would try before a learned prior: persistence, interpolation in space and time.

Others live where their subject does: climatology is `wind_jax.data.climatology.Climatology.at`, kriging
`wind_jax.evaluation.kriging`, the uniform change of pressure that restores the mass of dry air
`wind_jax.observations.totals.rescale_dry_air_mass`. How good they are: docs/baselines.md.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.interpolate import CubicSpline
from scipy.spatial import ConvexHull, QhullError, cKDTree

from wind_jax.channels import Channel
from wind_jax.data.normalize import Statistics
from wind_jax.sphere import Grid, bilinear, interpolate

_TOLERANCE = 1e-9
MEMBERS = 50
"""Of a Gaussian ensemble."""


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
    y: Float[Array | np.ndarray, "*batch H W c"],
    coarse: Grid,
    fine: Grid,
    *,
    vector: bool = False,
    method: str = "linear",
) -> Float[Array | np.ndarray, "*batch h w c"]:
    """Coarse fields brought back to a fine grid by interpolation, across the poles too.

    Args:
        y: (..., H, W, c), means over the coarse cells.
        coarse: grid of y.
        fine: grid of the result.
        vector: y is a component of wind, which changes its sign across a pole.
        method: "linear", bilinear; "cubic", splines that are periodic along the parallels and then along the
            meridians, each of which goes on over the poles as its opposite: smooth to the second derivative, of
            fourth order, and not bounded by y.

    Raises:
        ValueError: fields of another shape than the coarse grid's, or another method.
    """
    if y.shape[-3:-1] != coarse.shape:
        raise ValueError(f"fields have {y.shape[-3:-1]} cells, expected {coarse.shape} of the coarse grid.")
    if method not in ("linear", "cubic"):
        raise ValueError(f"method must be 'linear' or 'cubic', got {method!r}")
    if method == "cubic":
        here, opposite = (_circle(coarse.longitude, fine.longitude + turn) for turn in (0.0, 180.0))
        rows = coarse.latitude.astype(np.float64)
        beyond = np.arange(rows.size)[::-1]
        beyond = beyond[np.abs(rows[beyond]) < 90]  # a pole is no point of its own from the other side
        meridian = _circle(np.concatenate([rows, 180 - rows[beyond]]), fine.latitude)
        across = _product(opposite, y[..., beyond, :, :], -2)
        around = [_product(here, y, -2), -across if vector else across]
        return _product(meridian, (jnp if isinstance(y, jax.Array) else np).concatenate(around, axis=-3), -3)
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
            and constant before the first and after the last; "cubic", differences of the cubic spline through
            the sums of all frames up to the edge of each group, which keep every mean exactly.
        accumulated: y holds sums: each frame takes its part of them.

    Returns:
        (m * n, h, w, c).

    Raises:
        ValueError: another method.
    """
    if method not in ("repeat", "linear", "cubic"):
        raise ValueError(f"method must be 'repeat', 'linear' or 'cubic', got {method!r}")
    means = y / n if accumulated else y
    m = y.shape[0]
    if method == "cubic":
        sums = CubicSpline(n * np.arange(m + 1), n * np.tri(m + 1, m, -1))
        return _product(np.diff(sums(np.arange(m * n + 1)), axis=0), means, 0)
    if method == "repeat":
        return means.repeat(n, axis=0)
    position = np.clip((np.arange(m * n) - (n - 1) / 2) / n, 0, m - 1)
    before = np.minimum(position.astype(int), max(m - 2, 0))
    weight = (position - before).astype(y.dtype)[:, None, None, None]
    return (1 - weight) * means[before] + weight * means[np.minimum(before + 1, m - 1)]


def upsampled(
    y: Float[Array | np.ndarray, "*batch H W c"],
    coarse: Grid,
    fine: Grid,
    channels: Sequence[Channel],
    method: str = "linear",
) -> Float[Array | np.ndarray, "*batch h w c"]:
    """Fields of all channels, scalars and components of wind, by `upsample`."""
    vector = np.array([c.name.endswith("component_of_wind") for c in channels])
    scalars, vectors = (upsample(y, coarse, fine, vector=flag, method=method) for flag in (False, True))
    return _where(vector, vectors, scalars)


def refined(
    y: Float[Array | np.ndarray, "m h w c"], n: int, channels: Sequence[Channel], method: str = "linear"
) -> Float[Array | np.ndarray, "t h w c"]:
    """Fields of all channels, means and sums, by `refine_in_time`."""
    sums = np.array([c.accumulation for c in channels])
    means, parts = (refine_in_time(y, n, method, accumulated=flag) for flag in (False, True))
    return _where(sums, parts, means)


def about_climatology(
    y: Float[Array | np.ndarray, "*batch H W c"],
    normal: Float[Array | np.ndarray, "*fine h w c"],
    measure: Callable,
    interpolate: Callable,
    channels: Sequence[Channel],
) -> Float[Array | np.ndarray, "*fine h w c"]:
    """Interpolation of the anomalies of y, on top of the climatology: normal + interpolate(y - measure(normal)).

    The delta method of statistical downscaling: what the climatology knows of mountains, coasts and the daily cycle
    is not lost to the interpolation. What cannot be negative is cut off at 0.

    Args:
        y: means in space or time of a window.
        normal: climatology of the window, (..., h, w, c), physical units.
        measure: means of such fields, like y.
        interpolate: fields from such means: `upsampled` or `refined`.
        channels: of the fields.
    """
    fields = normal + interpolate(y - measure(normal))
    positive = np.array([c.non_negative for c in channels])
    return _where(positive, fields.clip(0), fields)


def gaussian_members(
    mean: Float[np.ndarray, "t h w c"],
    deviation: Float[np.ndarray, "#t #h #w c"],
    statistics: Statistics,
    seed: Sequence[int],
    members: int = MEMBERS,
) -> Float[np.ndarray, "m t h w c"]:
    """Members whose value at each cell is Gaussian in model units, each by itself: for scores of single cells.

    Their mean is the given field, in physical units too: what cannot be negative is cut off at 0 and then multiplied by
    what that and the logarithm of rain have made the mean too large. So the error of their mean is that of the field,
    and their fair CRPS is too small by 1 / (2 m).

    Args:
        mean: model units.
        deviation: standard deviation, model units.
        statistics: of model units.
        seed: of the draws.
        members: m.

    Returns:
        Physical units; what cannot be negative is not.
    """
    draws = np.random.default_rng(seed).standard_normal((members, *mean.shape), np.float32)
    drawn = statistics.physical(mean + deviation * (draws - draws.mean(0)))
    field, about = statistics.physical(mean), drawn.mean(0)
    positive = np.array([c.non_negative for c in statistics.channels])
    return drawn * np.divide(field, about, out=np.ones_like(field), where=positive & (about > 0))


def unit_vectors(latitude: Float[np.ndarray, "n"], longitude: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n 3"]:
    """Points on the unit sphere, float64, of coordinates in degrees."""
    latitude, longitude = np.deg2rad(latitude, dtype=np.float64), np.deg2rad(longitude, dtype=np.float64)
    x, y = np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude)
    return np.stack([x, y, np.sin(latitude)], axis=-1)


def _circle(nodes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Matrix (points, nodes) of the periodic cubic spline on a circle; degrees, nodes ascending."""
    nodes = np.append(nodes.astype(np.float64), nodes[0] + 360.0)
    values = np.eye(nodes.size - 1)[np.arange(nodes.size) % (nodes.size - 1)]
    return CubicSpline(nodes, values, bc_type="periodic")(points)


def _product(matrix: np.ndarray, x, axis: int):
    """A matrix applied along one axis of an array, numpy or jax like it, in its dtype."""
    matrix = matrix.astype(x.dtype)
    if isinstance(x, jax.Array):  # full precision: accelerators would round the factors
        product = jnp.tensordot(x, matrix, axes=(axis % x.ndim, 1), precision=jax.lax.Precision.HIGHEST)
        return jnp.moveaxis(product, -1, axis)
    return np.moveaxis(np.tensordot(x, matrix, axes=(axis, 1)), -1, axis)


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
    cells = unit_vectors(*(a.ravel() for a in np.meshgrid(grid.latitude, grid.longitude, indexing="ij")))
    return cells, cKDTree(cells)
