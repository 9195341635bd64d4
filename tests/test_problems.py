"""Protocol: every task by every method and sampler at toy size; and each task against what its y says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic

from wind_jax import rollout as rolling
from wind_jax.channels import channels
from wind_jax.data.normalize import Statistics
from wind_jax.data.store import TIME_STEP, Store
from wind_jax.diffusion.posterior import ALL_METHODS
from wind_jax.model.uvit import UViTConfig
from wind_jax.prior import Prior
from wind_jax.problems.problem import Setting
from wind_jax.problems.registry import PROBLEMS, make_problem
from wind_jax.rollout import Guide, make_chain, rollout
from wind_jax.sphere import Grid

CHANNELS = channels(["temperature", "total_precipitation_6hr"], [500])
GRID = Grid(np.array([-60.0, -20.0, 20.0, 60.0]), np.arange(8) * 45.0)
FRAMES = 4


class Correlated(Prior):
    """A Gaussian prior, correlated in time by rho^k and in space by neighbours: E[x | x_t] is linear algebra."""

    def denoiser(self, inputs):
        lag = np.abs(np.arange(FRAMES)[:, None] - np.arange(FRAMES)[None])
        near = np.abs(np.arange(32)[:, None] - np.arange(32)[None])
        covariance = jnp.asarray(np.kron(0.8**lag, 0.5**near), jnp.float32)

        def denoise(x_t, t):
            t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), x_t.shape[:2])[0]
            alpha, sigma = (jnp.repeat(f(t), 32) for f in (self.schedule.alpha, self.schedule.sigma))
            marginal = alpha[:, None] * covariance * alpha[None] + jnp.diag(sigma**2)
            gain = (covariance * alpha[None]) @ jnp.linalg.inv(marginal)
            flat = x_t.reshape(len(x_t), FRAMES * 32, -1)
            return jnp.einsum("ij,bjc->bic", gain, flat).reshape(x_t.shape)

        return denoise


jax.tree_util.register_dataclass(
    Correlated, ["params"], [f.name for f in dataclasses.fields(Prior) if f.name != "params"]
)
PRIOR = Correlated(
    params={},
    config=UViTConfig(channels=2, latitude=4, longitude=8, widths=(32,), blocks=("transformer",), heads=2),
    statistics=Statistics(CHANNELS, np.array([260.0, 0.3]), np.array([5.0, 0.2]), np.ones(2)),
    grid=GRID,
    frames=FRAMES,
    schedule_name="rectified",
    prediction="x0",
)
TIMES = synthetic.times(24)


class Truth(Store):
    """An archive drawn from nothing but noise, in memory."""

    def __init__(self):
        """Nothing to open."""

    path = "toy"
    times = TIMES
    x = PRIOR.statistics.denormalize(np.random.default_rng(0).normal(size=(24, *GRID.shape, 2)).astype(np.float32))

    def read(self, start, frames):
        return self.x[start : start + frames]


TASKS = {
    "forecast": {"context": 2, "leads": 4},
    "sparse_obs": {"fraction": 0.2, "error": 0.1},
    "spatial_downscaling": {"factor": 2, "error": 0.1},
    "temporal_downscaling": {"mean_over": 2, "error": 0.1},
    "reanalysis": {"windows": 2, "overlap": 1, "fraction": 0.2, "error": 0.1},
    "custom": {"operator": lambda channels, grid: lambda x: {"mean": x[..., 0].mean((1, 2))}, "error": {"mean": 0.1}},
}
SAMPLERS = {
    "ddim": {"eta": 0.5},
    "ddpm": {},
    "euler": {},
    "heun": {},
    "predictor_corrector": {"name": "euler", "corrections": 1},
}
EVERY = [(task, method) for task in TASKS for method in ALL_METHODS if task != "forecast"]
EVERY = [(task, method) for task, method in EVERY if method != "repaint" or task in ("sparse_obs", "reanalysis")]


def setting(cases=2, variance="nominal"):
    return Setting(PRIOR, Truth(), np.zeros((*GRID.shape, 6), np.float32), None, cases, (), jax.random.key(5), variance)


def problem(task, **options):
    return make_problem(setting(**options), task, **TASKS[task])


def draw(task, method="mmps", sampler="ddim", case=0, seed=0, members=(0, 1, 2), steps=3, guide=None):
    p = problem(task)
    chain = make_chain(**{"name": sampler} | SAMPLERS[sampler], steps=steps, start=0.9)
    if p.observe and guide is None:
        guide = Guide(p.observe, method, (("scale", 0.3),) if method == "dps" else ())
    frames = p.overlap + p.windows * (FRAMES - p.overlap)
    known = PRIOR.statistics.normalize(Truth.x[: p.context]) if p.context else None
    inputs = np.zeros((frames, *GRID.shape, 10), np.float32)
    told = [p.told(case, window) for window in range(p.windows)]
    windows = rollout(PRIOR, known, inputs, members, jax.random.key(seed), chain, p.overlap, guide, told)
    return np.concatenate([np.asarray(x) for x in windows], axis=1), guide


def keeps_the_protocol(task, method, sampler):
    """Shapes, finite values, reproducible by seed, members on their own, nothing traced twice."""
    x, guide = draw(task, method, sampler)
    p = problem(task)
    assert x.shape == (3, p.overlap + p.windows * (FRAMES - p.overlap) - p.context, *GRID.shape, 2)
    assert np.isfinite(x).all()
    traced = rolling._draw._cache_size()
    again, _ = draw(task, method, sampler, guide=guide)
    np.testing.assert_array_equal(x, again)
    other, _ = draw(task, method, sampler, seed=1, guide=guide)
    assert np.abs(x - other).max() > 1e-3
    if guide:
        told_more, _ = draw(task, method, sampler, case=1, guide=guide)
        assert np.abs(x - told_more).max() > 1e-4
    assert rolling._draw._cache_size() == traced
    if method != "tds":  # its members compete
        others, _ = draw(task, method, sampler, members=(1, 5, 7), guide=guide)
        np.testing.assert_allclose(others[0], x[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("task", "method"), EVERY)
def test_protocol_of_every_task_and_method(task, method):
    keeps_the_protocol(task, method, "ddim")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_protocol_of_every_sampler(sampler):
    keeps_the_protocol("forecast", "mmps", sampler)
    keeps_the_protocol("sparse_obs", "mmps", sampler)


@pytest.mark.exhaustive
@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"ddim"}))
@pytest.mark.parametrize(("task", "method"), EVERY)
def test_protocol_of_everything(task, method, sampler):
    keeps_the_protocol(task, method, sampler)


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"forecast"}))
def test_what_is_told_is_kept(task):
    """The residual of y falls to about its error; a free run's is many times larger."""
    p = problem(task)
    guided, _ = draw(task, sampler="heun", steps=24, guide=Guide(p.observe, "mmps", (("iterations", 12),)))
    free, _ = draw("forecast", sampler="heun", steps=24)
    told = p.observe(p.told(0, 0))
    worst = []
    for x in (guided[0, :FRAMES], np.concatenate([free[0], free[1]])[:FRAMES]):
        y_hat = told.operator(jnp.asarray(x))
        variance = jax.tree.broadcast(told.variance, told.y)
        ratios = jax.tree.map(lambda y, a, v: float(jnp.sqrt(((y - a) ** 2 / v).mean())), told.y, y_hat, variance)
        worst.append(max(jax.tree.leaves(ratios)))
    assert worst[0] < 1.5
    assert worst[1] > 3 * worst[0]


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"forecast", "custom"}))
def test_fields_seen_are_those_of_the_truth(task):
    p = problem(task)
    seen = p.seen.values(1)
    assert seen.shape == (len(p.seen.leads), *p.seen.grid.shape, 2)
    truth = Truth.x[int(p.starts[1]) :][: len(p.leads)]
    if p.seen.masked:
        where = np.isfinite(seen)
        assert 0.15 < where.mean() < 0.25
        error = np.abs(seen[..., 0] - truth[..., 0])[where[..., 0]] / 5.0
        assert 0.05 < error.mean() < 0.15
    else:
        np.testing.assert_allclose(np.nanmean(seen[..., 0]), truth[..., 0].mean(), rtol=2e-3)
    baseline = p.baseline(1, slice(0, 2))["interpolation"]
    assert baseline.shape == (2, *GRID.shape, 2)
    assert np.isfinite(baseline).all()


def test_forecast_cases_and_baseline():
    p = problem("forecast")
    assert p.leads[0] == TIME_STEP
    np.testing.assert_array_equal(p.baseline(1, slice(1, 3))["persistence"][0], Truth.x[int(p.starts[1]) + 1])


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("nowcast", {}, "Unknown task 'nowcast'"),
        ("sparse_obs", {"fraction": 0.2, "error": 0.1, "factor": 2}, r"no entry \['factor'\]"),
        ("spatial_downscaling", {"factor": 3, "error": 0.1}, "cannot be coarsened by 3"),
        ("temporal_downscaling", {"mean_over": 3, "error": 0.1}, "multiple of 3"),
        ("temporal_downscaling", {"mean_over": 2, "error": -0.1}, "positive, got -0.1"),
        ("reanalysis", {"windows": 2, "overlap": 4, "fraction": 0.2, "error": 0.1}, "got 4"),
        ("reanalysis", {"windows": 20, "overlap": 1, "fraction": 0.2, "error": 0.1}, "61 frames"),
        ("forecast", {"context": 2, "leads": 4, "conserve": {"dry_air_mass": 1e-6}}, "geopotential_at_surface"),
    ],
)
def test_bad_tasks_are_named(task, options, message):
    with pytest.raises(ValueError, match=message):
        make_problem(setting(), task, **options)


@pytest.mark.parametrize("task", TASKS)
def test_the_guidance_variance_is_checked_and_honoured(task):
    with pytest.raises(ValueError, match=r"\"nominal\" or \"adaptive\", got 'adaptve'"):
        problem(task, variance="adaptve")
    p = problem(task, variance="adaptive")
    if p.observe:
        assert set(jax.tree.leaves(p.observe(p.told(0, 0)).variance)) == {"adaptive"}


@pytest.mark.parametrize("error", [0.0, -0.1, {"mean": float("nan")}, {"mean": np.array([0.1, -0.1, 0.1, 0.1])}])
def test_errors_of_a_custom_operator_are_positive(error):
    with pytest.raises(ValueError, match="must be positive and finite"):
        make_problem(setting(), "custom", **TASKS["custom"] | {"error": error})


def test_every_task_is_here():
    """Those that need more of an atmosphere than this one has are in tests/problems/."""
    assert set(TASKS) | {"stations", "warming"} == set(PROBLEMS)
