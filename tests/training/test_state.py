"""One update against optax by hand, the average, and that a step's noise depends on nothing but seed and step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from wind_jax.model.uvit import UViTConfig
from wind_jax.training.mesh import device_bytes, make_mesh
from wind_jax.training.state import abstract_state, init_state, make_optimizer, make_train_step, state_sharding

CONFIG = UViTConfig(channels=3, latitude=8, longitude=16, widths=(32, 32), blocks=("res", "transformer"), depth=1)
OPTIMIZER = make_optimizer(1e-2, 2, 100)
WIDE = dataclasses.replace(CONFIG, widths=(64, 128))


def quadratic(params, batch, key):
    noise = jax.random.normal(key, ())
    return sum(jnp.sum(jnp.square(leaf - batch["target"])) for leaf in jax.tree.leaves(params)) * (1 + noise**2)


@functools.cache
def train_step(seed):
    return make_train_step(quadratic, OPTIMIZER, 0.9, seed, state_sharding(CONFIG, OPTIMIZER, make_mesh()))


def run(steps, state=None, seed=3):
    state = init_state(CONFIG, OPTIMIZER, make_mesh(), seed=0) if state is None else state
    step = train_step(seed)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, {"target": jnp.float32(0.5)})
        losses.append(float(metrics["loss"]))
    return state, losses


def test_abstract_state_is_the_state():
    optimizer = make_optimizer(1e-2, 2, 100)
    state = init_state(CONFIG, optimizer, make_mesh(), seed=0)
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), state)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), abstract_state(CONFIG, optimizer)) == shapes


def test_update_equals_optax_by_hand():
    state = init_state(CONFIG, OPTIMIZER, make_mesh(), seed=0)
    params, opt_state, ema = jax.device_get((state.params, state.opt_state, state.params))

    @jax.jit
    def update(params, opt_state, key):
        gradient = jax.grad(quadratic)(params, {"target": jnp.float32(0.5)}, key)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = OPTIMIZER.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for step in range(3):
        params, opt_state = update(params, opt_state, jax.random.fold_in(jax.random.key(3), jnp.int32(step)))
        decay = min(0.9, (1 + step) / (10 + step))
        ema = jax.tree.map(lambda e, p, d=decay: np.float32(d) * e + np.float32(1 - d) * p, ema, params)
    state, _ = run(3)
    for got, expected in ((state.params, params), (state.ema, ema)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, expected)
    assert int(state.step) == 3


def test_noise_of_a_step_depends_on_seed_and_step_alone():
    _, whole = run(6)
    state, first = run(3)
    _, second = run(3, state)
    assert first + second == pytest.approx(whole, rel=1e-6)
    assert run(3, seed=4)[1] != pytest.approx(first, rel=1e-3)


@pytest.mark.parametrize("target", [np.nan, np.inf, 1e30])  # the last overflows in the gradient's norm
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(target):
    step = train_step(3)
    state, _ = run(2)
    before = jax.device_get(state)
    state, metrics = step(state, {"target": jnp.float32(target)})
    assert int(metrics["skipped"]) == 1
    jax.tree.map(np.testing.assert_array_equal, state._replace(step=0), before._replace(step=0))
    assert int(state.step) == 3
    state, metrics = step(state, {"target": jnp.float32(0.5)})
    assert int(metrics["skipped"]) == 0
    assert np.isfinite(optax.tree.norm(state.params))


def test_state_stays_sharded_and_its_memory_is_reused():
    """Parameters, average and moments are split alike, before and after a step; as many bytes as told beforehand."""
    mesh, optimizer = make_mesh(data=2, fsdp=4), make_optimizer(1e-2, 2, 100)
    shardings = state_sharding(WIDE, optimizer, mesh)
    step = make_train_step(quadratic, optimizer, 0.9, 3, shardings)
    state, batch = init_state(WIDE, optimizer, mesh, seed=0), {"target": jnp.float32(0.5)}
    expected = device_bytes(shardings, abstract_state(WIDE, optimizer))
    memory = step.lower(state, batch).compile().memory_analysis()
    assert memory.argument_size_in_bytes == pytest.approx(expected, rel=0.01)
    assert memory.alias_size_in_bytes == pytest.approx(expected, rel=0.01)
    after, _ = step(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    on_one = lambda tree: sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))
    assert on_one(after) == expected
    assert on_one(after.opt_state) == pytest.approx(2 * on_one(after.params), rel=0.01)
    assert on_one(after.ema) == on_one(after.params)


def test_the_rate_is_constant_before_its_decay():
    """Up over 10 steps, constant to step 60, then half a cosine down to the last rate at step 100."""
    optimizer = make_optimizer(1e-2, 10, 100, decay=40, final_learning_rate=1e-4, clip=1e9)
    params, rates = jnp.ones(()), []
    state = optimizer.init(params)
    for _ in range(101):
        with jax.numpy_dtype_promotion("standard"):
            update, state = optimizer.update(jnp.ones(()), state, params)
        rates.append(-float(update))  # Adam's step on a constant gradient is the rate itself
    expected = np.concatenate(
        [1e-2 * np.arange(10) / 10, np.full(50, 1e-2), 1e-4 + 9.9e-3 * (1 + np.cos(np.pi * np.arange(41) / 40)) / 2]
    )
    np.testing.assert_allclose(rates, expected, rtol=1e-3, atol=1e-6)


def test_warmup_longer_than_training_is_refused():
    with pytest.raises(ValueError, match="warmup 100"):
        make_optimizer(1e-3, 100, 100)
