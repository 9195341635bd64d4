"""What the benchmarks share: how a call is timed, how memory is read, how the result is printed."""

import argparse
import dataclasses
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from wind_jax import config as configuration
from wind_jax.data.normalize import Statistics
from wind_jax.diffusion.reference import Spectrum
from wind_jax.model.uvit import UViT
from wind_jax.prior import Prior, pure_params
from wind_jax.sphere import Grid
from wind_jax.train import architecture, filters

PEAK_FLOP_PER_S = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}
"""Dense bfloat16, as the makers publish it, by a part of the device's name."""


def share_of_peak(flop_per_s: float) -> float | None:
    """Of all devices together; None where the peak is not known."""
    kind = jax.devices()[0].device_kind
    peaks = [peak for name, peak in PEAK_FLOP_PER_S.items() if name in kind]
    return flop_per_s / (peaks[0] * jax.device_count()) if peaks else None


def arguments(description: str, least_repeats: int = 1, **defaults: int) -> tuple[argparse.Namespace, ConfigDict]:
    """The benchmark's own integer options with their defaults, and the experiment of --config."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    own, rest = parser.parse_known_args()
    for name in defaults:
        if getattr(own, name) < (least := least_repeats if name == "repeats" else 1):
            parser.error(f"--{name} is {getattr(own, name)}, expected {least} or more")
    try:
        return own, configuration.load(rest, "training")[0]
    except ValueError as error:
        parser.error(str(error))


def random_prior(c: ConfigDict) -> Prior:
    """A prior of an experiment for training, with random weights."""
    chosen, model = architecture(c)
    height, width = c.data.grid
    one = np.ones(model.channels, np.float32)
    spectrum = None
    if filters(c):
        spectrum = Spectrum(
            np.ones((width, height, height), np.float32), np.ones((width, height, one.size), np.float32)
        )
    return Prior(
        params=jax.jit(lambda key: pure_params(nnx.state(UViT(model, rngs=nnx.Rngs(key)))))(jax.random.key(0)),
        config=model,
        statistics=Statistics(chosen, 0 * one, one, one),
        grid=Grid(np.linspace(-90, 90, height), np.arange(width) * 360 / width),
        frames=c.data.frames,
        schedule_name=c.diffusion.schedule,
        prediction=c.diffusion.prediction,
        spectrum=spectrum,
    )


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled function and what compiling it took."""

    call: Callable
    seconds: float
    memory: dict[str, int]


def compiled(function: Callable, *args: Any) -> Compiled:
    """Compiles a jitted function for `args`; its memory, in bytes per device, is the compiler's account."""
    began = time.perf_counter()
    call = function.lower(*args).compile()
    analysis = call.memory_analysis()
    return Compiled(
        call,
        time.perf_counter() - began,
        {"arguments": analysis.argument_size_in_bytes, "temporary": analysis.temp_size_in_bytes},
    )


def median_seconds(run: Callable[[], Any], repeats: int) -> float | None:
    """Median wall-clock time of `run`, to the end of its work; a first run is not counted. None of 0."""
    if repeats == 0:
        return None
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def clocks(run: Callable[[], Any]) -> np.ndarray:
    """Seconds by the clock, and of all cores together."""
    began = np.array([time.perf_counter(), time.process_time()])
    run()
    return np.array([time.perf_counter(), time.process_time()]) - began


def peak_memory() -> dict[str, int | None]:
    """Peak bytes of this process on the host and on its first device, None where that does not tell."""
    unit = 1 if sys.platform == "darwin" else 1024
    stats = jax.local_devices()[0].memory_stats() or {}
    return {
        "peak_host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "peak_device": stats.get("peak_bytes_in_use"),
    }


def report(result: dict[str, Any]) -> None:
    """Prints one JSON object, with the device it holds for."""
    device = jax.devices()[0]
    where = {"device": device.device_kind, "devices": jax.device_count(), "jax": jax.__version__}
    print(json.dumps(where | result, indent=2))
