"""Pre-training on ERA5 at 0.25 degrees: the same network on 1440 x 721 cells.

    python -m wind_jax.train --config experiments/era5_0p25deg.py --dry_run
    launch/tpu.sh ... --config experiments/era5_0p25deg.py

Differs from `era5_1p5deg.py` by data, and by patches of 8 cells that keep the number of tokens bearable.
Hardware: a pod of TPU or GPU; not run by us: no accelerator was there.
"""

from ml_collections import ConfigDict

from experiments import era5_1p5deg


def get_config() -> ConfigDict:
    c = era5_1p5deg.get_config()
    c.workdir = "runs/era5_0p25deg"
    c.data.path = "gs://weatherbench2/datasets/era5/1959-2022-6h-1440x721.zarr"
    c.data.validation_path = c.data.path
    c.data.grid = (721, 1440)
    c.model.patch = 8
    c.batch_size = 64
    return c
