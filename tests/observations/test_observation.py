"""Observations: units, composition, gradients, and what is refused."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wind_jax.diffusion.guidance import guide
from wind_jax.diffusion.samplers import sample
from wind_jax.diffusion.schedule import rectified, time_grid
from wind_jax.observations.observation import Observation, check, compose, likelihood_grad, observe

KELVIN = SimpleNamespace(physical=lambda x: 280.0 + 20.0 * x)


def test_operator_sees_physical_units():
    observation = observe(lambda x: x.mean(), 290.0, 4.0, KELVIN)
    x = jnp.full((2, 3, 4, 1), 0.25)
    np.testing.assert_allclose(observation.operator(x), 285.0, rtol=1e-6)
    # d/dx of -(290 - mean(280 + 20 x))^2 / (2 * 4), over 24 cells
    np.testing.assert_allclose(likelihood_grad(observation)(x), 5.0 / 4.0 * 20.0 / 24, rtol=1e-5)


def test_gradient_of_a_composition_is_the_sum():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 1))
    one = observe(lambda x: x[0], jnp.full((3, 4, 1), 285.0), 4.0, KELVIN)
    two = observe(lambda x: {"m": x.mean() ** 2}, {"m": 8e4}, {"m": 1e6}, KELVIN)
    both = compose(one, two)
    check(both, x.shape)
    total = likelihood_grad(one)(x) + likelihood_grad(two)(x)
    np.testing.assert_allclose(likelihood_grad(both)(x), total, rtol=1e-5)
    nested = compose(both, one)
    np.testing.assert_allclose(likelihood_grad(nested)(x), total + likelihood_grad(one)(x), rtol=1e-5, atol=1e-6)


def test_adaptive_variance_is_held_fixed_in_the_gradient():
    """log N(y; x, r^2) with r^2 let free would have a gradient of zero for one number."""
    observation = Observation(lambda x: x.sum(), 3.0, "adaptive")
    gradient = likelihood_grad(observation)(jnp.ones((1, 1, 1, 1)))
    np.testing.assert_allclose(gradient, 1 / 2.0, rtol=1e-6)


def test_y_may_be_an_argument_of_a_jitted_sampler():
    x_init = jnp.ones((2, 2, 3, 4, 1))
    traces = []

    @jax.jit
    def answer(y):
        traces.append(1)
        observation = observe(lambda x: x.mean(), y, 4.0, KELVIN)
        check(observation, x_init.shape[1:])
        guided = guide(lambda x_t, t: 0.5 * x_t, observation, rectified())
        return sample(guided, x_init, time_grid(3), rectified())

    warm, cold = answer(300.0), answer(270.0)
    assert len(traces) == 1
    assert (warm > cold).all()


X = (2, 3, 4, 1)
OPERATOR = lambda x: {"a": x[0], "b": x.mean()}
Y = {"a": np.zeros((3, 4, 1)), "b": 1.0}


@pytest.mark.parametrize(
    ("y", "variance", "message"),
    [
        (Y | {"b": np.nan}, 1.0, r"y\['b'\] has values that are not finite"),
        (Y, 0.0, r"variance of y\['a'\] must be positive"),
        (Y, {"a": 1.0, "b": -2.0}, r"y\['b'\] must be positive and finite, got -2"),
        (Y, {"a": 1.0}, "no part of y's"),
        (Y, {"a": np.ones(5), "b": 1.0}, r"shape \(5,\): expected one that broadcasts to \(3, 4, 1\)"),
        (Y, "adaptiv", "'adaptiv'"),
        (Y | {"a": np.zeros((2, 4, 1))}, 1.0, r"shapes .*\(3, 4, 1\).* but y has .*\(2, 4, 1\)"),
        ({"a": Y["a"]}, 1.0, "but y has"),
    ],
)
def test_refused(y, variance, message):
    with pytest.raises(ValueError, match=message):
        check(Observation(OPERATOR, y, variance), X)


def test_compose_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        compose()


def test_difference_operators_pass_and_what_cannot_be_differentiated_is_named():
    x = (2, 3, 4, 1)
    check(Observation(lambda x: jnp.roll(x, -1, 2) - x, np.zeros(x), 1.0), x)
    for operator, message in [
        (lambda x: jnp.asarray(np.asarray(x).sum()), "cannot be differentiated"),
        (lambda x: x.sum() * jnp.nan, "not finite for a plausible state"),
        (lambda x: jnp.sqrt((x**2).sum()), "gradient .* is not finite"),
        (lambda x: jax.lax.stop_gradient(x).sum(), "does not depend on the state"),
    ]:
        with pytest.raises(ValueError, match=message):
            check(Observation(operator, 0.0, 1.0), x)
