"""A 5-day ensemble forecast with the packaged prior, from the held-out sample.

    python -m wind_jax.infer --config experiments/forecast.py
    python -m wind_jax.infer --config experiments/forecast.py --config.task.leads=40 --config.members=16

Windows chain: each starts from the last `context` frames of the one before. Scored by lead time against persistence
and climatology.

Hardware: two CPU cores, 6 GB of memory. Time and scores: see README.md.
"""

from ml_collections import ConfigDict

from wind_jax.experiments import defaults


def get_config() -> ConfigDict:
    c = defaults.inference("forecast")
    c.workdir = "runs/forecast"
    c.sampler.start = 0.995  # large scales are decided at high noise
    return c
