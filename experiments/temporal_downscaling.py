"""Six-hourly fields from their means over 30 hours, by the packaged prior, from the held-out sample.

    python -m wind_jax.infer --config experiments/temporal_downscaling.py

Precipitation is given as sums. The packaged prior's windows have 5 frames, so the mean is over all 5 of them.
Hardware: two CPU cores, 6 GB of memory.
"""

from ml_collections import ConfigDict

from experiments import sparse_obs


def get_config() -> ConfigDict:
    c = sparse_obs.get_config()
    c.workdir = "runs/temporal_downscaling"

    c.task = ConfigDict()
    c.task.name = "temporal_downscaling"
    c.task.mean_over = 5  # frames in one mean
    c.task.error = 0.02  # standard deviation of the means' error, as a fraction of the channel's
    c.task.variables = ()  # given ones, empty: all

    c.sampler.start = 0.98
    c.sampler.end = 0.0  # only at low noise is what is given met to its error
    c.guidance.mmps.iterations = 4  # sums of rain, which are nonlinear in the prior's units, need more than means
    c.guidance.mmps.solver = "gmres"  # CG diverges on the Jacobian of a learned denoiser at t > 0.7: docs/guidance.md
    return c
