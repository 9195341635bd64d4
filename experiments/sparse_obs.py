"""A global weather sequence from 1 % of its values, with the packaged prior and held-out sample.

    python -m wind_jax.infer --config experiments/sparse_obs.py
    python -m wind_jax.infer --config experiments/sparse_obs.py --config.task.fraction=0.05 --config.members=16

Every variable, level and frame is observed at its own random 1 % of the cells, with errors of 5 % of one standard
deviation. Scores are over the cells that were not observed.

Hardware: two CPU cores, 6 GB of memory. Time and scores: see README.md.
"""

from ml_collections import ConfigDict

from wind_jax.experiments import defaults


def get_config() -> ConfigDict:
    c = defaults.inference("sparse_obs")
    c.workdir = "runs/sparse_obs"
    return c
