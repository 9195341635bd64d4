"""Every way to sample a posterior, against closed forms where theory says that it is exact, and reference values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wind_jax.diffusion.guidance import METHODS, guide
from wind_jax.diffusion.likelihood import student_t
from wind_jax.diffusion.posterior import check_method, sample_posterior
from wind_jax.diffusion.samplers import ddim, ddpm, euler, heun, initial, member_keys, predictor_corrector, sample
from wind_jax.diffusion.schedule import rectified, time_grid
from wind_jax.diffusion.smc import twisted
from wind_jax.observations.observation import Observation

SCHEDULE = rectified()


class Gaussian:
    """N(mean, covariance) in d dimensions, its denoiser, and its posterior given y = A x + noise."""

    def __init__(self, mean, covariance):
        self.mean, self.covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)

    def denoise(self, x_t, t):
        t = jnp.broadcast_to(jnp.asarray(t, x_t.dtype), x_t.shape[:1])[0]
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        marginal = alpha**2 * self.covariance + sigma**2 * jnp.eye(self.mean.size)
        gain = alpha * jnp.linalg.solve(marginal, jnp.asarray(self.covariance))
        return self.mean[None] + (x_t - alpha * self.mean[None]) @ gain

    def given(self, matrix, y, variance):
        gain = self.covariance @ matrix.T @ np.linalg.inv(matrix @ self.covariance @ matrix.T + np.diag(variance))
        return self.mean + gain @ (y - matrix @ self.mean), self.covariance - gain @ matrix @ self.covariance


def affine(prior, observation, method, options, steps=128):
    """Mean and covariance of a guided chain that is an affine map of its start: no sampling error."""
    size = prior.mean.size
    guided = guide(prior.denoise, observation, SCHEDULE, method, **options)
    grid = time_grid(steps, start=1.0)
    start = jnp.concatenate([jnp.zeros((1, size)), jnp.eye(size)])
    x = np.asarray(jax.jit(lambda x: sample(guided, x, grid, SCHEDULE, heun()))(start))
    root = (x[1:] - x[0]).T
    return x[0], root @ root.T


RNG = np.random.default_rng(1)
MIX = RNG.standard_normal((5, 12))
VARIANCE = RNG.uniform(0.05, 0.3, 5)
Y = RNG.standard_normal(5)
ROOT = RNG.standard_normal((12, 12)) / np.sqrt(12)
MEAN = 0.5 * RNG.standard_normal(12)
FULL = Gaussian(MEAN, ROOT @ ROOT.T + 0.2 * np.eye(12))
WHITE = Gaussian(MEAN, np.eye(12))
DIAGONAL = Gaussian(MEAN, np.diag(RNG.uniform(0.3, 2.0, 12)))
SMALL = Gaussian(MEAN[:4], FULL.covariance[:4, :4])
CELLS = [1, 3, 4, 8, 11]
SELECT = np.eye(12)[CELLS]


@pytest.mark.parametrize(
    ("method", "options", "prior", "matrix"),
    [
        ("mmps", {"iterations": 5}, FULL, MIX),  # five numbers in y: conjugate gradients end after five steps
        ("mmps", {"iterations": 5, "solver": "gmres"}, FULL, MIX),
        ("pgdm", {"iterations": 5}, WHITE, MIX),  # r_t^2 is the covariance of white noise
        ("tmpd", {}, DIAGONAL, SELECT),  # row sums of a diagonal matrix are the matrix
    ],
)
def test_exact_where_the_theory_says_so(method, options, prior, matrix, x64):
    observation = Observation(lambda x: matrix @ x, Y, VARIANCE)
    mean, covariance = affine(prior, observation, method, options)
    expected_mean, expected_covariance = prior.given(matrix, Y, VARIANCE)
    np.testing.assert_allclose(mean, expected_mean, atol=3e-3)
    np.testing.assert_allclose(covariance, expected_covariance, atol=3e-3)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"mmps"}))
def test_others_are_not_exact_but_draw_near(method, x64):
    """On a correlated prior the cheaper methods err, by less than the share of what y moves the mean that is given."""
    observation = Observation(lambda x: MIX @ x, Y, VARIANCE)
    bars = {"dps": 1.0, "sda": 1.0, "pgdm": 0.5, "tmpd": 1.0, "diffpir": 1.5}
    mean, _ = affine(FULL, observation, method, {"scale": None} if method == "dps" else {})
    expected, _ = FULL.given(MIX, Y, VARIANCE)
    error = np.linalg.norm(mean - expected) / np.linalg.norm(expected - FULL.mean)
    assert 1e-3 < error < bars[method], error


def draw(prior, members, seed=0, steps=64):
    grid, keys = time_grid(steps, start=1.0), member_keys(jax.random.key(seed), members)
    return grid, keys, initial(keys, (prior.mean.size,), grid[0], SCHEDULE)


@pytest.mark.parametrize("spread", [1.0, 10.0])
def test_tds_in_the_limit_of_many_members(spread, x64):
    """4000 members in four dimensions, by a good and by a weak twist: weights put right what the twist gets wrong."""
    matrix, variance = MIX[:2, :4], VARIANCE[:2]
    y = matrix @ SMALL.mean + np.array([1.5, -1.5])
    grid, keys, x_init = draw(SMALL, 4000, steps=256)
    observation = Observation(lambda x: matrix @ x, y, variance)
    run = jax.jit(lambda x: twisted(SMALL.denoise, observation, x, grid, SCHEDULE, keys, spread=spread))
    x, weights = jax.tree.map(np.asarray, run(x_init))
    mean, covariance = SMALL.given(matrix, y, variance)
    assert np.abs((np.mean(x, 0) - mean) / np.sqrt(np.diag(covariance))).max() < 0.2
    assert np.linalg.norm(mean - SMALL.mean) > 0.5
    assert np.linalg.norm(np.cov(x.T) - covariance) < 0.2 * np.linalg.norm(covariance)
    assert weights.effective_size.shape == (257,)
    assert (weights.effective_size > 100).all()
    assert (weights.effective_size < 4000.1).all()
    assert 20 < np.unique(weights.ancestors).size < 4000


@pytest.mark.parametrize("step", [ddpm(), predictor_corrector(ddim(), 2, 0.2), predictor_corrector(euler(), 1, 0.3)])
def test_stochastic_samplers_keep_the_prior(step, x64):
    grid, keys, x_init = draw(FULL, 4000)
    x = np.asarray(jax.jit(lambda x: sample(FULL.denoise, x, grid, SCHEDULE, step, keys))(x_init))
    error = np.abs(x.mean(0) - FULL.mean) / np.sqrt(np.diag(FULL.covariance) / 4000)
    assert error.max() < 5
    assert np.linalg.norm(np.cov(x.T) - FULL.covariance) < 0.1 * np.linalg.norm(FULL.covariance)


def test_langevin_corrections_mend_a_wrong_start(x64):
    """A chain that starts with twice the spread: corrections bring the covariance nearer."""
    grid, keys, x_init = draw(FULL, 4000, steps=16)
    error = {}
    for name, step in {"none": ddim(), "some": predictor_corrector(ddim(), 4, 0.3)}.items():
        x = jax.jit(lambda x, step=step: sample(FULL.denoise, 2 * x, grid, SCHEDULE, step, keys))(x_init)
        error[name] = np.linalg.norm(np.cov(np.asarray(x).T) - FULL.covariance)
    assert error["some"] < 0.2 * error["none"], error


def test_repaint_against_the_posterior(x64):
    """Selected values are held; the others follow them, the nearer the more passes are made."""
    grid, keys, x_init = draw(FULL, 1000, steps=48)
    observation = Observation(lambda x: {"a": x[jnp.asarray(CELLS)]}, {"a": Y}, {"a": 1e-4})
    mean, _ = FULL.given(SELECT, Y, np.full(5, 1e-4))
    errors = []
    for passes in (1, 8):
        options = {"resamplings": passes}
        run = lambda x, options=options: sample_posterior(
            FULL.denoise, observation, x, grid, SCHEDULE, ddpm(), keys, "repaint", options
        )
        x = np.asarray(jax.jit(run)(x_init))
        np.testing.assert_allclose(x.mean(0)[CELLS], Y, atol=0.02)
        errors.append(np.linalg.norm(x.mean(0) - mean) / np.linalg.norm(mean - FULL.mean))
    assert errors[1] < min(0.5 * errors[0], 0.2), errors


def test_pgdm_step_matches_reference(mixture, x64):
    values = mixture.values
    grid = jnp.linspace(1, 0, 33)

    def run(x, y):
        observation = Observation(lambda x: values["A"] @ x, y, 1.0)
        return sample_posterior(mixture.denoise, observation, x[None], grid, SCHEDULE, method="pgdm_step")[0]

    x = jax.jit(jax.vmap(run))(values["x1"], values["y"])
    np.testing.assert_allclose(x, values["sample/pgdm_ddim_32"], atol=1e-6)


def test_student_t_forgives_a_gross_error(x64):
    """One of thirty stations is off by 100: a Gaussian follows it, Student's t hardly."""
    prior = Gaussian(np.zeros(3), np.eye(3))
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((30, 3))
    y = matrix @ np.array([1.0, -1.0, 0.5]) + 0.1 * rng.standard_normal(30)
    clean, _ = prior.given(matrix, y, np.full(30, 0.01))
    y[7] += 100.0
    grid, keys, x_init = draw(prior, 64, steps=32)
    error = {}
    for name, likelihood in {"gaussian": (), "student_t": (student_t(4),)}.items():
        observation = Observation(lambda x: matrix @ x, y, 0.01, *likelihood)
        run = lambda x, o=observation: sample_posterior(
            prior.denoise, o, x, grid, SCHEDULE, None, keys, "mmps", {"iterations": 4}
        )
        error[name] = np.linalg.norm(np.asarray(jax.jit(run)(x_init)).mean(0) - clean)
    assert error["student_t"] < min(0.05, 0.1 * error["gaussian"]), error


def test_the_published_dps_follows_a_students_t(x64):
    """Its direction is that of J^T A'^T l'(r), its length that of 1 / sqrt(-sum r l'(r)), whatever the likelihood."""
    observation = Observation(lambda x: MIX @ x, Y + np.eye(5)[0] * 100, VARIANCE, student_t(4))
    x_t, t = jnp.asarray(RNG.standard_normal((1, 12))), 0.5
    guided = guide(FULL.denoise, observation, SCHEDULE, "dps", scale=0.7)
    x0_hat, pullback = jax.vjp(lambda x: FULL.denoise(x, t), x_t)
    r = observation.y - MIX @ x0_hat[0]
    pull = 5 * r / (4 * VARIANCE + r**2)  # -l'(r) of Student's t with 4 degrees of freedom
    gamma = SCHEDULE.sigma(t) ** 2 / SCHEDULE.alpha(t)
    expected = gamma * pullback((MIX.T @ (0.7 * pull / np.sqrt((r * pull).sum())))[None])[0]
    np.testing.assert_allclose(guided(x_t, t) - x0_hat, expected, rtol=1e-8)


@pytest.mark.parametrize("method", ["repaint", "pgdm_step"])
@pytest.mark.parametrize("noise", [(VARIANCE, student_t(4)), ("adaptive",)], ids=["student_t", "adaptive"])
def test_methods_that_put_y_in_place_refuse_what_weighs_it(method, noise, x64):
    observation = Observation(lambda x: SELECT @ x, Y, *noise)
    with pytest.raises(ValueError, match=f"{method} puts y in its place"):
        sample_posterior(FULL.denoise, observation, jnp.zeros((2, 12)), time_grid(4), SCHEDULE, method=method)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("magic", {}, "Unknown guidance method 'magic'"),
        ("repaint", {"passes": 3}, "repaint has no option"),
        ("tds", {"threshold": 0.5, "gamma": 1}, "tds has no option"),
    ],
)
def test_unknown_methods_and_options(method, options, message):
    with pytest.raises(ValueError, match=message):
        check_method(method, options)


@pytest.mark.parametrize("method", ["repaint", "tds"])
def test_stochastic_methods_ask_for_keys(method, x64):
    observation = Observation(lambda x: SELECT @ x, Y, VARIANCE)
    with pytest.raises(ValueError, match="a key for each member"):
        sample_posterior(FULL.denoise, observation, jnp.zeros((2, 12)), time_grid(4), SCHEDULE, method=method)
