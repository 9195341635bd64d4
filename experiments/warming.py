"""A storyline: five days of the held-out sample 2 K warmer, guided by the warmer large scale, beside a free run.

    python -m wind_jax.infer --config experiments/warming.py
    python -m wind_jax.infer --config experiments/warming.py --config.task.kelvin=4.0

Specific humidity follows Clausius-Clapeyron, and geopotential the temperature under it. Along `time` of the files every
event has four arms, named by the coordinate `arm`: control, anchored (the event, guided), free, storyline (warmer,
guided). `report.json` and the figure say how much of the imposed signal is kept at each lead, of the free run against
the control, of the storyline against the anchored run. Why all four variables are told: docs/warming.md.

Chains start at 0.98 as those of forecasts do, and not at the 0.9 of experiments without known frames: the free and the
guided run then differ in their guidance alone.
Hardware: two CPU cores, 6 GB of memory.
"""

from ml_collections import ConfigDict

from wind_jax.experiments import defaults


def get_config() -> ConfigDict:
    c = defaults.inference("warming")
    c.workdir = "runs/warming"
    c.cases = 1
    c.members = 4
    return c
