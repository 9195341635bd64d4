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

from experiments import forecast


def get_config() -> ConfigDict:
    c = forecast.get_config()
    c.workdir = "runs/warming"
    c.cases = 1
    c.members = 4

    c.task = ConfigDict()
    c.task.name = "warming"
    c.task.context = 2  # known frames at the start of each window
    c.task.leads = 20  # new frames, 6 h apart
    c.task.kelvin = 2.0
    c.task.factor = 4  # the large scale: means over 4 x 4 cells
    c.task.error = 0.1  # of these means, as a share of each channel's standard deviation
    c.task.variables = ("temperature", "specific_humidity", "geopotential", "2m_temperature")
    c.task.latitude = (-90.0, 90.0)  # the box in which it is warmer
    c.task.longitude = (0.0, 360.0)

    c.sampler.end = 0.0  # only at low noise is what is given met to its error

    c.guidance = ConfigDict()
    c.guidance.method = "mmps"
    c.guidance.variance = "nominal"
    c.guidance.mmps = ConfigDict({"iterations": 2, "solver": "cg", "whiten": True})
    return c
