"""Conservation: global dry-air mass, water or energy of every frame, held at a target.

    A(x) = (Q(x) - target) / target,  y = 0

Q is the sum, or for energy the mean, over the cells of a column's integral. The operator returns the relative
departure from the target, formed in each cell before the mean over the cells: float32 resolves it to about 1e-8,
where the difference of two masses of 5e18 kg would be lost in rounding.

How well a total is held is not how well it is known. With `surface_pressure` among the channels, the mass of a column
is an integral of the state: that pressure over gravity, less the water. Without it, surface pressure is diagnosed from
the geopotential of a few levels: the dry-air mass of the packaged sample's own states then scatters by 1.1e-4 of itself
(standard deviation of 112 states over nine months; range 4.7e-4; 9e-6 from one state to the next), though that of the
Earth is constant. A target is good to that error, whatever the `error` to which a run is held at it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wind_jax import physics
from wind_jax.channels import Channel, index, levels_of
from wind_jax.data.normalize import Statistics
from wind_jax.sphere import Grid, area_mean
from wind_jax.tasks.observation import Observation, observe

Video = Float[Array | np.ndarray, "t h w c"]
Column = Float[Array | np.ndarray, "t h w"]
Target = float | Float[np.ndarray, "t"]

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
    column, area = _quantity(columns, quantity)
    x = x if isinstance(x, jax.Array) else x.astype(np.float64)
    return area_mean(column(columns, x), columns.grid) * area


def conservation_operator(
    columns: Columns, target: Target, quantity: str = "dry_air_mass"
) -> Callable[[Video], Float[Array | np.ndarray, "t"]]:
    """The relative departure of each frame from the target: (t, h, w, c) in physical units to (t,).

    Args:
        columns: of the video.
        target: one number or one for each frame, in the units of `total`.
        quantity: a name in `QUANTITIES`.

    Raises:
        ValueError: an unknown quantity, variables that the channels lack, a target that is not positive.
    """
    column, area = _quantity(columns, quantity)
    target = np.asarray(target, np.float64)
    if target.ndim > 1 or not (np.isfinite(target) & (target > 0)).all():
        raise ValueError(f"The target of {quantity} must be positive and finite, one or one a frame; got {target}.")
    mean = (target / area).reshape(-1, 1, 1)

    def operator(x):
        xp = jnp if isinstance(x, jax.Array) else np
        return area_mean(column(columns, x) / xp.asarray(mean, x.dtype) - 1, columns.grid)

    return operator


def conservation_observation(
    columns: Columns,
    target: Target,
    error: float,
    statistics: Statistics,
    frames: int,
    quantity: str = "dry_air_mass",
) -> Observation:
    """The observation that every frame of a window has the target.

    Args:
        columns: of the video.
        target: one number or one for each frame, in the units of `total`.
        error: standard deviation of what may remain, relative to the target, such as 1e-6: of the diagnosed total,
            which is itself known no better than the module's docstring says.
        statistics: of the video's channels.
        frames: of the window.
        quantity: a name in `QUANTITIES`.

    Raises:
        ValueError: as `conservation_operator`, a target for another number of frames, or an error that is not
            positive.
    """
    operator = conservation_operator(columns, target, quantity)
    if np.ndim(target) and len(target) != frames:
        raise ValueError(f"The target of {quantity} has {len(target)} values, expected one or {frames}, the frames.")
    if not (np.isfinite(error) and error > 0):
        raise ValueError(f"The relative error of {quantity} must be positive, got {error}.")
    return observe(operator, jnp.zeros(frames, jnp.float32), float(error) ** 2, statistics)


def rescale_dry_air_mass(
    x: Float[Array, "t h w c"], columns: Columns, target: Target, iterations: int = 3
) -> Float[Array, "t h w c"]:
    """The simple fix: every frame brought to the target by one change of pressure, the same all over the Earth.

    What climate models do to surface pressure (Williamson and Olson 1994, Mon. Wea. Rev. 122); its amount, see
    `Columns.lift`, is solved for by Newton's method, as water and a ground between levels make it nonlinear.

    Args:
        x: video in physical units.
        columns: of the video.
        target: dry-air mass in kg, one number or one for each frame.
        iterations: of Newton's method.

    Raises:
        ValueError: as `conservation_operator`.
    """
    operator = conservation_operator(columns, target)
    change = jnp.zeros(x.shape[0], x.dtype)
    for _ in range(iterations):  # frames do not mix: one product with ones has the derivative of each
        departure, slope = jax.jvp(lambda c: operator(columns.lift(x, c)), (change,), (jnp.ones_like(change),))
        change -= departure / slope
    return columns.lift(x, change)


def _quantity(columns: Columns, quantity: str):
    """Column and area of a quantity whose variables the channels have."""
    if quantity not in QUANTITIES:
        raise ValueError(f"Unknown quantity {quantity!r}: expected one of {', '.join(QUANTITIES)}.")
    column, area, needed = QUANTITIES[quantity]
    if missing := [name for name in needed if not levels_of(columns.channels, name)]:
        raise ValueError(
            f"{quantity} needs {', '.join(missing)} on pressure levels; the channels are "
            f"{', '.join(c.key for c in columns.channels)}"
        )
    return column, area
