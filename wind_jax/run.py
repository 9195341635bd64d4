"""The folder of a run: who holds it, what a run may touch there, how far it is, and results that appear whole.

A folder belongs to one kind of run, which its `run.json` names: `infer`, `train` or `evaluate`. A run refuses a folder
of another kind, and one without that mark in which a name that it would write is taken: nothing is touched that no run
has made. One process at a time holds a folder, by a lock on `.lock`, which the system releases when the process ends,
however it ends.

What `infer` draws grows in `.partial`. It moves into the folder when it is whole, and `config.json` comes last: results
without that file are not whole. Earlier results of other settings are kept in `earlier-1`, `earlier-2` ..., and an
unfinished run of other settings in `unfinished-1` ... Settings are others where the posterior is another: those in
`FREE` may change.
"""

import contextlib
import errno
import fcntl
import io
import itertools
import json
import os
import shutil
import socket
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from wind_jax.files import is_url, join, read_bytes, write_bytes

MARK = "run.json"
LOCK = ".lock"
PARTIAL = ".partial"  # what is being drawn
COMPLETE = ".complete"  # what is moving into its place
LEAVING = ".leaving"  # earlier results that are moving aside
BEGUN = "begun.json"  # becomes the config when all is drawn
POSITION = "position.npz"
CONFIG = "config.json"
POSTERIOR, TRUTH, OBSERVATIONS, STATIC = "posterior.zarr", "truth.zarr", "observations.zarr", "static.zarr"
SCORES, REPORT, PAGE, FIGURES = "scores.json", "report.json", "report.html", "figures"
RESULTS = (CONFIG, POSTERIOR, TRUTH, OBSERVATIONS, STATIC, SCORES, REPORT, PAGE, FIGURES)
"""What `infer` leaves in its folder; the config first, as results without it are not whole."""
NAMES = {
    "infer": (*RESULTS, PARTIAL, COMPLETE, LEAVING),
    "train": (
        CONFIG, "statistics.json", "climatology.npz", "spectrum.npz", "metrics.jsonl", "checkpoints", "prior.npz",
        "profile",
    ),
    "evaluate": ("scores.csv", "scores.json", "scores.nc"),
}  # fmt: skip
"""Kind of a run -> what it writes into its folder."""
BUCKETS = ("gs://", "s3://")
FREE = ("workdir", "prior", "mesh", "member_batch", "figures", "globe")
"""Settings that leave the posterior as it is. The prior counts by its digest, wherever its file lies."""
ALL = 2**31 - 1
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
_FULL = (errno.ENOSPC, errno.EDQUOT)


# ------------------------------------------------------------------------------------------------------- claim and lock
def check_place(workdir: str, kind: str) -> None:
    """Refuse a place that no run of this kind can write to.

    Raises:
        ValueError: `workdir` is empty, or a URL; only `train` takes those of `BUCKETS`.
    """
    if not workdir:
        raise ValueError("The folder of the run is empty, expected a path such as runs/mine.")
    if is_url(workdir) and not (kind == "train" and workdir.startswith(BUCKETS)):
        takes = f"a path or a URL of {' or '.join(BUCKETS)}" if kind == "train" else "a path on a disk"
        raise ValueError(f"The folder of the run is {workdir!r}; wind_jax.{kind} takes {takes}.")


@contextlib.contextmanager
def claim(workdir: str, kind: str, say: Callable[[str], None] = print) -> Iterator[Path | None]:
    """Hold the folder of a run, which is then marked as of its kind.

    A folder in which nothing was made is left as it was found. In a bucket only the mark is kept: there is no lock, and
    two trainings in one are the user's to avoid.

    Args:
        workdir: path, created where it does not exist; for `train` also the URL of a bucket.
        kind: of `NAMES`.
        say: prints a line.

    Yields:
        the folder; None for a bucket.

    Raises:
        ValueError: another process holds the folder; it is another kind's, or holds names that no run has made; or
            it cannot be written to.
        OSError: the disk is full.
    """
    check_place(workdir, kind)
    folder, new = Path(workdir), not os.path.lexists(workdir)
    with contextlib.ExitStack() as closing:
        try:
            if not is_url(workdir):
                folder.mkdir(parents=True, exist_ok=True)
                closing.enter_context(_locked(folder))
                closing.callback(_leave, folder, new, not os.path.lexists(folder / MARK))
            _mark(workdir, kind)
        except OSError as error:
            raise ValueError(f"The folder {workdir!r} is not writable: {error}") from error
        if kind == "infer":
            _publish(folder, say)  # where the run before was stopped while it did
        try:
            yield None if is_url(workdir) else folder
        except OSError as error:
            if error.errno not in _FULL:
                raise
            advice = f"{os.strerror(error.errno)}; the same command resumes when there is room"
            raise OSError(error.errno, advice, workdir) from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    path = folder / LOCK
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(f"The folder {str(folder)!r} is held by {file.read() or 'another process'}.") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(f"{folder}: {error}. Nothing else may run in it meanwhile.", RuntimeWarning, stacklevel=4)
        # A holder removes the file as it ends, perhaps after we have opened it: a lock on that keeps nobody out.
        if not (path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))):
            raise ValueError(f"The folder {str(folder)!r} was held by a process that has just ended. Start again.")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}")
        file.flush()
        yield


def _leave(folder: Path, new: bool, unmarked: bool) -> None:
    """Removes the lock's file; where the run made nothing, also its mark and its folder."""
    with contextlib.suppress(OSError):  # what ended the run is what is to be told of
        (folder / LOCK).unlink(missing_ok=True)
        if unmarked and all(path.name == MARK for path in folder.iterdir()):
            (folder / MARK).unlink(missing_ok=True)
            if new:
                folder.rmdir()


def _mark(workdir: str, kind: str) -> None:
    owner = _kind(workdir)
    if owner not in (kind, None):
        raise ValueError(
            f"The folder {workdir!r} holds a run of wind_jax.{owner}, not of wind_jax.{kind}: give another."
        )
    taken = [] if is_url(workdir) else [name for name in NAMES[kind] if os.path.lexists(join(workdir, name))]
    if owner is None and taken:
        raise ValueError(
            f"The folder {workdir!r} holds {', '.join(taken)}, which no run of wind_jax made there and this one would "
            "write: give another folder, or move them away."
        )
    if read_bytes(join(workdir, MARK)) is None:
        write_bytes(join(workdir, MARK), f"{json.dumps({'kind': kind})}\n".encode())


def _kind(workdir: str) -> str | None:
    """Whose the folder is by its mark or, of versions that left none, by its config; None: nobody's."""
    path = join(workdir, MARK)
    mark = read_bytes(path)
    if mark is not None:
        found = _parse(mark).get("kind")
        if found not in NAMES:
            raise ValueError(
                f"{path!r} is damaged, expected one of {' '.join(json.dumps({'kind': k}) for k in NAMES)}."
            )
        return found
    config = _parse(read_bytes(join(workdir, CONFIG)))
    return "infer" if "fingerprint" in config else "train" if "optimizer" in config else None


def _parse(contents: bytes | None) -> dict[str, Any]:
    """A JSON object; empty where there is none, or a damaged one."""
    try:
        found = json.loads(contents or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


# ------------------------------------------------------------------------------------------------------------- identity
def finished(folder: Path, settings: str) -> bool:
    """Whether the folder holds the results of these settings, whole."""
    return _same(folder / CONFIG, settings) and all((folder / name).exists() for name in (POSTERIOR, SCORES))


def _same(path: Path, settings: str) -> bool:
    there = _identity(read_bytes(path))
    return bool(there) and there == _identity(settings.encode())


def _identity(settings: bytes | None) -> dict[str, Any]:
    return {name: value for name, value in _parse(settings).items() if name not in FREE}


def _others(there: bytes | None, here: bytes | None) -> str:
    """In which settings there differ from those here, for a message."""
    if not _identity(there):
        return "has settings that cannot be read"
    before, now = (json.dumps(_identity(settings), indent=1).splitlines()[1:-1] for settings in (there, here))
    different = [line for line in before if line not in now] or [
        f"no {line.strip()}" for line in now if line not in before
    ]
    return f"has other settings ({', '.join(line.strip(' ,') for line in different)})"


# -------------------------------------------------------------------------------------------------- drawing and results
@contextlib.contextmanager
def drawing(folder: Path, settings: str, say: Callable[[str], None] = print) -> Iterator[Path]:
    """A folder to draw into; what it holds moves into `folder` when the block ends well, all or none.

    A run that is stopped after a first `Position.mark` leaves it for the next start, which resumes where the settings
    are the same and else keeps it aside, as it does where its progress is damaged.

    Args:
        folder: from `claim`.
        settings: JSON text: the configuration and its `fingerprint`.
        say: prints a line.
    """
    partial, position = folder / PARTIAL, folder / PARTIAL / POSITION
    if position.exists() and (wrong := _wrong(partial, settings)):
        aside = _free(folder, "unfinished")
        partial.rename(aside)
        say(f"The unfinished run in {folder} {wrong}: it is kept in {aside}.")
    if (folder / CONFIG).exists():
        others = _others(read_bytes(folder / CONFIG), settings.encode())
        say(f"The run in {folder} {others}: it is kept aside when this one is complete.")
    if not position.exists():
        _remove(partial)
        partial.mkdir()
    write_bytes(partial / BEGUN, settings.encode())
    try:
        yield partial
    except BaseException:
        if not position.exists():
            _remove(partial)
        raise
    (partial / BEGUN).replace(partial / CONFIG)
    _publish(folder, say)


def _wrong(partial: Path, settings: str) -> str:
    """Why an unfinished run cannot be resumed with these settings; empty where it can."""
    if not _same(partial / BEGUN, settings):
        return _others(read_bytes(partial / BEGUN), settings.encode())
    try:
        Position(partial)
    except Exception:  # numpy, zipfile and zlib each raise their own
        return f"has a damaged {POSITION}"
    return ""


def _publish(folder: Path, say: Callable[[str], None]) -> None:
    """Puts complete results in their place, and earlier ones aside. Wherever it is stopped, the next call finishes it.

    Earlier results leave first, then `.partial` becomes `.complete`: a result that is in the folder is an earlier one
    before that, and a new one after it.
    """
    partial, complete = folder / PARTIAL, folder / COMPLETE
    if (partial / CONFIG).exists() or (folder / LEAVING).exists():
        _keep_earlier(folder, say)
    if (partial / CONFIG).exists():
        partial.rename(complete)
    if complete.exists():
        for name in reversed(RESULTS):
            if os.path.lexists(complete / name):
                (complete / name).replace(folder / name)
        shutil.rmtree(complete)


def _keep_earlier(folder: Path, say: Callable[[str], None]) -> None:
    """Moves results into a folder of their own, whose name it receives when all are there."""
    leaving = folder / LEAVING
    for name in RESULTS:
        if os.path.lexists(folder / name):
            leaving.mkdir(exist_ok=True)
            _move(folder / name, leaving / name)
    if leaving.exists():
        aside = _free(folder, "earlier")
        leaving.rename(aside)
        say(f"The earlier results in {folder} are kept in {aside}.")


def set_aside(workdir: str, say: Callable[[str], None] = print) -> None:
    """Keeps the results of `infer` in a folder aside, so that the same command draws them anew."""
    with claim(workdir, "infer", say) as folder:
        _keep_earlier(folder, say)


def _move(path: Path, target: Path) -> None:
    """Also a link, whose target may be given from where it lies."""
    if not path.is_symlink():
        path.replace(target)
        return
    if not target.is_symlink():  # else it was stopped here
        target.symlink_to(path.resolve())
    path.unlink()


def _free(folder: Path, name: str) -> Path:
    return next(path for i in itertools.count(1) if not os.path.lexists(path := folder / f"{name}-{i}"))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------- position
class Position:
    """How far the members of a run are, for a run that is stopped and resumes.

    Args:
        folder: from `drawing`.
    """

    def __init__(self, folder: Path):
        self._path = folder / POSITION
        self._done: tuple[int, int, int, int] = (0, 0, 0, 0)
        self._known = None
        if not self.fresh:
            with np.load(io.BytesIO(self._path.read_bytes())) as file:
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
        """Say that so many windows of a batch of members are on the disk, and what the next begins with.

        What lies behind the position, because it was lost and is drawn again, leaves it where it is.
        """
        last, _, stop, before = self._done
        if (case, batch.stop, windows) < (last, stop, before):
            return
        file = io.BytesIO()
        np.savez(file, done=np.array([case, batch.start, batch.stop, windows]), known=known)
        write_bytes(self._path, file.getvalue())
