"""Columns of a state: their pressure at the ground, dry air, water and energy, and the totals of these over the Earth.

How well a total is known: with `surface_pressure` among the channels, the mass of a column is an integral of the state,
that pressure over gravity, less the water. Without it, surface pressure is diagnosed from the geopotential of a few
levels: the dry-air mass of the packaged sample's own states then scatters by 1.1e-4 of itself (standard deviation of
112 states over nine months; range 4.7e-4; 9e-6 from one state to the next), though that of the Earth is constant.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wind_jax import physics
from wind_jax.channels import Channel, index, levels_of
from wind_jax.sphere import Grid, area_mean

Video = Float[Array | np.ndarray, "t h w c"]
Column = Float[Array | np.ndarray, "t h w"]

_WIND = ("u_component_of_wind", "v_component_of_wind")
_LIFT = physics.DRY_GAS_CONSTANT * 288.0  # m2 s-2 for a factor e of pressure, at the temperature of sea level


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a video in physical units, (t, h, w, c), numpy or jax.

    Surface pressure is a channel, or else diagnosed from geopotential on pressure levels.

    Attributes:
        channels: what the last axis of a video holds.
        grid: of the video.
        surface_geopotential: (h, w) m2 s-2, `geopotential_at_surface` of the data.

    Raises:
        ValueError: no means to tell surface pressure, or a ground that is not finite and of the grid's shape.
    """

    channels: Sequence[Channel]
    grid: Grid
    surface_geopotential: Float[np.ndarray, "_ _"]

    def __post_init__(self):
        if not self._has("surface_pressure") and len(levels_of(self.channels, "geopotential")) < 2:
            raise ValueError(
                "the columns need surface_pressure, or geopotential at two levels or more to tell it from; the "
                f"channels are {', '.join(c.key for c in self.channels)}"
            )
        ground = self.surface_geopotential
        if ground.shape != self.grid.shape or not np.isfinite(ground).all():
            raise ValueError(
                f"geopotential_at_surface must be finite and of the grid's shape {self.grid.shape}, got {ground.shape}"
            )

    def surface_pressure(self, x: Video) -> Column:
        """Pa."""
        if self._has("surface_pressure"):
            return x[..., index(self.channels, "surface_pressure")]
        profile, levels = self._profile(x, "geopotential")
        return physics.surface_pressure(profile, levels, self._ground(x))

    def dry_air(self, x: Video) -> Column:
        """Mass of dry air, kg m-2."""
        return physics.column_dry_air(*self._profile(x, "specific_humidity"), self.surface_pressure(x))

    def water(self, x: Video) -> Column:
        """Mass of water vapour, kg m-2."""
        return physics.column_water(*self._profile(x, "specific_humidity"), self.surface_pressure(x))

    def energy(self, x: Video) -> Column:
        """Internal, potential, latent and kinetic energy, J m-2."""
        (temperature, levels), *others = (self._profile(x, n) for n in ("temperature", "specific_humidity", *_WIND))
        if any(other != levels for _, other in others):
            raise ValueError(f"energy needs temperature, humidity and wind at the same levels; temperature: {levels}")
        pressure = self.surface_pressure(x)
        return physics.column_energy(temperature, *(p for p, _ in others), levels, pressure, self._ground(x))

    def lift(self, x: Float[Array, "t h w c"], change: Float[Array, "t"]) -> Float[Array, "t h w c"]:
        """The video with dry air put under its columns: all pressures at the ground times exp(change).

        Surface and sea-level pressure are scaled, and all pressure levels rise by as much geopotential as air of
        288 K takes, so that surface pressure diagnosed from them follows; temperature, humidity at each level,
        wind and so all horizontal gradients of geopotential stay.
        """
        change = change[:, None, None, None]
        names = [c.name for c in self.channels]
        pressure = np.array([n in ("surface_pressure", "mean_sea_level_pressure") for n in names])
        geopotential = np.array([n == "geopotential" for n in names])[None, None, None, :]
        raised = x + jnp.where(geopotential, _LIFT * change, 0)
        return jnp.where(pressure[None, None, None, :], x * jnp.exp(change), raised)

    def _has(self, name: str) -> bool:
        return any(c.name == name for c in self.channels)

    def _profile(self, x: Video, name: str) -> tuple[Float[Array | np.ndarray, "t h w l"], list[int]]:
        """A variable on its pressure levels, and these."""
        if x.shape[1:] != (*self.grid.shape, len(self.channels)):
            raise ValueError(f"expected (t, h, w, c) = (t, {self.grid.shape}, {len(self.channels)}), got {x.shape}")
        levels = levels_of(self.channels, name)
        return x[..., np.array([index(self.channels, name, level) for level in levels])], levels

    def _ground(self, x: Video) -> Column:
        xp = jnp if isinstance(x, jax.Array) else np
        return xp.broadcast_to(xp.asarray(self.surface_geopotential, x.dtype)[None], x.shape[:-1])


QUANTITIES = {
    "dry_air_mass": (Columns.dry_air, physics.EARTH_AREA, ("specific_humidity",)),
    "total_water": (Columns.water, physics.EARTH_AREA, ("specific_humidity",)),
    "energy": (Columns.energy, 1.0, ("temperature", "specific_humidity", *_WIND)),
}
"""What can be conserved: its column, the area that the global mean of it stands for, and the variables it needs.

Dry-air mass and total water (vapour) are in kg, energy is a global mean in J m-2.
"""


def total(x: Video, columns: Columns, quantity: str = "dry_air_mass") -> Float[Array | np.ndarray, "t"]:
    """Dry-air mass or water of the Earth in kg, or its mean energy in J m-2, of each frame in physical units.

    Of a numpy video in float64; of a jax video in its dtype.

    Raises:
        ValueError: an unknown quantity, or variables that the channels lack.
    """
    column, area = column_of(columns, quantity)
    x = x if isinstance(x, jax.Array) else x.astype(np.float64)
    return area_mean(column(columns, x), columns.grid) * area


def column_of(columns: Columns, quantity: str):
    """Column of a quantity, and the area that its global mean stands for: an entry of `QUANTITIES`.

    Raises:
        ValueError: an unknown quantity, or variables that the channels lack.
    """
    if quantity not in QUANTITIES:
        raise ValueError(f"Unknown quantity {quantity!r}: expected one of {', '.join(QUANTITIES)}.")
    column, area, needed = QUANTITIES[quantity]
    if missing := [name for name in needed if not levels_of(columns.channels, name)]:
        raise ValueError(
            f"{quantity} needs {', '.join(missing)} on pressure levels; the channels are "
            f"{', '.join(c.key for c in columns.channels)}"
        )
    return column, area
