"""Pre-training of the packaged prior on SPEEDY, by diffusion forcing.

    python -m wind_jax.train --config experiments/speedy.py --config.model.dtype=bfloat16

The commands that make the archives, and what exactly was run: docs/demo_prior.md. Hardware: two CPU cores with bfloat16
instructions (AMX or AVX-512 BF16; leave float32 without them), 14 GB of memory. Score: docs/skill.md.
"""

from ml_collections import ConfigDict

from wind_jax.experiments import defaults


def get_config() -> ConfigDict:
    c = defaults.training()
    c.workdir = "runs/speedy"

    climate = ",".join(f"data/{name}.zarr" for name in "abcde")
    c.data.path = climate + "".join(f",data/{name}.zarr" for name in ("cold2", "cold1", "warm1", "warm3", "warm4"))
    c.data.climate_path = climate
    c.data.validation_path = "data/valid.zarr"
    c.data.variables = (
        "temperature",
        "geopotential",
        "specific_humidity",
        "u_component_of_wind",
        "v_component_of_wind",
        "2m_temperature",
        "mean_sea_level_pressure",
        "surface_pressure",
        "10m_u_component_of_wind",
        "10m_v_component_of_wind",
        "total_precipitation_6hr",
    )  # the ten of the paper, and surface_pressure
    c.data.levels = (250, 500, 700, 850)
    c.data.grid = (32, 64)
    c.data.in_memory = True

    c.model.widths = (96, 128, 256)
    c.model.blocks = ("res", "transformer", "transformer")
    c.model.depth = 1
    c.model.embedding = 128
    c.model.remat = False

    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup = 300
    c.optimizer.steps = 75_000
    c.optimizer.decay = 15_000
    c.ema = 0.9995
    c.batch_size = 4

    c.log_every = 50
    c.checkpoint_every = 500
    c.validate_every = 2000
    c.validation.windows = 8
    return c
