"""Training state and the two pure functions on it: `init_state` and `train_step`."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from wind_jax.model.uvit import UViT, UViTConfig
from wind_jax.prior import Prior, pure_params
from wind_jax.training.mesh import check_split, parameter_sharding

Loss = Callable[[Any, dict[str, jax.Array], jax.Array], jax.Array]


class TrainState(NamedTuple):
    """All that changes during training.

    Attributes:
        step: number of updates made, int32.
        params: parameters, float32, nested dicts.
        ema: exponential moving average of `params`: what is validated and exported.
        opt_state: state of the optimizer.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any


def make_optimizer(
    learning_rate: float,
    warmup: int,
    steps: int,
    decay: int = 0,
    final_learning_rate: float = 1e-6,
    clip: float = 0.8,
) -> optax.GradientTransformation:
    """AdamW without weight decay, linear warm-up then cosine decay, clipped by global norm (WIND, arXiv 2602.03924).

    Args:
        learning_rate: learning rate after the warm-up.
        warmup: steps of the warm-up.
        steps: steps of the training.
        decay: last steps, over which the rate falls; before them it is constant, so that a training can be continued
            from any checkpoint before the decay. 0: all after the warm-up, as in the paper.
        final_learning_rate: learning rate at the end.
        clip: largest global norm of the gradient.

    Raises:
        ValueError: a rate or a clip that is not positive, or warm-up and decay that are longer than the training.
    """
    for name, value in (("learning_rate", learning_rate), ("final_learning_rate", final_learning_rate), ("clip", clip)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"optimizer.{name} is {value}, expected a positive number.")
    decay = decay or steps - warmup
    if not (0 <= warmup < steps and 0 < decay <= steps - warmup):
        raise ValueError(f"warmup {warmup} and decay {decay} do not fit into the training of {steps} steps.")
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, learning_rate, warmup),
            optax.constant_schedule(learning_rate),
            optax.cosine_decay_schedule(learning_rate, decay, final_learning_rate / learning_rate),
        ],
        [warmup, steps - decay],
    )
    return optax.chain(optax.clip_by_global_norm(clip), optax.adamw(schedule, b2=0.99, weight_decay=0.0))


def _create(config: UViTConfig, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    params = pure_params(nnx.state(UViT(config, rngs=nnx.Rngs(key))))
    return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params))


def abstract_state(config: UViTConfig, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes and dtypes of the state, without allocating it."""
    return jax.eval_shape(functools.partial(_create, config, optimizer), jax.random.key(0))


def init_state(config: UViTConfig, optimizer: optax.GradientTransformation, mesh: Mesh, seed: int) -> TrainState:
    """Initial state, created already sharded: no device ever holds a full copy of a sharded array."""
    create = functools.partial(_create, config, optimizer)
    return jax.jit(create, out_shardings=state_sharding(config, optimizer, mesh))(jax.random.key(seed))


def begin_from(prior: Prior, config: UViTConfig, state: TrainState) -> TrainState:
    """An initial state with the parameters of a prior, for its average too; the optimizer starts anew.

    Raises:
        ValueError: the prior has another architecture.
    """
    if prior.config != dataclasses.replace(config, dtype=prior.config.dtype, remat=prior.config.remat):
        raise ValueError(f"config.init is a prior of the architecture {prior.config}, the run's is {config}.")
    place = lambda old, new: jax.device_put(np.asarray(new, old.dtype), old.sharding)
    return state._replace(
        params=jax.tree.map(place, state.params, prior.params), ema=jax.tree.map(place, state.ema, prior.params)
    )


def state_sharding(config: UViTConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Sharding of every array of the state.

    Raises:
        ValueError: an `fsdp` that splits none of the axes of something large.
    """
    abstract = abstract_state(config, optimizer)
    check_split(mesh, abstract)
    return parameter_sharding(mesh, abstract)


def make_train_step(
    loss: Loss, optimizer: optax.GradientTransformation, ema_decay: float, seed: int, shardings: TrainState
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """The compiled update (state, batch) -> (state, metrics); the old state's memory is reused.

    Where the loss or the gradient is not finite nothing but `step` changes, and `skipped` among the metrics is 1: the
    host need not look at every step, and what it then finds has spoilt nothing. `asked` among the metrics says whether
    any of the flags `batch["asked"]` is true, so that all processes learn of it at the same step.

    Args:
        loss: (params, batch, key) -> scalar.
        optimizer: an optax transformation.
        ema_decay: decay of the average; smaller in the first steps, (1 + step) / (10 + step).
        seed: the noise of a step depends on the seed and the step alone, so a resumed run repeats it.
        shardings: as of `state_sharding`.
    """

    def train_step(state: TrainState, batch: dict[str, jax.Array]):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        value, gradient = jax.value_and_grad(loss)(state.params, batch, key)
        with jax.numpy_dtype_promotion("standard"):  # optax counts steps in integers among floats
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step = state.step.astype(jnp.float32)
        decay = jnp.minimum(jnp.float32(ema_decay), (1.0 + step) / (10.0 + step))
        ema = jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, state.ema, params)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        new, old = (params, ema, opt_state), (state.params, state.ema, state.opt_state)
        kept = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        metrics = {
            "loss": value,
            "gradient_norm": norm,
            "skipped": (~finite).astype(jnp.int32),
            "asked": jnp.any(batch.get("asked", False)),
        }
        return TrainState(state.step + 1, *kept), metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))
