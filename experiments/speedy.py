"""Pre-training of the packaged prior on SPEEDY, by diffusion forcing.

    python -m wind_jax.data.speedy --out data/a.zarr --days 3650 --seed 1 --start 1981-01-01
    python -m wind_jax.data.speedy --out data/b.zarr --days 3650 --seed 2 --start 1991-01-01
    python -m wind_jax.data.speedy --out data/heldout.zarr --days 420 --seed 3 --start 2001-01-01
    python -m wind_jax.train --config experiments/speedy.py

docs/demo_prior.md has what exactly was run. Hardware: two CPU cores, 12 GB of memory, 2 hours. Score: docs/skill.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.workdir = "runs/speedy"
    c.seed = 0

    c.data = ConfigDict()
    climate = ",".join(f"data/{name}.zarr" for name in "abcde")
    c.data.path = climate + "".join(f",data/{name}.zarr" for name in ("cold2", "cold1", "warm1", "warm3", "warm4"))
    c.data.climate_path = climate  # those of path whose climatology and statistics are the prior's; empty: all
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
    )  # empty: the ten of the paper, all of these but surface_pressure
    c.data.levels = (250, 500, 700, 850)
    # Variables that `wind_jax.channels.LEXICON` lacks, by name: {"units": "kg kg-1", "on_levels": True}; docs/data.md.
    # Those wanted have to be among `variables`.
    c.data.lexicon = ConfigDict()
    c.data.period = ()  # (first, last) day of training, empty: all
    c.data.validation_period = ()
    c.data.grid = (32, 64)  # rows and columns that the archive must have
    c.data.statistics = ""  # folder of another run or prepared archive whose statistics to take; empty: own ones
    c.data.climatology = True  # the network sees anomalies from it; False: from the mean, as in the paper
    c.data.frames = 5  # of one window, 6 h apart
    c.data.missing_static = "error"  # or "zeros"
    c.data.in_memory = True  # read once, rounded to 2 bytes a value; for archives that fit
    c.data.workers = 0

    c.model = ConfigDict()
    c.model.geometry = "sphere"  # or "paper"
    c.model.patch = 2
    c.model.widths = (96, 128, 256)
    c.model.blocks = ("res", "transformer", "transformer")
    c.model.depth = 1
    c.model.heads = 4
    c.model.embedding = 128
    c.model.noise_conditioning = True  # False: blind, as in the paper
    c.model.frame_kernel = 3  # 1: frames meet only in the transformers, as in the paper
    c.model.remat = False  # True: a block is run again in the backward pass
    c.model.remat_keeps = "nothing"  # of a block that is run again, or "dots": what matrix products made
    c.model.dtype = "float32"  # or "bfloat16"

    c.diffusion = ConfigDict()
    c.diffusion.schedule = "rectified"
    c.diffusion.prediction = "preconditioned"  # or "x0", as in the paper, "v", "epsilon"
    c.diffusion.reference = "spectrum"  # of the preconditioning; "white": one spread for all, as in EDM

    c.loss = ConfigDict()
    c.loss.weighting = "edm"  # every noise level counts alike; "paper": the error of x0_hat itself
    c.loss.channels = "uniform"  # or "paper": weights of a forecaster
    c.loss.surface_weights = ConfigDict()  # of "paper": beside its own (2 m temperature 1, others 0.1)
    c.loss.times = ConfigDict({"name": "logit_normal", "mean": 0.0, "spread": 1.5})  # or "uniform", as in the paper
    c.loss.patterns = ConfigDict({"independent": 0.25, "shared": 0.4, "context": 0.35})

    c.init = ""  # a prior whose parameters training begins from; empty: random ones
    c.optimizer = ConfigDict()
    c.optimizer.learning_rate = 1e-3
    c.optimizer.warmup = 300
    c.optimizer.steps = 75_000
    c.optimizer.decay = 15_000  # last steps, over which the rate falls; 0: all after the warm-up, as in the paper
    c.optimizer.final_learning_rate = 1e-6
    c.optimizer.clip = 0.8
    c.ema = 0.9995
    c.batch_size = 4

    c.mesh = ConfigDict({"data": -1, "fsdp": 1, "space": 1})  # -1: the devices that the others leave

    c.log_every = 50  # steps
    c.checkpoint_every = 500  # steps
    c.keep_checkpoints = 2
    c.keep_every = 0  # steps; checkpoints at its multiples are kept for good
    c.non_finite = "stop"  # or "skip": steps whose loss or gradient is not finite are left out and counted
    c.profile = False  # True: a trace of a few steps in workdir/profile
    c.validate_every = 2000  # steps
    c.validation = ConfigDict({"windows": 8, "members": 4, "context": 2, "sampler_steps": 24})
    return c
