"""Make a WeatherBench2-schema Zarr with the SPEEDY general circulation model.

SPEEDY (Molteni 2003; here the JAX port in the package `jcm`) is a moist primitive-equation model with eight
sigma levels, real orography and coastlines and a sea-surface climatology. Its output is brought to pressure
levels and appended to a Zarr, chunk by chunk:

    python -m wind_jax.data.speedy --out speedy.zarr --days 365 --seed 1

A run that was stopped goes on where it stopped when the same command is given again: the model state after
each chunk lies beside the archive in `<out>.restart.npz`, with the number of states that were whole by then. With
`--keep-states` all of these stay, in `<out>.states`: the model can be started again from any (`speedy_warming`).
"""

import argparse
import dataclasses
import json
import math
import os
import signal
import warnings
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from wind_jax.channels import LEXICON
from wind_jax.command import command
from wind_jax.data.sigma import (
    GRAVITY,
    geopotential_to_pressure,
    mean_sea_level_pressure,
    sigma_to_pressure,
    temperature_to_pressure,
)
from wind_jax.progress import Progress

STATES_PER_DAY, STEPS_PER_STATE, STEP_MINUTES = 4, 9, 40
MASS_CORRECTION = 0.983  # jcm starts from rest with 1.7 % too much air, which puts Z500 70-300 m too high
MAX_WARMING = 10.0
"""K; the model's tables of saturation and its time step are made for today's climate."""

UNITS = {"land_sea_mask": "1", "soil_type": "1", "geopotential_at_surface": "m2 s-2"}
UNITS |= {name: variable.units for name, variable in LEXICON.items()}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run is made of; stored with the restart state and compared on resuming.

    Attributes:
        days: length of the archive.
        truncation: spectral truncation, 21 or 31.
        seed: of the perturbation of the initial state.
        start: date of the first state, YYYY-MM-DD.
        spinup_days: days that the model runs before it.
        levels: pressure levels of the archive, hPa.
        chunk_days: days written at a time.
        surface_warming: K by which the sea surface and the climatological soil are warmer than today's, everywhere and
            all year round; negative where they are colder.

    Raises:
        ValueError: a setting out of range.
    """

    days: int
    truncation: int = 21
    seed: int = 0
    start: str = "2000-01-01"
    spinup_days: int = 150  # zonal means take 135 days to settle: Z500 anomalies of 730, then 150 m2 s-2
    levels: tuple[int, ...] = (100, 250, 500, 700, 850, 925, 1000)
    chunk_days: int = 5
    surface_warming: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "levels", tuple(int(level) for level in self.levels))
        if self.truncation not in (21, 31):
            raise ValueError(f"truncation {self.truncation}: expected 21 or 31")
        for name, least in (("days", 1), ("chunk_days", 1), ("spinup_days", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)}: expected at least {least}")
        check_warming("surface_warming", self.surface_warming)
        if not self.levels or list(self.levels) != sorted(set(self.levels)) or self.levels[0] < 1:
            raise ValueError(f"levels {self.levels}: expected increasing pressures in hPa, at least 1")
        try:
            first = date.fromisoformat(self.start)
        except ValueError as error:
            raise ValueError(f"start {self.start!r}: expected YYYY-MM-DD") from error
        object.__setattr__(self, "start", first.isoformat())
        if first.year < 1680 or first.year + self.days / 365 > 2262:  # datetime64[ns]
            raise ValueError(f"start {first}, days {self.days}: expected to lie within 1680 to 2262")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


def check_warming(name: str, kelvin: float) -> None:
    """Raises ValueError where a warming is not finite or beyond `MAX_WARMING`."""
    if not (math.isfinite(kelvin) and abs(kelvin) <= MAX_WARMING):
        raise ValueError(f"{name} {kelvin}: expected a finite warming within {MAX_WARMING:g} K")


def warm_surface(forcing: Any, kelvin: float, land: bool) -> Any:
    """SPEEDY's boundary conditions with a warmer sea surface, and with warmer climatological soil where `land` is set.

    Sea ice keeps its area.
    """
    for name in ("sea_surface_temperature", "stl_am") if land else ("sea_surface_temperature",):
        climatology = getattr(forcing, name)
        warmer = dataclasses.replace(climatology, values=climatology.values + jnp.float32(kelvin))
        forcing = forcing.copy(**{name: warmer})
    return forcing


class Speedy:
    """SPEEDY with realistic surface; `advance` is one compiled function of the model state.

    The model starts `spinup_days` and 6 h before `settings.start`: the first state of the archive then has
    that date and 6 h of precipitation behind it.
    """

    def __init__(self, settings: Settings):
        try:
            import jcm
            from dinosaur.primitive_equations import truncated_modal_orography
            from jcm.forcing import ForcingData
            from jcm.model import Model
            from jcm.physics.speedy.speedy_coords import get_speedy_coords
            from jcm.terrain import TerrainData
        except ImportError as error:
            raise ImportError("SPEEDY needs the package jcm: pip install wind_jax[speedy]") from error
        files = Path(jcm.__file__).parent / "data" / "bc" / "t30" / "clim"
        coords = get_speedy_coords(spectral_truncation=settings.truncation)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # xarray's, raised inside jcm
            terrain = TerrainData.from_file(files / "terrain.nc", coords=coords)
            self._forcing = ForcingData.from_file(files / "forcing.nc", coords=coords, align_mode="wrap_year")
        if settings.surface_warming:
            self._forcing = warm_surface(self._forcing, settings.surface_warming, land=True)
        grid = coords.horizontal
        # the orography that the dynamics see; jcm's own `phis0` is cut at m + n of the index, 184 m rms off
        orography = truncated_modal_orography(terrain.orog, coords, wavenumbers_to_clip=2)
        self._phi_s = GRAVITY * jnp.asarray(grid.to_nodal(orography), jnp.float32)
        terrain = terrain.copy(phis0=self._phi_s)
        start = np.datetime64(settings.start, "h") - np.timedelta64(24 * settings.spinup_days + 6, "h")
        self._model = Model(coords=coords, terrain=terrain, time_step=STEP_MINUTES, start_time=str(start))
        self.longitude = np.rad2deg(np.asarray(grid.longitudes)).astype(np.float32)
        self.latitude = np.rad2deg(np.asarray(grid.latitudes)).astype(np.float32)
        self.settings = settings
        self._sigma = jnp.asarray(coords.vertical.centers, jnp.float32)
        self.static = {
            "land_sea_mask": np.asarray(terrain.fmask, np.float32),
            "soil_type": np.zeros(self._phi_s.shape, np.float32),
            "geopotential_at_surface": np.asarray(self._phi_s),
        }
        self._compiled = jax.jit(self._advance, static_argnums=1)

    def initial_state(self) -> Any:
        """The model's state of rest, perturbed by the seed, with the mass of the real atmosphere."""
        state = self._model.initial_state(random_seed=self.settings.seed)
        grid = self._model.coords.horizontal
        lighter = grid.to_modal(jnp.full(grid.nodal_shape, np.log(MASS_CORRECTION)))
        state = dataclasses.replace(state, log_surface_pressure=state.log_surface_pressure + lighter)
        self._model.bootstrap_state(state)
        # no weak types and no Python scalars, so that a fresh and a restored state compile alike
        return jax.tree.map(lambda leaf: jnp.array(np.asarray(leaf)), self._model.run_state)

    def restore(self, leaves: Sequence[np.ndarray]) -> Any:
        """A model state from its leaves, as `load_state` reads them."""
        return jax.tree.unflatten(jax.tree.structure(self.initial_state()), [jnp.asarray(leaf) for leaf in leaves])

    def advance(self, state: Any, states: int) -> tuple[Any, dict[str, np.ndarray]]:
        """Run `states` times 6 h on; return the new model state and the fields at the end of each 6 h."""
        state, fields = self._compiled(state, states)
        return state, jax.tree.map(np.asarray, fields)

    def _advance(self, state: Any, states: int) -> tuple[Any, dict[str, Array]]:
        state, saved = self._model.run_from_state_with_carry(
            initial_state=state.dynamics,
            forcing=self._forcing,
            save_interval=f"{STEP_MINUTES} minutes",
            total_time=f"{6 * states} hours",
            initial_physics_state=state.physics,
            initial_time=state.time,
            initial_step=state.step,
        )
        every = slice(STEPS_PER_STATE - 1, None, STEPS_PER_STATE)
        air = jax.tree.map(lambda field: field[every], saved.dynamics)
        near_surface, rain = saved.physics["_surface_flux"], saved.physics["surface_exchange"].precipitation
        rain = rain.reshape(states, STEPS_PER_STATE, *rain.shape[1:]).mean(axis=1)
        ps = 1e5 * air.normalized_surface_pressure
        msl = mean_sea_level_pressure(air.temperature[:, -1], self._sigma[-1], ps, self._phi_s)
        at = (self._sigma, ps, 100.0 * jnp.asarray(self.settings.levels, jnp.float32))
        return state, {
            "temperature": temperature_to_pressure(air.temperature, *at),
            "geopotential": geopotential_to_pressure(air.geopotential, air.temperature, *at),
            "specific_humidity": sigma_to_pressure(air.specific_humidity, *at),
            "u_component_of_wind": sigma_to_pressure(air.u_wind, *at),
            "v_component_of_wind": sigma_to_pressure(air.v_wind, *at),
            "2m_temperature": near_surface.t0[every],
            "mean_sea_level_pressure": msl,
            "surface_pressure": ps,
            "10m_u_component_of_wind": near_surface.u0[every],
            "10m_v_component_of_wind": near_surface.v0[every],
            "total_precipitation_6hr": rain * 6 * 3600 / 1000.0,  # from kg m-2 s-1
        }


def to_dataset(model: Speedy, fields: dict[str, np.ndarray], first: int):
    """Name the fields of states `first`, `first + 1`, ... as WeatherBench2 does; static ones go with 0."""
    import xarray as xr

    hours = 6 * np.arange(first, first + len(fields["surface_pressure"]))
    dims = {n: (*lead, "longitude", "latitude") for n, lead in ((2, ()), (3, ("time",)), (4, ("time", "level")))}
    everything = fields | (model.static if first == 0 else {})
    variables = {name: (dims[field.ndim], field, {"units": UNITS[name]}) for name, field in everything.items()}
    coords = {
        "time": np.datetime64(model.settings.start, "ns") + hours.astype("timedelta64[h]"),
        "level": ("level", np.asarray(model.settings.levels, np.int32), {"units": "hPa"}),
        "longitude": ("longitude", model.longitude, {"units": "degrees_east"}),
        "latitude": ("latitude", model.latitude, {"units": "degrees_north"}),
    }
    return xr.Dataset(variables, coords)


def _attributes(settings: Settings, complete: bool) -> dict[str, Any]:
    title = f"SPEEDY T{settings.truncation}, 6-hourly, made by wind_jax.data.speedy (jcm)"
    return {"title": title, "settings": settings.to_json(), "complete": complete}


def _append(out: Path, dataset, settings: Settings, first: int) -> None:
    dataset.attrs = _attributes(settings, complete=False)  # appending replaces those of the archive
    if first > 0:
        dataset.to_zarr(out, append_dim="time", zarr_format=2, consolidated=True)
        return
    encoding = {name: {"chunks": variable.shape} for name, variable in dataset.data_vars.items()}
    encoding["time"] = {"units": f"hours since {settings.start}", "dtype": "int64", "chunks": (8192,)}
    dataset.to_zarr(out, mode="w", zarr_format=2, consolidated=True, encoding=encoding)


def _seal(out: Path, states: int, settings: Settings) -> None:
    """Cut every array to the `states` known to be whole, and say whether these are all."""
    import zarr

    group = zarr.open_group(out, mode="r+", zarr_format=2, use_consolidated=False)
    for _, array in group.arrays():
        if array.attrs["_ARRAY_DIMENSIONS"][0] == "time":
            array.resize((states, *array.shape[1:]))
    group.attrs.update(_attributes(settings, complete=states == settings.days * STATES_PER_DAY))
    zarr.consolidate_metadata(out, zarr_format=2)


def kept_state(out: str | Path, states: int) -> Path:
    """Where the model state after the first `states` states of the archive `out` is kept."""
    return Path(f"{out}.states") / f"{states:06d}.npz"


def _restart_file(out: Path) -> Path:
    return Path(f"{out}.restart.npz")


def save_state(path: Path, state: Any, states: int, settings: Settings) -> None:
    """Write a model state in one stroke, with the number of states of its archive until then."""
    leaves = {f"leaf_{i:03d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    partial = path.with_suffix(".tmp.npz")
    np.savez(partial, states=states, settings=settings.to_json(), **leaves)
    os.replace(partial, path)


def load_state(path: Path, settings: Settings) -> tuple[list[np.ndarray], int]:
    """Leaves of a model state, and the number of states of its archive until then.

    Raises:
        ValueError: it was made with other settings.
    """
    with np.load(path) as stored:
        theirs = json.loads(str(stored["settings"]))
        ours = json.loads(settings.to_json())
        differ = [f"{k}={ours[k]} (stored {theirs.get(k)})" for k in ours if ours[k] != theirs.get(k)]
        if differ:
            raise ValueError(f"arguments disagree with those that {path} was made with: {', '.join(differ)}")
        leaves = [stored[name] for name in sorted(stored.files) if name.startswith("leaf_")]
        return leaves, int(stored["states"])


def _load_restart(out: Path, settings: Settings) -> tuple[list[np.ndarray], int] | None:
    """What `load_state` reads, or None where there is nothing to resume."""
    path = _restart_file(out)
    if not path.exists() and not out.exists():
        return None
    if not path.exists():
        raise ValueError(f"{out} exists but {path} does not: expected both or neither; remove {out}")
    return load_state(path, settings)


def simulate(out: str | Path, settings: Settings, keep_states: bool = False) -> None:
    """Run SPEEDY and write the archive `out`, going on from its restart file if there is one.

    Args:
        out: Path of the Zarr; its folder must exist.
        keep_states: Keep the model state at the start and after each chunk, see `kept_state`.

    Raises:
        ValueError: `out` cannot be written, or a restart file was made with other settings.
        ImportError: `jcm` is not installed.
        FloatingPointError: The model became unstable.
    """
    out = Path(out)
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise ValueError(f"out {str(out)!r}: expected a path in an existing folder that can be written")
    restart = _load_restart(out, settings)
    total, size = settings.days * STATES_PER_DAY, settings.chunk_days * STATES_PER_DAY
    if restart and restart[1] == total:
        return _seal(out, total, settings)
    model = Speedy(settings)
    if keep_states:
        kept_state(out, 0).parent.mkdir(exist_ok=True)

    def save(state, states):
        if keep_states:
            save_state(kept_state(out, states), state, states, settings)
        save_state(_restart_file(out), state, states, settings)

    if not restart:
        state, done = model.initial_state(), 0
        spinup = settings.spinup_days * STATES_PER_DAY
        with Progress("spin-up", spinup, "state") as progress:
            for begin in range(0, spinup, size):
                count = min(size, spinup - begin)
                state, _ = model.advance(state, count)
                progress.update(count)
        save(state, done)
    else:
        leaves, done = restart
        state = model.restore(leaves)
        if done > 0:
            _seal(out, done, settings)
    try:
        with Progress(out.name, total - done, "state") as progress:
            for begin in range(done, total, size):
                count = min(size, total - begin)
                state, fields = model.advance(state, count)
                for name, field in fields.items():
                    if not np.isfinite(field).all():
                        raise FloatingPointError(f"{name} is not finite in states {begin} to {begin + count - 1}")
                _append(out, to_dataset(model, fields, begin), settings, begin)
                save(state, begin + count)
                done = begin + count
                progress.update(count)
    finally:  # also when interrupted: what is left has equal lengths
        if done > 0:
            _seal(out, done, settings)


def main(arguments: list[str]) -> None:
    """Runs `python -m wind_jax.data.speedy`."""
    default = Settings(days=1)
    parser = argparse.ArgumentParser(
        prog="python -m wind_jax.data.speedy", description="Write a WeatherBench2-schema Zarr with the SPEEDY model."
    )
    add = parser.add_argument
    add("--out", required=True, help="path of the Zarr")
    add("--days", required=True, type=int, help="days to write, after the spin-up")
    add("--truncation", default=default.truncation, type=int, help="21 (64x32 points) or 31 (96x48)")
    add("--seed", default=default.seed, type=int, help="of the initial perturbation")
    add("--start", default=default.start, help="date of the first state, YYYY-MM-DD")
    add("--spinup-days", default=default.spinup_days, type=int, help="days run before the first state")
    add("--levels", default=default.levels, type=int, nargs="+", help="hPa")
    add("--chunk-days", default=default.chunk_days, type=int, help="days written at a time")
    warming = "K by which sea surface and climatological soil are warmer than today's; may be negative"
    add("--surface-warming", default=default.surface_warming, type=float, help=warming)
    add("--keep-states", action="store_true", help="keep the model state after each chunk")
    options = vars(parser.parse_args(arguments))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped job leaves a whole archive
    out, keep = options.pop("out"), options.pop("keep_states")
    simulate(out, Settings(**options), keep_states=keep)


if __name__ == "__main__":
    command(main)
