"""Gridded observations: fields on the prior's grid or on a coarser one, at instants or over spans of time, with gaps.

    y = [mean over a cell of the (mean or sum over a span of) x][where something was observed] + noise

Sparse cells, swaths, coarse fields, daily means and coarse daily means are this one operator. The data are an xarray
Dataset with the names and units of `wind_jax.channels`, in memory or in a NetCDF or Zarr file:

- Dimensions are time, level (hPa), latitude and longitude, in any order and orientation, longitudes from 0 or from -180
  degrees. The grid covers the globe, or is a part of the prior's own. The dimension of time may have other names, so
  that variables may have times of their own.
- Fields are at instants, or over the spans that the `bounds` of time give (CF conventions). Then `cell_methods` of the
  variable says "time: mean" or "time: sum"; without it an accumulation is a sum and all else a mean.
- NaN stands where nothing was observed. A grid of fewer rows and columns that covers the globe is one of coarse cells.
- `NAME_error`, over any of these dimensions, is the standard deviation of the error of `NAME`, unless an argument
  gives it.

Which frames belong to a span from `begin` to `end`: of an instantaneous field those with begin <= time < end. The
accumulation of a frame is that of the time step before it, so of an accumulation those with begin < time <= end. The
mean temperature of a day has the frames of 0, 6, 12 and 18 h, its rain those of 6, 12, 18 and 24 h.

Cells at instants on the prior's own grid are observed in model units: the operator selects, is linear in precipitation
as well, which is observed as log10(1000 tp + 1), and all errors are of one order. All else is observed in physical
units, since the mean of rain in m is not that of its logarithm.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray
from jaxtyping import Array, Float, Int

from wind_jax.channels import Channel, positions
from wind_jax.data.normalize import Statistics
from wind_jax.data.store import TIME_STEP
from wind_jax.files import open_zarr
from wind_jax.observations.observation import Observation, check_size, chosen_variance, take
from wind_jax.sphere import Coarsening, Grid, coarsen, coarsening

Error = float | int | Mapping[str, float | int]

NOWHERE = np.iinfo(np.int32).max
"""Place of padding: beyond the end of any window, where `take` reads 0."""


class Placed(NamedTuple):
    """The observations of one variable in a window: arrays only, so that it may be an argument under `jax.jit`.

    Attributes:
        places: (m,) positions in the flattened fields (n, H, W, levels) of the variable; of cells in model units, in
            the flattened window (t, h, w, c); `NOWHERE` for padding.
        y: (m,) observed values, in the operator's units.
        error: (m,) their standard deviations.
        weights: (n, t) of the window's frames in each mean or sum; None at instants, where n is t.
    """

    places: Int[Array | np.ndarray, "m"]
    y: Float[Array | np.ndarray, "m"]
    error: Float[Array | np.ndarray, "m"]
    weights: Float[Array | np.ndarray, "n t"] | None = None


# --------------------------------------------------------------------------------------------------------- observations
@dataclass(frozen=True, eq=False)
class Field:
    """The observations of one variable, in the operator's units.

    Attributes:
        begin: (n,) datetime64, ascending.
        end: (n,) datetime64; at instants the same.
        method: "instant", "mean" or "sum".
        accumulation: whether a frame holds the sum over the time step before it.
        values: (n, H, W, levels), NaN where nothing was observed.
        error: (n, H, W, levels) standard deviations.
    """

    begin: np.ndarray
    end: np.ndarray
    method: str
    accumulation: bool
    values: Float[np.ndarray, "n H W l"]
    error: Float[np.ndarray, "n H W l"]

    def frames(self, times: np.ndarray, step: np.timedelta64) -> tuple[np.ndarray, np.ndarray]:
        """First and last frame (n,) of each instant or span, counted from the first of `times`."""
        begin, end = ((edge - times[0]) / step for edge in (self.begin, self.end))
        if self.method == "instant":
            first = last = begin
        elif self.accumulation:
            first, last = begin + 1, end
        else:
            first, last = np.ceil(begin), np.ceil(end) - 1
        return first, last


@dataclass(frozen=True, eq=False)
class Gridded:
    """Gridded observations of some variables, read and checked; `gridded` makes them of a dataset.

    Attributes:
        name: in errors.
        grid: of the observations.
        coarsening: from the prior's grid to this one; None where they are the same.
        statistics: of the prior.
        fields: observations by variable.
        step: time between frames.
    """

    name: str
    grid: Grid
    coarsening: Coarsening | None
    statistics: Statistics
    fields: Mapping[str, Field]
    step: np.timedelta64 = TIME_STEP

    def windows(self, times: Sequence[np.ndarray]) -> list[dict[str, Placed]]:
        """What each window observes, by variable: the instants at its frames, and the spans whose frames it has all.

        Arrays have the same shapes in all windows: one compiled sampler serves them.

        Args:
            times: (t,) datetime64 of the frames of each window, a time step apart.

        Raises:
            ValueError: an instant between frames, a span without frames or with more than a window has, or
                observations that belong to no window.
        """
        times = [np.asarray(frames, "datetime64[ns]") for frames in times]
        found: list[dict[str, Placed]] = [{} for _ in times]
        for name, field in self.fields.items():
            self._check_times(name, field, times)
            placed = [self._place(name, field, frames) for frames in times]
            for window, one in zip(found, _alike(placed), strict=True):
                window[name] = one
        return found

    def window(self, times: np.ndarray) -> dict[str, Placed]:
        """What a window observes that is the only one; see `windows`."""
        return self.windows([times])[0]

    def observation(self, placed: Mapping[str, Placed], variance: str = "nominal") -> Observation:
        """The observation of one window; see `gridded_observation`."""
        return gridded_observation(placed, self.statistics, self.coarsening, variance)

    def _check_times(self, name: str, field: Field, times: list[np.ndarray]) -> None:
        observed = np.isfinite(field.values).any((1, 2, 3))
        first, last = field.frames(times[0], self.step)
        size = max(len(frames) for frames in times)
        inside = np.zeros(observed.size, bool)
        for frames in times:
            inside |= _covered(*field.frames(frames, self.step), len(frames))
        earliest, latest = min(frames[0] for frames in times), max(frames[-1] for frames in times)
        outside = (field.end < earliest) | (field.begin > latest)
        aligned = (first == np.rint(first)) & (last == np.rint(last))
        wrong = {
            f"lies outside of the run's times, {_time(earliest)} to {_time(latest)}": outside,
            "is not that of a frame, or of the accumulations of some": ~aligned,
            "holds no frame": first > last,
            f"has more frames than a window, {size}": last - first >= size,
            "lies in no window as a whole": ~inside,
        }
        for reason, which in wrong.items():
            if (which & observed).any():
                i = int((which & observed).argmax())
                when = _time(field.begin[i]) + ("" if field.method == "instant" else f" to {_time(field.end[i])}")
                raise ValueError(f"{self.name}: the observation of {name!r} at {when} {reason}.")

    def _place(self, name: str, field: Field, times: np.ndarray) -> Placed:
        first, last = field.frames(times, self.step)
        rows = np.flatnonzero(_covered(first, last, len(times)))
        values, error = field.values[rows], field.error[rows]
        first, last, frame = first[rows, None], last[rows, None], np.arange(len(times))
        seen = np.isfinite(values)
        time, row, column, level = np.nonzero(seen)
        shape, weights = values.shape, None
        if field.method == "instant":
            time, shape = first[:, 0].astype(int)[time], (len(times), *shape[1:])
        else:
            weights = ((first <= frame) & (frame <= last)).astype(np.float32)
            if field.method == "mean":
                weights /= weights.sum(1, keepdims=True)
        if _selects(weights, self.coarsening):
            channels = positions(self.statistics.channels)[name]
            level, shape = channels[level], (*shape[:3], len(self.statistics.channels))
        check_size(shape)
        places = np.ravel_multi_index((time, row, column, level), shape).astype(np.int32)
        return Placed(places, values[seen], error[seen], weights)


def gridded_observation(
    placed: Mapping[str, Placed],
    statistics: Statistics,
    coarsening: Coarsening | None = None,
    variance: str = "nominal",
) -> Observation:
    """The observation of one window.

    Args:
        placed: from `Gridded.windows`; numpy, jax or traced.
        statistics: of the prior.
        coarsening: from the prior's grid to that of the observations; None where they are the same.
        variance: "nominal", the square of each error, or "adaptive", the mean squared residual of each variable (which
            counts padding).

    Raises:
        ValueError: another `variance`.
    """
    y = {name: p.y for name, p in placed.items()}
    nominal = {name: p.error**2 for name, p in placed.items()}
    return Observation(equivalents(placed, statistics, coarsening), y, chosen_variance(variance, nominal))


def equivalents(
    placed: Mapping[str, Placed], statistics: Statistics, coarsening: Coarsening | None = None
) -> Callable[[Float[Array, "t h w c"]], dict[str, Float[Array, "_"]]]:
    """The operator: what would have been observed of one member in model units, by variable."""
    channels = positions(statistics.channels)
    cells = {name: p.places for name, p in placed.items() if _selects(p.weights, coarsening)}
    means = {name: p for name, p in placed.items() if name not in cells}

    def operator(x):
        found = take(x, cells) if cells else {}
        fields = statistics.physical(x) if means else x
        for name, p in means.items():
            field = fields[..., channels[name]]
            if p.weights is not None:  # full precision: see `coarsen`
                weights = jnp.asarray(p.weights, field.dtype)
                field = jnp.einsum("nt,thwl->nhwl", weights, field, precision=jax.lax.Precision.HIGHEST)
            field = field if coarsening is None else coarsen(field, coarsening)
            found |= take(field, {name: p.places})
        return {name: found[name] for name in placed}

    return operator


def dense(placed: Mapping[str, Placed], shape: Sequence[int]) -> Float[np.ndarray, "t h w c"]:
    """Cells in model units on the grid of a window of this shape, NaN where nothing was observed."""
    out = np.full(int(np.prod(shape)), np.nan, np.float32)
    for p in placed.values():
        there = p.places < out.size
        out[p.places[there]] = p.y[there]
    return out.reshape(shape)


def _selects(weights: object, coarsening: Coarsening | None) -> bool:
    """Whether values of the window itself are observed, in model units."""
    return weights is None and coarsening is None


def _covered(first: np.ndarray, last: np.ndarray, frames: int) -> np.ndarray:
    """Whether a window has all the frames of each instant or span."""
    return (first >= 0) & (last < frames) & (first <= last) & (first == np.rint(first))


def _alike(placed: Sequence[Placed]) -> list[Placed]:
    """The same with arrays of equal shapes: padding has no residual and no weight on the state."""
    size = max(p.y.size for p in placed)
    spans = max(0 if p.weights is None else len(p.weights) for p in placed)

    def padded(p):
        more = (0, size - p.y.size)
        return Placed(
            np.pad(p.places, more, constant_values=NOWHERE),
            np.pad(p.y, more),
            np.pad(p.error, more, constant_values=1),
            None if p.weights is None else np.pad(p.weights, ((0, spans - len(p.weights)), (0, 0))),
        )

    return [padded(p) for p in placed]


def _time(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]"))


# -------------------------------------------------------------------------------------------------------------- reading
def read(path: str | Path) -> xarray.Dataset:
    """The dataset of a file, in memory.

    Args:
        path: of a NetCDF file, or of a Zarr directory or URL, which ends in ".zarr".

    Raises:
        ValueError: a file that cannot be opened, or a Zarr with other arrays than of numbers: to decode objects may
            run code.
    """
    try:
        if not str(path).rstrip("/").endswith(".zarr"):
            with xarray.open_dataset(path) as dataset:
                return dataset.load()
        return open_zarr(path).load()
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"Cannot read observations from {path}: {error}.") from error


def gridded(
    dataset: xarray.Dataset,
    statistics: Statistics,
    grid: Grid,
    error: Error | None = None,
    name: str = "gridded observations",
    step: np.timedelta64 = TIME_STEP,
) -> Gridded:
    """The observations that a dataset holds; the module says how it is laid out.

    Args:
        dataset: what was observed.
        statistics: of the prior.
        grid: of the prior.
        error: standard deviation, as `cell_errors` and `mean_errors` take it; None where the dataset has it.
        name: of the observations, for errors.
        step: time between the prior's frames.

    Raises:
        ValueError: no variable, one that the prior lacks or in other units, coordinates that are missing or off the
            globe, a grid finer than the prior's, values that are infinite or all NaN, or errors that are not
            positive.
    """
    try:
        dataset, own = _on_grid(dataset, grid)
        coarser = None if own == grid else coarsening(grid, own)
        names = _variables(dataset, statistics.channels)
        _check_error(error, names, statistics.channels)
        fields = {key: _field(dataset, key, statistics, coarser, error, step) for key in names}
    except ValueError as wrong:
        raise ValueError(f"{name}: {wrong}") from wrong
    return Gridded(name, own, coarser, statistics, fields, step)


def _on_grid(dataset: xarray.Dataset, grid: Grid) -> tuple[xarray.Dataset, Grid]:
    """The dataset from south to north and from 0 degrees east, filled up with NaN if a part of the prior's grid."""
    for axis in ("latitude", "longitude"):
        if axis not in dataset.indexes or dataset[axis].dtype.kind not in "iuf":
            raise ValueError(f"there is no coordinate {axis!r} in degrees")
    dataset = dataset.assign_coords(longitude=dataset["longitude"].values.astype(float) % 360)
    dataset = dataset.sortby(["latitude", "longitude"])
    latitude, longitude = (dataset[axis].values.astype(float) for axis in ("latitude", "longitude"))
    for axis, values in (("latitude", latitude), ("longitude", longitude)):
        if (np.diff(values) == 0).any():
            raise ValueError(f"the {axis} {values[:-1][np.diff(values) == 0][0]:g} occurs twice")
    near = [np.abs(a[:, None] - b[None, :]).min(1).max() < 1e-3 for a, b in
            ((latitude, grid.latitude), (longitude, grid.longitude))]  # fmt: skip
    if all(near) and ((latitude.size, longitude.size) == grid.shape or not _is_global(latitude, longitude)):
        whole = {"latitude": grid.latitude.astype(float), "longitude": grid.longitude.astype(float)}
        return dataset.reindex(whole, method="nearest", tolerance=1e-3), grid
    if np.abs(latitude).max() <= 90 and not _is_global(latitude, longitude):
        raise ValueError(
            f"latitudes {latitude[0]:g} to {latitude[-1]:g} and longitudes {longitude[0]:g} to {longitude[-1]:g} are a "
            "part of the globe, on another grid than the prior's: fill the rest of the grid with NaN"
        )
    own = Grid(latitude, longitude)
    if own.shape[0] > grid.shape[0] or own.shape[1] > grid.shape[1]:
        raise ValueError(
            f"the grid {own.shape} is finer than the prior's {grid.shape}: bring the fields to a coarser one"
        )
    return dataset, own


def _is_global(latitude: np.ndarray, longitude: np.ndarray) -> bool:
    """Whether rows reach the poles and columns go round."""
    if latitude.size < 2 or longitude.size < 2:
        return False
    south, north = np.diff(latitude)[[0, -1]]
    poles = latitude[0] + 90 <= south and 90 - latitude[-1] <= north
    return bool(poles and 0.9 * np.diff(longitude, append=longitude[0] + 360).max() <= 360 / longitude.size)


def _variables(dataset: xarray.Dataset, channels: Sequence[Channel]) -> list[str]:
    """Names of the observed variables, in the order of the channels."""
    bounds = {_bounds(dataset, axis) for axis in dataset.coords}
    errors = {f"{name}_error" for name in dataset.data_vars}
    names = [name for name in dataset.data_vars if name not in bounds and name not in errors]
    known = list(positions(channels))
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"the variables {unknown} are not among the prior's: {', '.join(known)}")
    if not names:
        raise ValueError("there is no variable in the dataset")
    return [name for name in known if name in names]


def _bounds(dataset: xarray.Dataset, axis: str) -> str | None:
    """Name of the bounds of a coordinate."""
    return dataset[axis].attrs.get("bounds") or dataset[axis].encoding.get("bounds")


def _field(
    dataset: xarray.Dataset,
    name: str,
    statistics: Statistics,
    coarser: Coarsening | None,
    error: Error | None,
    step: np.timedelta64,
) -> Field:
    where = positions(statistics.channels)[name]
    channels = [statistics.channels[i] for i in where]
    variable, units = dataset[name], dataset[name].attrs.get("units", channels[0].units)
    if units.replace("**", "") != channels[0].units:
        raise ValueError(f"{name!r} is in {units!r}, expected {channels[0].units!r}")
    time = [axis for axis in variable.dims if axis not in ("level", "latitude", "longitude")]
    if variable.dtype.kind not in "iuf":
        raise ValueError(f"{name!r} holds {variable.dtype}, expected numbers")
    if len(time) != 1 or not {"latitude", "longitude"} <= set(variable.dims):
        raise ValueError(f"{name!r} has the dimensions {variable.dims}, expected time, level, latitude and longitude")
    begin, end, method = _spans(dataset, variable, time[0], channels[0])
    values = _array(variable, time[0], channels).astype(np.float64)
    if np.isinf(values).any() or np.isnan(values).all():
        raise ValueError(f"{name!r} has {'infinite values' if np.isinf(values).any() else 'no value that is not NaN'}")
    selects = _selects(None if method == "instant" else (), coarser)
    frames = (end - begin) / step if method == "sum" else np.ones(begin.size)
    if error is None:
        deviation = _given_errors(dataset, variable, values, time[0], selects, statistics)
    elif selects:
        deviation = cell_errors(error, statistics, [name])[where][None, None, None]
    else:
        deviation = np.stack([mean_errors(error, statistics, [name], n)[name] for n in frames])[:, None, None]
    if selects:
        values = _model_units(values, statistics, where)
    deviation = np.broadcast_to(deviation, values.shape).astype(np.float32)
    if (wrong := np.isfinite(values) & ~((deviation > 0) & np.isfinite(deviation))).any():
        raise ValueError(f"the errors of {name!r} must be positive and finite, got {deviation[wrong][0]:g}")
    order = np.argsort(begin, kind="stable")
    return Field(
        begin[order], end[order], method, channels[0].accumulation, values.astype(np.float32)[order], deviation[order]
    )


def _given_errors(
    dataset: xarray.Dataset,
    variable: xarray.DataArray,
    values: Float[np.ndarray, "n H W l"],
    time: str,
    selects: bool,
    statistics: Statistics,
) -> Float[np.ndarray, "n H W l"]:
    """Errors of a variable that the dataset gives, in the operator's units; values are in physical units."""
    name = f"{variable.name}_error"
    if name not in dataset:
        raise ValueError(f"{variable.name!r} has no error: give its standard deviation, or the variable {name!r}")
    where = positions(statistics.channels)[variable.name]
    channels = [statistics.channels[i] for i in where]
    deviation = _array(xarray.ones_like(variable, float) * dataset[name], time, channels)
    if deviation.shape != values.shape:
        raise ValueError(f"{name!r} has other coordinates than {variable.name!r}")
    if not selects:
        return deviation
    if channels[0].transform == "log_precipitation" and dataset[name].attrs.get("units") == channels[0].units:
        deviation = deviation * 1000 / (np.log(10) * (1000 * np.maximum(values, 0) + 1))  # the slope of the logarithm
    return deviation / statistics.std[where].astype(np.float64)


def _spans(
    dataset: xarray.Dataset, variable: xarray.DataArray, time: str, channel: Channel
) -> tuple[np.ndarray, np.ndarray, str]:
    """Begin, end and method of a variable."""
    if time not in dataset.coords or dataset[time].dtype.kind != "M" or np.isnat(dataset[time].values).any():
        raise ValueError(f"{variable.name!r} has no times along {time!r}")
    times = dataset[time].values.astype("datetime64[ns]")
    said = re.search(rf"\b{time}: *(\w+)", variable.attrs.get("cell_methods", ""))
    method = said[1] if said else "sum" if channel.accumulation else "mean"
    bounds = _bounds(dataset, time)
    if bounds is None or method == "point":
        return times, times, "instant"
    if method not in ("mean", "sum"):
        raise ValueError(f"{variable.name!r} is a {method} over time, expected a mean, a sum or a point")
    if bounds not in dataset or dataset[bounds].shape != (times.size, 2):
        raise ValueError(f"{time!r} has no bounds {bounds!r} of shape {(times.size, 2)}")
    begin, end = dataset[bounds].values.astype("datetime64[ns]").T
    if not (begin < end).all():
        raise ValueError(f"a span of {time!r} ends before it begins")
    return begin, end, method


def _array(variable: xarray.DataArray, time: str, channels: Sequence[Channel]) -> Float[np.ndarray, "n H W l"]:
    """Values of a variable at the levels of the channels, NaN at those that it lacks."""
    if channels[0].level is None:
        if "level" in variable.dims:
            raise ValueError(f"{variable.name!r} is a surface field, but has levels")
        return variable.transpose(time, "latitude", "longitude").values[..., None]
    if "level" not in variable.coords:
        raise ValueError(f"{variable.name!r} has no coordinate 'level' in hPa")
    variable = variable if "level" in variable.dims else variable.expand_dims("level")
    levels = [channel.level for channel in channels]
    other = [level for level in variable["level"].values.tolist() if level not in levels]
    if other and variable.sel(level=other).notnull().any():
        raise ValueError(f"the prior has {variable.name!r} at {levels} hPa, not at {other}")
    return variable.reindex(level=levels).transpose(time, "latitude", "longitude", "level").values


def _model_units(values: Float[np.ndarray, "*n l"], statistics: Statistics, where: np.ndarray):
    """Physical units to model units in float64, rain not clipped at 0: the inverse of `Statistics.denormalize`."""
    if statistics.channels[where[0]].transform == "log_precipitation":
        if (values <= -1e-3).any():
            raise ValueError(f"precipitation of {np.nanmin(values):g} m: expected no less than 0")
        values = np.log10(1000 * values + 1)
    return (values - statistics.mean[where].astype(np.float64)) / statistics.std[where].astype(np.float64)


# --------------------------------------------------------------------------------------------------------------- errors
def cell_errors(error: Error, statistics: Statistics, variables: Sequence[str] = ()) -> Float[np.ndarray, "c"]:
    """Standard deviations of the errors of single cells, in model units, 0 for what is not observed.

    Args:
        error: one number, the fraction of every channel's standard deviation; or by variable name in physical
            units ({"temperature": 1.0} is 1 K at every level), for precipitation in those of log10(1000 tp + 1).
        statistics: of the channels.
        variables: names of those observed; all where it is empty.

    Raises:
        ValueError: an error that is not positive, an observed variable without one, or an unknown variable.
    """
    observed = _check_error(error, variables, statistics.channels)
    out = np.zeros(len(statistics.channels), np.float32)
    for name, where in observed.items():
        out[where] = np.float32(error[name]) / statistics.std[where] if isinstance(error, Mapping) else error
    return out


def mean_errors(
    error: Error, statistics: Statistics, variables: Sequence[str] = (), frames: float | int = 1
) -> dict[str, Float[np.ndarray, "l"]]:
    """Standard deviations of the errors of means, by variable, (levels,), physical units.

    Args:
        error: by variable name in physical units ({"temperature": 0.1} is 0.1 K at every level), or one number,
            the fraction of what one standard deviation of a channel above its mean is in physical units. That is
            the standard deviation itself but for precipitation, whose statistics are of log10(1000 tp + 1): there
            it is the step from the typical rain to that one deviation above it, about 1 mm in 6 h. Of sums the
            fraction is of so many times the amount as they have frames.
        statistics: of the channels.
        variables: names of those observed; all where it is empty.
        frames: that add up in accumulations.

    Raises:
        ValueError: as `cell_errors`.
    """
    observed = _check_error(error, variables, statistics.channels)
    if isinstance(error, Mapping):
        return {name: np.full(where.size, error[name]) for name, where in observed.items()}
    zero = np.zeros(len(statistics.channels))
    scale = error * (statistics.denormalize(zero + 1) - statistics.denormalize(zero))
    scale = scale * [frames if c.accumulation else 1 for c in statistics.channels]
    return {name: scale[where] for name, where in observed.items()}


def _check_error(
    error: Error | None, variables: Sequence[str], channels: Sequence[Channel]
) -> dict[str, Int[np.ndarray, "l"]]:
    """Where each observed variable lies on the channel axis, after its error was checked."""
    observed, known = observed_positions(channels, variables), positions(channels)
    if error is None:
        return observed
    wrong = (set(observed) - set(error)) | (set(error) - set(known)) if isinstance(error, Mapping) else ()
    if wrong:
        raise ValueError(f"observation errors are needed for {', '.join(observed)}; wrong or missing: {sorted(wrong)}")
    given = list(error.values()) if isinstance(error, Mapping) else [error]
    if not all(isinstance(number, Real) and 0 < number < np.inf for number in given):
        raise ValueError(f"observation errors must be positive, got {error}")
    return observed


def observed_positions(channels: Sequence[Channel], variables: Sequence[str]) -> dict[str, Int[np.ndarray, "l"]]:
    """Where each observed variable lies on the channel axis; all of them without names."""
    every = positions(channels)
    if unknown := sorted(set(variables) - set(every)):
        raise ValueError(f"observed variables {unknown} are not among the prior's: {', '.join(every)}")
    return {name: where for name, where in every.items() if not variables or name in variables}
