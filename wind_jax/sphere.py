"""The latitude-longitude grid on the sphere: cell areas, area means, coarsening, point interpolation, zonal spectra.

A cell reaches half way to its neighbours; the first and the last row reach the poles, so on a grid with pole
rows these are half-cells. Cell areas are exact: d(longitude) * d(sin latitude).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclass(frozen=True, eq=False)
class Grid:
    """A latitude-longitude grid, compared by value.

    Coordinates are held in float32, so that a grid read from a float64 file equals the one of a float32 file.

    Attributes:
        latitude: (h,) degrees, ascending (south to north).
        longitude: (w,) degrees in [0, 360), ascending, uniform over the full circle.

    Raises:
        ValueError: the coordinates are not such.
    """

    latitude: np.ndarray
    longitude: np.ndarray

    def __post_init__(self):
        for name in ("latitude", "longitude"):
            values = np.array(getattr(self, name), np.float32) + np.float32(0.0)  # a copy, with no -0.0
            if values.ndim != 1 or values.size < 2 or not np.isfinite(values).all():
                raise ValueError(
                    f"{name} must be two or more finite degrees in one dimension, got {getattr(self, name)!r}"
                )
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        latitude, longitude = self.latitude, self.longitude
        if (np.diff(latitude) <= 0).any() or latitude[0] < -90 or latitude[-1] > 90:
            raise ValueError(
                "latitude must ascend strictly within [-90, 90] degrees, "
                f"got {latitude[0]:g} ... {latitude[-1]:g} with {latitude.size} rows"
            )
        spacing = 360 / longitude.size
        uniform = np.abs(np.diff(longitude.astype(float)) - spacing).max() < 1e-3 * spacing
        if not uniform or longitude[0] < 0 or longitude[-1] >= 360:
            raise ValueError(
                f"longitude must ascend within [0, 360) in steps of 360 / {longitude.size} = {spacing:g} "
                f"degrees, got {longitude[0]:g}, {longitude[1]:g} ... {longitude[-1]:g}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, (h, w)."""
        return self.latitude.size, self.longitude.size

    @property
    def with_poles(self) -> bool:
        """Whether the first and the last row lie on the poles."""
        return bool(self.latitude[0] == -90 and self.latitude[-1] == 90)

    def __eq__(self, other) -> bool:
        return (
            isinstance(other, Grid)
            and np.array_equal(self.latitude, other.latitude)
            and np.array_equal(self.longitude, other.longitude)
        )

    def __hash__(self) -> int:
        return hash((self.latitude.tobytes(), self.longitude.tobytes()))


def _latitude_bounds(grid: Grid) -> Float[np.ndarray, "edges"]:
    """Southern and northern edges of the rows in degrees."""
    latitude = grid.latitude.astype(np.float64)
    return np.concatenate([[-90.0], (latitude[1:] + latitude[:-1]) / 2, [90.0]])


def cell_area(grid: Grid) -> Float[np.ndarray, "h"]:
    """Solid angle in steradians (float64) of one cell in each row; all cells together have 4 pi.

    >>> grid = Grid(np.linspace(-90, 90, 121), np.arange(0, 360, 1.5))
    >>> round(float(cell_area(grid).sum() * 240 / np.pi), 12)
    4.0
    """
    edges = np.sin(np.deg2rad(_latitude_bounds(grid)))
    return np.diff(edges) * (2 * np.pi / grid.longitude.size)


def area_weights(grid: Grid) -> Float[np.ndarray, "h 1"]:
    """Cell areas normalised to mean 1 over all cells, float32, to broadcast against (h, w)."""
    area = cell_area(grid)
    return (area / area.mean()).astype(np.float32)[:, None]


def area_mean(field: Float[Array | np.ndarray, "..."], grid: Grid, axis: tuple[int, int] = (-2, -1)):
    """Area-weighted mean over the sphere, of a numpy or a jax array, in its dtype.

    Args:
        field: an array with a latitude and a longitude axis.
        grid: its grid.
        axis: positions of latitude and longitude; (-3, -2) for a state (t, h, w, c).

    Raises:
        ValueError: these axes do not have the grid's shape.
    """
    rows, columns = (a % field.ndim for a in axis)
    if (field.shape[rows], field.shape[columns]) != grid.shape:
        raise ValueError(
            f"axes {axis} of an array of shape {field.shape} are not the grid's (latitude, longitude) "
            f"of shape {grid.shape}"
        )
    xp = jnp if isinstance(field, jax.Array) else np
    area = cell_area(grid)
    shape = [1] * field.ndim
    shape[rows] = area.size
    weights = xp.asarray((area / area.mean()).reshape(shape), field.dtype)
    return (field * weights).mean(axis=(rows, columns))


@dataclass(frozen=True, eq=False)
class Coarsening:
    """Area-weighted means over the cells of a coarse grid, separable in latitude and longitude.

    Attributes:
        fine: grid of the fields.
        grid: the coarse grid.
        rows: share of each coarse row that each row covers; sums to 1 over h.
        columns: share of each coarse column that each column covers; sums to 1 over w.
    """

    fine: Grid
    grid: Grid
    rows: Float[np.ndarray, "H h"]
    columns: Float[np.ndarray, "W w"]


def coarsening(grid: Grid, target: Grid | int) -> Coarsening:
    """Conservative coarsening to another grid or by an integer factor.

    A coarse cell takes from each cell the share of its own area that the two have in common, so that a
    constant stays one and the area mean is kept exactly, by `cell_area` of either grid (first-order conservative
    remapping, Jones 1999, Mon. Wea. Rev. 127, 2204-2210).

    By a factor, a column is the mean of that many columns, and lies at their mean longitude. With pole rows
    every factor-th row is kept, the poles among them, where they divide so (121 rows by 4: 31 rows), and is the
    mean about it, half of the rows on its edges counted; else a row is the mean of that many rows, at their mean
    latitude, up to what the cells reach beyond half way on a grid with unequal rows.

    Args:
        grid: of the fields.
        target: the coarse grid, or a factor, 2 or more.

    Raises:
        ValueError: a factor that does not divide the grid, or a target with more rows or columns than it.

    >>> coarsening(Grid(np.linspace(-90, 90, 121), np.arange(0, 360, 1.5)), 4).grid.shape
    (31, 60)
    """
    coarse = target if isinstance(target, Grid) else _coarse_grid(grid, target)
    if coarse.shape[0] > grid.shape[0] or coarse.shape[1] > grid.shape[1]:
        raise ValueError(
            f"coarsening needs a target grid with no more rows and columns than the source, {grid.shape}; "
            f"got one of {coarse.shape}"
        )
    fine_edges, coarse_edges = (np.sin(np.deg2rad(_latitude_bounds(g))) for g in (grid, coarse))
    rows = _overlap(coarse_edges[:, None], fine_edges[None, :]) / np.diff(coarse_edges)[:, None]
    west, coarse_west = (
        g.longitude[0] + 360 * (np.arange(g.longitude.size + 1) - 0.5) / g.longitude.size for g in (grid, coarse)
    )
    columns = sum(_overlap(coarse_west[:, None], west[None, :] + turn) for turn in (-360.0, 0.0, 360.0))
    return Coarsening(grid, coarse, rows, columns * (coarse.longitude.size / 360.0))


def _coarse_grid(grid: Grid, factor: int) -> Grid:
    """The grid that `coarsening` by a factor leads to."""
    h, w = grid.shape
    with_poles = {f for f in range(2, h) if grid.with_poles and (h - 1) % f == 0}
    possible = [f for f in range(2, w // 2 + 1) if w % f == 0 and (f in with_poles or (h % f == 0 and h > f))]
    if not isinstance(factor, int) or factor not in possible:
        raise ValueError(
            f"a grid of {h} rows{' with poles' if grid.with_poles else ''} and {w} columns cannot be coarsened by "
            f"{factor}; factors that work are {', '.join(map(str, possible)) or 'none'}, or give a target grid"
        )
    latitude, longitude = grid.latitude.astype(np.float64), grid.longitude.astype(np.float64)
    rows = latitude[::factor] if factor in with_poles else latitude.reshape(-1, factor).mean(1)
    return Grid(rows, longitude.reshape(-1, factor).mean(1))


def _overlap(coarse: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """Common length of each interval of `coarse` (H + 1, 1) with each of `fine` (1, h + 1)."""
    common = np.minimum(coarse[1:], fine[:, 1:]) - np.maximum(coarse[:-1], fine[:, :-1])
    return np.maximum(common, 0.0)


def coarsen(field: Float[Array | np.ndarray, "*batch h w c"], coarsening: Coarsening):
    """Means over the coarse cells, (..., H, W, c), numpy or jax like the field, in its dtype; linear.

    Raises:
        ValueError: a field of another grid's shape.
    """
    if field.shape[-3:-1] != coarsening.fine.shape:
        raise ValueError(
            f"a field of shape {field.shape} is not (..., h, w, c) on the grid of {coarsening.fine.shape} to coarsen"
        )
    rows, columns = coarsening.rows.astype(field.dtype), coarsening.columns.astype(field.dtype)
    if isinstance(field, jax.Array):
        # Full precision: accelerators would round the factors of a product to 10 bits or fewer.
        return jnp.einsum("Hh,...hwc,Ww->...HWc", rows, field, columns, precision=jax.lax.Precision.HIGHEST)
    return np.einsum("Hh,...hwc,Ww->...HWc", rows, field, columns, optimize=True)


def _uniform_neighbours(grid: Grid, longitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Column west of each longitude and the fraction of the way to the next column east."""
    w = grid.longitude.size
    position = ((longitude - float(grid.longitude[0])) % 360.0) * (w / 360.0)
    west = np.floor(position).astype(np.int64)
    return west % w, position - west


def bilinear(
    grid: Grid, latitude: np.ndarray, longitude: np.ndarray, *, vector: bool = False
) -> tuple[Int[np.ndarray, "n 4"], Float[np.ndarray, "n 4"]]:
    """Indices and weights of bilinear interpolation from the grid to points.

    Longitude is periodic. A point nearer to a pole than the last row is interpolated across the pole, to the
    same row on the opposite meridian; a wind component changes its sign there.

    Args:
        grid: the grid of the field.
        latitude: (n,) degrees in [-90, 90].
        longitude: (n,) degrees, any range.
        vector: the field is a component of a horizontal vector.

    Returns:
        Indices into the flattened (h * w) field, int32, and weights, float32, for `interpolate`.

    Raises:
        ValueError: a latitude beyond the poles, coordinates not finite, or of different shapes.
    """
    latitude, longitude = np.asarray(latitude, np.float64), np.asarray(longitude, np.float64)
    if latitude.ndim != 1 or latitude.shape != longitude.shape:
        raise ValueError(
            "latitude and longitude of points must have the same one-dimensional shape, "
            f"got {latitude.shape} and {longitude.shape}"
        )
    wrong = ~((np.abs(latitude) <= 90) & np.isfinite(longitude))
    if wrong.any():
        i = int(wrong.argmax())
        raise ValueError(
            f"point {i} at latitude {latitude[i]:g}, longitude {longitude[i]:g}: "
            "latitude must lie in [-90, 90] degrees and longitude be finite"
        )
    h, w = grid.shape
    rows = grid.latitude.astype(np.float64)
    # One virtual row beyond each pole: the row next to the pole, seen from the opposite meridian.
    extended = np.concatenate([[-180.0 - rows[0]], rows, [180.0 - rows[-1]]])
    south = np.clip(np.searchsorted(rows, latitude, side="right"), 1 if grid.with_poles else 0, h)
    south = np.minimum(south, h - 1) if grid.with_poles else south
    fraction = (latitude - extended[south]) / (extended[south + 1] - extended[south])
    indices, weights = [], []
    for row, row_weight in ((south, 1.0 - fraction), (south + 1, fraction)):
        across = (row == 0) | (row == h + 1)
        west, east_weight = _uniform_neighbours(grid, longitude + np.where(across, 180.0, 0.0))
        row_weight = np.where(across & vector, -row_weight, row_weight)
        start = np.clip(row - 1, 0, h - 1) * w
        indices += [start + west, start + (west + 1) % w]
        weights += [row_weight * (1.0 - east_weight), row_weight * east_weight]
    return np.stack(indices, -1).astype(np.int32), np.stack(weights, -1).astype(np.float32)


def interpolate(
    field: Float[Array | np.ndarray, "*batch h w c"],
    indices: Int[np.ndarray, "n 4"],
    weights: Float[np.ndarray, "n 4"],
):
    """Values of a field at points, by the indices and weights of `bilinear`; linear and differentiable.

    Returns:
        (..., n, c), numpy or jax like the field, in its dtype.
    """
    *batch, h, w, c = field.shape
    xp = jnp if isinstance(field, jax.Array) else np
    corners = field.reshape(*batch, h * w, c)[..., xp.asarray(indices), :]
    weights = xp.asarray(weights, field.dtype).reshape((1,) * len(batch) + weights.shape + (1,))
    return (corners * weights).sum(axis=-2)


def zonal_spectrum(field: Float[Array | np.ndarray, "..."], axis: int = -1) -> Float[Array | np.ndarray, "..."]:
    """Zonal power spectrum: the variance along a latitude circle held by each zonal wavenumber.

    Args:
        field: a real array with a longitude axis of length w.
        axis: position of longitude.

    Returns:
        The axis replaced by wavenumbers 0 ... w // 2; their sum is the mean square (Parseval).
    """
    xp = jnp if isinstance(field, jax.Array) else np
    w = field.shape[axis]
    power = xp.abs(xp.fft.rfft(field, axis=axis) / w) ** 2
    count = np.full(w // 2 + 1, 2.0)  # every wavenumber stands for +k and -k ...
    count[0] = 1.0
    if w % 2 == 0:
        count[-1] = 1.0  # ... but the mean and the Nyquist wavenumber stand for themselves
    shape = [1] * field.ndim
    shape[axis] = count.size
    return (power * xp.asarray(count.reshape(shape), power.dtype)).astype(field.dtype)
