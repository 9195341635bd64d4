"""Seconds, FLOPs and memory of one guided denoiser call by every method, as multiples of an unguided one.

    python benchmarks/guidance.py --config experiments/speedy.py [--members 4] [--repeats 5]

Random weights; observations of 5 % of the cells. A product with the network's Jacobian is one backward pass to its
input, about the cost of a forward one, so that MMPS with k solver steps is near 1 forward + (k + 1) backward: k + 2.
"""

import jax
import jax.numpy as jnp
import numpy as np
from measure import arguments, compiled, median_seconds, random_prior, report

from wind_jax.diffusion.guidance import METHODS, guide
from wind_jax.diffusion.samplers import initial, member_keys
from wind_jax.model.flops import matmul_flops
from wind_jax.tasks.sparse_obs import draw_cells, measure, sparse_observation

options, c = arguments(__doc__, members=4, repeats=5)
prior = random_prior(c)
key = jax.random.key(0)
x_t = initial(member_keys(key, options.members), prior.shape, 0.5, prior.schedule)
inputs = jax.random.normal(key, prior.inputs_shape, jnp.float32)
error = np.ones(prior.config.channels, np.float32)
cells = draw_cells(key, prior.shape, prior.statistics.channels, fraction=0.05)
y = measure(np.zeros(prior.shape, np.float32), cells, error, key)

variants = {"unguided": None}
variants |= {name: (name, {}) for name in METHODS if name != "mmps"}
variants |= {
    f"mmps_{solver}_{k}": ("mmps", {"solver": solver, "iterations": k})
    for solver in ("cg", "gmres")
    for k in (1, 2, 3, 5)
}


def cost(variant) -> dict[str, float]:
    def call(prior, x_t, inputs, cells, y):
        denoiser = prior.denoiser(inputs)
        if variant is not None:
            method, chosen = variant
            denoiser = guide(denoiser, sparse_observation(cells, y, error), prior.schedule, method, **chosen)
        return denoiser(x_t, 0.5)

    given = (prior, x_t, inputs, cells, y)
    made = compiled(jax.jit(call, keep_unused=True), *given)
    return {
        "seconds": median_seconds(lambda: made.call(*given), options.repeats),
        "flop": matmul_flops(call, *given),
        "temporary_bytes": made.memory["temporary"],
    }


costs = {name: cost(variant) for name, variant in variants.items()}
plain = costs["unguided"]
report(
    {
        "benchmark": "guidance",
        "members": options.members,
        "unguided": plain,
        "multiples": {
            name: {key: round(value / plain[key], 2) for key, value in one.items()} for name, one in costs.items()
        },
    }
)
