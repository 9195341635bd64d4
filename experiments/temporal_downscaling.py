"""Six-hourly fields from their means over 30 hours, by the packaged prior, from the held-out sample.

    python -m wind_jax.infer --config experiments/temporal_downscaling.py

Precipitation is given as sums. The packaged prior's windows have 5 frames, so the mean is over all 5 of them.
Hardware: two CPU cores, 6 GB of memory.
"""

from ml_collections import ConfigDict

from wind_jax.experiments import defaults


def get_config() -> ConfigDict:
    c = defaults.inference("temporal_downscaling")
    c.workdir = "runs/temporal_downscaling"
    c.sampler.steps = 24
    c.guidance.mmps.iterations = 6  # sums of rain, which are nonlinear in the prior's units, need more than means
    c.guidance.mmps.solver = "gmres"  # CG diverges on the Jacobian of a learned denoiser at t > 0.7: docs/guidance.md
    return c
