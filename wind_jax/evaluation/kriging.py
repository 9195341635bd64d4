"""Kriging, or optimal interpolation, of sparse observations on the sphere, each channel by itself.

The anomaly from climatology, in model units, is a Gaussian field; between a place at latitude p, longitude l, time s
and one at p', l', s' its covariance is

    k = a(p) a(p') r(theta) q(s - s'),   r = sum_n b_n P_n(cos theta),   b_n >= 0,   q = sum_m w_m q_m,   w_m >= 0

with theta the great-circle distance between (p, l - v s) and (p', l' - v s'): patterns drift eastward at the rate v.
Sums of Legendre polynomials P_n with coefficients that are not negative are all isotropic correlations that are
positive definite on the sphere (Schoenberg 1942, Duke Math. J. 9), so nothing is assumed of the shape; negative lobes
are in it, as midlatitude waves have them. The q_m are exponentials and Matern-3/2 functions of several time scales,
positive definite by Bochner. Amplitude, drift and products keep k positive definite.

Given observations y = x + error at some cells, mean and variance of x are the exact Gaussian posterior
(Gandin 1963; Rasmussen and Williams 2006, eq. 2.23 f.) with the observations of all frames of a window.

    python -m wind_jax.evaluation.kriging --data ARCHIVE --prior PRIOR --out covariance.json
"""

import argparse
import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.polynomial import legendre
from scipy.interpolate import CubicSpline
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import nnls
from scipy.spatial import cKDTree

from wind_jax.channels import Channel
from wind_jax.command import command
from wind_jax.data.climatology import Climatology
from wind_jax.data.normalize import Statistics
from wind_jax.data.store import TIME_STEP, Store, open_store
from wind_jax.data.windows import window_starts
from wind_jax.embedded import resolve
from wind_jax.evaluation.baselines import unit_vectors
from wind_jax.prior import load_prior
from wind_jax.progress import track
from wind_jax.sphere import Grid, cell_area

_HOURS = (6.0, 12.0, 24.0, 48.0, 96.0, 192.0, 480.0)  # time scales of the q_m
_DRIFTS = np.arange(-9.0, 25.0, 3.0)  # degrees east a day among which v is chosen
_JITTER = 1e-7  # of the variance: keeps the factors of a smooth covariance without observation error positive
_BLOCK = 2**22  # covariances held at once


@dataclass(frozen=True, eq=False)
class Covariance:
    """A fitted covariance of anomalies from climatology, in model units.

    Attributes:
        channels: what the channel axis holds.
        latitude: (h,) degrees, of the amplitude; between them it is interpolated.
        amplitude: (h, c) standard deviation of the anomaly, a.
        degrees: (n + 1, c) coefficients b of the Legendre series, of sum 1.
        persistence: (14, c) weights w of exponentials, then of Matern-3/2 functions, of sum 1.
        drift: (c,) v, degrees east a day.

    Raises:
        ValueError: shapes that do not fit, negative coefficients, or a sum that is not 1.
    """

    channels: tuple[Channel, ...]
    latitude: np.ndarray
    amplitude: np.ndarray
    degrees: np.ndarray
    persistence: np.ndarray
    drift: np.ndarray

    def __post_init__(self):
        shapes = {
            "latitude": (self.latitude.size,),
            "amplitude": (self.latitude.size, len(self.channels)),
            "degrees": (len(self.degrees), len(self.channels)),
            "persistence": (2 * len(_HOURS), len(self.channels)),
            "drift": (len(self.channels),),
        }
        for name, shape in shapes.items():
            values = getattr(self, name)
            if values.shape != shape or not np.isfinite(values).all():
                raise ValueError(f"{name} of a covariance must be finite and of shape {shape}, got {values.shape}.")
        for name in ("degrees", "persistence"):
            values = getattr(self, name)
            if (values < 0).any() or np.abs(values.sum(0) - 1).max() > 1e-3:
                raise ValueError(
                    f"{name} of a covariance must be 0 or more and sum to 1 in each channel, or it is not positive "
                    f"definite; got a least value of {values.min():g} and sums {values.sum(0)}."
                )
        if (self.amplitude <= 0).any():
            raise ValueError(f"amplitudes of a covariance must be positive, got {self.amplitude.min():g}.")

    def deviation(self, grid: Grid) -> Float[np.ndarray, "h 1 c"]:
        """Standard deviation of the anomaly in each row of a grid."""
        rows = [np.interp(grid.latitude, self.latitude, a) for a in self.amplitude.T]
        return np.stack(rows, axis=-1, dtype=np.float32)[:, None]

    def to_dict(self) -> dict:
        """Plain lists and strings, for JSON, to five significant digits."""
        plain = lambda a: [plain(b) for b in a] if a.ndim else float(f"{a:.5g}")
        arrays = {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.name != "channels"}
        return {"channels": [c.to_dict() for c in self.channels], **arrays}

    @classmethod
    def from_dict(cls, d: dict) -> "Covariance":
        """Inverse of `to_dict`.

        Raises:
            ValueError: an entry is missing or wrong.
        """
        names = [f.name for f in fields(cls)]
        if missing := set(names).difference(d):
            raise ValueError(f"a covariance lacks {sorted(missing)}; got entries {sorted(d)}")
        selected = tuple(Channel.from_dict(c) for c in d["channels"])
        return cls(selected, *(np.array(d[name], np.float64) for name in names[1:]))

    def save(self, path: str | Path) -> None:
        """Writes JSON."""
        Path(path).write_text(json.dumps(self.to_dict()) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Covariance":
        """Reads what `save` wrote."""
        if not Path(path).is_file():
            raise ValueError(f"no covariance file at {path}")
        return cls.from_dict(json.loads(Path(path).read_text()))


def fit_covariance(
    store: Store,
    climatology: Climatology,
    statistics: Statistics,
    period: tuple[str, str] | None = None,
    windows: int = 300,
    frames: int = 9,
    cells: int = 500,
    seed: int = 0,
) -> Covariance:
    """The covariance of an archive's anomalies, from one pass over some of its windows.

    The amplitude is the root mean square of each row. The series b and the weights w are fitted by least squares
    without negative coefficients: b to the mean correlation of simultaneous anomalies in bins of distance, w to the
    regression of each lag's covariances on these. The drift is the one at which that regression is largest.

    Args:
        store: of training data.
        climatology: about which anomalies are.
        statistics: of model units.
        period: first and last date of the windows; None for all.
        windows: drawn at random without replacement; all where there are fewer.
        frames: of a window; one less is the longest lag.
        cells: drawn at random by area, whose pairs give the correlations.
        seed: of both draws.

    Raises:
        ValueError: another grid or other channels than the archive's, or fewer than two windows, frames or cells.
    """
    if min(windows, frames, cells) < 2:
        raise ValueError(f"expected two or more windows, frames and cells, got {windows}, {frames} and {cells}.")
    if statistics.channels != store.channels or climatology.grid != store.grid:
        raise ValueError(
            f"{store.path} has {len(store.channels)} channels on a grid of {store.grid.shape}; statistics must have "
            f"the same channels, got {len(statistics.channels)}, and the climatology the same grid, "
            f"got {climatology.grid.shape}."
        )
    rng, (h, w) = np.random.default_rng(seed), store.grid.shape
    starts = window_starts(store.times, frames, period)
    starts = np.sort(rng.choice(starts, min(windows, starts.size), replace=False))
    area = np.repeat(cell_area(store.grid), w)
    chosen = rng.choice(h * w, min(cells, h * w), replace=False, p=area / area.sum())
    climatology = climatology.select(store.channels)
    square, sample = np.zeros((h, len(store.channels))), []
    for start in track(starts, "Covariance", total=starts.size, unit="window"):
        normal = statistics.normalize(climatology.at(store.times[start : start + frames]))
        anomaly = statistics.normalize(store.read(int(start), frames)) - normal
        square += (anomaly**2).mean(axis=(0, 2))
        sample.append(anomaly.reshape(frames, h * w, -1)[:, chosen])
    amplitude = np.sqrt(square / starts.size)
    standard = np.stack(sample) / amplitude[chosen // w][None, None]
    pairs = _Pairs(store.grid, chosen, frames)
    fitted = [pairs.fit(standard[..., c]) for c in range(len(store.channels))]
    degrees, persistence, drift = (np.stack(part, axis=-1) for part in zip(*fitted, strict=True))
    return Covariance(store.channels, store.grid.latitude.astype(np.float64), amplitude, degrees, persistence, drift)


class _Pairs:
    """Pairs of the chosen cells, at every lag and drift, that all channels have in common."""

    def __init__(self, grid: Grid, chosen: np.ndarray, frames: int):
        h, w = grid.shape
        latitude, longitude = grid.latitude[chosen // w], grid.longitude[chosen % w]
        days = np.arange(frames) * (TIME_STEP / np.timedelta64(1, "D"))
        self.hours = 24 * days
        self.nodes = np.linspace(0, np.pi, 64 * h)  # distances are rounded to these
        still = unit_vectors(latitude, longitude)

        def apart(degrees_east):
            theta = _distance(still, unit_vectors(latitude, longitude - degrees_east))
            return np.rint(theta / self.nodes[1]).astype(np.int32)

        self.apart = {drift: [apart(drift * day) for day in days] for drift in _DRIFTS}
        # Coincident pairs are a bin of their own; others are binned by half the spacing of the rows.
        theta = np.where(np.eye(chosen.size, dtype=bool), 0, _distance(still, still) + 1e-6).ravel()
        self.bins = np.digitize(theta, np.linspace(1e-7, np.pi, 2 * h + 1))
        self.count = np.bincount(self.bins)
        self.full = self.count >= chosen.size // 10
        self.basis = legendre.legvander(np.cos(self.binned(theta)), h)

    def binned(self, values: np.ndarray) -> np.ndarray:
        """Means over the pairs of each bin that has enough of them; the first holds coincident ones."""
        return (np.bincount(self.bins, values.ravel()) / np.maximum(self.count, 1))[self.full]

    def fit(self, z: Float[np.ndarray, "s t n"]) -> tuple[np.ndarray, np.ndarray, float]:
        """Series, weights in time and drift of one channel's standardised anomalies."""
        frames = self.hours.size
        products = [_product(z[:, : frames - lag], z[:, lag:]) for lag in range(frames)]
        degrees = _non_negative(self.basis, self.binned(products[0]))
        table = legendre.legval(np.cos(self.nodes), degrees)

        def regressions(drift):
            shapes = (table[apart] for apart in self.apart[drift])
            return np.array([(r * c).sum() / (r * r).sum() for r, c in zip(shapes, products, strict=True)])

        drift = max(_DRIFTS, key=lambda v: regressions(v).sum())
        target = regressions(drift)
        return degrees, _non_negative(_in_time(self.hours).T, target / target[0]), drift


def kriging(
    observations: Float[np.ndarray, "t h w c"],
    background: Float[np.ndarray, "t h w c"],
    times: np.ndarray,
    grid: Grid,
    covariance: Covariance,
    error: Float[np.ndarray, "c"],
    exact: int = 4000,
) -> tuple[Float[np.ndarray, "t h w c"], Float[np.ndarray, "t h w c"]]:
    """Mean and standard deviation of a window given its observations, all in model units.

    Each channel is estimated from its own observations in all frames, at once where these are `exact` or fewer;
    beyond that the sphere is tiled, and the cells of a tile take the `exact` observations nearest to its centre.

    Args:
        observations: NaN where nothing was observed.
        background: the climatology at `times`.
        times: (t,) datetime64 of the frames.
        grid: of the fields.
        covariance: of the same channels.
        error: standard deviation of the observation error by channel, 0 or more.
        exact: see above.

    Returns:
        Mean and standard deviation of the field itself, without observation error. A channel without observations
        has the background and its climatological amplitude.

    Raises:
        ValueError: shapes that do not fit, an error that is negative, or a background that is not finite.
    """
    shape = (times.size, *grid.shape, len(covariance.channels))
    if observations.shape != shape or background.shape != shape:
        raise ValueError(
            f"expected observations and background of shape {shape} for these times, this grid and the covariance's "
            f"channels, got {observations.shape} and {background.shape}."
        )
    if error.shape != shape[-1:] or not (np.isfinite(error) & (error >= 0)).all():
        raise ValueError(f"expected an error of 0 or more for each of {shape[-1]} channels, got {error}.")
    if exact < 1 or not np.isfinite(background).all():
        raise ValueError(f"expected a finite background, and exact of 1 or more, got {exact}.")
    hours = (times - times[0]) / np.timedelta64(1, "h")
    mean, deviation = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for c in range(shape[-1]):
        known = np.isfinite(observations[..., c])
        y = (observations[..., c] - background[..., c])[known].astype(np.float64)
        field = _Field(covariance, c, grid, hours)
        estimate, variance = field.posterior(known, y, float(error[c]) ** 2, exact)
        mean[..., c] = background[..., c] + estimate
        deviation[..., c] = np.sqrt(np.maximum(variance, 0))
    return mean, deviation


class _Field:
    """The Gaussian field of one channel on the cells and frames of a window."""

    def __init__(self, covariance: Covariance, c: int, grid: Grid, hours: np.ndarray):
        self.latitude, self.longitude = (a.ravel() for a in np.meshgrid(grid.latitude, grid.longitude, indexing="ij"))
        self.amplitude = np.interp(self.latitude, covariance.latitude, covariance.amplitude[:, c])
        self.spline = _spline(covariance.degrees[:, c])
        self.in_time = lambda lag: np.tensordot(covariance.persistence[:, c], _in_time(lag), axes=1)
        self.drift, self.hours, self.shape = covariance.drift[c] / 24, hours, grid.shape

    def covariance(
        self,
        cells: Int[np.ndarray, "n"],
        frames: Int[np.ndarray, "n"],
        others: Int[np.ndarray, "m"],
        their_frames: Int[np.ndarray, "m"],
    ) -> Float[np.ndarray, "n m"]:
        """Between places and times and others."""
        where = lambda i, t: unit_vectors(self.latitude[i], self.longitude[i] - self.drift * self.hours[t])
        apart = self.spline(_distance(where(cells, frames), where(others, their_frames)))
        lags = self.in_time(self.hours[:, None] - self.hours[None])[frames[:, None], their_frames[None]]
        return self.amplitude[cells][:, None] * self.amplitude[others][None] * apart * lags

    def posterior(
        self, known: Bool[np.ndarray, "t h w"], y: Float[np.ndarray, "n"], noise: float, exact: int
    ) -> tuple[Float[np.ndarray, "t h w"], Float[np.ndarray, "t h w"]]:
        """Mean and variance of the anomaly."""
        frames, places = np.divmod(np.flatnonzero(known), self.latitude.size)
        mean = np.zeros((known.shape[0], self.latitude.size))
        variance = np.broadcast_to(self.amplitude**2, mean.shape).copy()
        if y.size:
            for cells, near in self._tiles(places, exact):
                among = places[near], frames[near]
                matrix = self.covariance(*among, *among)
                matrix[np.diag_indices_from(matrix)] += noise + _JITTER * self.amplitude[places[near]] ** 2
                factor = cholesky(matrix, lower=True, overwrite_a=True, check_finite=False)
                white = solve_triangular(factor, y[near], lower=True)
                for part in np.array_split(cells, -(-cells.size * near.size // _BLOCK)):
                    for t in range(known.shape[0]):
                        cross = self.covariance(part, np.full(part.size, t), *among)
                        gain = solve_triangular(factor, cross.T, lower=True, overwrite_b=True, check_finite=False)
                        mean[t, part] = white @ gain
                        variance[t, part] -= (gain**2).sum(0)
        return mean.reshape(known.shape), variance.reshape(known.shape)

    def _tiles(self, places: np.ndarray, exact: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Cells of each tile, and the observations that they take."""
        if places.size <= exact:
            return [(np.arange(self.latitude.size), np.arange(places.size))]
        # A Fibonacci lattice: tiles of equal area, an eighth of that of their observations.
        index = np.arange(-(-8 * places.size // exact))
        centres = unit_vectors(np.rad2deg(np.arcsin(1 - (2 * index + 1) / index.size)), 180 * (3 - np.sqrt(5)) * index)
        cells = unit_vectors(self.latitude, self.longitude)
        tile = cKDTree(centres).query(cells)[1]
        near = cKDTree(cells[places]).query(centres, exact)[1].reshape(index.size, exact)
        return [(np.flatnonzero(tile == i), near[i]) for i in np.unique(tile)]


def _distance(a: Float[np.ndarray, "n 3"], b: Float[np.ndarray, "m 3"]) -> Float[np.ndarray, "n m"]:
    """Great-circle distance in radians."""
    return np.arccos(np.clip(a @ b.T, -1, 1))


def _spline(degrees: Float[np.ndarray, "n"]) -> CubicSpline:
    """Correlation by distance in radians: the Legendre series, tabulated to an error of about 1e-8."""
    nodes = np.linspace(0, np.pi, 64 * degrees.size + 1)
    return CubicSpline(nodes, legendre.legval(np.cos(nodes), degrees), bc_type="clamped")


def _in_time(hours: Float[np.ndarray, "*lags"]) -> Float[np.ndarray, "k *lags"]:
    """Values at some lags of the exponentials and of the Matern-3/2 functions."""
    x = np.abs(hours)[None] / np.array(_HOURS).reshape(-1, *[1] * np.ndim(hours))
    return np.concatenate([np.exp(-x), (1 + 2 * x) * np.exp(-2 * x)])


def _product(a: Float[np.ndarray, "s t n"], b: Float[np.ndarray, "s t n"]) -> Float[np.ndarray, "n n"]:
    """Mean product of the values of each two cells."""
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    return a.T @ b / len(a)


def _non_negative(basis: Float[np.ndarray, "m k"], target: Float[np.ndarray, "m"]) -> Float[np.ndarray, "k"]:
    """Coefficients, none negative and of sum 1, whose combination of the columns is nearest to the target.

    The first target is the variance, 1, which the sum of the coefficients is; it weighs most.
    """
    weight = np.where(np.arange(target.size) == 0, 10.0, 1.0)
    found, _ = nnls(basis * weight[:, None], target * weight, maxiter=100 * basis.shape[1])
    return found / found.sum()


def main(arguments: list[str]) -> None:
    """Command line: fit to an archive of training data, about a prior's climatology, and save."""
    parser = argparse.ArgumentParser(prog="python -m wind_jax.evaluation.kriging", description=main.__doc__)
    parser.add_argument("--data", required=True, help="path or URL of the archive")
    parser.add_argument("--prior", default="embedded", help="prior.npz that has the channels and the climatology")
    parser.add_argument("--out", required=True, help="file to write, .json")
    parser.add_argument("--period", nargs=2, metavar=("FIRST", "LAST"), help="dates, both included whole")
    options = parser.parse_args(arguments)
    prior = load_prior(resolve(options.prior, "prior.npz"))
    if prior.climatology is None:
        raise ValueError(f"the prior {options.prior!r} carries no climatology, about which anomalies are.")
    store = open_store(options.data, prior.statistics.channels)
    period = tuple(options.period) if options.period else None
    fit_covariance(store, prior.climatology, prior.statistics, period).save(options.out)
    print(f"{options.out}: {len(store.channels)} channels, {Path(options.out).stat().st_size / 1e3:.1f} kB")


if __name__ == "__main__":
    command(main)
