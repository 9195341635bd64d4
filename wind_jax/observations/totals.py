"""Totals: global dry-air mass, water or energy of every frame, held at a target.

    A(x) = Q(x) / reference - 1,  y = target / reference - 1

Q is the sum, or for energy the mean, over the cells of a column's integral. The operator returns the relative
departure from a reference near the target, formed in each cell before the mean over the cells: float32 resolves it to
about 1e-8, where the difference of two masses of 5e18 kg would be lost in rounding. Targets are given, or are the
`amounts` of the last known frame or of the climatology; the reference is the same for all, so that one compiled sampler
serves them.

How well a total is held is not how well it is known: `wind_jax.columns` says what error a diagnosed total has. A target
is good to that error, whatever the `error` to which a run is held at it.
"""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wind_jax.columns import Columns, column_of, total
from wind_jax.data.normalize import Statistics
from wind_jax.observations.observation import Observation, chosen_variance, observe
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
    target = _positive(target, quantity)
    mean = (target / area).reshape(-1, 1, 1)

    def operator(x):
        xp = jnp if isinstance(x, jax.Array) else np
        return area_mean(column(columns, x) / xp.asarray(mean, x.dtype) - 1, columns.grid)

    return operator


def amounts(
    x: Video, columns: Columns, quantities: Iterable[str] = ("dry_air_mass",)
) -> dict[str, Float[np.ndarray, "t"]]:
    """Totals by quantity, to be targets: those of a known frame, or those of the climatology at some times.

    Args:
        x: (t, h, w, c) in physical units.
        columns: of the video.
        quantities: names in `QUANTITIES`.

    Raises:
        ValueError: an unknown quantity, or variables that the channels lack.
    """
    return {name: np.asarray(total(x, columns, name)) for name in quantities}


def departures(
    targets: Mapping[str, Target], references: Mapping[str, float], frames: int
) -> dict[str, Float[np.ndarray, "t"]]:
    """What `totals_observation` takes as y: the relative departure of each frame's target from a reference.

    Args:
        targets: by quantity, one number or one for each frame, in the units of `total`.
        references: by quantity; the same for all windows and cases.
        frames: of a window.

    Raises:
        ValueError: a target that is not positive and finite, or for another number of frames.
    """
    found = {}
    for name, target in targets.items():
        target = _positive(target, name)
        if target.ndim and len(target) != frames:
            raise ValueError(f"The target of {name} has {len(target)} values, expected one or {frames}, the frames.")
        found[name] = np.full(frames, target / references[name] - 1, np.float32)
    return found


def totals_observation(
    columns: Columns,
    y: Mapping[str, Float[Array | np.ndarray, "t"]],
    references: Mapping[str, float],
    error: Mapping[str, float],
    statistics: Statistics,
    variance: str = "nominal",
) -> Observation:
    """The observation that the totals of each frame of a window depart by y from their references.

    Args:
        columns: of the video.
        y: by quantity, from `departures`; numpy, jax or traced.
        references: by quantity, in the units of `total`.
        error: standard deviation of what may remain, by quantity, relative to the reference, such as 1e-6: of the
            diagnosed total, which is itself known no better than `wind_jax.columns` says.
        statistics: of the video's channels.
        variance: "nominal", the square of each error, or "adaptive", the mean squared residual of each quantity.

    Raises:
        ValueError: as `conservation_operator`, an error that is not positive, or another `variance`.
    """
    check_error(error)
    operators = {name: conservation_operator(columns, references[name], name) for name in y}
    nominal = {name: float(error[name]) ** 2 for name in y}
    return observe(
        lambda x: {name: operator(x) for name, operator in operators.items()},
        dict(y),
        chosen_variance(variance, nominal),
        statistics,
    )


def check_error(error: Mapping[str, float]) -> None:
    """Checks relative errors by quantity.

    Raises:
        ValueError: one is not positive and finite.
    """
    if wrong := {name: e for name, e in error.items() if not (np.isfinite(e) and e > 0)}:
        raise ValueError(f"The relative errors of conserved quantities must be positive, got {wrong}.")


def _positive(target: Target, quantity: str) -> Float[np.ndarray, "..."]:
    target = np.asarray(target, np.float64)
    if target.ndim > 1 or not (np.isfinite(target) & (target > 0)).all():
        raise ValueError(f"The target of {quantity} must be positive and finite, one or one a frame; got {target}.")
    return target


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
