"""Fine fields from coarse ones: the packaged prior sharpens means over 4 x 4 cells of the held-out sample.

    python -m wind_jax.infer --config experiments/spatial_downscaling.py
    python -m wind_jax.infer --config experiments/spatial_downscaling.py --config.task.factor=2

Hardware: two CPU cores, 6 GB of memory.
"""

from ml_collections import ConfigDict

from experiments import sparse_obs


def get_config() -> ConfigDict:
    c = sparse_obs.get_config()
    c.workdir = "runs/spatial_downscaling"

    c.task = ConfigDict()
    c.task.name = "spatial_downscaling"
    c.task.factor = 4  # rows and columns of fine cells in a coarse one
    c.task.error = 0.02  # standard deviation of the means' error, as a fraction of the channel's
    c.task.variables = ()  # given ones, empty: all

    c.sampler.start = 0.98
    c.sampler.end = 0.0  # only at low noise is what is given met to its error
    c.guidance.mmps.iterations = 4
    c.guidance.mmps.solver = "gmres"  # CG diverges on the Jacobian of a learned denoiser at t > 0.7: docs/guidance.md
    return c
