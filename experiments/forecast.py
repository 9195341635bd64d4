"""A 5-day ensemble forecast with the packaged prior, from the held-out sample.

    python -m wind_jax.infer --config experiments/forecast.py
    python -m wind_jax.infer --config experiments/forecast.py --config.task.leads=40 --config.members=16

Windows chain: each starts from the last `context` frames of the one before. Scored by lead time against persistence
and climatology.

Hardware: two CPU cores, 6 GB of memory. Time and scores: see README.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.workdir = "runs/forecast"
    c.seed = 0
    c.prior = "embedded"  # or the path of a prior.npz

    c.data = ConfigDict()
    c.data.path = "embedded"  # or the path or URL of an archive
    c.data.covariance = "embedded"  # of baselines with a spread: a file of wind_jax.evaluation.kriging, or empty
    c.data.climatology = "prior"  # the one it carries, or a file of wind_jax.data.climatology
    c.data.period = ()  # (first, last) day of the forecasts, empty: all
    c.data.missing_static = "error"  # or "zeros"

    c.task = ConfigDict()
    c.task.name = "forecast"
    c.task.context = 2  # known frames at the start of each window
    c.task.leads = 20  # new frames, 6 h apart

    c.cases = 2  # start times, spread evenly over the period
    c.members = 8
    c.member_batch = 0  # members run together, 0: by memory
    c.mesh = ConfigDict({"data": -1, "fsdp": 1, "space": 1})  # of devices, see docs/training.md

    c.sampler = ConfigDict()
    c.sampler.name = "ddim"  # or "euler", "heun"
    c.sampler.steps = 20
    c.sampler.start = 0.98
    c.sampler.end = 0.4  # the last time above 0, see docs/demo_prior.md; 0: of equal steps
    c.sampler.eta = 0.0
    c.sampler.corrections = 0  # Langevin steps after each

    c.figures = True
    c.globe = ()  # latitude and longitude above which maps see the Earth, with cartopy; empty: all of it, flat
    return c
