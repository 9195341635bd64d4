"""A training small enough for tests: its archive and its config."""

from pathlib import Path

import numpy as np
import synthetic

from wind_jax import config as configuration

LATITUDE, LONGITUDE = np.linspace(-78.75, 78.75, 8), np.arange(0, 360, 22.5)


def write_archive(path) -> str:
    """A year of 8 x 16 cells."""
    synthetic.write_archive(path, synthetic.times(1480), LATITUDE, LONGITUDE, levels=(500, 850), time_chunk=370)
    return str(path)


def config(archive, workdir, **changes):
    """Of 24 steps; `changes` by dotted name."""
    overrides = {
        "workdir": str(workdir), "data.path": archive, "data.validation_path": archive, "data.levels": (500, 850),
        "data.variables": ("temperature", "2m_temperature"), "data.grid": (8, 16), "data.frames": 3,
        "model.widths": (32, 32), "model.blocks": ("res", "transformer"), "model.heads": 2, "model.embedding": 16,
        "model.frame_kernel": 1, "optimizer.steps": 24, "optimizer.warmup": 2, "optimizer.learning_rate": 1e-2,
        "batch_size": 8, "log_every": 4, "validation.windows": 8, "validation.members": 2, "validation.context": 1,
        "validation.sampler_steps": 2, "data.climate_path": "", "optimizer.decay": 0, "ema": 0.999,
    } | changes  # fmt: skip
    return configuration.read("speedy", "training", [(key, f"{value}") for key, value in overrides.items()])


def write_config(path: Path, archive, workdir, **changes) -> str:
    """The same as an experiment file, for a command line."""
    c = config(archive, workdir, **changes)
    path.write_text(
        f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({c.to_dict()!r})\n"
    )
    return str(path)
