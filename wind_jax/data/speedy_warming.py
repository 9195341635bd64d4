"""SPEEDY run again from a state of an archive, in a warmer world: what a storyline of that event is checked against.

    simulate("speedy.zarr", settings, keep_states=True)
    model = WarmedSpeedy(settings, kelvin=2.0)
    branch("warmer.zarr", model, "speedy.zarr", states=240)

The sea is warmer throughout the branch; the air starts warmer by as much at every level, at constant relative humidity,
with the winds and the surface pressure it had. Sea ice keeps its area and, frozen, its temperature. Land is held by the
climatology of its soil, which stays as it is unless `land` is set.
"""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from wind_jax.data.speedy import (
    STATES_PER_DAY,
    Settings,
    Speedy,
    check_warming,
    kept_state,
    load_state,
    to_dataset,
    warm_surface,
)
from wind_jax.physics import clausius_clapeyron


class WarmedSpeedy(Speedy):
    """SPEEDY over a warmer surface; with 0 K, bit for bit SPEEDY itself.

    Args:
        settings: of the archive whose states it starts from.
        kelvin: warming of surface and initial air, K.
        land: whether the temperature of the soil rises too.

    Raises:
        ValueError: a warming that is not finite or beyond `speedy.MAX_WARMING`.
        ImportError: `jcm` is not installed.
    """

    def __init__(self, settings: Settings, kelvin: float, land: bool = False):
        check_warming("kelvin", kelvin)
        super().__init__(settings)
        self.kelvin = kelvin
        self._forcing = warm_surface(self._forcing, kelvin, land)

    def warmed(self, state: Any) -> Any:
        """The state with warmer air: T + dT at every level, specific humidity times `physics.clausius_clapeyron`.

        Humidity is multiplied on the grid, and the increment truncated like all of the model's fields: relative
        humidity stays to that accuracy. Vorticity, divergence and surface pressure stay exactly.
        """
        grid, air = self._model.coords.horizontal, state.dynamics
        warming = grid.to_modal(jnp.full(grid.nodal_shape, self.kelvin, jnp.float32))
        temperature = self._model.dycore.to_physics_state(air).temperature
        humidity = air.tracers["specific_humidity"]
        vapour = grid.to_nodal(humidity) * (clausius_clapeyron(temperature, self.kelvin) - 1)
        air = dataclasses.replace(
            air,
            temperature_variation=air.temperature_variation + warming,
            tracers=air.tracers | {"specific_humidity": humidity + grid.to_modal(vapour)},
        )
        return dataclasses.replace(state, dynamics=air)


def branch(out: str | Path, model: WarmedSpeedy, archive: str | Path, states: int) -> None:
    """Run on for one chunk from a kept state of an archive, warmed, and write the archive `out`: whole or not at all.

    With the warming of 0 K it holds the archive's own states `states` to `states + 4 chunk_days - 1`, bit for bit.

    Args:
        out: path of the Zarr, replaced where it exists.
        model: of the archive's settings.
        archive: made by `simulate` with `keep_states`.
        states: number of the archive's states before the branch; its first state is 6 h after the last of these.

    Raises:
        ValueError: no state was kept there, or the model has other settings than the archive.
        FloatingPointError: the model became unstable.
    """
    kept = kept_state(archive, states)
    if not kept.exists():
        there = sorted(int(path.stem) for path in kept.parent.glob("*.npz"))
        raise ValueError(f"{archive} keeps no model state after {states} states; it keeps {there or 'none'}")
    leaves, _ = load_state(kept, model.settings)
    _, fields = model.advance(model.warmed(model.restore(leaves)), model.settings.chunk_days * STATES_PER_DAY)
    for name, field in fields.items():
        if not np.isfinite(field).all():
            raise FloatingPointError(f"{name} is not finite after a warming of {model.kelvin:g} K at state {states}")
    partial = Path(f"{out}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    dataset = to_dataset(model, fields, states)
    dataset.attrs = {"title": f"SPEEDY {model.kelvin:+g} K from state {states} of {Path(archive).name}"}
    dataset.to_zarr(partial, zarr_format=2, consolidated=True)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(partial, out)
