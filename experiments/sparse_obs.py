"""A global weather sequence from 1 % of its values, with the packaged prior and held-out sample.

    python -m wind_jax.infer --config experiments/sparse_obs.py
    python -m wind_jax.infer --config experiments/sparse_obs.py --config.task.fraction=0.05 --config.members=16

Every variable, level and frame is observed at its own random 1 % of the cells, with errors of 5 % of one standard
deviation. Scores are over the cells that were not observed.

Chains start at 0.9. In those without known frames guidance meets the packaged prior's Jacobian where it knows least:
from 0.95 on it leads them astray. Forecasts and what starts from known frames keep 0.98.

Hardware: two CPU cores, 6 GB of memory. Time and scores: see README.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.workdir = "runs/sparse_obs"
    c.seed = 0
    c.prior = "embedded"  # or the path of a prior.npz

    c.data = ConfigDict()
    c.data.path = "embedded"  # or the path or URL of an archive
    c.data.covariance = "embedded"  # of baselines with a spread: a file of wind_jax.evaluation.kriging, or empty
    c.data.climatology = "prior"  # the one it carries, or a file of wind_jax.data.climatology
    c.data.period = ()  # (first, last) day of the windows, empty: all
    c.data.missing_static = "error"  # or "zeros"

    c.task = ConfigDict()
    c.task.name = "sparse_obs"
    c.task.fraction = 0.01  # of the cells of each field
    c.task.error = 0.05  # standard deviation of the observation error, as a fraction of the channel's
    c.task.variables = ()  # observed ones, empty: all

    c.cases = 2  # windows, spread evenly over the period
    c.members = 8
    c.member_batch = 0  # members run together, 0: by memory
    c.mesh = ConfigDict({"data": -1, "fsdp": 1, "space": 1})  # of devices, see docs/training.md

    c.sampler = ConfigDict()
    c.sampler.name = "ddim"  # or "euler", "heun"
    c.sampler.steps = 24
    c.sampler.start = 0.9
    c.sampler.end = 0.3  # the last time above 0, see docs/demo_prior.md; 0: of equal steps
    c.sampler.eta = 0.0
    c.sampler.corrections = 0  # Langevin steps after each

    c.guidance = ConfigDict()
    c.guidance.method = "mmps"  # or another of docs/guidance.md
    c.guidance.variance = "nominal"  # or "adaptive"
    c.guidance.mmps = ConfigDict({"iterations": 2, "solver": "cg", "whiten": True})
    c.guidance.dps = ConfigDict({"scale": 1.0})
    c.guidance.sda = ConfigDict({"gamma": 1.0})
    c.guidance.pgdm = ConfigDict({"iterations": 8, "solver": "cg"})
    c.guidance.diffpir = ConfigDict({"strength": 1.0, "iterations": 3, "solver": "cg"})
    c.guidance.repaint = ConfigDict({"resamplings": 3})
    c.guidance.tds = ConfigDict({"threshold": 0.5, "spread": 1.0})  # report.json: its effective sample size

    c.figures = True
    c.globe = ()  # latitude and longitude above which maps see the Earth, with cartopy; empty: all of it, flat
    return c
