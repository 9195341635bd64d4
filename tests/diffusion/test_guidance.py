"""Guidance against reference values and exact Gaussian posteriors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wind_jax.diffusion.guidance import METHODS, guide
from wind_jax.diffusion.samplers import ddim, heun, initial, member_keys, sample
from wind_jax.diffusion.schedule import rectified, time_grid
from wind_jax.observations.observation import Observation, compose, likelihood_grad

SCHEDULE = rectified()
RNG = np.random.default_rng(3)
ROOT = RNG.standard_normal((8, 8)) / np.sqrt(8)
TOY = {"A": RNG.standard_normal((3, 8)), "y": RNG.standard_normal(3), "x_t": RNG.standard_normal((4, 8))}
TOY_VARIANCE = np.array([0.05, 0.1, 0.2])
SOLVES = [(solver, iterations) for solver in ("cg", "gmres") for iterations in (1, 2, 3)]


def toy(x_t, t):
    """A denoiser with a symmetric positive Jacobian, cheap to compile."""
    return x_t @ (ROOT @ ROOT.T)


@pytest.mark.parametrize("kind", ["linear", "nonlinear"])
def test_mmps_matches_reference(kind, mixture, x64):
    values = mixture.values

    def linear(x):
        return values["A"] @ x

    def nonlinear(x):
        return jnp.stack([jnp.sqrt(x[0] ** 2 + x[1] ** 2 + 1e-6), x[2] * x[3], jnp.tanh(x[4:]).sum()])

    operator = {"linear": linear, "nonlinear": nonlinear}[kind]

    def run(x_t, y, t):
        observation = Observation(operator, y, values["var_y"])
        return [
            guide(mixture.denoise, observation, SCHEDULE, iterations=iterations, solver=solver, whiten=False)(
                x_t[None], t
            )[0]
            for solver, iterations in SOLVES
        ]

    run = jax.jit(jax.vmap(run, (0, 0, None)))
    for t in (0.1, 0.5, 0.9):
        for (solver, iterations), x0_hat in zip(SOLVES, run(values["x_t"], values["y"], t)):
            expected = values[f"t{t}/{kind}/mmps_{solver}_{iterations}"]
            np.testing.assert_allclose(x0_hat, expected, atol=1e-6, err_msg=f"{t} {solver} {iterations}")


@pytest.mark.parametrize(
    ("method", "options"), [("tmpd", {"whiten": False}), ("diffpir", {"iterations": 1}), ("diffpir", {"iterations": 3})]
)
def test_other_methods_match_reference(method, options, mixture, x64):
    values = mixture.values

    def run(x_t, y, t):
        observation = Observation(lambda x: values["A"] @ x, y, values["var_y"])
        return guide(mixture.denoise, observation, SCHEDULE, method, **options | strength)(x_t[None], t)[0]

    strength = {"strength": 10.0} if method == "diffpir" else {}
    run = jax.jit(jax.vmap(run, (0, 0, None)))
    name = "tmpd" if method == "tmpd" else f"diffpir_cg_{options['iterations']}"
    for t in (0.1, 0.5, 0.9):
        expected = values[f"t{t}/linear/{name}"]
        np.testing.assert_allclose(run(values["x_t"], values["y"], t), expected, atol=1e-6, err_msg=str(t))


def test_whitening_changes_units_not_the_answer(x64):
    """Converged, the units of y do not matter; cut short, only the whitened solve is free of them."""
    unit = np.array([1.0, 1e3, 1e-3])
    plain = Observation(lambda x: TOY["A"] @ x, TOY["y"], TOY_VARIANCE)
    scaled = Observation(lambda x: unit * (TOY["A"] @ x), unit * TOY["y"], unit**2 * TOY_VARIANCE)

    def run(observation, **options):
        return jax.jit(guide(toy, observation, SCHEDULE, **options))(TOY["x_t"], 0.5)

    np.testing.assert_allclose(run(plain, iterations=3), run(plain, iterations=3, whiten=False), atol=1e-9)
    np.testing.assert_allclose(run(plain, iterations=1), run(scaled, iterations=1), atol=1e-9)
    assert np.abs(run(plain, iterations=1) - run(scaled, iterations=1, whiten=False)).max() > 1e-3


def linear_observation(gaussian, rows=10):
    """Ten mixed numbers of the video's last two frames, seen as a pytree of unlike units."""
    rng = np.random.default_rng(2)
    matrix = rng.standard_normal((rows, gaussian.size))
    matrix[:, : gaussian.size // 3] = 0.0
    matrix[rows // 2 :] *= 100.0
    variance = np.repeat([0.05, 500.0], rows // 2)
    x = rng.multivariate_normal(gaussian.mean, gaussian.covariance)
    y = matrix @ x + np.sqrt(variance) * rng.standard_normal(rows)

    def operator(x):
        values = matrix @ x.ravel()
        return {"a": values[: rows // 2], "b": values[rows // 2 :]}

    observation = Observation(
        operator, {"a": y[: rows // 2], "b": y[rows // 2 :]}, {"a": 0.05, "b": variance[rows // 2 :]}
    )
    return observation, matrix, y, variance


def condition(mean, covariance, matrix, y, variance):
    gain = covariance @ matrix.T @ np.linalg.inv(matrix @ covariance @ matrix.T + np.diag(variance))
    return mean + gain @ (y - matrix @ mean), covariance - gain @ matrix @ covariance


def affine_map(denoiser, gaussian, grid, step, known=None):
    """Gaussian prior and linear A make the sampler affine: its mean and matrix, from 1 + 48 chains."""
    x_init = jnp.concatenate([jnp.zeros((1, gaussian.size)), jnp.eye(gaussian.size)])
    x_init = x_init.reshape(-1, *gaussian.shape)
    if known is not None:
        x_init = x_init.at[:, 0].set(known)
    x = jax.jit(lambda x: sample(denoiser, x, grid, SCHEDULE, step))(x_init)
    x = np.asarray(x).reshape(len(x), -1)
    return x[0], (x[1:] - x[0]).T


def test_exact_posterior(gaussian, x64):
    """Mean and covariance of the guided chain, without sampling error, against linear algebra."""
    observation, matrix, y, variance = linear_observation(gaussian)
    guided = guide(gaussian.denoise, observation, SCHEDULE, iterations=10)
    mean, root = affine_map(guided, gaussian, time_grid(96, start=1.0), heun())
    expected_mean, expected_covariance = condition(gaussian.mean, gaussian.covariance, matrix, y, variance)
    np.testing.assert_allclose(mean, expected_mean, atol=4e-3)
    np.testing.assert_allclose(root @ root.T, expected_covariance, atol=4e-3)


def test_exact_posterior_with_a_known_frame(gaussian, x64):
    """Frame 0 is given, so the answer is conditioned on it as well as on y."""
    observation, matrix, y, variance = linear_observation(gaussian)
    per_frame = gaussian.size // 3
    known = np.random.default_rng(4).standard_normal(per_frame)
    select = np.eye(gaussian.size)[:per_frame]
    given = condition(gaussian.mean, gaussian.covariance, select, known, np.full(per_frame, 1e-10))
    expected_mean, expected_covariance = condition(*given, matrix, y, variance)

    guided = guide(gaussian.denoise, observation, SCHEDULE, iterations=10)
    grid = time_grid(96, frames=3, known=(0,), start=1.0)
    frame = jnp.asarray(known).reshape(gaussian.shape[1:])
    mean, root = affine_map(guided, gaussian, grid, heun(), frame)
    np.testing.assert_array_equal(mean[:per_frame], known)
    np.testing.assert_allclose(mean, expected_mean, atol=4e-3)
    np.testing.assert_allclose(root @ root.T, expected_covariance, atol=4e-3)


def test_ancestral_samples_of_the_posterior(gaussian, x64):
    """2000 members of 100 stochastic steps: within 5 standard errors of the mean, 15 % of the covariance."""
    observation, matrix, y, variance = linear_observation(gaussian)
    guided = guide(gaussian.denoise, observation, SCHEDULE, iterations=10)
    grid, keys = time_grid(100, start=1.0), member_keys(jax.random.key(0), 2000)
    x_init = initial(keys, gaussian.shape, grid[0], SCHEDULE)
    x = np.asarray(jax.jit(lambda x: sample(guided, x, grid, SCHEDULE, ddim(1.0), keys))(x_init))
    x = x.reshape(2000, -1)
    mean, covariance = condition(gaussian.mean, gaussian.covariance, matrix, y, variance)
    error = np.abs(x.mean(0) - mean) / np.sqrt(np.diag(covariance) / 2000)
    assert error.max() < 5
    assert np.linalg.norm(np.cov(x.T) - covariance) < 0.15 * np.linalg.norm(covariance)


def test_clean_frames_are_never_moved(gaussian):
    observation, *_ = linear_observation(gaussian)
    observation = observation._replace(operator=lambda x: x.sum(0), y=jnp.ones((2, 4, 2)), variance=0.1)
    x_t = jax.random.normal(jax.random.key(0), (2, *gaussian.shape))
    t = jnp.asarray([[0.0, 0.5, 0.9], [0.0, 0.5, 0.9]])
    for method in METHODS:
        x0_hat = jax.jit(guide(gaussian.denoise, observation, SCHEDULE, method))(x_t, t)
        np.testing.assert_array_equal(x0_hat[:, 0], x_t[:, 0])
        assert (jnp.abs(x0_hat - gaussian.denoise(x_t, t))[:, 1:] > 1e-6).any()


def test_dps_is_the_gradient_of_the_likelihood(x64):
    """gamma times the gradient by x_t of log N(y; A(x0_hat(x_t)), Sigma_y), and of -scale |y - A| in noise units."""
    x_t, t = jnp.asarray(TOY["x_t"]), 0.5
    observation = Observation(lambda x: TOY["A"] @ jnp.tanh(x), TOY["y"], TOY_VARIANCE)
    gamma = SCHEDULE.sigma(t) ** 2 / SCHEDULE.alpha(t)

    def residual(x_t):
        return TOY["y"][None] - jnp.tanh(toy(x_t, t)) @ TOY["A"].T

    @jax.jit
    @jax.grad
    def likelihood(x_t):
        return -0.5 * (residual(x_t) ** 2 / TOY_VARIANCE[None]).sum()

    @jax.jit
    @jax.grad
    def norm(x_t):
        return -0.3 * jnp.sqrt((residual(x_t) ** 2 / TOY_VARIANCE[None]).sum(1)).sum()

    x0_hat, pullback = jax.vjp(jax.jit(lambda x_t: toy(x_t, t)), x_t)
    for options, gradient in (({"scale": None}, likelihood(x_t)), ({"scale": 0.3}, norm(x_t))):
        guided = jax.jit(guide(toy, observation, SCHEDULE, "dps", **options))(x_t, t)
        np.testing.assert_allclose(guided, x0_hat + gamma * gradient, atol=1e-9)

    gradient = jax.vmap(likelihood_grad(observation))(x0_hat)
    np.testing.assert_allclose(pullback(gradient)[0], likelihood(x_t), atol=1e-9)


def test_composition_is_the_stacked_operator(x64):
    x_t = jnp.asarray(TOY["x_t"])
    matrix, y, variance = TOY["A"], TOY["y"], TOY_VARIANCE
    stacked = Observation(lambda x: matrix @ x, y, variance)
    parts = compose(
        Observation(lambda x: matrix[:1] @ x, y[:1], float(variance[0])),
        Observation(lambda x: {"rest": matrix[1:] @ x}, {"rest": y[1:]}, variance[1:]),
    )
    for options in ({"iterations": 2}, {"iterations": 2, "solver": "gmres"}, {"method": "dps", "scale": None}):
        a, b = (jax.jit(guide(toy, o, SCHEDULE, **options))(x_t, 0.5) for o in (stacked, parts))
        np.testing.assert_allclose(a, b, atol=1e-10)


def test_adaptive_variance_is_the_mean_squared_residual(x64):
    x_t = jnp.asarray(TOY["x_t"])[:1]
    residual = TOY["y"] - TOY["A"] @ np.asarray(jax.jit(toy)(x_t, 0.5))[0]
    operator = lambda x: TOY["A"] @ x
    adaptive, fixed = (
        jax.jit(guide(toy, Observation(operator, TOY["y"], variance), SCHEDULE))(x_t, 0.5)
        for variance in ("adaptive", float(np.mean(residual**2)))
    )
    np.testing.assert_allclose(adaptive, fixed, atol=1e-10)


def test_members_are_guided_alone(gaussian, x64):
    """Each its own Krylov space and its own adaptive variance."""
    observation, *_ = linear_observation(gaussian)
    observation = observation._replace(variance="adaptive")
    guided = jax.jit(guide(gaussian.denoise, observation, SCHEDULE, iterations=2))
    x_t = jax.random.normal(jax.random.key(0), (3, *gaussian.shape))
    np.testing.assert_allclose(guided(x_t, 0.5)[1], guided(x_t[1:2], 0.5)[0], atol=1e-9)


def test_network_runs_once_a_call(x64):
    """One forward run, however many iterations: the solver's products are backward passes."""
    calls = []

    def denoise(x_t, t):
        jax.debug.callback(lambda: calls.append(1))
        return toy(x_t, t)

    observation = Observation(lambda x: TOY["A"] @ x, TOY["y"], TOY_VARIANCE)
    guided = jax.jit(guide(denoise, observation, SCHEDULE, iterations=5))
    jax.block_until_ready(guided(jnp.asarray(TOY["x_t"]), 0.5))
    jax.effects_barrier()
    assert len(calls) == 1
