"""Data assimilation: three days of sparse observations, window by window, by the packaged prior.

    python -m wind_jax.infer --config experiments/reanalysis.py

Each window is guided by its own observations and begins with the last frames of the one before.
Hardware: two CPU cores, 6 GB of memory.
"""

from ml_collections import ConfigDict

from wind_jax.experiments import defaults


def get_config() -> ConfigDict:
    c = defaults.inference("reanalysis")
    c.workdir = "runs/reanalysis"
    c.sampler.start = 0.9  # from 0.98 CG led one member of four astray
    return c
