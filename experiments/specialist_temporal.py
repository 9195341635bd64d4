"""A network like the packaged prior's, trained for downscaling in time alone: what zero-shot is measured against.

    python -m wind_jax.train --config experiments/specialist_temporal.py

As much data of the same kind, the architecture, batches and steps of the packaged prior (docs/demo_prior.md). Hardware:
two CPU cores, 12 GB of memory, an hour. Score: docs/skill.md.
"""

from ml_collections import ConfigDict

from wind_jax.experiments import speedy


def get_config() -> ConfigDict:
    c = speedy.get_config()  # the prior's network, data and steps, whatever these are
    c.workdir = "runs/specialist_temporal"
    c.specialist = ConfigDict({"name": "temporal_downscaling", "mean_over": 5})
    return c
