"""Rollouts with a prior whose posterior is known: windows chain, members are their own, one compilation serves all."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wind_jax import rollout as module
from wind_jax.channels import channels
from wind_jax.data.normalize import Statistics
from wind_jax.ensemble import over_mesh
from wind_jax.model.uvit import UViT, UViTConfig
from wind_jax.observations.observation import Observation, compose
from wind_jax.prior import Prior, pure_params
from wind_jax.rollout import Guide, make_chain, rollout
from wind_jax.sphere import Grid
from wind_jax.training.mesh import batch_sharding, make_mesh

GRID = Grid(np.linspace(-67.5, 67.5, 4), np.arange(8) * 45.0)
CHAIN = make_chain(steps=64, start=0.999)
RHO = 0.8


class AutoregressivePrior(Prior):
    """Each cell is a stationary Gaussian AR(1) of unit variance and correlation rho: E[x | x_t] is linear algebra."""

    def denoiser(self, forcings):
        lag = jnp.abs(jnp.arange(self.frames)[:, None] - jnp.arange(self.frames)[None])
        covariance = self.params["rho"] ** lag.astype(jnp.float32)

        def denoise(x_t, t):
            t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), x_t.shape[:2])[0]
            alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
            marginal = alpha[:, None] * covariance * alpha[None] + jnp.diag(sigma**2)
            gain = covariance * alpha[None] @ jnp.linalg.inv(marginal)
            return jnp.einsum("st,bthwc->bshwc", gain, x_t)

        return denoise


jax.tree_util.register_dataclass(
    AutoregressivePrior, ["params"], [f.name for f in dataclasses.fields(Prior) if f.name != "params"]
)
PRIOR = AutoregressivePrior(
    params={"rho": jnp.asarray(RHO, jnp.float32)},
    config=UViTConfig(channels=1, latitude=4, longitude=8, widths=(32,), blocks=("transformer",), heads=2),
    statistics=Statistics(channels(["temperature"], [500]), *np.ones((3, 1), np.float32)),
    grid=GRID,
    frames=4,
    schedule_name="rectified",
    prediction="x0",
)


def forcings(frames):
    return np.zeros((frames, *GRID.shape, 10), np.float32)


def run(members=3, windows=2, context=1, seed=0, chain=CHAIN, value=1.5):
    known = np.full((context, *GRID.shape, 1), value, np.float32)
    frames = forcings(context + windows * (PRIOR.frames - context))
    return np.concatenate(list(rollout(PRIOR, known, frames, members, jax.random.key(seed), chain)), axis=1)


def test_trajectories_follow_the_process_across_windows():
    """Mean rho^k x_0 and variance 1 - rho^(2k) at lead k, beyond the first window too."""
    x = run(members=400, windows=3, value=2.0)
    leads = np.arange(1, 10)
    samples = x.shape[0] * GRID.shape[0] * GRID.shape[1]
    variance = 1 - RHO ** (2 * leads)
    mean_error = abs(x.mean((0, 2, 3, 4)) - 2.0 * RHO**leads) / np.sqrt(variance / samples)
    assert mean_error.max() < 5
    np.testing.assert_allclose(x.var((0, 2, 3, 4)), variance, rtol=0.12)


def test_windows_join_without_a_jump():
    """The step across the joint is as correlated as any other."""
    x = run(members=400, windows=2)
    step = [(x[:, k + 1] - RHO * x[:, k]).std() for k in range(5)]
    np.testing.assert_allclose(step, np.sqrt(1 - RHO**2), rtol=0.1)


def test_members_do_not_depend_on_their_batch():
    whole, part = run(members=5), run(members=[3, 1])
    np.testing.assert_allclose(part, whole[[3, 1]], atol=1e-5)
    assert abs(whole[0] - whole[1]).max() > 0.1
    assert abs(run(seed=1) - run(seed=0)).max() > 0.1


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 1, 4), (1, 2, 2)])
@pytest.mark.parametrize(
    "guide", [None, Guide(lambda y: Observation(lambda x: x[2], y, 0.01), "mmps", (("iterations", 2),))]
)
def test_members_on_a_mesh_are_those_on_one_device(guide, shape):
    """Each device draws its part, in every window, and one compilation serves all windows."""
    module._draw.clear_cache()
    told = [np.ones((*GRID.shape, 1), np.float32)] * 3 if guide else None
    draw = lambda sharding: list(rollout(
        PRIOR, np.zeros((1, *GRID.shape, 1), np.float32), forcings(10), 8, jax.random.key(0), CHAIN, guide=guide,
        told=told, sharding=sharding,
    ))  # fmt: skip
    split = draw(batch_sharding(make_mesh(*shape, devices=jax.devices()[: math.prod(shape)])))
    assert module._draw._cache_size() == 1
    data, fsdp, space = shape
    for here, there in zip(split, draw(None), strict=True):
        part = (8 // (data * fsdp), 3, 4, 8 // space, 1)
        assert {shard.data.shape for shard in here.addressable_shards} == {part}
        np.testing.assert_allclose(here, there, atol=1e-5)


def test_a_network_whose_parameters_are_split_draws_the_same():
    """A U-ViT over `fsdp` and `space`; without them gathered where they are used, its activations would be."""
    grid = Grid(np.linspace(-78.75, 78.75, 8), np.arange(16) * 22.5)
    network = UViTConfig(
        channels=1, latitude=8, longitude=16, patch=2, widths=(64, 64), blocks=("res", "transformer"), heads=2,
        noise_conditioning=True,
    )  # fmt: skip
    normal = np.random.default_rng(0).normal
    start = pure_params(nnx.state(UViT(network, rngs=nnx.Rngs(0))))
    # Output layers start as zero: away from there.
    params = jax.tree.map(lambda leaf: leaf + jnp.asarray(0.05 * normal(size=leaf.shape), leaf.dtype), start)
    whole = Prior(params, network, PRIOR.statistics, grid, 3, "rectified", "x0")
    mesh = make_mesh(1, 2, 2, devices=jax.devices()[:4])
    split = over_mesh(whole, mesh, 4)
    parts = [leaf.addressable_shards[0].data.size * 2 == leaf.size for leaf in jax.tree.leaves(split.params)]
    assert sum(parts) > 8
    guide = Guide(lambda y: Observation(lambda x: x[1, ::2, ::2], y, 1.0), "mmps", (("iterations", 2),))
    draw = lambda prior, sharding: next(rollout(
        prior, None, np.zeros((3, *grid.shape, 10), np.float32), 4, jax.random.key(0), make_chain(steps=2, start=0.5),
        guide=guide, told=[np.ones((4, 8, 1), np.float32)], sharding=sharding,
    ))  # fmt: skip
    here = draw(split, batch_sharding(mesh))
    assert {shard.data.shape for shard in here.addressable_shards} == {(2, 3, 8, 8, 1)}
    np.testing.assert_allclose(here, draw(whole, None), atol=1e-4)


def test_one_compilation_for_all_windows_seeds_and_batches():
    module._draw.clear_cache()
    for seed in range(3):
        run(members=[seed, seed + 1], windows=3, seed=seed)
    assert module._draw._cache_size() == 1


def test_windows_are_streamed():
    frames = rollout(PRIOR, np.zeros((2, *GRID.shape, 1), np.float32), forcings(6), 2, jax.random.key(0), CHAIN)
    assert next(frames).shape == (2, 2, *GRID.shape, 1)


@pytest.mark.parametrize(
    ("known", "frames", "named"),
    [
        ((1, 4, 8, 1), 6, "6 frames"),
        ((4, 4, 8, 1), 8, "got 4"),
        ((1, 4, 9, 1), 7, r"\(4, 9, 1\)"),
        ((1, 4, 8, 1), 1, "at least one window"),
    ],
)
def test_bad_input(known, frames, named):
    with pytest.raises(ValueError, match=named):
        next(rollout(PRIOR, np.zeros(known, np.float32), forcings(frames), 2, jax.random.key(0), CHAIN))


@pytest.mark.parametrize(
    ("options", "named"), [({"name": "rk4"}, "rk4"), ({"name": "heun", "eta": 0.5}, "0.5"), ({"steps": 0}, "0")]
)
def test_bad_chain(options, named):
    with pytest.raises(ValueError, match=named):
        make_chain(**options)


def reference(y, variance, operators):
    """Mean and variance by frame of x given y = A x + noise, for one cell of the AR(1), by linear algebra."""
    lag = np.abs(np.arange(PRIOR.frames)[:, None] - np.arange(PRIOR.frames)[None])
    return condition(np.zeros(PRIOR.frames), RHO**lag, operators, y, variance)


def condition(mean, covariance, matrix, y, variance):
    gain = covariance @ matrix.T @ np.linalg.inv(matrix @ covariance @ matrix.T + np.diag(variance))
    return mean + gain @ (y - matrix @ mean), covariance - gain @ matrix @ covariance


def compare(x, mean, variance):
    """Samples (member, frame, latitude, longitude, 1): cells are replicates of one another."""
    flat = x[..., 0].swapaxes(0, 1).reshape(x.shape[1], -1)
    errors = np.abs(flat.mean(1) - mean) / np.sqrt(variance / flat.shape[1])
    assert errors.max() < 5, errors
    np.testing.assert_allclose(flat.var(1), variance, rtol=0.06)


KALMAN_CHAIN = make_chain("heun", 48, 0.98)
MEMBERS = 200


@pytest.mark.parametrize("task", ["frames", "mean", "both"])
def test_one_window_against_the_kalman_smoother(task):
    """Observed frames, the mean over all frames, and both at once: a Gaussian smoother's answer in each cell."""
    frame, mean = (lambda x: {"frame": x[2]}), (lambda x: {"mean": x.mean(0)})
    row = np.eye(4)[2:3], np.full((1, 4), 0.25)
    parts = {"frames": [(frame, row[0], 1.2, 0.3)], "mean": [(mean, row[1], 0.7, 0.05)]}
    parts["both"] = parts["frames"] + parts["mean"]
    full = np.ones((*GRID.shape, 1), np.float32)

    def observe(told):
        made = [Observation(f, jax.tree.map(lambda v: v * full, y), r) for (f, _, _, r), y in zip(parts[task], told)]
        return compose(*made)

    names = {"frames": ["frame"], "mean": ["mean"], "both": ["frame", "mean"]}[task]
    told = [{name: np.float32(y)} for (_, _, y, _), name in zip(parts[task], names)]
    guide = Guide(observe, "mmps", (("iterations", 3),))
    windows = rollout(PRIOR, None, forcings(4), MEMBERS, jax.random.key(0), KALMAN_CHAIN, 0, guide, [told])
    x = np.asarray(next(windows))
    matrix = np.concatenate([row for _, row, _, _ in parts[task]])
    exact = reference(np.array([y for *_, y, _ in parts[task]]), np.array([r for *_, r in parts[task]]), matrix)
    compare(x, exact[0], np.diag(exact[1]))


def test_reanalysis_of_several_windows_against_linear_algebra():
    """Windows guided by their own observations and the last frame before: each exact, the end near the smoother."""
    windows, noise = 3, 0.4
    rng = np.random.default_rng(2)
    total = 1 + windows * 3
    y = rng.normal(size=total)
    full = np.ones((4, *GRID.shape, 1), np.float32)
    guide = Guide(lambda told: Observation(lambda x: x, told, noise), "mmps", (("iterations", 4),))
    told = [full * y[3 * w : 3 * w + 4, None, None, None].astype(np.float32) for w in range(windows)]
    drawn = rollout(PRIOR, None, forcings(total), MEMBERS, jax.random.key(1), KALMAN_CHAIN, 1, guide, told)
    x = np.concatenate([np.asarray(frames) for frames in drawn], axis=1)

    mean, covariance = reference(y[:4], np.full(4, noise), np.eye(4))
    means, variances = list(mean), list(np.diag(covariance))
    for w in range(1, windows):
        # x of the new frames is A x_overlap + b + noise(C), with y of the new frames alone.
        lag = np.abs(np.arange(4)[:, None] - np.arange(4)[None])
        gain = (RHO**lag)[1:, :1]
        prior_covariance = (RHO**lag)[1:, 1:] - gain @ gain.T
        seen = y[3 * w + 1 : 3 * w + 4]
        shift, c = condition(np.zeros(3), prior_covariance, np.eye(3), seen, np.full(3, noise))
        slope = gain - prior_covariance @ np.linalg.inv(prior_covariance + noise * np.eye(3)) @ gain
        new_mean = slope[:, 0] * means[-1] + shift
        variances += list(slope[:, 0] ** 2 * variances[-1] + np.diag(c))
        means += list(new_mean)
    compare(x, np.array(means), np.array(variances))

    lag = np.abs(np.arange(total)[:, None] - np.arange(total)[None])
    smoother = condition(np.zeros(total), RHO**lag, np.eye(total), y, np.full(total, noise))
    # What a later window sees does not reach back across the shared frame; at the end the answer is the smoother's.
    assert np.abs(np.array(means) - smoother[0])[-1] < 0.2 * np.sqrt(smoother[1][-1, -1])


def test_tds_says_what_became_of_its_members():
    """A gross y leaves few effective members, none too many, and a y that says nothing leaves them all."""
    sizes = {}
    for variance in (1e-2, 1e6):
        found = []
        guide = Guide(lambda told, v=variance: Observation(lambda x: x[0, 0, 0], told, v), "tds")
        weighed = lambda window, weights, found=found: found.append((window, weights))
        chain = make_chain("ddim", 8, 0.98)
        told = [np.full(1, 6.0, np.float32)]
        next(rollout(PRIOR, None, forcings(4), 16, jax.random.key(0), chain, 0, guide, told, 0, weighed))
        ((window, weights),) = found
        assert window == 0
        assert weights.ancestors.shape == (16,)
        sizes[variance] = np.asarray(weights.effective_size)
        assert sizes[variance].shape == (9,)
        assert (sizes[variance] >= 1 - 1e-4).all()
        assert (sizes[variance] <= 16 + 1e-3).all()
    assert sizes[1e-2].min() < 8
    assert sizes[1e6].min() > 15


def test_other_methods_have_no_weights():
    guide = Guide(lambda told: Observation(lambda x: x[0, 0, 0], told, 1.0), "mmps")
    weighed = lambda *_: pytest.fail("weights of MMPS")
    told = [np.zeros(1, np.float32)]
    next(rollout(PRIOR, None, forcings(4), 2, jax.random.key(0), make_chain(steps=2), 0, guide, told, 0, weighed))
