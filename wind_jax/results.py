"""The folder of a run: forecast-schema Zarr files, and results that appear only when they are whole.

Files follow WeatherBench2's schema of forecasts: dimensions `time` (start), `number` (member),
`prediction_timedelta`, `level`, `latitude`, `longitude`; variables by their WeatherBench2 names. Their attributes are
those of the CF conventions (https://cfconventions.org): units, standard and long names, axes.
"""

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from itertools import count
from pathlib import Path

import numpy as np
import xarray
import zarr
from jaxtyping import Float

from wind_jax.channels import Channel, levels_of, positions
from wind_jax.sphere import Grid

MARK = "config.json"  # of a complete run: taken away first and put back last when results are replaced
BEGUN = "begun.json"  # what becomes the mark, while a run is not complete
REPLACED = "replaced.json"  # the mark of results that are being removed, as the new ones are complete
POSITION = "position.npz"  # how far it is
PLACING = ("mesh", "member_batch")  # where members run, not what they are: a run goes on with others
OWN = (
    "posterior.zarr", "truth.zarr", "observations.zarr", "static.zarr", "scores.json", "report.json", "report.html",
    "figures",
)  # fmt: skip
"""What runs leave in their folder beside the mark."""
ALL = 2**31 - 1
CONVENTIONS = "CF-1.11"
_COORDINATES = {
    "time": {"standard_name": "forecast_reference_time", "long_name": "start of the forecast", "axis": "T"},
    "number": {"standard_name": "realization", "long_name": "ensemble member", "units": "1"},
    "prediction_timedelta": {"standard_name": "forecast_period", "long_name": "lead time"},
    "level": {
        "standard_name": "air_pressure",
        "long_name": "pressure",
        "units": "hPa",
        "positive": "down",
        "axis": "Z",
    },
    "latitude": {"standard_name": "latitude", "long_name": "latitude", "units": "degrees_north", "axis": "Y"},
    "longitude": {"standard_name": "longitude", "long_name": "longitude", "units": "degrees_east", "axis": "X"},
}
"""CF attributes; the units of times are in their encoding."""


@contextlib.contextmanager
def results(workdir: str, experiment: str, config: str, say: Callable[[str], None] = print) -> Iterator[Path]:
    """A folder to write results to; they move into `workdir` when the block ends well, all or none.

    Earlier results of the same experiment stay until then. A run that is stopped leaves only `.partial`: the next run
    of the same configuration goes on with it (see `Position`), another moves it aside, to `unfinished-1` and so on,
    and says so. Results without `config.json` are not whole; a `.partial` that has it is, and the next run first puts
    it in its place.

    Args:
        workdir: created where it does not exist.
        experiment: name of the experiment, kept in `config.json`.
        config: what identifies the run, as JSON text: the configuration, and digests of what it only names.
        say: prints a line.

    Raises:
        ValueError: `workdir` cannot be written to, or holds something else than results of this experiment.
    """
    workdir = Path(workdir)
    partial = workdir / ".partial"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if (partial / MARK).exists():
            _publish(partial, workdir)
        owner = _experiment(workdir / MARK)
        if owner not in (experiment, None):
            raise ValueError(
                f"workdir {str(workdir)!r} holds results of the experiment {owner!r}, not of {experiment!r}; "
                "give another with --config.workdir=..., or remove it."
            )
        settings = json.dumps({"experiment": experiment, **json.loads(config)}, indent=2) + "\n"
        begun = partial / BEGUN
        if (partial / POSITION).exists() and _identity(other := begun.read_text()) != _identity(settings):
            aside = next(path for i in count(1) if not (path := workdir / f"unfinished-{i}").exists())
            partial.rename(aside)
            new = [line.strip(" ,") for line in settings.splitlines() if line not in other.splitlines()]
            say(f"The unfinished run in {workdir} was another, without {', '.join(new)}: it is kept in {aside}.")
        if not (partial / POSITION).exists():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        begun.write_text(settings)
    except OSError as error:
        raise ValueError(f"workdir {str(workdir)!r} is not writable: {error}") from error
    try:
        yield partial
    except BaseException:
        if not (partial / POSITION).exists():
            shutil.rmtree(partial, ignore_errors=True)
        raise
    begun.replace(partial / MARK)
    _publish(partial, workdir)


def _identity(settings: str) -> dict:
    return {name: value for name, value in json.loads(settings).items() if name not in PLACING}


def _publish(partial: Path, workdir: Path) -> None:
    """Puts complete results in the place of earlier ones, all of which go: none is left to be taken for the new run's.

    Wherever it is stopped, calling it again finishes it.
    """
    (partial / POSITION).unlink(missing_ok=True)
    if (workdir / MARK).exists():
        (workdir / MARK).replace(workdir / REPLACED)
    if (workdir / REPLACED).exists():
        for name in (*OWN, REPLACED):
            _remove(workdir / name)
    for new in sorted(partial.iterdir(), key=lambda path: path.name == MARK):
        _remove(workdir / new.name)
        new.replace(workdir / new.name)
    partial.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Position:
    """How far the members of a run are, for a run that is stopped and goes on.

    Args:
        folder: that `results` gave.
    """

    def __init__(self, folder: Path):
        self._path = folder / POSITION
        self._done: tuple[int, int, int, int] = (0, 0, 0, 0)
        self._known = None
        if not self.fresh:
            with np.load(self._path) as file:
                self._done, self._known = tuple(file["done"].tolist()), file["known"]

    @property
    def fresh(self) -> bool:
        """Whether nothing is done yet."""
        return not self._path.exists()

    def find(self, case: int, batch: range) -> tuple[int, np.ndarray | None]:
        """Windows already drawn of a case and a batch of members, and the frames before the next one; as many as a
        trajectory could have if all are. Batches may be others than those that were marked."""
        last, start, stop, windows = self._done
        if self.fresh or case > last or (case == last and batch.stop > stop):
            return 0, None
        if case < last or batch.stop <= start:
            return ALL, None
        return (windows, self._known[batch.start - start : batch.stop - start]) if batch.start >= start else (0, None)

    def mark(self, case: int, batch: range, windows: int, known: np.ndarray) -> None:
        """Says that so many windows of a batch of members are written, and what the next begins with; in one stroke."""
        partial = self._path.with_suffix(".partial")
        with open(partial, "wb") as file:
            np.savez(file, done=np.array([case, batch.start, batch.stop, windows]), known=known)
        partial.replace(self._path)


def _experiment(mark: Path) -> str | None:
    """Whose results a folder holds; None where there are none."""
    if not mark.exists():
        return None
    try:
        return json.loads(mark.read_text())["experiment"]
    except (ValueError, KeyError, TypeError):
        return "unknown"


class ForecastFile:
    """A Zarr of fields by start time, lead time and, where there are members, number; filled piece by piece.

    Cells never written read as NaN.

    Args:
        path: of the new Zarr (version 2, consolidated).
        channels: of the fields, in their order.
        grid: of the fields.
        starts: (n,) datetime64, dimension `time`.
        leads: (l,) timedelta64 since the start, dimension `prediction_timedelta`.
        members: size of dimension `number`; None for none.
        chunk: lead times in one chunk.
        arms: (n,) names, coordinate `arm` along `time`, where several runs are of one event.

    A file that is there already, of the same run, is gone on with.
    """

    def __init__(
        self,
        path: Path,
        channels: Sequence[Channel],
        grid: Grid,
        starts: np.ndarray,
        leads: np.ndarray,
        members: int | None = None,
        chunk: int = 1,
        arms: Sequence[str] | None = None,
    ):
        self.path, self.channels, self.grid = path, tuple(channels), grid
        self.starts, self.leads, self.members, self.chunk = starts, leads, members, chunk
        self._levels = levels_of(self.channels)
        values = {
            "time": starts.astype("datetime64[ns]"),
            "number": np.arange(members or 0),
            "prediction_timedelta": leads.astype("timedelta64[ns]"),
            "level": self._levels,
            "latitude": grid.latitude,
            "longitude": grid.longitude,
        }
        if not path.exists():
            self._create({name: (name, x, _COORDINATES[name]) for name, x in values.items() if len(x)}, arms)
        group = zarr.open_group(path, mode="r+", zarr_format=2)
        self._arrays = {name: group[name] for name in positions(self.channels)}

    def _create(self, coordinates: dict, arms: Sequence[str] | None) -> None:
        """Coordinates and empty arrays; in place only when whole."""
        partial = self.path.with_suffix(".partial")
        attributes = {
            "Conventions": CONVENTIONS,
            "title": f"{self.path.stem} of a run of wind_jax.infer",
            "source": f"wind_jax {version('wind_jax')}",
        }
        labels = {"arm": ("time", list(arms), {"long_name": "run of the event"})} if arms else {}
        xarray.Dataset(coords=coordinates | labels, attrs=attributes).to_zarr(
            partial,
            mode="w",
            zarr_format=2,
            consolidated=False,
            encoding={
                "time": {"units": "hours since 1970-01-01", "dtype": "int64"},
                "prediction_timedelta": {"units": "hours", "dtype": "int64"},
            },
        )
        group = zarr.open_group(partial, mode="r+", zarr_format=2)
        for variable in dict.fromkeys(c.variable for c in self.channels):
            dims = [d for d in coordinates if variable.on_levels or d != "level"]
            sizes = {d: len(coordinates[d][1]) for d in dims}
            chunks = {"time": 1, "number": 1, "prediction_timedelta": min(self.chunk, len(self.leads))}
            group.create_array(
                variable.name,
                shape=tuple(sizes.values()),
                chunks=tuple(chunks.get(d, size) for d, size in sizes.items()),
                dtype="float32",
                fill_value=math.nan,
                attributes={"_ARRAY_DIMENSIONS": dims, **variable.attributes("prediction_timedelta")},
            )
        zarr.consolidate_metadata(partial, zarr_format=2)
        partial.rename(self.path)

    def write(self, start: int, lead: slice, values: Float[np.ndarray, "..."], members: slice | None = None) -> None:
        """Puts fields in their place.

        Args:
            start: position along `time`.
            lead: positions along `prediction_timedelta`.
            values: (l, h, w, c) in physical units; (m, l, h, w, c) with `members`.
            members: positions along `number`.
        """
        where = (start, lead) if members is None else (start, members, lead)
        for name, mine in positions(self.channels).items():
            fields = np.moveaxis(values[..., mine], -1, -3)
            if self.channels[mine[0]].level is None:
                self._arrays[name][where] = fields[..., 0, :, :]
                continue
            rows = [self._levels.index(self.channels[i].level) for i in mine]
            self._arrays[name].oindex[(*where, rows)] = fields

    def read(self, start: int, lead: slice, members: slice = slice(None)) -> Float[np.ndarray, "..."]:
        """What `write` wrote: (l, h, w, c), or (m, l, h, w, c)."""
        where = (start, lead) if self.members is None else (start, members, lead)
        fields = {name: array[where] for name, array in self._arrays.items()}
        pick = lambda c: fields[c.name] if c.level is None else fields[c.name][..., self._levels.index(c.level), :, :]
        return np.stack([pick(c) for c in self.channels], axis=-1)
