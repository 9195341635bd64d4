"""Seconds, FLOP/s and memory of sampling, free and guided, with random weights.

    python benchmarks/sample.py --config experiments/speedy.py [--members 4] [--steps 8] [--repeats 3]

`free` is DDIM; `guided` is the same with MMPS (3 solver iterations) on observations of 5 % of the cells. Cost
grows linearly with the steps, so few are enough. `flop` counts the matrix products that the sampler runs.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from measure import architecture, arguments, compiled, median_seconds, peak_memory, report

from wind_jax.data.normalize import Statistics
from wind_jax.data.variables import channels
from wind_jax.diffusion.guidance import guide
from wind_jax.diffusion.samplers import initial, member_keys, sample
from wind_jax.diffusion.schedule import time_grid
from wind_jax.model.flops import matmul_flops
from wind_jax.model.uvit import UViT
from wind_jax.prior import Prior, pure_params
from wind_jax.sphere import Grid
from wind_jax.tasks.sparse_obs import draw_cells, measure, sparse_observation

options, c = arguments(__doc__, members=4, steps=8, repeats=3)
model = architecture(c)
chosen = channels(c.data.variables or None, c.data.levels or None)
height, width = c.data.grid
one = np.ones(model.channels, np.float32)
prior = Prior(
    params=jax.jit(lambda key: pure_params(nnx.state(UViT(model, rngs=nnx.Rngs(key)))))(jax.random.key(0)),
    config=model,
    statistics=Statistics(chosen, 0 * one, one, one),
    grid=Grid(np.linspace(-90, 90, height), np.arange(width) * 360 / width),
    frames=c.data.frames,
    schedule_name=c.diffusion.schedule,
    prediction=c.diffusion.prediction,
)
key = jax.random.key(0)
grid = time_grid(options.steps)
x_init = initial(member_keys(key, options.members), prior.shape, grid[0], prior.schedule)
forcings = jax.random.normal(key, (*prior.shape[:-1], model.forcings), jnp.float32)
cells = draw_cells(key, prior.shape, chosen, fraction=0.05)
y = measure(np.zeros(prior.shape, np.float32), cells, one, key)


def free(prior, x_init, forcings, cells, y):
    return sample(prior.denoiser(forcings), x_init, grid, prior.schedule)


def guided(prior, x_init, forcings, cells, y):
    denoiser = guide(prior.denoiser(forcings), sparse_observation(cells, y, one), prior.schedule, "mmps")
    return sample(denoiser, x_init, grid, prior.schedule)


def cost(function) -> dict:
    inputs = (prior, x_init, forcings, cells, y)
    flop = matmul_flops(function, *inputs)
    sampler = compiled(jax.jit(function, keep_unused=True), *inputs)
    seconds = median_seconds(lambda: sampler.call(*inputs), options.repeats)
    return {
        "compile_seconds": sampler.seconds,
        "seconds": seconds,
        "seconds_per_member_and_step": seconds / (options.members * options.steps),
        "flop": flop,
        "flop_per_s": flop / seconds,
        "memory_bytes": sampler.memory,
    }


report(
    {
        "benchmark": "sample",
        "members": options.members,
        "steps": options.steps,
        "free": cost(free),
        "guided": cost(guided),
        "memory_bytes": peak_memory(),
    }
)
