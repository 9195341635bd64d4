"""Fine fields from coarse ones: the packaged prior sharpens means over 4 x 4 cells of the held-out sample.

    python -m wind_jax.infer --config experiments/spatial_downscaling.py
    python -m wind_jax.infer --config experiments/spatial_downscaling.py --config.task.factor=2

Hardware: two CPU cores, 6 GB of memory.
"""

from ml_collections import ConfigDict

from wind_jax.experiments import defaults


def get_config() -> ConfigDict:
    c = defaults.inference("spatial_downscaling")
    c.workdir = "runs/spatial_downscaling"
    c.guidance.mmps.iterations = 4
    c.guidance.mmps.solver = "gmres"  # CG diverges on the Jacobian of a learned denoiser at t > 0.7: docs/guidance.md
    return c
