"""Seconds, FLOP/s and memory of one training step, on random data.

    python benchmarks/train_step.py --config experiments/speedy.py [--repeats 5] [--config.batch_size=8]

`model_flop` is three times the matrix-product FLOPs of the network's forward pass, as a backward pass costs
two. That is what the model asks for, whatever is recomputed to save memory, so `model_flop_per_s` compares
between settings.
"""

import jax
import jax.numpy as jnp
import numpy as np
from measure import arguments, compiled, median_seconds, peak_memory, report, share_of_peak

from wind_jax.diffusion.loss import Patterns, diffusion_forcing_loss
from wind_jax.diffusion.schedule import SCHEDULES
from wind_jax.model.flops import matmul_flops
from wind_jax.prior import apply, graph
from wind_jax.train import architecture
from wind_jax.training.mesh import make_mesh, process_rows, put_batch
from wind_jax.training.state import init_state, make_optimizer, make_train_step, state_sharding

options, c = arguments(__doc__, repeats=5)
(_, model), mesh = architecture(c), make_mesh(**c.mesh.to_dict())
graphdef, schedule = graph(model), SCHEDULES[c.diffusion.schedule]()
optimizer = make_optimizer(**c.optimizer.to_dict())
weights = jnp.ones((model.latitude, 1, model.channels), jnp.float32)
patterns = Patterns(**c.diffusion.patterns)


def loss(params, batch, key):
    network = lambda x_t, t: apply(graphdef, params, x_t, t, batch["inputs"])
    return diffusion_forcing_loss(network, batch["x"], key, schedule, weights, c.diffusion.prediction, patterns)


window = (len(process_rows(mesh, c.batch_size)), c.data.frames, model.latitude, model.longitude)
draw = np.random.default_rng(0)
batch = put_batch(
    mesh,
    {
        "x": draw.standard_normal((*window, model.channels), np.float32),
        "inputs": draw.standard_normal((*window, model.forcings), np.float32),
    },
    c.batch_size,
)
state = init_state(model, optimizer, mesh, c.seed)
times = jnp.zeros(batch["x"].shape[:2], jnp.float32)
forward = lambda params, x, t, forcings: apply(graphdef, params, x, t, forcings)
model_flop = 3 * matmul_flops(forward, state.params, batch["x"], times, batch["inputs"])
parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
with jax.set_mesh(mesh):
    step = make_train_step(loss, optimizer, c.ema, c.seed, state_sharding(model, optimizer, mesh))
    step = compiled(step, state, batch)


def run():
    global state  # its memory is given to the next state
    state, metrics = step.call(state, batch)
    return metrics


seconds = median_seconds(run, options.repeats)
report(
    {
        "benchmark": "train_step",
        "mesh": dict(mesh.shape),
        "parameters": parameters,
        "batch_size": c.batch_size,
        "compile_seconds": step.seconds,
        "seconds": seconds,
        "samples_per_s": c.batch_size / seconds,
        "model_flop": model_flop,
        "model_flop_per_s": model_flop / seconds,
        "share_of_peak": share_of_peak(model_flop / seconds),
        "memory_bytes": step.memory | peak_memory(),
    }
)
