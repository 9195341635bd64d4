"""A small atmosphere in memory, hydrostatic and moist, and a prior that knows its mean and spread alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic

from wind_jax.channels import channels
from wind_jax.data.normalize import Statistics
from wind_jax.data.store import Store
from wind_jax.model.uvit import UViTConfig
from wind_jax.physics import DRY_GAS_CONSTANT, GRAVITY
from wind_jax.prior import Prior
from wind_jax.problems.problem import Setting
from wind_jax.sphere import Grid

LEVELS = (500, 850)
CHANNELS = channels(
    [
        "temperature", "geopotential", "specific_humidity", "2m_temperature", "mean_sea_level_pressure",
        "10m_u_component_of_wind", "10m_v_component_of_wind", "total_precipitation_6hr",
    ],
    LEVELS,
)  # fmt: skip
NAMES = np.array([c.name for c in CHANNELS])
GRID = Grid(np.linspace(-75, 75, 6), np.arange(12) * 30.0)
FRAMES = 3
GROUND = np.linspace(0, 1000 * GRAVITY, 72, dtype=np.float32).reshape(GRID.shape)


class White(Prior):
    """Independent N(0, 1) in model units: E[x | x_t] = alpha x_t / (alpha^2 + sigma^2)."""

    def denoiser(self, forcings):
        def denoise(x_t, t):
            t = jnp.broadcast_to(jnp.asarray(t, x_t.dtype), x_t.shape[:2])[..., None, None, None]
            alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
            return alpha * x_t / (alpha**2 + sigma**2)

        return denoise


jax.tree_util.register_dataclass(White, ["params"], [f.name for f in dataclasses.fields(Prior) if f.name != "params"])


class Weather(Store):
    """24 states, white noise about an isothermal hydrostatic atmosphere of 270 K."""

    path, times, channels, grid = "weather", synthetic.times(24), CHANNELS, GRID

    def __init__(self):
        rng = np.random.default_rng(0)
        means = {
            "temperature": 270,
            "2m_temperature": 280,
            "mean_sea_level_pressure": 1.01e5,
            "specific_humidity": 4e-3,
        }
        spread = {"temperature": 2, "2m_temperature": 5, "mean_sea_level_pressure": 800, "specific_humidity": 4e-4}
        spread |= dict.fromkeys(("10m_u_component_of_wind", "10m_v_component_of_wind"), 6)
        noise = rng.normal(size=(24, *GRID.shape, len(CHANNELS)))
        self.x = np.array([means.get(n, 0) for n in NAMES]) + np.array([spread.get(n, 0) for n in NAMES]) * noise
        heights = -DRY_GAS_CONSTANT * 270 * np.log(np.array(LEVELS) / 1000)
        self.x[..., NAMES == "geopotential"] = heights + 100 * rng.normal(size=(24, *GRID.shape, 1))
        self.x[..., NAMES == "total_precipitation_6hr"] = rng.gamma(1.0, 1e-3, (24, *GRID.shape, 1))
        self.x = self.x.astype(np.float32)

    def read(self, start, frames):
        return self.x[start : start + frames].copy()


@pytest.fixture(scope="session")
def setting():
    """Two cases of the small atmosphere."""
    store = Weather()
    rain = np.array([c.transform != "none" for c in CHANNELS])
    transformed = np.where(rain, np.log10(1000 * np.maximum(store.x, 0) + 1), store.x).reshape(-1, len(CHANNELS))
    statistics = Statistics(CHANNELS, transformed.mean(0), transformed.std(0), np.ones(len(CHANNELS)))
    network = UViTConfig(
        channels=len(CHANNELS), latitude=6, longitude=12, widths=(32,), blocks=("transformer",), heads=2
    )
    prior = White({}, network, statistics, GRID, FRAMES, "rectified", "x0")
    static = np.zeros((*GRID.shape, 6), np.float32)
    return Setting(prior, store, static, GROUND, 2, (), jax.random.key(5), "nominal")
