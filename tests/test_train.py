"""The training command from archive to prior: loss falls, a resumed run repeats the uninterrupted one, bad input."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic
from ml_collections import ConfigDict

from wind_jax import config as configuration
from wind_jax.data.climatology import fit_climatology
from wind_jax.data.forcings import static_forcings
from wind_jax.data.store import open_store
from wind_jax.prior import load_prior
from wind_jax.sphere import cell_area
from wind_jax.train import train
from wind_jax.training.mesh import put_batch

LATITUDE, LONGITUDE = np.linspace(-78.75, 78.75, 8), np.arange(0, 360, 22.5)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "archive.zarr"
    synthetic.write_archive(path, synthetic.times(1480), LATITUDE, LONGITUDE, levels=(500, 850), time_chunk=370)
    return str(path)


def config(archive, workdir, **changes):
    overrides = {
        "workdir": workdir, "data.path": archive, "data.validation_path": archive, "data.levels": (500, 850),
        "data.variables": ("temperature", "2m_temperature"), "data.grid": (8, 16), "data.frames": 3,
        "model.widths": (32, 32), "model.blocks": ("res", "transformer"), "model.heads": 2, "model.embedding": 16,
        "optimizer.steps": 24, "optimizer.warmup": 2, "optimizer.learning_rate": 1e-2, "batch_size": 8,
        "log_every": 4, "validation.windows": 8, "validation.members": 2, "validation.context": 1,
        "validation.sampler_steps": 2, "loss_surface_weights": {},
    } | changes  # fmt: skip
    c = configuration.read("experiments/speedy.py")
    for key, value in overrides.items():
        *parents, leaf = key.split(".")
        node = c
        for name in parents:
            node = node[name]
        del node[leaf]
        node[leaf] = value
    return c


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
    assert losses[-1] < 0.6 * losses[0]
    last = metrics(finished)[-1]
    assert last["step"] == 24
    assert 0 < last["validation/loss_t0.1"] < last["validation/loss_t0.98"]
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


def test_without_climatology(archive, tmp_path):
    changes = {"data.climatology": False, "optimizer.steps": 3, "log_every": 3}
    train(config(archive, str(tmp_path), **changes))
    prior = load_prior(tmp_path / "prior.npz")
    assert prior.climatology is None
    assert prior.config.forcings == 10
    assert prior.mean(np.zeros((*prior.shape[:-1], 10))) == 0.0


def test_resumed_run_repeats_the_uninterrupted_one(archive, finished, tmp_path, monkeypatch):
    """Killed in step 15, the run goes on from the checkpoint of step 12: same batches, same noise, same losses."""
    workdir, calls = str(tmp_path / "run"), []

    def failing(mesh, batch):
        calls.append(batch)
        if len(calls) == 16:  # one batch of validation comes first
            raise KeyboardInterrupt
        return put_batch(mesh, batch)

    with monkeypatch.context() as patch:
        patch.setattr("wind_jax.train.put_batch", failing)
        with pytest.raises(KeyboardInterrupt):
            train(config(archive, workdir, checkpoint_every=12))
    assert [record["step"] for record in metrics(workdir)] == [4, 8, 12]
    train(config(archive, workdir, checkpoint_every=12))
    whole = {record["step"]: record["loss"] for record in metrics(finished) if "loss" in record}
    again = {record["step"]: record["loss"] for record in metrics(workdir) if "loss" in record}
    assert again.keys() == whole.keys()
    np.testing.assert_allclose(list(again.values()), list(whole.values()), rtol=1e-4)


def test_checkpoint_of_another_architecture_is_refused(archive, finished):
    with pytest.raises(ValueError, match=r"model.depth is 3, the checkpoint has 1"):
        train(config(archive, finished, **{"model.depth": 3}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.path": "/nowhere.zarr"}, "nowhere"),
        ({"data.grid": (16, 32)}, r"has the grid \(8, 16\)"),
        ({"data.levels": (500, 600)}, "600"),
        ({"batch_size": 3}, "batch_size 3 does not divide"),
        ({"mesh.fsdp": 3}, "devices"),
        ({"optimizer.warmup": 24}, "warmup 24"),
        ({"model.widths": (32, 50)}, "50"),
        ({"diffusion.prediction": "noise"}, "noise"),
    ],
)
def test_bad_input_is_named_before_training(archive, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(config(archive, str(tmp_path), **changes))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_dry_run_needs_no_data(tmp_path, capsys):
    train(config("/nowhere.zarr", str(tmp_path / "run")), dry_run=True)
    printed = capsys.readouterr().out
    assert "M parameters" in printed
    assert "per device" in printed
    assert not (tmp_path / "run").exists()


def test_a_specialist_improves_on_interpolation(archive, tmp_path):
    c = config(archive, str(tmp_path))
    c.specialist = ConfigDict({"name": "temporal_downscaling", "mean_over": 3})
    train(c)
    last = metrics(tmp_path)[-1]
    assert last["validation/relative_rmse"] < 0.95
    with pytest.raises(ValueError, match="temporal_downscaling alone"):
        load_prior(tmp_path / "prior.npz").denoiser(np.zeros((3, 8, 16, 13), np.float32))
