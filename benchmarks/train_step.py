"""Seconds, FLOP/s and memory of one training step, on random data.

    python benchmarks/train_step.py --config experiments/speedy.py [--repeats 5] [--config.batch_size=8]

`--repeats 0` compiles alone and runs nothing: for sizes that do not fit the machine.

`model_flop` is three times the matrix-product FLOPs of the network's forward pass, as a backward pass costs
two. That is what the model asks for, whatever is recomputed to save memory, so `model_flop_per_s` compares
between settings.
"""

import jax
import jax.numpy as jnp
import numpy as np
from measure import arguments, compiled, median_seconds, peak_memory, random_prior, report, share_of_peak

from wind_jax.diffusion.loss import diffusion_forcing_loss
from wind_jax.diffusion.schedule import SCHEDULES
from wind_jax.model.flops import matmul_flops
from wind_jax.prior import apply, graph, informed
from wind_jax.train import training_objective
from wind_jax.training.mesh import batch_sharding, check_batch, make_mesh, process_rows, put_batch
from wind_jax.training.state import abstract_state, init_state, make_optimizer, make_train_step, state_sharding

options, c = arguments(__doc__, least_repeats=0, repeats=5)
prior, mesh = random_prior(c), make_mesh(**c.mesh.to_dict())
model = prior.config
check_batch(mesh, c.batch_size, model.longitude)
graphdef, schedule = graph(model), SCHEDULES[c.diffusion.schedule]()
optimizer = make_optimizer(**c.optimizer.to_dict())
weights = jnp.ones((model.latitude, 1, model.channels), jnp.float32)
objective = training_objective(c)


def loss(params, batch, key):
    network = informed(graphdef, params, batch["inputs"])
    return diffusion_forcing_loss(network, batch["x"], key, schedule, weights, objective, prior.reference)


window = (c.batch_size, c.data.frames, model.latitude, model.longitude)
shapes = {
    name: jax.ShapeDtypeStruct((*window, size), jnp.float32, sharding=batch_sharding(mesh))
    for name, size in {"x": model.channels, "inputs": prior.inputs_shape[-1]}.items()
}
abstract, shardings = abstract_state(model, optimizer), state_sharding(model, optimizer, mesh)
times = jax.ShapeDtypeStruct(window[:2], jnp.float32)
forward = lambda params, x, t, forcings: apply(graphdef, params, x, t, forcings)
forcings = shapes["inputs"].update(shape=(*window, model.forcings))
model_flop = 3 * matmul_flops(forward, abstract.params, shapes["x"], times, forcings)
with jax.set_mesh(mesh):
    step = make_train_step(loss, optimizer, c.ema, c.seed, shardings)
    placed = jax.tree.map(lambda a, sharding: a.update(sharding=sharding), abstract, shardings)
    step = compiled(step, placed, shapes)


def run_step():
    """Of a random state and batch, made when it is first asked for: where there is room for them."""
    rows = len(process_rows(mesh, c.batch_size))
    draw = np.random.default_rng(0)
    batch = {name: draw.standard_normal((rows, *a.shape[1:]), np.float32) for name, a in shapes.items()}
    batch = put_batch(mesh, batch, c.batch_size)
    state = init_state(model, optimizer, mesh, c.seed)
    while True:
        state, metrics = step.call(state, batch)  # the old state's memory is given to the next one
        yield metrics


seconds = median_seconds(run_step().__next__, options.repeats)
per_second = lambda amount: amount / seconds if seconds else None
report(
    {
        "benchmark": "train_step",
        "mesh": dict(mesh.shape),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(abstract.params)),
        "batch_size": c.batch_size,
        "compile_seconds": step.seconds,
        "seconds": seconds,
        "samples_per_s": per_second(c.batch_size),
        "model_flop": model_flop,
        "model_flop_per_s": per_second(model_flop),
        "share_of_peak": seconds and share_of_peak(per_second(model_flop)),
        "memory_bytes": step.memory | peak_memory(),
    }
)
