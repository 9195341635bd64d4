"""Observations by a function of the user's: any differentiable A of a window, its values from Python or from a file."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import xarray
from jaxtyping import Array, PyTree

from wind_jax.data.normalize import Statistics
from wind_jax.observations.observation import Observation, chosen_variance, observe

ERROR = "_error"
"""What the name of a value ends in that is the standard deviation of another."""


def operator_observation(
    operator: Callable[[Array], PyTree], y: PyTree, error: PyTree, statistics: Statistics, variance: str = "nominal"
) -> Observation:
    """The observation of what an operator makes of a window.

    Args:
        operator: A, of one member (t, h, w, c) in physical units, to a pytree; differentiable.
        y: observed values, in the operator's units; numpy, jax or traced.
        error: their standard deviations: a number, or a pytree of numbers or arrays like y.
        statistics: of the prior.
        variance: "nominal", the square of each error, or "adaptive", the mean squared residual of each leaf of y.

    Raises:
        ValueError: errors that are not positive, or do not fit y; y that is not finite; another `variance`.
    """
    check_error(error)
    nominal = jax.tree.map(lambda e: np.float32(e) ** 2, error)
    return observe(operator, y, chosen_variance(variance, nominal), statistics)


def check_error(error: PyTree) -> None:
    """Checks the standard deviations of the errors.

    Raises:
        ValueError: one is not positive and finite.
    """
    if not all((np.isfinite(e) & (np.asarray(e) > 0)).all() for e in jax.tree.leaves(error)):
        raise ValueError(f"The errors of the operator's values must be positive and finite, got {error}.")


def read_values(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Observed values by name, and errors by the name of their value, from a file.

    Args:
        path: of an .npz file of arrays, or of a NetCDF file of variables; `NAME_error` is the standard deviation of
            the error of `NAME`.

    Raises:
        ValueError: a file that cannot be read or holds something else than numbers, or errors of nothing.
    """
    try:
        if str(path).endswith(".npz"):
            with np.load(path) as file:
                found = dict(file)
        else:
            with xarray.open_dataset(path) as file:
                found = {name: variable.values for name, variable in file.data_vars.items()}
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot read observed values from {path}: {error}.") from error
    if wrong := [name for name, values in found.items() if values.dtype.kind not in "iuf"]:
        raise ValueError(f"{path} holds {wrong}, which are no numbers.")
    found = {name: values.astype(np.float32) for name, values in found.items()}
    errors = {name.removesuffix(ERROR): values for name, values in found.items() if name.endswith(ERROR)}
    y = {name: values for name, values in found.items() if not name.endswith(ERROR)}
    if not y or (alone := sorted(set(errors) - set(y))):
        raise ValueError(f"{path} holds {'errors of ' + ', '.join(alone) if y else 'no values'}, expected values.")
    return y, errors
