"""Samplers against reference values, the exact solution of the ODE, and their invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wind_jax.diffusion.guidance import guide
from wind_jax.diffusion.samplers import (
    ddim,
    dpmpp_2m,
    euler,
    heun,
    initial,
    member_keys,
    predictor_corrector,
    sample,
)
from wind_jax.diffusion.schedule import rectified, time_grid
from wind_jax.observations.observation import Observation

STEPS = {"ddim": ddim(), "euler": euler(), "heun": heun()}


@pytest.mark.parametrize("name", STEPS)
def test_matches_reference(name, mixture, x64):
    values = mixture.values
    observation = Observation(lambda x: values["A"] @ x, values["y"][0], values["var_y"])

    def run(x1, y):
        guided = guide(mixture.denoise, observation._replace(y=y), rectified(), iterations=3, whiten=False)
        one = sample(guided, x1[None], time_grid(32, start=1.0), rectified(), STEPS[name])[0]
        plain = [
            sample(mixture.denoise, x1[None], time_grid(steps, start=1.0), rectified(), STEPS[name])[0]
            for steps in (8, 32)
        ]
        return *plain, one

    results = jax.jit(jax.vmap(run))(values["x1"], values["y"])
    for result, key in zip(results, ("8", "32", "32_mmps_cg_3")):
        np.testing.assert_allclose(result, values[f"sample/{name}_{key}"], atol=1e-6, err_msg=key)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_order_of_convergence(name, order, x64):
    """x ~ N(0, c): the ODE's solution keeps x_t / sqrt(alpha^2 c + sigma^2)."""
    schedule = rectified()
    c = jnp.asarray([0.1, 0.5, 1.0, 4.0])

    def spread(t):
        return jnp.sqrt(schedule.alpha(t) ** 2 * c + schedule.sigma(t) ** 2)

    def denoise(x_t, t):
        alpha, sigma = schedule.alpha(t[:, None]), schedule.sigma(t[:, None])
        return alpha * c[None] / (alpha**2 * c[None] + sigma**2) * x_t

    exact = spread(0.1) / spread(0.9)
    counts = np.array([16, 32, 64, 128])
    errors = []
    for count in counts:
        grid = jnp.linspace(0.9, 0.1, count + 1)
        x = sample(denoise, jnp.ones((1, 4)), grid, schedule, (STEPS | {"dpmpp_2m": dpmpp_2m()})[name])[0]
        errors.append(np.abs(x - exact).max())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.15, (slope, errors)


def nonlinear(x_t, t):
    """A stand-in for a network that mixes frames."""
    return jnp.tanh(x_t + 0.5 * jnp.roll(x_t, 1, axis=1))


ALL_STEPS = {"ddim": ddim(), "ddpm": ddim(1.0), "euler": euler(), "heun": heun(), "dpmpp_2m": dpmpp_2m()}


@pytest.mark.parametrize("step", ALL_STEPS.values(), ids=ALL_STEPS)
def test_known_frames_stay_bit_for_bit(step):
    known = jax.random.normal(jax.random.key(3), (4, 2, 3, 1)) * 100
    grid = time_grid(4, frames=4, known=(0, 2))
    keys = member_keys(jax.random.key(0), 2)
    x_init = initial(keys, known.shape, grid[0], rectified(), known)
    x = jax.jit(lambda x: sample(nonlinear, x, grid, rectified(), step, keys))(x_init)
    for member in np.asarray(x):
        np.testing.assert_array_equal(member[[0, 2]], known[np.array([0, 2])])
        assert (np.abs(member[[1, 3]] - known[np.array([1, 3])]) > 0.1).all()


def test_staggered_columns_wait_and_go():
    """Rolling diffusion: a frame is untouched while its column is level."""
    grid = jnp.asarray([[0.9, 0.9], [0.4, 0.9], [0.0, 0.9], [0.0, 0.4], [0.0, 0.0]])
    x_init = jax.random.normal(jax.random.key(0), (1, 2, 2, 2, 1))
    half = sample(nonlinear, x_init, grid[:3], rectified())
    np.testing.assert_array_equal(half[:, 1], x_init[:, 1])
    full = sample(nonlinear, x_init, grid, rectified())
    np.testing.assert_array_equal(full[:, 0], half[:, 0])
    assert (full[:, 1] != half[:, 1]).all()


def test_members_do_not_depend_on_their_company():
    key, shape, grid = jax.random.key(5), (2, 2, 3, 1), time_grid(4)

    def run(members):
        keys = member_keys(key, members)
        x_init = initial(keys, shape, grid[0], rectified())
        return x_init, sample(nonlinear, x_init, grid, rectified(), ddim(1.0), keys)

    together, alone = run(5), run([3])
    np.testing.assert_array_equal(together[0][3], alone[0][0])
    np.testing.assert_allclose(together[1][3], alone[1][0], atol=1e-6)
    assert len({float(x.ravel()[0]) for x in together[1]}) == 5


def test_initial_has_the_variance_of_the_data_at_that_time():
    keys = member_keys(jax.random.key(0), 400)
    t0 = np.array([0.5, 0.98], np.float32)
    x = np.asarray(initial(keys, (2, 5, 10, 1), t0, rectified()))
    alpha, sigma = np.asarray(rectified().alpha(t0)), np.asarray(rectified().sigma(t0))
    np.testing.assert_allclose(x.var(axis=(0, 2, 3, 4)), alpha**2 + sigma**2, rtol=0.04)


def test_ancestral_sampling_keeps_the_variance(x64):
    """eta = 1 on a standard normal prior draws a standard normal: the noise differs at every step."""

    def denoise(x_t, t):
        alpha, sigma = rectified().alpha(t[:, None]), rectified().sigma(t[:, None])
        return alpha / (alpha**2 + sigma**2) * x_t

    keys = member_keys(jax.random.key(0), 4000)
    x_init = jnp.zeros((4000, 3))
    x = np.asarray(sample(denoise, x_init, time_grid(100, start=1.0), rectified(), ddim(1.0), keys))
    np.testing.assert_allclose(np.cov(x.T), np.eye(3), atol=0.08)


def test_multistep_of_staggered_frames_is_that_of_each_alone():
    """Frames with times of their own; one that begins later takes DDIM's step first."""
    grid = jnp.asarray([[0.9, 0.9], [0.6, 0.9], [0.3, 0.5], [0.0, 0.2], [0.0, 0.0]])
    each = lambda x_t, t: jnp.tanh(x_t)
    x_init = jax.random.normal(jax.random.key(0), (1, 2, 2, 2, 1))
    both = sample(each, x_init, grid, rectified(), dpmpp_2m())
    first = sample(each, x_init[:, :1], grid[:, :1], rectified(), dpmpp_2m())
    np.testing.assert_allclose(both[:, :1], first, atol=1e-6)
    later = sample(each, x_init[:, 1:], grid[1:, 1:], rectified(), dpmpp_2m())
    np.testing.assert_allclose(both[:, 1:], later, atol=1e-6)


def test_corrections_need_a_step_without_memory():
    with pytest.raises(ValueError, match="predictor of one step"):
        predictor_corrector(dpmpp_2m())
