"""An operator of the user's: what it sees, where its values come from, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
import xarray

from wind_jax.channels import channels
from wind_jax.data.normalize import Statistics
from wind_jax.observations.observation import check
from wind_jax.observations.operator import operator_observation, read_values

STATISTICS = Statistics(channels(["2m_temperature"], []), np.array([280.0]), np.array([10.0]), np.ones(1))
VALUES = {"mean": np.float32(285.0), "rows": np.full((2, 3), 281, np.float32)}
ERRORS = {"mean": np.float32(0.5), "rows": np.full((2, 3), 2, np.float32)}


def operator(x):
    return {"mean": x.mean(), "rows": x[..., 0].mean(-1)}


def write(path, values):
    if path.suffix == ".npz":
        np.savez(path, **values)
    else:
        shaped = {k: (("time", "latitude")[: np.ndim(v)], v) for k, v in values.items()}
        xarray.Dataset(shaped).to_netcdf(path)
    return path


@pytest.mark.parametrize("name", ["y.npz", "y.nc"])
def test_values_of_a_file_are_those_of_python(name, tmp_path):
    y, error = read_values(write(tmp_path / name, VALUES | {f"{k}_error": v for k, v in ERRORS.items()}))
    observation = operator_observation(operator, y, error, STATISTICS)
    check(observation, (2, 3, 4, 1))
    for key, values in VALUES.items():
        np.testing.assert_array_equal(observation.y[key], values)
        np.testing.assert_array_equal(observation.variance[key], ERRORS[key] ** 2)
    np.testing.assert_allclose(observation.operator(jnp.full((2, 3, 4, 1), 0.5))["rows"], 285.0)


@pytest.mark.parametrize("error", [0.0, -0.1, {"mean": float("nan"), "rows": 1.0}, {"mean": 1.0, "rows": np.zeros(3)}])
def test_errors_are_positive(error):
    with pytest.raises(ValueError, match="must be positive and finite"):
        operator_observation(operator, VALUES, error, STATISTICS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": np.array("warm")}, r"\['mean'\], which are no numbers"),
        ({"mean_error": np.ones(2)}, "no values"),
        ({"mean": np.ones(2), "rows_error": np.ones(2)}, "errors of rows"),
        ({"mean": np.array(None)}, "Cannot read observed values"),
    ],
)
def test_a_wrong_file_is_named(values, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_values(write(tmp_path / "y.npz", values))
    with pytest.raises(ValueError, match=r"Cannot read observed values from .*none\.nc"):
        read_values(tmp_path / "none.nc")
