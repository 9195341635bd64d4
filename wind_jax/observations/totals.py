"""Totals: global dry-air mass, water or energy of every frame, held at a target.

    A(x) = (Q(x) - target) / target,  y = 0

Q is the sum, or for energy the mean, over the cells of a column's integral. The operator returns the relative
departure from the target, formed in each cell before the mean over the cells: float32 resolves it to about 1e-8,
where the difference of two masses of 5e18 kg would be lost in rounding.

How well a total is held is not how well it is known: `wind_jax.columns` says what error a diagnosed total has. A target
is good to that error, whatever the `error` to which a run is held at it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wind_jax.columns import Columns, column_of
from wind_jax.data.normalize import Statistics
from wind_jax.observations.observation import Observation, observe
from wind_jax.sphere import area_mean

Video = Float[Array | np.ndarray, "t h w c"]
Target = float | Float[np.ndarray, "t"]


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
    column, area = column_of(columns, quantity)
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
