"""Pre-training on ERA5 at 1.5 degrees: 70 channels, 466 M parameters (WIND, arXiv 2602.03924, has 458 M).

    python -m wind_jax.train --config experiments/era5_1p5deg.py --dry_run
    launch/tpu.sh ... --config experiments/era5_1p5deg.py

The defaults are for this size; what it adds is data, mesh and bfloat16. The paper's 4 heads are 256 and 512 wide,
more than cuDNN's fused attention takes; with `--config.model.heads=16` it takes them.
Straight from the bucket one process reads the period twice before the first step, for climatology and statistics.
Prepare the training years by themselves (docs/data.md), which has many workers take them, or give `data.statistics`.
Hardware: a pod of TPU or GPU; not run by us: no accelerator was there.
"""

from ml_collections import ConfigDict

from wind_jax.experiments import defaults


def get_config() -> ConfigDict:
    c = defaults.training()
    c.workdir = "runs/era5_1p5deg"
    c.data.path = "gs://weatherbench2/datasets/era5/1959-2022-6h-240x121_equiangular_with_poles_conservative.zarr"
    c.data.validation_path = c.data.path
    c.data.period = ("1979-01-01", "2019-12-31")
    c.data.validation_period = ("2021-01-01", "2021-12-31")
    c.data.workers = 16
    c.model.dtype = "bfloat16"
    c.mesh.data, c.mesh.fsdp = 4, 8  # 32 devices, one sample each
    return c
