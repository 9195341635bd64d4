"""Prepare an archive for training: an Apache Beam pipeline that rechunks, coarsens, rounds and takes statistics.

    python -m wind_jax.data.prepare --data gs://... --out era5.zarr --period 1979 2015 --chunk 1 --rounding 1e-3

What comes out is a Zarr with one array `state` (time, latitude, longitude, channel) in chunks of a few times and the
whole globe, beside the static fields and `statistics.json`: `open_store` and xarray read it. One pass over the source
does all of it, a block of times on a worker at a time (`docs/data.md`). Everything after `--` goes to Beam, which runs
it here or on Dataflow, Flink or Spark.

A block that is written leaves a file with its moments, so that a run that was killed and is given again writes what
is missing. The archive is made in a folder beside its place and put there when it is whole.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float

from wind_jax.channels import channels, levels_of, positions
from wind_jax.command import command
from wind_jax.data.climatology import Climatology
from wind_jax.data.normalize import CLIMATOLOGY, SETTINGS, STATISTICS, Statistics
from wind_jax.data.pipeline import (
    BLOCKS,
    MOMENTS,
    Job,
    cell_weights,
    channel_chunk,
    check_installed,
    create,
    file_system,
    frame_moments,
    merge,
    run,
    transformation,
)
from wind_jax.data.store import STATIC_VARIABLES, TIME_STEP, Store, in_period
from wind_jax.files import is_url, join, read_bytes, write_bytes
from wind_jax.sphere import Coarsening, coarsen, coarsening

_SAMPLE = 8  # pairs of states that tell how much a channel changes in 6 h, for rounding


def prepare(
    source: str,
    target: str,
    variables: Iterable[str] | None = None,
    levels: Iterable[int] | None = None,
    *,
    period: tuple[str, str] | None = None,
    factor: int | None = None,
    chunk: int = 1,
    rounding: float = 0.0,
    climatology: str | None = None,
    beam_options: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> Statistics:
    """Makes an archive for training out of another; goes on where a run of the same settings was stopped.

    Args:
        source: path or URL of a WeatherBench2-schema Zarr.
        target: path or URL of the archive to make; those beyond the disk are written through fsspec.
        variables: their names in the lexicon; None for the paper's ten.
        levels: pressure levels in hPa; None for the thirteen.
        period: first and last date, both included whole; None for all of it.
        factor: of conservative coarsening (`sphere.coarsening`); None to keep the grid.
        chunk: times in a chunk.
        rounding: largest error of a value, in standard deviations of its channel's 6 h change; 0 keeps all bits.
        climatology: file of `data.climatology` on the target's grid, about which the statistics' std is taken; a copy
            goes into the archive.
        beam_options: command-line options of Beam.
        say: prints a line.

    Returns:
        The statistics, equal to those of `compute_statistics` on the archive that was made.

    Raises:
        ValueError: what `open_store` refuses, a period without its times or with gaps, a factor or climatology that
            does not fit the grid, a constant channel, a target that is another thing or of other settings.
        ImportError: without the extra `prepare`.
    """
    check_installed()
    wanted = channels(variables, levels)
    if chunk < 1 or not 0 <= rounding < 1:
        raise ValueError(f"chunk must be at least 1 and rounding lie in [0, 1), got {chunk=} and {rounding=}")
    store = Store(source, wanted)
    inside = np.flatnonzero(in_period(store.times, period))
    times = store.times[inside]
    _check_times(times, source)
    reduction = coarsening(store.grid, factor) if factor is not None else None
    grid = reduction.grid if reduction else store.grid
    if climatology is not None and (about := Climatology.load(climatology).select(wanted)).grid != grid:
        raise ValueError(
            f"climatology {climatology!r} is on a grid of {about.grid.shape}, the archive's is {grid.shape}"
        )

    settings = {
        "source": source,
        "times": [len(times), str(times[0]), str(times[-1])],
        "grid": list(grid.shape),
        "variables": list(positions(wanted)),
        "levels": levels_of(wanted),
        "chunk": chunk,
        "channel_chunk": channel_chunk(len(wanted)),
        "rounding": rounding,
        "climatology": climatology,
    }
    folder = target.rstrip("/") + ".partial"
    if read_bytes(join(target, SETTINGS)) and _same(target, settings):  # they come last: it is whole
        if is_url(target):
            _remove(folder)  # of which a run may have left some when it was stopped
        say(f"{target} is there already, made with these settings.")
        return Statistics.from_dict(json.loads(read_bytes(join(target, STATISTICS))))
    begun = _same(folder, settings)
    if not (begun and is_url(target)):  # in a bucket a run may have been stopped while it put the archive in its place
        _same(target, settings)
    if begun:
        say(f"Going on with {folder}.")
        quanta = begun["quanta"]
    else:
        quanta = _quanta(store, inside, reduction, rounding).tolist() if rounding else None
        write_bytes(join(folder, SETTINGS), (json.dumps({**settings, "quanta": quanta}, indent=1) + "\n").encode())
    quanta = None if quanta is None else np.array(quanta, np.float32)
    job = Job(
        source, folder, wanted, int(inside[0]), times, grid, reduction, quanta, climatology, chunk, store.time_chunk
    )
    if missing := [name for name in STATIC_VARIABLES if not store.has(name)]:
        say(f"{source} has no {', '.join(missing)}: neither will {target}.")
    create(job, store)
    statistics = run(job, beam_options)
    if climatology is not None:
        write_bytes(join(folder, CLIMATOLOGY), read_bytes(climatology))
    write_bytes(join(folder, STATISTICS), (json.dumps(statistics.to_dict(), indent=1) + "\n").encode())
    _publish(folder, target)
    return statistics


def _quanta(store: Store, inside: np.ndarray, reduction: Coarsening | None, rounding: float) -> Float[np.ndarray, "c"]:
    """Largest powers of two for which rounding stays within the tolerance, by a sample of the 6 h changes."""
    transform, parts = transformation(store.channels), []
    weights = cell_weights(reduction.grid if reduction else store.grid)
    for i in np.unique(np.linspace(0, inside.size - 2, _SAMPLE).astype(int)):
        states = store.read(int(inside[i]), 2)
        before, after = map(transform, coarsen(states, reduction) if reduction else states)
        parts.append(frame_moments(after - before, weights))
    number, _, squares = merge(parts)
    count = len(store.channels)
    change = Statistics(store.channels, np.zeros(count), np.ones(count), np.sqrt(squares / number)).difference_std
    # d log10(1000 tp + 1) is at most 1000 / ln 10 d tp, at tp = 0.
    slope = np.array([1000 / np.log(10) if c.transform == "log_precipitation" else 1.0 for c in store.channels])
    return np.exp2(np.floor(np.log2(2 * rounding * change / slope))).astype(np.float32)


def _check_times(times: np.ndarray, source: str) -> None:
    """Two times or more, 6 h apart without a gap."""
    wrong = np.flatnonzero(np.diff(times) != TIME_STEP)
    if wrong.size:
        before, after = np.datetime_as_string(times[[wrong[0], wrong[0] + 1]], unit="h")
        raise ValueError(
            f"{source} has {wrong.size} gaps or other steps than 6 h in the period, the first from {before} to "
            f"{after}; prepare the periods between them one by one"
        )
    if times.size < 2:
        raise ValueError(f"{source} has one time in the period, {times[0]}; statistics of changes need two or more")


def _same(folder: str, settings: dict) -> dict | None:
    """Settings of what is in a folder; None where there is nothing.

    Raises:
        ValueError: it is another thing, or was made with other settings.
    """
    files, root = file_system(folder)
    try:
        if not files.ls(root, detail=False):
            return None
    except FileNotFoundError:
        return None
    found = json.loads((files.isdir(root) and read_bytes(join(folder, SETTINGS))) or b"null")
    if not isinstance(found, dict):
        raise ValueError(f"{folder} exists and was not made by this command: give another target, or remove it")
    if other := [name for name, value in settings.items() if found.get(name) != value]:
        lines = "; ".join(f"{name} {found.get(name)!r}, now {settings[name]!r}" for name in other)
        raise ValueError(f"{folder} was made with other settings: {lines}. Give another target, or remove it.")
    return found


def _publish(folder: str, target: str) -> None:
    """Puts the archive in its place; in a bucket, where nothing is renamed at once, its metadata come last."""
    files, root = file_system(folder)
    place = root.removesuffix(".partial")
    progress = (f"/{BLOCKS}", f"/{MOMENTS}")
    if not is_url(target):
        os.replace(root, place)
        for name in progress:
            files.rm(place + name, recursive=True)
        return
    names = [name.removeprefix(root) for name in files.find(root)]
    names = {name for name in names if not name.startswith(progress)}
    metadata, last = {"/.zgroup", "/.zmetadata"}, {f"/{SETTINGS}"}
    for some in (names - metadata - last, metadata, last):
        files.copy([root + name for name in sorted(some)], [place + name for name in sorted(some)])
    _remove(folder)


def _remove(folder: str) -> None:
    files, root = file_system(folder)
    if files.exists(root):
        files.rm(root, recursive=True)


def main(arguments: list[str]) -> None:
    """Command line: make an archive for training; what follows -- are options of Beam."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(prog="python -m wind_jax.data.prepare", description=main.__doc__)
    parser.add_argument("--data", required=True, help="path or URL of the archive to read")
    parser.add_argument("--out", required=True, help="path or URL of the archive to make")
    parser.add_argument("--variables", nargs="+", help="variable names; the paper's ten if left out")
    parser.add_argument("--levels", nargs="+", type=int, help="pressure levels in hPa; all thirteen if left out")
    parser.add_argument("--period", nargs=2, metavar=("FIRST", "LAST"), help="dates, both included whole")
    parser.add_argument("--coarsen", type=int, help="factor of conservative coarsening")
    parser.add_argument("--chunk", type=int, default=1, help="times in a chunk")
    parser.add_argument("--rounding", type=float, default=0.0, help="error allowed, in std of the 6 h change")
    parser.add_argument("--climatology", help="file of wind_jax.data.climatology, for the statistics")
    given = parser.parse_args(arguments[:split])
    statistics = prepare(
        given.data,
        given.out,
        given.variables,
        given.levels,
        period=tuple(given.period) if given.period else None,
        factor=given.coarsen,
        chunk=given.chunk,
        rounding=given.rounding,
        climatology=given.climatology,
        beam_options=arguments[split + 1 :],
    )
    print(f"{given.out}: {len(statistics.channels)} channels, with {STATISTICS}")


if __name__ == "__main__":
    command(main)
