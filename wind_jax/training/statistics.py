"""Statistics, climatology and spectrum of a run: computed once, kept in its workdir, not taken for another run's."""

import io
import json
import math
from typing import Any

import numpy as np

from wind_jax.data.climatology import Climatology, fit_climatology
from wind_jax.data.normalize import CLIMATOLOGY, SETTINGS, STATISTICS, Statistics, compute_statistics
from wind_jax.data.store import Store, in_period
from wind_jax.diffusion.reference import Spectrum, fit_spectrum
from wind_jax.files import join, read_bytes, write_bytes
from wind_jax.progress import track
from wind_jax.training.processes import differences, on_first

SPECTRUM = "spectrum.npz"
_SPECTRUM_STATES, _SPECTRUM_BYTES = 2000, 2**29  # of the sample; a hundred states have tens of thousands of profiles


def run_statistics(
    workdir: str, store: Store, period: tuple[str, str] | None, climatology: bool, given: str = ""
) -> tuple[Statistics, Climatology | None]:
    """Statistics of `store`, about its climatology if asked: those that are given, else those that `data.prepare` left
    in an archive of which all is used, else by one process, in one pass each over the archive.

    `statistics.json` is written last and carries the settings of both files, so that neither is taken for another's.

    Args:
        workdir: path or URL, seen by all processes.
        store: the archive.
        period: first and last date, both included whole; None for all of it.
        climatology: whether the network sees anomalies.
        given: folder or URL of another run, or of an archive that `data.prepare` made, whose statistics and climatology
            hold for this run too; empty: none.

    Raises:
        ValueError: the files there are of other settings, which are named, or are damaged; or the archive's data are
            at fault.
        OSError: they cannot be written.
    """
    settings: dict[str, Any] = {"archive": store.path} | description(store)
    settings |= {"period": list(period) if period else None, "climatology": climatology}
    settings |= {"given": given} if given else {}
    path, climatology_path = join(workdir, STATISTICS), join(workdir, CLIMATOLOGY)

    def compute() -> None:
        # A file without settings is of a version that kept none: nobody knows what it is of.
        if found := read_json(path).get("settings"):
            if lines := differences(settings, found):
                raise ValueError(f"{path!r} is of another run: {lines}. Use another workdir, or delete that file.")
            if not climatology or read_bytes(climatology_path):
                return
        about, file = None, io.BytesIO()
        statistics = _given(given, store, climatology) if given else _prepared(store, period, settings)
        if climatology:
            there = join(given or store.path, CLIMATOLOGY)
            fitted = Climatology.load(there).select(store.channels) if statistics else fit_climatology(store, period)
            if fitted.grid != store.grid:
                raise ValueError(f"The cells of {there!r} are not those of {store.path!r}.")
            packed = fitted.pack()
            np.savez_compressed(file, **packed)
            write_bytes(climatology_path, file.getvalue())
            about = Climatology.unpack(packed).at
        statistics = statistics or compute_statistics(store, period, about)
        write_bytes(path, json.dumps({"settings": settings, **statistics.to_dict()}, indent=1).encode() + b"\n")

    on_first(compute)
    statistics = Statistics.from_dict(read_json(path))
    return statistics, Climatology.load(climatology_path) if climatology else None


def run_spectrum(
    workdir: str,
    store: Store,
    period: tuple[str, str] | None,
    statistics: Statistics,
    climatology: Climatology | None,
) -> Spectrum:
    """The Gaussian reference of `store`, fitted by one process to a sample of states spread over the period.

    Args:
        workdir: path or URL, seen by all processes; `spectrum.npz` in it is taken where it is there.
        store: the archive.
        period: first and last date, both included whole; None for all of it.
        statistics: for model units.
        climatology: about which the network sees anomalies; None: about the mean.

    Raises:
        ValueError: the file there is of another archive or period, or is damaged.
        OSError: it cannot be written.
    """
    settings = {"archive": store.path} | description(store) | {"period": list(period) if period else None}
    path = join(workdir, SPECTRUM)

    def load() -> tuple[Spectrum, dict] | None:
        if (contents := read_bytes(path)) is None:
            return None
        try:
            with np.load(io.BytesIO(contents)) as file:
                return Spectrum(file["profiles"], file["variance"]), json.loads(str(file["settings"]))
        except Exception as error:
            raise ValueError(f"{path!r} is damaged: {error}. Delete it to have it made again.") from error

    def compute() -> None:
        if found := load():
            if lines := differences(settings, found[1]):
                raise ValueError(f"{path!r} is of another run: {lines}. Use another workdir, or delete that file.")
            return
        indices = np.flatnonzero(in_period(store.times, period))
        most = max(2, min(_SPECTRUM_STATES, _SPECTRUM_BYTES // (4 * math.prod(store.grid.shape) * len(store.channels))))
        chosen = indices[np.unique(np.linspace(0, indices.size - 1, most).astype(int))]
        states = np.concatenate([store.read(int(i), 1) for i in track(chosen, "Spectrum", unit="state")])
        x = statistics.normalize(states)
        if climatology is not None:
            x -= statistics.normalize(climatology.at(store.times[chosen]))
        file = io.BytesIO()
        np.savez_compressed(file, settings=np.array(json.dumps(settings)), **fit_spectrum(x)._asdict())
        write_bytes(path, file.getvalue())

    on_first(compute)
    return load()[0]


def description(store: Store) -> dict[str, Any]:
    """What tells an archive from another, wherever they are, for JSON."""
    return {
        "times": [len(store), str(store.times[0]), str(store.times[-1])],
        "grid": list(store.grid.shape),
        "channels": [channel.key for channel in store.channels],
    }


def _given(folder: str, store: Store, climatology: bool) -> Statistics:
    """Of another run or archive, as far as they can be of this one.

    Raises:
        ValueError: there are none, or of other channels; or std is about a climatology and ought not to be, or the
            other way round.
    """
    path = join(folder, STATISTICS)
    if not (found := read_json(path)):
        raise ValueError(f"{path!r} does not exist; config.data.statistics names the folder that holds it.")
    about = (found.get("settings") or read_json(join(folder, SETTINGS))).get("climatology")
    if bool(about) != climatology:
        raise ValueError(
            f"{path!r} has deviations from {'a climatology' if about else 'the mean'}, and config.data.climatology is "
            f"{climatology}."
        )
    statistics = Statistics.from_dict(found)
    if statistics.channels != store.channels:
        there, here = ([channel.key for channel in of.channels] for of in (statistics, store))
        raise ValueError(f"{path!r} is of the channels {there}, the run has {here}; definitions count too.")
    return statistics


def _prepared(store: Store, period: tuple[str, str] | None, settings: dict[str, Any]) -> Statistics | None:
    """What `data.prepare` found, if it is of the run's channels and all its times, about a climatology or not."""
    made = read_json(join(store.path, SETTINGS))
    if made.get("times") != settings["times"] or bool(made["climatology"]) != settings["climatology"]:
        return None
    if not in_period(store.times, period).all():
        return None
    found = Statistics.from_dict(read_json(join(store.path, STATISTICS)))
    return found if found.channels == store.channels else None


def read_json(path: str) -> dict[str, Any]:
    """A JSON file; empty where there is none.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return json.loads(read_bytes(path) or b"{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"{path!r} is not JSON: {error}. Delete it to have it made again.") from error
