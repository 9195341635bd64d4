"""Pre-training on ERA5 at 0.25 degrees: 721 x 1440 cells, 70 channels.

    python -m wind_jax.train --config experiments/era5_0p25deg.py --dry_run
    launch/tpu.sh ... --config experiments/era5_0p25deg.py

Differs from `era5_1p5deg.py` by data, and by what the size asks for:

- patches of 4 cells, so that four levels of 1, 2, 4 and 8 degrees divide the 1440 columns (32 cells to the coarsest);
- attention at 8 degrees alone (23 x 45 x 5 = 5175 tokens); at 4 degrees its scores would be 16 times as many;
- a mesh for 128 devices: the state is split over 8 of them, the columns over 4, which bound activations;
- 4 batches ahead: a window is 1.45 GB, and the other inputs of the network are 1.66 GB more.

Hardware: a pod of TPU or GPU; not run by us: no accelerator was there.
"""

from ml_collections import ConfigDict

from wind_jax.experiments import defaults


def get_config() -> ConfigDict:
    c = defaults.training()
    c.workdir = "runs/era5_0p25deg"
    c.data.path = "gs://weatherbench2/datasets/era5/1959-2022-6h-1440x721.zarr"
    c.data.validation_path = c.data.path
    c.data.period = ("1979-01-01", "2019-12-31")
    c.data.validation_period = ("2021-01-01", "2021-12-31")
    c.data.grid = (721, 1440)
    c.data.workers = 4
    c.model.patch = 4
    c.model.blocks = ("res", "res", "res", "transformer")
    c.model.dtype = "bfloat16"
    c.diffusion.reference = "white"  # the profiles of a spectrum would take 3 GB
    c.mesh.data, c.mesh.fsdp, c.mesh.space = 4, 8, 4
    c.validation.windows = 32
    return c
