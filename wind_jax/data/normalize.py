"""Statistics of an archive, and the change between physical units and model units.

Model units: each channel transformed (precipitation as log10(1000 tp + 1), tp in m), less its global area-weighted
mean, divided by its standard deviation: about the climatology where one is given, so that what is uncertain has
variance 1 in every channel, else about the mean.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wind_jax.channels import Channel
from wind_jax.data.store import TIME_STEP, Store, in_period
from wind_jax.sphere import area_weights

SETTINGS, STATISTICS, CLIMATOLOGY = "prepare.json", "statistics.json", "climatology.npz"
"""Files that `data.prepare` leaves in an archive: what it was made from and how, and what is known of all of it."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and spread of each channel, in transformed units.

    Attributes:
        channels: what the channel axis holds.
        mean: (c,) area-weighted mean over space and time.
        std: (c,) standard deviation over space and time, about the climatology or the mean.
        difference_std: (c,) standard deviation of the change in 6 h.

    Raises:
        ValueError: shapes do not match the channels, or a value is not finite, or a std not positive.
    """

    channels: tuple[Channel, ...]
    mean: np.ndarray
    std: np.ndarray
    difference_std: np.ndarray

    def __post_init__(self):
        for name in ("mean", "std", "difference_std"):
            values = np.array(getattr(self, name), np.float32)
            if values.shape != (len(self.channels),):
                raise ValueError(
                    f"{name} must have one value for each of {len(self.channels)} channels, got shape {values.shape}"
                )
            wrong = ~np.isfinite(values) | ((values <= 0) & (name != "mean"))
            if wrong.any():
                i = int(wrong.argmax())
                raise ValueError(
                    f"{name} of {self.channels[i].key!r} is {values[i]:g}; expected a finite "
                    f"{'number' if name == 'mean' else 'positive number: is the field constant?'}"
                )
            values.flags.writeable = False
            object.__setattr__(self, name, values)

    def normalize(
        self, x: Float[Array | np.ndarray, "*batch c"], out: Float[np.ndarray, "*batch c"] | None = None
    ) -> Float[Array | np.ndarray, "*batch c"]:
        """Physical units to model units; numpy in, numpy out; jax in, jax out, differentiable.

        Negative precipitation, as an operator or a noisy member may hold, counts as none.

        Args:
            x: physical units.
            out: contiguous numpy array for the result, which may be x itself; a new one if left out.
        """
        xp, x = self._namespace(x)
        mean, std = self._constant(xp, x, self.mean), self._constant(xp, x, self.std)
        rain = _rain(self.channels)
        wet = (_log_precipitation(xp, x[..., rain]) - mean[..., rain]) / std[..., rain]
        if xp is jnp:
            return _put((x - mean) / std, rain, wet)
        out = np.empty(x.shape, x.dtype) if out is None else out
        # Over rows of cells numpy is twice as fast as over cells of channels.
        rows = (math.prod(x.shape[:-2]), math.prod(x.shape[-2:]))
        flat = out.reshape(rows, copy=False)
        mean, std = (np.tile(a.reshape(-1), rows[1] // a.size)[None, :] for a in (mean, std))
        np.divide(np.subtract(x.reshape(rows), mean, out=flat), std, out=flat)
        return _put(out, rain, wet)

    def denormalize(self, x: Float[Array | np.ndarray, "*batch c"]):
        """Model units to physical units, the inverse of `normalize`.

        Precipitation is not clipped: it may be as low as -1 mm.
        """
        xp, x = self._namespace(x)
        out = x * self._constant(xp, x, self.std)
        out += self._constant(xp, x, self.mean)
        rain = _rain(self.channels)
        return _put(out, rain, (10 ** out[..., rain] - 1) / 1000)

    def physical(self, x: Float[Array | np.ndarray, "*batch c"]):
        """Model units to physical units without the negative rain and humidity of a prior that knows no such bound.

        What results hold and operators see. Derivatives are those of `denormalize`, so that guidance by a dry place
        reaches it from below 0 as well.
        """
        fields = self.denormalize(x)
        bounded = [i for i, channel in enumerate(self.channels) if channel.non_negative]
        if isinstance(x, jax.Array):
            return fields + jax.lax.stop_gradient(fields.at[..., bounded].max(0) - fields)
        fields[..., bounded] = np.maximum(fields[..., bounded], 0)
        return fields

    def _namespace(self, x):
        if x.shape[-1:] != (len(self.channels),):
            raise ValueError(f"the last axis must hold {len(self.channels)} channels, got an array of shape {x.shape}")
        return (jnp, x) if isinstance(x, jax.Array) else (np, np.asarray(x))

    @staticmethod
    def _constant(xp, x, values: np.ndarray):
        return xp.asarray(values, x.dtype).reshape((1,) * (x.ndim - 1) + values.shape)

    def to_dict(self) -> dict:
        """Plain lists, dicts and strings, for JSON; the channels with their definitions."""
        return {
            "channels": [c.to_dict() for c in self.channels],
            **{name: getattr(self, name).tolist() for name in ("mean", "std", "difference_std")},
        }

    @classmethod
    def from_dict(cls, d: dict) -> "Statistics":
        """Inverse of `to_dict`.

        Raises:
            ValueError: an entry is missing or wrong.
        """
        if missing := {"channels", "mean", "std", "difference_std"}.difference(d):
            raise ValueError(f"statistics lack {sorted(missing)}; got entries {sorted(d)}")
        selected = tuple(Channel.from_dict(c) for c in d["channels"])
        return cls(selected, *(np.array(d[name]) for name in ("mean", "std", "difference_std")))

    def save(self, path: str | Path) -> None:
        """Writes JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Statistics":
        """Reads what `save` wrote."""
        if not Path(path).is_file():
            raise ValueError(f"no statistics file at {path}")
        return cls.from_dict(json.loads(Path(path).read_text()))


def compute_statistics(
    store: Store,
    period: tuple[str, str] | None = None,
    climatology: Callable[[np.ndarray], Float[np.ndarray, "t h w c"]] | None = None,
) -> Statistics:
    """Statistics of an archive in one streaming pass, accumulated in float64.

    Args:
        store: the archive.
        period: first and last date, both included whole; None for all of it.
        climatology: physical fields at some times, about which `std` is taken; None for the mean.

    Raises:
        ValueError: an empty period, no two times 6 h apart, a channel that is constant, missing data.
    """
    indices = np.flatnonzero(in_period(store.times, period))
    if not (np.diff(store.times[indices]) == TIME_STEP).any():
        raise ValueError(f"{store.path} has no two consecutive times 6 h apart in period {period}")
    rain = _rain(store.channels)
    weights = np.asarray(area_weights(store.grid), np.float64)
    weights = np.broadcast_to(weights / weights.sum() / store.grid.shape[1], store.grid.shape).reshape(-1)

    def moments(x):  # (h * w, c): area-weighted means of x and x^2
        return np.stack([weights @ x, weights @ (x * x)])

    total, change, anomaly = (np.zeros((2, len(store.channels))) for _ in range(3))
    pairs, offset, previous, previous_time = 0, None, None, None

    def transformed(state):  # (h * w, c)
        x = state.reshape(-1, len(store.channels)).astype(np.float64)
        return _put(x, rain, _log_precipitation(np, x[..., rain]))

    for block, states in store.blocks(indices, "Statistics"):
        for time, state in zip(store.times[block], states):
            x = transformed(state)
            if climatology is not None:
                anomaly += moments(x - transformed(climatology(time[None])[0]))
            # Sums are about the first state's mean: squares of geopotential would lose digits otherwise.
            offset = weights @ x if offset is None else offset
            x -= offset
            total += moments(x)
            if previous is not None and time - previous_time == TIME_STEP:
                change += moments(x - previous)
                pairs += 1
            previous, previous_time = x, time

    def deviation(moments):
        return np.sqrt(np.maximum(moments[1] - moments[0] ** 2, 0))

    total, anomaly, change = total / len(indices), anomaly / len(indices), change / pairs
    spread = deviation(total if climatology is None else anomaly)
    return Statistics(store.channels, total[0] + offset, spread, deviation(change))


def _rain(channels: tuple[Channel, ...]) -> np.ndarray:
    """Positions of the channels with the precipitation transform."""
    return np.flatnonzero([c.transform == "log_precipitation" for c in channels])


def _log_precipitation(xp, tp):
    return xp.log10(1000 * xp.maximum(tp, 0.0) + 1)


def _put(x, positions: np.ndarray, values):
    """x with other values at some positions of its last axis; a numpy array is changed in place.

    Only these positions are transformed: 10^T of a temperature would overflow, and its gradient be NaN.
    """
    if positions.size == 0:
        return x
    if isinstance(x, jax.Array):
        return x.at[..., positions].set(values)
    x[..., positions] = values
    return x
