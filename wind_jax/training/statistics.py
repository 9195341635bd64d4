"""Statistics and climatology of a run: computed once, kept in its workdir, guarded against another run's settings."""

import io
import json
from typing import Any

import numpy as np

from wind_jax.data.climatology import Climatology, fit_climatology
from wind_jax.data.normalize import CLIMATOLOGY, SETTINGS, STATISTICS, Statistics, compute_statistics
from wind_jax.data.store import Store, in_period
from wind_jax.files import join, read_bytes, write_bytes
from wind_jax.training.processes import differences, on_first


def run_statistics(
    workdir: str, store: Store, period: tuple[str, str] | None, climatology: bool
) -> tuple[Statistics, Climatology | None]:
    """Statistics of `store`, about its climatology if asked: those that `data.prepare` left in an archive of which all
    is used, else by one process, in one pass each over the archive.

    `statistics.json` is written last and carries the settings of both files, so that neither is taken for another's.

    Args:
        workdir: path or URL, seen by all processes.
        store: the archive.
        period: first and last date, both included whole; None for all of it.
        climatology: whether the network sees anomalies.

    Raises:
        ValueError: the files there are of other settings, which are named, or are damaged; or the archive's data are
            at fault.
        OSError: they cannot be written.
    """
    settings: dict[str, Any] = {
        "archive": store.path,
        "times": [len(store), str(store.times[0]), str(store.times[-1])],
        "grid": list(store.grid.shape),
        "channels": [channel.key for channel in store.channels],
        "period": list(period) if period else None,
        "climatology": climatology,
    }
    path, climatology_path = join(workdir, "statistics.json"), join(workdir, "climatology.npz")

    def compute() -> None:
        # A file without settings is of a version that kept none: nobody knows what it is of.
        if found := read_json(path).get("settings"):
            if lines := differences(settings, found):
                raise ValueError(f"{path!r} is of another run: {lines}. Use another workdir, or delete that file.")
            if not climatology or read_bytes(climatology_path):
                return
        about, statistics, file = None, _prepared(store, period, settings), io.BytesIO()
        if climatology:
            own = join(store.path, CLIMATOLOGY)
            fitted = Climatology.load(own).select(store.channels) if statistics else fit_climatology(store, period)
            packed = fitted.pack()
            np.savez_compressed(file, **packed)
            write_bytes(climatology_path, file.getvalue())
            about = Climatology.unpack(packed).at
        statistics = statistics or compute_statistics(store, period, about)
        write_bytes(path, json.dumps({"settings": settings, **statistics.to_dict()}, indent=1).encode() + b"\n")

    on_first(compute)
    statistics = Statistics.from_dict(read_json(path))
    return statistics, Climatology.load(climatology_path) if climatology else None


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
