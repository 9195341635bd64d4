"""The training command from archive to prior: loss falls, a resumed run repeats the uninterrupted one, bad input."""

import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import threading
import time
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic
import tiny
import xarray
from tiny import config

from wind_jax import export
from wind_jax.data.climatology import fit_climatology
from wind_jax.data.forcings import static_forcings
from wind_jax.data.store import Store, open_store
from wind_jax.prior import load_prior
from wind_jax.run import claim
from wind_jax.sphere import cell_area
from wind_jax.train import train
from wind_jax.training.mesh import put_batch


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return tiny.write_archive(tmp_path_factory.mktemp("data") / "archive.zarr")


def metrics(workdir):
    with open(os.path.join(workdir, "metrics.jsonl")) as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def finished(archive, tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp("run"))
    train(config(archive, workdir))
    return workdir


def test_loss_falls_and_validation_is_logged(finished):
    losses = [record["loss"] for record in metrics(finished) if "loss" in record]
    assert len(losses) == 6
    assert losses[-1] < 0.95 * losses[0]  # 1 is what the reference alone leaves of every level
    last = metrics(finished)[-1]
    assert last["step"] == 24
    left = [last[f"validation/noise_left_t{level:g}"] for level in (0.02, 0.5, 0.98)]
    assert 1 > left[0] > left[1] > left[2] > 0
    by_channel = [
        last[f"validation/noise_left_t0.5/{key}"] for key in ("temperature_500", "temperature_850", "2m_temperature")
    ]
    np.testing.assert_allclose(np.mean(by_channel), left[1], rtol=1e-5)
    assert last["validation/fine_variance"] > 0
    assert np.isfinite(last["validation/forecast_crps"])


def test_prior_is_exported_with_all_that_inference_needs(finished):
    prior = load_prior(os.path.join(finished, "prior.npz"))
    assert [channel.key for channel in prior.statistics.channels] == [
        "temperature_500",
        "temperature_850",
        "2m_temperature",
    ]
    assert prior.shape == (3, 8, 16, 3)
    assert json.loads(prior.provenance)["step"] == 24


@pytest.mark.slow
def test_prior_carries_the_climatology_about_which_it_sees_anomalies(archive, finished):
    """A network that says nothing says climatology; with climatology=False, the mean."""
    prior = load_prior(os.path.join(finished, "prior.npz"))
    store = open_store(archive, prior.statistics.channels)
    fitted = fit_climatology(store)
    times = store.times[100:103]
    np.testing.assert_allclose(prior.climatology.at(times), fitted.at(times), rtol=1e-4)
    inputs = prior.inputs(static_forcings(store), times)
    assert inputs.shape == (3, 8, 16, 10 + 3)
    np.testing.assert_allclose(prior.mean(inputs), prior.statistics.normalize(fitted.at(times)), atol=1e-3)
    # The statistics' std is that of the anomalies.
    anomaly = store.read(0, 1480) - fitted.at(store.times)
    area = np.broadcast_to(cell_area(store.grid)[:, None], store.grid.shape)
    variance = np.average(anomaly.var(0), axis=(0, 1), weights=np.broadcast_to(area[..., None], anomaly.shape[1:]))
    np.testing.assert_allclose(prior.statistics.std, np.sqrt(variance), rtol=1e-3)
    silent = dataclasses.replace(prior, params=jax.tree.map(jnp.zeros_like, prior.params))
    x0_hat = silent.denoiser(jnp.asarray(inputs))(jnp.zeros((1, *prior.shape)), 1.0)
    np.testing.assert_allclose(x0_hat[0], prior.mean(inputs), atol=1e-2)


@pytest.mark.slow
def test_without_climatology(archive, tmp_path, monkeypatch):
    on_mesh = lambda *_: {"on_mesh": not jax.sharding.get_abstract_mesh().empty}  # else `uvit` gathers no parameters
    monkeypatch.setattr("wind_jax.train.make_validation", lambda *_, **__: on_mesh)
    changes = {"data.climatology": False, "optimizer.steps": 3, "log_every": 3}
    train(config(archive, tmp_path, **changes))
    assert metrics(tmp_path)[-1] == {"step": 3, "validation/on_mesh": 1.0}
    prior = load_prior(tmp_path / "prior.npz")
    assert prior.climatology is None
    assert prior.config.forcings == 10
    assert prior.mean(np.zeros((*prior.shape[:-1], 10))) == 0.0


@pytest.fixture
def before_batch(monkeypatch):
    """Lets something happen before the batch of a training step is used: {step: batch -> batch}."""

    def set_up(start=0, **events):
        put, calls = put_batch, [start - 1]  # one batch of validation comes first

        def putting(mesh, batch, batch_size):
            calls[0] += 1
            return put(mesh, events.get(f"step{calls[0]}", lambda batch: batch)(batch), batch_size)

        monkeypatch.setattr("wind_jax.train.put_batch", putting)

    return set_up


def same_training(workdir, other):
    whole, again = (
        {record["step"]: record["loss"] for record in metrics(path) if "loss" in record} for path in (other, workdir)
    )
    assert again.keys() == whole.keys()
    np.testing.assert_allclose(list(again.values()), list(whole.values()), rtol=1e-4)
    params = [load_prior(os.path.join(path, "prior.npz")).params for path in (workdir, other)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *params)


def test_the_average_of_a_checkpoint_is_a_prior(finished, tmp_path, monkeypatch, capsys):
    out = str(tmp_path / "prior.npz")
    export.main(["--workdir", str(finished), "--step", "24", "--out", out])
    assert capsys.readouterr().out == f"the prior is {out}\n"
    ours, theirs = load_prior(out), load_prior(os.path.join(finished, "prior.npz"))
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    assert json.loads(ours.provenance)["samples"] == 24 * 8
    with pytest.raises(ValueError, match=r"has no checkpoint of step 12; it has those of \[.*24\]"):
        export.export(str(finished), 12)
    with pytest.raises(ValueError, match=r"prior\.npz' does not exist"):
        export.export(str(tmp_path / "nowhere"), 12)
    monkeypatch.setattr("wind_jax.training.checkpoint._checksums", lambda _: [0])
    with pytest.raises(ValueError, match=r"The checksums of the checkpoint of step 24 in .* do not hold"):
        export.export(str(finished), 24)


def test_killed_run_repeats_the_uninterrupted_one(archive, finished, tmp_path, before_batch):
    """Killed in step 15, the run goes on from the checkpoint of step 12: same batches, same noise, same losses."""

    def kill(batch):
        raise KeyboardInterrupt

    c = config(archive, tmp_path, checkpoint_every=12)
    before_batch(step16=kill)  # its batch is fetched while step 15 runs
    with pytest.raises(KeyboardInterrupt):
        train(c)
    assert [record["step"] for record in metrics(tmp_path)] == [4, 8, 12]
    before_batch()
    train(c)
    same_training(tmp_path, finished)


def test_sigterm_saves_and_ends_in_order(archive, finished, tmp_path, before_batch, capsys):
    def terminate(batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return batch

    c = config(archive, tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    before_batch(step16=terminate)  # fetched while step 15 runs; a process that is alone waits for no other batch
    train(c)
    assert "SIGTERM: saved step 16" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is handler
    before_batch()
    train(c)
    assert "resumed from step 16" in capsys.readouterr().out
    same_training(tmp_path, finished)


@pytest.mark.parametrize("when", ["open_store", "init_state", "put_batch"])
def test_sigterm_before_the_first_step_ends_in_order_too(archive, tmp_path, monkeypatch, capsys, when):
    def terminate(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    handler, began = signal.getsignal(signal.SIGTERM), time.monotonic()
    monkeypatch.setattr(f"wind_jax.train.{when}", terminate)
    train(config(archive, tmp_path))
    assert time.monotonic() - began < 60
    assert "SIGTERM before the first step: nothing new to save" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.slow
def test_sigterm_ends_a_wait_for_data(archive, finished, tmp_path, monkeypatch, capsys):
    """Of a batch that never comes; the steps before it are saved, and the run goes on from there."""
    preemption = threading.Timer(5, os.kill, (os.getpid(), signal.SIGTERM))

    class Stalled:
        def __init__(self, batches):
            self.given, self.batches = 0, batches

        def __next__(self):
            self.given += 1
            if self.given == 11:  # fetched while step 10 runs
                preemption.start()
                threading.Event().wait(60)
            return next(self.batches)

        def get_state(self):
            return self.batches.get_state()

        def set_state(self, state):
            self.batches.set_state(state)

    monkeypatch.setattr("wind_jax.train.iter", lambda batches: Stalled(iter(batches)), raising=False)
    c, began = config(archive, tmp_path), time.monotonic()
    train(c)
    assert time.monotonic() - began < 60
    assert "SIGTERM: saved step 10" in capsys.readouterr().out
    monkeypatch.undo()
    train(c)
    assert "resumed from step 10" in capsys.readouterr().out
    ours, theirs = ({r["step"]: r["loss"] for r in metrics(path) if "loss" in r} for path in (tmp_path, finished))
    assert ours[24] == pytest.approx(theirs[24], rel=1e-4)


def poison(batch):
    return batch | {"x": np.full_like(batch["x"], np.nan)}


def test_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(archive, tmp_path, before_batch):
    before_batch(step14=poison)
    with pytest.raises(FloatingPointError, match=r"not finite in 1 of the steps 13 to 16.*that of step 12 in"):
        train(config(archive, tmp_path, checkpoint_every=6))


@pytest.mark.parametrize(("log_every", "bad"), [(4, [14]), (1, [*range(5, 14), 24])])
def test_steps_that_are_not_finite_can_be_skipped(archive, tmp_path, before_batch, log_every, bad):
    """Nine in a row, and the last one, whatever the interval of the log."""
    before_batch(**{f"step{n}": poison for n in bad})
    train(config(archive, tmp_path, non_finite="skip", log_every=log_every))
    records = {record["step"]: record for record in metrics(tmp_path) if "loss" in record}
    assert records.keys() == set(range(log_every, 25, log_every))
    skipped = {step: record["skipped"] for step, record in records.items() if record["skipped"]}
    assert skipped == Counter(-(-n // log_every) * log_every for n in bad)
    assert all(np.isfinite(record["loss"]) for record in records.values() if record["skipped"] < log_every)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_prior(tmp_path / "prior.npz").params))


def test_a_run_that_is_asked_to_end_saves_whatever_its_last_steps_were(archive, tmp_path, before_batch, capsys):
    def terminate(batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return poison(batch)

    before_batch(step16=terminate)
    train(config(archive, tmp_path))
    printed = capsys.readouterr().out
    assert "warning: The loss or its gradient was not finite in 1 of the steps 13 to 16" in printed
    assert "SIGTERM: saved step 16" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("log_every", "bad", "told"),
    [
        (4, range(5, 17), "4 of the steps 13 to 16, 12 in a row"),
        (1, range(5, 17), "1 of the steps 14 to 14, 10 in a row"),
        (20, range(15, 25), "4 of the steps 21 to 24, 10 in a row"),
    ],
)
def test_skipping_ten_steps_in_a_row_is_no_training(archive, tmp_path, before_batch, log_every, bad, told):
    before_batch(**{f"step{n}": poison for n in bad})
    with pytest.raises(FloatingPointError, match=f"not finite in {told}"):
        train(config(archive, tmp_path, non_finite="skip", log_every=log_every))


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_full_disk_does_not_end_the_run(archive, finished, tmp_path, before_batch, capsys):
    """From step 10 to 20 no file may grow beyond 16 KiB: the checkpoints of steps 12 and 18 fail, not that of 24."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(batch):
        while not (tmp_path / "checkpoints" / "6").exists():  # its save goes on beside the training
            time.sleep(0.05)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, hard))
        return batch

    def lift(batch):
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return batch

    before_batch(step11=limit, step21=lift)
    with pytest.warns(RuntimeWarning, match="could not be saved") as warned:
        train(config(archive, tmp_path, checkpoint_every=6))
    failed = [str(w.message) for w in warned if "could not be saved" in str(w.message)]
    assert ["step 12" in failed[0], "that of step 6" in failed[0], "step 18" in failed[1]] == [True] * 3
    assert len(failed) == 2
    assert "the prior there is the one before" in capsys.readouterr().out
    same_training(tmp_path, finished)


def test_prior_that_was_not_written_is_an_error_and_comes_with_the_next_start(archive, finished, tmp_path, monkeypatch):
    workdir = shutil.copytree(finished, tmp_path / "run")
    (workdir / "prior.npz").unlink()
    c = config(archive, workdir)

    def full(path, prior):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("wind_jax.train.save_prior", full)
        with pytest.raises(OSError, match=r"Step 24 is saved, but not its prior: .*No space left"):
            train(c)
    train(c)
    same_training(workdir, finished)


@pytest.mark.slow
def test_last_checkpoint_that_fails_ends_with_an_error(archive, tmp_path, monkeypatch):
    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", lambda *_, **__: (_ for _ in ()).throw(OSError(28)))
    with pytest.warns(RuntimeWarning), pytest.raises(OSError, match="no checkpoint of step 24"):
        train(config(archive, tmp_path))


def test_checkpoint_of_another_architecture_is_refused(archive, finished):
    with pytest.raises(ValueError, match=r"model.depth is 3, there it is 1"):
        train(config(archive, finished, **{"model.depth": 3}))
    with pytest.raises(ValueError, match=r"loss.weighting is 'paper', there it is 'edm'"):
        train(config(archive, finished, **{"loss.weighting": "paper"}))
    celsius = {"2m_temperature": {"units": "degC", "on_levels": False}}
    with pytest.raises(ValueError, match=r"data.lexicon.2m_temperature.units is 'degC'"):
        train(config(archive, finished, **{"data.lexicon": celsius}))


def test_training_begins_from_the_parameters_of_a_prior(archive, finished, tmp_path, capsys):
    """With a rate of nearly 0 they stay what they were; another architecture is refused."""
    path = f"{finished}/prior.npz"
    still = {"optimizer.learning_rate": 1e-12, "optimizer.final_learning_rate": 1e-12, "optimizer.steps": 3}
    train(config(archive, tmp_path, init=path, **still))
    assert f"begins from the parameters of {path}" in capsys.readouterr().out
    begun, ended = load_prior(path), load_prior(tmp_path / "prior.npz")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), begun.params, ended.params)
    with pytest.raises(ValueError, match=r"config\.init is a prior of the architecture"):
        train(config(archive, tmp_path / "deeper", init=path, **{"model.depth": 2}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.path": "/nowhere.zarr"}, "nowhere"),
        ({"data.grid": (16, 32)}, r"has the grid \(8, 16\)"),
        ({"data.levels": (500, 600)}, "600"),
        ({"data.variables": ("ozone",)}, "unknown variable 'ozone'"),
        ({"data.lexicon": {"ozone": {"on_levels": True}}}, "'ozone' has no units"),
        ({"data.lexicon": {"ozone": {"units": "1", "on_levels": True, "transform": "log"}}}, "'ozone' .* 'log'"),
        ({"batch_size": 3}, "batch_size 3 does not divide over data x fsdp = 8"),
        ({"mesh.data": 1, "mesh.space": 8, "data.grid": (16, 30)}, "30 longitudes do not divide over space = 8"),
        ({"data.statistics": "nowhere"}, "nowhere/statistics.json' does not exist"),
        ({"mesh.fsdp": 3}, "devices"),
        ({"optimizer.warmup": 24}, "warmup 24"),
        ({"model.widths": (32, 50)}, "50"),
        ({"diffusion.prediction": "noise"}, "noise"),
        ({"diffusion.prediction": "x0"}, "'x0': a spectrum is for"),
        ({"loss.weighting": "snr"}, "config.loss.weighting is 'snr'"),
        ({"loss.channels": "equal"}, "config.loss.channels is 'equal'"),
        (
            {"loss.times": {"name": "logit_normal", "mean": 0.0, "spread": -1.0}},
            r"config\.loss\.times\.spread is -1\.0",
        ),
        ({"loss.patterns": {"shared": 0.5}}, "add up to 1"),
        ({"data.climate_path": "other.zarr"}, "'other.zarr' is not the archive"),
        ({"init": "nowhere.npz"}, "'nowhere.npz' does not exist"),
        ({"optimizer.decay": 30}, "decay 30 do not fit into the training of 24 steps"),
        ({"optimizer.learning_rate": -1.0}, r"optimizer\.learning_rate is -1\.0"),
        ({"validation.context": 3}, "config.validation.context is 3, expected less than the 3 frames"),
        ({"data.validation_period": ("1999", "1999")}, "1999"),
    ],
)
def test_bad_input_is_named_before_training(archive, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(config(archive, tmp_path, **changes))
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(("kind", "message"), [("shifted", "though equally many"), ("missing", "'temperature' at 500")])
def test_a_bad_archive_is_named_before_training(archive, tmp_path, monkeypatch, kind, message):
    """Held out on other cells of the same number, and an archive with a missing value; before all of it is read."""
    dataset = xarray.open_zarr(archive).isel(time=slice(0, 400)).load()
    if kind == "shifted":
        dataset = dataset.assign_coords(longitude=dataset.longitude + 11.25)
    else:
        dataset["temperature"].values[7, 0, 3, 3] = np.nan
    path = synthetic.write(dataset.drop_encoding(), tmp_path / "bad.zarr")
    changes = {"data.validation_path": path} | ({"data.path": path} if kind == "missing" else {})
    if kind == "shifted":
        monkeypatch.setattr(Store, "load", None)
    with pytest.raises(ValueError, match=message):
        train(config(archive, tmp_path / "run", **changes))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_dry_run_needs_no_data(tmp_path, capsys):
    train(config("/nowhere.zarr", tmp_path / "run"), dry_run=True)
    printed = capsys.readouterr().out
    assert "M parameters" in printed
    *parts, whole = (float(gib) for gib in re.findall(r"per device: +([\d.]+) GiB", printed))
    assert len(parts) == 3
    assert whole == pytest.approx(sum(parts), abs=0.002)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_profile_and_compilation_cache_are_in_the_workdir(archive, tmp_path):
    cache = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        train(config(archive, tmp_path, profile=True))
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compile_cache")
    finally:
        jax.config.update("jax_compilation_cache_dir", cache)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_a_specialist_improves_on_interpolation(archive, tmp_path):
    changes = {"model.frame_kernel": 3, "diffusion.reference": "white"}  # frames from each other; no noise to filter
    train(config(archive, tmp_path, specialist={"name": "temporal_downscaling", "mean_over": 3}, **changes))
    last = metrics(tmp_path)[-1]
    assert last["validation/relative_rmse"] < 0.95
    with pytest.raises(ValueError, match="temporal_downscaling alone"):
        load_prior(tmp_path / "prior.npz").denoiser(np.zeros((3, 8, 16, 13), np.float32))


def test_a_second_training_in_one_workdir_ends_at_once(archive, tmp_path):
    c = config(archive, tmp_path / "run")
    with claim(c.workdir, "train"), pytest.raises(ValueError, match="held by process"):
        train(c)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"'http://host/run'.* takes a path"):
        train(config(archive, "http://host/run"))
