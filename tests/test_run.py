"""The folder of a run: what it refuses, who holds it, what survives a stop, and that results appear whole or not."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import synthetic
from flax import nnx
from ml_collections import ConfigDict

from wind_jax import config, infer, run
from wind_jax.channels import channels
from wind_jax.data.climatology import Climatology
from wind_jax.data.normalize import compute_statistics
from wind_jax.data.store import open_store
from wind_jax.model.uvit import UViT, UViTConfig
from wind_jax.prior import Prior, pure_params, save_prior
from wind_jax.run import ALL, Position, claim, drawing, finished

ROOT = Path(__file__).resolve().parents[1]


def settings(**changes):
    return json.dumps({"seed": 0, "workdir": "somewhere", "fingerprint": {"prior": "0"}} | changes, indent=2)


def draw(workdir, text="drawn", say=print, made=("posterior.zarr/0", "scores.json"), **changes):
    """A run that leaves some files."""
    with claim(str(workdir), "infer", say) as folder, drawing(folder, settings(**changes), say) as partial:
        for name in made:
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def stopped(workdir, /, **changes):
    """A run that is stopped after its first window; whether that was fresh, and what was printed."""
    said = []
    with (
        contextlib.suppress(KeyboardInterrupt),
        claim(str(workdir), "infer", said.append) as folder,
        drawing(folder, settings(**changes), said.append) as unfinished,
    ):
        fresh = Position(unfinished).fresh
        Position(unfinished).mark(0, range(1), 1, np.ones((1, 2)))
        (unfinished / "posterior.zarr").mkdir(exist_ok=True)
        raise KeyboardInterrupt
    return fresh, said


# ---------------------------------------------------------------------------------------------------------- what it is
@pytest.mark.parametrize("kind", ["infer", "train", "evaluate"])
@pytest.mark.parametrize(
    ("files", "takes"),
    [
        ({}, "infer train evaluate"),
        ({"notes.txt": "mine", "compile_cache/x": ""}, "infer train evaluate"),
        ({"run.json": '{"kind": "infer"}', "config.json": "{}"}, "infer"),
        ({"run.json": '{"kind": "train"}', "prior.npz": "", "config.json": "{}"}, "train"),
        ({"run.json": '{"kind": "evaluate"}', "scores.json": ""}, "evaluate"),
        ({"run.json": '{"kin'}, ""),
        ({"run.json": '{"kind": "other"}'}, ""),
        # Of versions that left no mark.
        ({"config.json": '{"fingerprint": {}}', "posterior.zarr/0": "", "figures/a.png": ""}, "infer"),
        ({"config.json": '{"optimizer": {}}', "checkpoints/1": ""}, "train"),
        # A user's own.
        ({"figures/thesis.png": "mine"}, "train evaluate"),
        ({"truth.zarr/0": "mine"}, "train evaluate"),
        ({"observations.zarr/0": "mine"}, "train evaluate"),
        ({".partial/x": "mine"}, "train evaluate"),
        ({"scores.json": "mine"}, "train"),
        ({"prior.npz": "mine"}, "infer evaluate"),
        ({"config.json": '{"experiment": null}'}, "evaluate"),
        ({"config.json": '{"experiment": "forecast"}'}, "evaluate"),
    ],
)
def test_a_folder_is_taken_or_refused_and_left_as_it_was(tmp_path, files, kind, takes):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    if kind in takes.split():
        with claim(str(tmp_path), kind) as folder:
            assert folder == tmp_path
            assert json.loads((folder / "run.json").read_text()) == {"kind": kind}
    else:
        with pytest.raises(ValueError, match=r"holds .*give another|damaged, expected"), claim(str(tmp_path), kind):
            pytest.fail("it was taken")
    for name, text in files.items():
        assert (tmp_path / name).read_text() == text
    assert not (tmp_path / ".lock").exists()
    if not files:
        assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("", "infer"),
        ("", "train"),
        ("gs://bucket/run", "infer"),
        ("s3://bucket/run", "evaluate"),
        ("file:///tmp/run", "infer"),
        ("http://host/run", "train"),
    ],
)
def test_a_place_that_a_run_cannot_write_to_is_refused_at_once(tmp_path, monkeypatch, place, kind):
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(ValueError, match=f"folder of the run is .*{place}.*(takes|expected) a path"),
        claim(place, kind),
    ):
        pytest.fail("it was taken")
    assert names(tmp_path) == []


def test_a_bucket_keeps_the_mark(monkeypatch):
    bucket = {}
    monkeypatch.setattr(run, "read_bytes", bucket.get)
    monkeypatch.setattr(run, "write_bytes", bucket.__setitem__)
    for _ in range(2):
        with claim("gs://bucket/run", "train") as folder:
            assert folder is None
    assert json.loads(bucket.pop("gs://bucket/run/run.json")) == {"kind": "train"}
    assert not bucket
    bucket["gs://bucket/run/config.json"] = b'{"fingerprint": {}}'
    with pytest.raises(ValueError, match=r"wind_jax\.infer, not of wind_jax\.train"), claim("gs://bucket/run", "train"):
        pytest.fail("it was taken")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "run", tmp_path / "file"):
        with pytest.raises(ValueError, match=f"{place.name}' is not writable"):
            draw(place)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_to_write(tmp_path):
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(ValueError, match="run' is not writable"):
        draw(tmp_path / "run")


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path):
    draw(tmp_path, "old")
    with (
        pytest.raises(OSError, match=f"the same command resumes.*{tmp_path.name}") as error,
        claim(str(tmp_path), "infer") as folder,
        drawing(folder, settings(seed=1)),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert error.value.errno == errno.ENOSPC
    assert names(tmp_path) == ["config.json", "posterior.zarr", "run.json", "scores.json"]
    assert finished(tmp_path, settings())


# ----------------------------------------------------------------------------------------------------------------- lock
def test_a_second_start_is_told_who_holds_the_folder(tmp_path):
    with claim(str(tmp_path), "train"):
        with pytest.raises(ValueError, match=rf"held by process {os.getpid()} on .* since \d{{4}}-"):
            draw(tmp_path)
        with pytest.raises(ValueError, match="held by process"):  # also after one that was refused
            draw(tmp_path)
    draw(tmp_path)


def test_another_process_holds_a_folder_until_it_is_killed(tmp_path):
    program = f"from wind_jax.run import claim\nwith claim({str(tmp_path)!r}, 'infer'): print('held'), input()"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"held by process {holder.pid} on "):
            draw(tmp_path)
        holder.kill()
    assert f"process {holder.pid}" in (tmp_path / ".lock").read_text()
    draw(tmp_path)
    assert ".lock" not in names(tmp_path)


def test_a_lock_on_a_file_that_its_holder_removed_is_none(tmp_path, monkeypatch):
    """Between opening the file and locking it, another run ends, and a third may begin."""

    def end_of_another(*_):
        (tmp_path / ".lock").unlink()

    monkeypatch.setattr(fcntl, "flock", end_of_another)
    with pytest.raises(ValueError, match="has just ended"):
        draw(tmp_path)


def test_without_locks_of_the_file_system_a_run_warns(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.warns(RuntimeWarning, match="No locks available"):
        draw(tmp_path)


# -------------------------------------------------------------------------------------------------------------- results
def test_results_of_other_settings_are_kept_aside(tmp_path):
    said = []
    (tmp_path / "notes.txt").write_text("mine")
    draw(tmp_path, "old", say=said.append)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "own.png").write_text("mine")
    assert said == []
    draw(tmp_path, "new", say=said.append, seed=1)
    assert names(tmp_path) == ["config.json", "earlier-1", "notes.txt", "posterior.zarr", "run.json", "scores.json"]
    assert names(tmp_path / "earlier-1") == ["config.json", "figures", "posterior.zarr", "scores.json"]
    assert (tmp_path / "earlier-1" / "figures" / "own.png").read_text() == "mine"
    assert (tmp_path / "earlier-1" / "scores.json").read_text() == "old"
    assert (tmp_path / "scores.json").read_text() == "new"
    assert 'has other settings ("seed": 0): it is kept aside when' in said[0]
    assert said[1:] == [f"The earlier results in {tmp_path} are kept in {tmp_path}/earlier-1."]
    draw(tmp_path, "newer", seed=2)
    assert (tmp_path / "earlier-2" / "scores.json").read_text() == "new"


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"workdir": "elsewhere", "figures": False, "globe": [1.0, 2.0], "mesh": {"data": 2}, "member_batch": 3}, True),
        ({"prior": "moved.npz"}, True),
        ({"fingerprint": {"prior": "1"}}, False),
        ({"members": 3}, False),
        ({"seed": 1}, False),
    ],
)
def test_settings_are_the_same_where_the_posterior_is(tmp_path, changes, same):
    draw(tmp_path / "a")
    assert finished(tmp_path / "a", settings(**changes)) is same
    stopped(tmp_path / "b")
    fresh, said = stopped(tmp_path / "b", **changes)
    assert (not fresh) is same
    assert len(said) == (0 if same else 1)


def test_results_are_finished_only_where_they_are_whole(tmp_path):
    draw(tmp_path)
    assert finished(tmp_path, settings())
    (tmp_path / "posterior.zarr").rename(tmp_path / "away")
    assert not finished(tmp_path, settings())
    (tmp_path / "away").rename(tmp_path / "posterior.zarr")
    (tmp_path / "config.json").write_text(settings()[:30])
    assert not finished(tmp_path, settings())
    draw(tmp_path)
    assert finished(tmp_path, settings())


def test_links_to_another_disk_are_followed_and_kept(tmp_path):
    """A finished run whose posterior and figures were moved and linked; and a folder that is a link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    draw(tmp_path / "link", "old", made=("posterior.zarr/0", "figures/a.png", "scores.json"))
    folder = tmp_path / "real"
    for name in ("posterior.zarr", "figures"):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(Path("..", name))
    assert finished(folder, settings())
    draw(tmp_path / "link", "new", seed=1)
    assert (folder / "posterior.zarr" / "0").read_text() == "new"
    assert (folder / "earlier-1" / "posterior.zarr" / "0").read_text() == "old"
    assert (folder / "earlier-1" / "figures" / "a.png").read_text() == "old"
    assert (tmp_path / "posterior.zarr" / "0").read_text() == "old"


def test_a_run_that_fails_changes_nothing(tmp_path):
    draw(tmp_path, "old")
    with (
        pytest.raises(TypeError),
        claim(str(tmp_path), "infer") as folder,
        drawing(folder, settings(seed=1)) as partial,
    ):
        (partial / "scores.json").write_text(None)
    assert names(tmp_path) == ["config.json", "posterior.zarr", "run.json", "scores.json"]
    assert (tmp_path / "scores.json").read_text() == "old"


STEPS = 14


@pytest.mark.parametrize("steps", range(STEPS))
def test_results_survive_a_stop_while_they_are_put_in_place(tmp_path, monkeypatch, steps):
    """Stopped after any number of file operations, the next start finishes it: old and new are whole, and apart."""
    draw(tmp_path, "old", made=("posterior.zarr/0", "report.json", "scores.json"))
    done = []

    def stopping(action, *arguments):
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(action)
        return action(*arguments)

    with (
        monkeypatch.context() as patch,
        contextlib.suppress(KeyboardInterrupt),
        claim(str(tmp_path), "infer") as folder,
        drawing(folder, settings(seed=1)) as unfinished,
    ):
        (unfinished / "posterior.zarr").mkdir()
        (unfinished / "scores.json").write_text("new")
        Position(unfinished).mark(0, range(1), 1, np.ones(1))
        for name in ("replace", "rename", "mkdir"):
            action = getattr(Path, name)
            patch.setattr(Path, name, lambda *a, action=action, **k: stopping(partial(action, **k), *a))
        patch.setattr(run.shutil, "rmtree", partial(stopping, run.shutil.rmtree))
    with pytest.raises(TypeError), claim(str(tmp_path), "infer") as folder, drawing(folder, settings(seed=1)):
        raise TypeError
    if steps == 0:  # it was not known to be complete: the old ones stay, and it can be resumed
        assert finished(tmp_path, settings())
        assert (tmp_path / ".partial" / "position.npz").exists()
        return
    assert names(tmp_path) == ["config.json", "earlier-1", "posterior.zarr", "run.json", "scores.json"]
    assert finished(tmp_path, settings(seed=1))
    assert (tmp_path / "scores.json").read_text() == "new"
    assert names(tmp_path / "earlier-1") == ["config.json", "posterior.zarr", "report.json", "scores.json"]
    assert finished(tmp_path / "earlier-1", settings())
    assert len(done) == steps or steps == STEPS - 1, "more steps than are tested"


def test_what_a_run_killed_before_its_first_window_left_is_cleared(tmp_path):
    draw(tmp_path)
    (tmp_path / ".partial" / "truth.zarr").mkdir(parents=True)
    draw(tmp_path, seed=1)
    assert not (tmp_path / "truth.zarr").exists()
    assert not (tmp_path / ".partial").exists()


def test_results_set_aside_are_drawn_again(tmp_path):
    draw(tmp_path, "old")
    run.set_aside(str(tmp_path))
    assert not finished(tmp_path, settings())
    assert (tmp_path / "earlier-1" / "scores.json").read_text() == "old"
    run.set_aside(str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


# ------------------------------------------------------------------------------------------------------------- progress
def test_an_unfinished_run_of_other_settings_is_kept_and_named(tmp_path):
    """The same resumes; another, and yet another, find it and its own settings under a name of their own."""
    assert stopped(tmp_path) == (True, [])
    assert stopped(tmp_path) == (False, [])
    for seed in (1, 2):
        fresh, (line,) = stopped(tmp_path, seed=seed)
        assert fresh
        assert f'other settings ("seed": {seed - 1}): it is kept in {tmp_path}/unfinished-{seed}' in line
        assert json.loads((tmp_path / f"unfinished-{seed}" / "begun.json").read_text())["seed"] == seed - 1
        assert (tmp_path / f"unfinished-{seed}" / "posterior.zarr").exists()


@pytest.mark.parametrize("name", ["begun.json", "position.npz"])
@pytest.mark.parametrize("damage", [None, b"", b"\xff\xfe\x00", b"[]", "half", "flipped"])
def test_damaged_progress_is_kept_aside_and_never_in_the_way(tmp_path, name, damage):
    stopped(tmp_path)
    path = tmp_path / ".partial" / name
    contents = path.read_bytes()
    match damage:
        case None:
            path.unlink()
        case "half":
            path.write_bytes(contents[: len(contents) // 2])
        case "flipped":
            path.write_bytes(contents.replace(np.ones(2).tobytes(), bytes(16)).replace(b'"seed":', b'"seed"?'))
        case _:
            path.write_bytes(damage)
    fresh, said = stopped(tmp_path)
    if not (name == "position.npz" and damage is None):  # then nothing was done
        (line,) = said
        assert f"kept in {tmp_path}/unfinished-1" in line
    assert fresh
    assert stopped(tmp_path) == (False, [])


def test_a_position_holds_for_other_batches(tmp_path):
    """Of case 1, members 0 to 3 are done, and 4 to 7 up to window 2."""
    known = np.arange(4.0)
    Position(tmp_path).mark(1, range(4, 8), 2, known)
    found = lambda case, *batch: Position(tmp_path).find(case, range(*batch))
    assert found(0, 4, 9)[0] == found(1, 0, 4)[0] == found(1, 0, 3)[0] == ALL
    windows, rows = found(1, 5, 7)
    assert windows == 2
    np.testing.assert_array_equal(rows, [1.0, 2.0])
    for other in ((1, 3, 6), (1, 6, 9), (1, 8, 12), (2, 0, 4)):
        assert found(*other) == (0, None)


def test_what_is_drawn_again_leaves_the_position_where_it_is(tmp_path):
    Position(tmp_path).mark(1, range(4, 8), 2, np.arange(4.0))
    again = Position(tmp_path)
    again.mark(0, range(4, 8), 3, np.zeros(4))
    again.mark(1, range(4, 8), 1, np.zeros(4))
    windows, rows = Position(tmp_path).find(1, range(4, 8))
    assert windows == 2
    np.testing.assert_array_equal(rows, np.arange(4.0))


# ---------------------------------------------------------------------------------------------------------------- kills
@pytest.fixture(scope="module")
def small_forecast(tmp_path_factory):
    """Settings of a forecast of two cases, three members and two windows, by a network never trained."""
    folder = tmp_path_factory.mktemp("inputs")
    latitude, longitude = np.linspace(-78.75, 78.75, 8), np.arange(16) * 22.5
    synthetic.write_archive(folder / "archive.zarr", synthetic.times(30), latitude, longitude, levels=(500, 850))
    store = open_store(str(folder / "archive.zarr"), channels(["temperature", "2m_temperature"], [500, 850]))
    coefficients = np.zeros((7, 8, 16, 3), np.float32)
    coefficients[0] = store.read(0, 30).mean(0)
    network = UViTConfig(
        channels=3, latitude=8, longitude=16, patch=2, widths=(32,), blocks=("transformer",), depth=1, heads=2,
        embedding=32, forcings=13, remat=False,
    )  # fmt: skip
    params = pure_params(nnx.state(UViT(network, rngs=nnx.Rngs(0))))
    climatology = Climatology(store.channels, store.grid, coefficients)
    prior = Prior(params, network, compute_statistics(store), store.grid, 3, "rectified", "x0", climatology=climatology)
    save_prior(folder / "prior.npz", prior)
    c = config.read("forecast", "inference")
    c.update({"prior": str(folder / "prior.npz"), "figures": False, "cases": 2, "members": 3, "member_batch": 2})
    c.data.update({"path": str(folder / "archive.zarr"), "covariance": ""})
    c.task.update({"leads": 4, "context": 1})
    c.sampler.update({"steps": 2})
    c.mesh.update({"data": 1})
    path = folder / "config.json"
    path.write_text(config.to_json(c))
    return path


def contents(folder):
    """Every file of the results, but for the folder's own name in the config."""
    files = [path for path in folder.rglob("*") if path.is_file() and "earlier-1" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != "config.json"}


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.timeout(1800)
def test_a_run_that_is_killed_at_any_moment_ends_in_the_same_result(small_forecast, tmp_path, kills):
    """Byte for byte, and nothing is left beside it."""
    program = [sys.executable, "tests/killing.py", str(small_forecast), str(tmp_path), str(kills), str(kills)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    logs = "".join(path.read_text()[-2000:] for path in tmp_path.glob("*.log"))
    assert done.returncode == 0, done.stderr + logs
    whole = contents(tmp_path / "whole")
    assert {"run.json", "scores.json", "report.json"} < whole.keys()
    for killed in tmp_path.glob("killed-*[0-9]"):
        assert contents(killed) == whole
        assert names(killed) == sorted({name.split("/")[0] for name in whole} | {"config.json"})


def test_a_second_start_of_infer_ends_at_once_and_the_first_goes_on(small_forecast, tmp_path):
    c = ConfigDict(json.loads(small_forecast.read_text()) | {"workdir": str(tmp_path / "run")})
    with claim(c.workdir, "infer"), pytest.raises(ValueError, match="held by process"):
        infer.infer(c)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lost", "draws"),
    [
        ("posterior.zarr/temperature/0.1.0.0.0.0", 3),  # of the first batch of members, and the window to come
        ("posterior.zarr", 8),
        ("posterior.zarr/2m_temperature", 8),
        ("truth.zarr/2m_temperature", 1),
        ("report.json", 1),
    ],
)
def test_what_was_lost_is_drawn_again(small_forecast, tmp_path, monkeypatch, lost, draws):
    """Of a run that is stopped in the last of its eight windows."""
    c = ConfigDict(json.loads(small_forecast.read_text()) | {"workdir": str(tmp_path / "run")})
    infer.infer(c)
    whole, drawn, rollout = contents(tmp_path / "run"), [], infer.rollout

    def counting(*arguments):
        for frames in rollout(*arguments):
            if len(drawn) == 7:
                raise KeyboardInterrupt
            drawn.append(1)
            yield frames

    monkeypatch.setattr(infer, "rollout", counting)
    infer.infer(c)
    assert drawn == []  # it is finished
    run.set_aside(c.workdir)
    with pytest.raises(KeyboardInterrupt):
        infer.infer(c)
    path = tmp_path / "run" / ".partial" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    drawn[:] = [1] * 100
    infer.infer(c)
    assert len(drawn) - 100 == draws
    assert contents(tmp_path / "run") == whole


@pytest.fixture
def small_disk(tmp_path):
    """Resizes a file system of its own; its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = lambda *options: (
        subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False).returncode
    )
    if mount("-t", "tmpfs", "-o", "size=160k", "tmpfs"):
        pytest.skip("this user may not mount a file system")
    yield folder, lambda size: mount("-o", f"remount,size={size}")
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_a_run_that_resumes_when_there_is_room(small_forecast, tmp_path, small_disk):
    disk, resize = small_disk
    c = ConfigDict(json.loads(small_forecast.read_text()) | {"workdir": str(tmp_path / "whole")})
    infer.infer(c)
    c.workdir = str(disk / "run")
    for size in ("160k", "200k", "240k"):
        resize(size)
        with pytest.raises(OSError, match=r"No space left on device|Cannot write .*begun\.json"):
            infer.infer(c)
    resize("10m")
    infer.infer(c)
    assert contents(disk / "run") == contents(tmp_path / "whole")
