"""A 2-day ensemble forecast in which every frame keeps the dry-air mass of the initial state.

    python -m wind_jax.infer --config experiments/conservation.py
    python -m wind_jax.infer --config experiments/conservation.py --config.task.leads=400 --config.cases=1

Hardware: two CPU cores, 6 GB of memory.
"""

from ml_collections import ConfigDict

from experiments import forecast


def get_config() -> ConfigDict:
    c = forecast.get_config()
    c.workdir = "runs/conservation"
    c.cases = 2
    c.task.leads = 8

    # Relative error by quantity: "dry_air_mass", "total_water", "energy".
    c.task.conserve = ConfigDict({"dry_air_mass": 1e-6})

    c.guidance = ConfigDict()
    c.guidance.method = "mmps"
    c.guidance.variance = "nominal"
    c.guidance.mmps = ConfigDict({"iterations": 1, "solver": "cg", "whiten": True})
    return c
