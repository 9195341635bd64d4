"""Data assimilation: three days of sparse observations, window by window, by the packaged prior.

    python -m wind_jax.infer --config experiments/reanalysis.py

Each window is guided by its own observations and begins with the last frames of the one before.
Hardware: two CPU cores, 6 GB of memory.
"""

from ml_collections import ConfigDict

from experiments import sparse_obs


def get_config() -> ConfigDict:
    c = sparse_obs.get_config()
    c.workdir = "runs/reanalysis"

    c.task = ConfigDict()
    c.task.name = "reanalysis"
    c.task.windows = 4
    c.task.overlap = 2  # frames that windows share
    c.task.fraction = 0.01  # of the cells of each field
    c.task.error = 0.05  # standard deviation of the observation error, as a fraction of the channel's
    c.task.variables = ()  # observed ones, empty: all
    return c
