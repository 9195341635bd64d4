"""Memory and matrix products of a training step, predicted from shapes, against what the compiler reports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wind_jax.diffusion.loss import Objective, diffusion_forcing_loss
from wind_jax.diffusion.schedule import rectified
from wind_jax.model.flops import backward_bytes
from wind_jax.model.uvit import UViTConfig
from wind_jax.prior import apply, graph
from wind_jax.training.mesh import batch_sharding, make_mesh, step_memory
from wind_jax.training.state import abstract_state, make_optimizer, make_train_step, state_sharding

OPTIMIZER = make_optimizer(1e-3, 1, 10)
EXACT = ("parameters", "their average", "state of the optimizer", "a batch")


@pytest.mark.parametrize(
    ("shape", "remat", "dtype"),
    [
        ((8, 1, 1), True, "float32"),
        ((8, 1, 1), True, "bfloat16"),
        ((8, 1, 1), False, "bfloat16"),
        ((2, 4, 1), True, "float32"),
        ((1, 1, 4), False, "float32"),  # what is gathered over columns shows best where all is kept
        *(
            pytest.param(*case, "float32", marks=pytest.mark.slow)
            for case in (((1, 1, 1), True), ((8, 1, 1), False), ((1, 8, 1), True))
        ),
    ],
)
def test_prediction_is_near_what_the_compiler_reports(shape, remat, dtype):
    config = UViTConfig(
        channels=8, latitude=16, longitude=32, forcings=10, widths=(64, 128), blocks=("res", "transformer"), depth=2,
        heads=2, frame_kernel=3, remat=remat, dtype=dtype,
    )  # fmt: skip
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    graphdef = graph(config)

    def loss(params, batch, key=None):
        network = lambda x_t, t: apply(graphdef, params, x_t, t, batch["inputs"])
        return diffusion_forcing_loss(
            network, batch["x"], jax.random.key(0), rectified(), jnp.ones((16, 1, 8)), Objective("preconditioned")
        )

    state, shardings = abstract_state(config, OPTIMIZER), state_sharding(config, OPTIMIZER, mesh)
    of = lambda channels: jax.ShapeDtypeStruct((8, 5, 16, 32, channels), jnp.float32, sharding=batch_sharding(mesh))
    batch = {"x": of(8), "inputs": of(10)}
    predicted = step_memory(mesh, loss, state, batch)
    placed = jax.tree.map(lambda a, s: a.update(sharding=s), state, shardings)
    with jax.set_mesh(mesh):
        step = make_train_step(loss, OPTIMIZER, 0.999, 0, shardings).lower(placed, batch)
    # The level of optimization of machine code does not change what is in memory.
    compiled = step.compile(compiler_options={"xla_backend_optimization_level": 0}).memory_analysis()
    assert sum(predicted[name] for name in EXACT) == pytest.approx(compiled.argument_size_in_bytes, rel=1e-3)
    whole = compiled.argument_size_in_bytes + compiled.temp_size_in_bytes
    assert sum(predicted.values()) == pytest.approx(whole, rel=0.15)


def test_backward_bytes_of_a_layer_are_its_input_beside_its_arguments():
    x, weight = jnp.zeros((7, 30)), jnp.zeros((30, 50))
    assert backward_bytes(lambda weight: x @ weight, weight) == (4 * 7 * 30, [])
    assert backward_bytes(lambda both: both[0] @ both[1], (x, weight)) == (0, [])
    half = lambda both: both[0].astype(jnp.bfloat16) @ both[1].astype(jnp.bfloat16)
    assert backward_bytes(half, (x, weight)) == (2 * (7 * 30 + 30 * 50), [])
