"""Seconds, FLOP/s and memory of sampling, free and guided, with random weights.

    python benchmarks/sample.py --config experiments/speedy.py [--members 4] [--steps 8] [--repeats 3]

`free` is DDIM; `guided` is the same with MMPS (3 solver iterations) on observations of 5 % of the cells. Cost
grows linearly with the steps, so few are enough. `flop` counts the matrix products that the sampler runs.
Members are split over `config.mesh` as `infer` splits them. `--repeats 0` compiles alone and runs nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
from measure import arguments, compiled, median_seconds, peak_memory, random_prior, report

from wind_jax.diffusion.guidance import guide
from wind_jax.diffusion.samplers import initial, member_keys, sample
from wind_jax.diffusion.schedule import time_grid
from wind_jax.ensemble import ensemble_mesh, over_mesh
from wind_jax.model.flops import matmul_flops
from wind_jax.observations.gridded import Placed, gridded_observation
from wind_jax.observations.twins import draw_cells, measure
from wind_jax.training.mesh import batch_sharding

options, c = arguments(__doc__, least_repeats=0, members=4, steps=8, repeats=3)
mesh = ensemble_mesh(options.members, **c.mesh)
prior = over_mesh(random_prior(c), mesh, options.members)
one = np.ones(prior.config.channels, np.float32)
key = jax.random.key(0)
grid = time_grid(options.steps)
x_init = initial(member_keys(key, options.members), prior.shape, grid[0], prior.schedule)
x_init = jax.device_put(x_init, batch_sharding(mesh))
forcings = jax.random.normal(key, prior.inputs_shape, jnp.float32)
cells = draw_cells(key, prior.shape, prior.statistics.channels, fraction=0.05)
y = measure(np.zeros(prior.shape, np.float32), cells, one, key)
placed = {name: Placed(where, y[name], np.ones_like(y[name])) for name, where in cells.items()}


def free(prior, x_init, forcings, placed):
    return sample(prior.denoiser(forcings), x_init, grid, prior.schedule)


def guided(prior, x_init, forcings, placed):
    observation = gridded_observation(placed, prior.statistics)
    denoiser = guide(prior.denoiser(forcings), observation, prior.schedule, "mmps", iterations=3)
    return sample(denoiser, x_init, grid, prior.schedule)


def cost(function) -> dict:
    inputs = (prior, x_init, forcings, placed)
    flop = matmul_flops(function, *inputs)
    with jax.set_mesh(mesh):
        sampler = compiled(jax.jit(function, keep_unused=True), *inputs)
    seconds = median_seconds(lambda: sampler.call(*inputs), options.repeats)
    return {
        "compile_seconds": sampler.seconds,
        "seconds": seconds,
        "seconds_per_member_and_step": seconds and seconds / (options.members * options.steps),
        "flop": flop,
        "flop_per_s": seconds and flop / seconds,
        "memory_bytes": sampler.memory,
    }


report(
    {
        "benchmark": "sample",
        "mesh": dict(mesh.shape),
        "members": options.members,
        "steps": options.steps,
        "free": cost(free),
        "guided": cost(guided),
        "memory_bytes": peak_memory(),
    }
)
