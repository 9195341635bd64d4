"""Both experiments from files to files: with a prior whose posterior is known, and with a network never trained."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic
import xarray
from flax import nnx

from wind_jax import config, embedded, infer
from wind_jax.data.climatology import Climatology
from wind_jax.data.normalize import compute_statistics
from wind_jax.data.store import open_store
from wind_jax.data.variables import channels
from wind_jax.evaluation import scores
from wind_jax.model.uvit import UViT, UViTConfig
from wind_jax.prior import Prior, load_prior, pure_params, save_prior
from wind_jax.rollout import rollout

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
LATITUDE, LONGITUDE = np.linspace(-78.75, 78.75, 8), np.arange(16) * 22.5
VARIABLES = ["geopotential", "2m_temperature", "total_precipitation_6hr"]
CHANNELS = channels(VARIABLES, [500, 850])
MEMBERS = 3
FRAMES = 3


class WavePrior(Prior):
    """What the synthetic archive is made of: x = waves a + e, with a ~ N(0, 1) and e ~ N(0, 1e-3) of each value.

    E[x | x_t] is linear regression on the waves (h, w, 6 of them), which travel from frame to frame.
    """

    def denoiser(self, forcings):
        waves, residual = self.params["waves"], 1e-3

        def denoise(x_t, t):
            t = jnp.broadcast_to(jnp.asarray(t, x_t.dtype), x_t.shape[:2])
            alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
            noise = sigma**2 + residual * alpha**2
            precision = jnp.einsum("bt,thwk,thwl->bkl", alpha**2 / noise, waves, waves) + jnp.eye(6)[None]
            evidence = jnp.einsum("bt,thwk,bthwc->bkc", alpha / noise, waves, x_t)
            x0_hat = jnp.einsum("thwk,bkc->bthwc", waves, jnp.linalg.solve(precision, evidence))
            gain, alpha = (v[..., None, None, None] for v in (residual * alpha / noise, alpha))
            return x0_hat + gain * (x_t - alpha * x0_hat)

        return denoise


jax.tree_util.register_dataclass(
    WavePrior, ["params"], [f.name for f in dataclasses.fields(Prior) if f.name != "params"]
)


def waves():
    phi, lam = np.deg2rad(LATITUDE)[None, :, None], np.deg2rad(LONGITUDE)[None, None, :]
    hours = 6 * np.arange(FRAMES)[:, None, None]
    columns = [f(k * lam - (0.02 + 0.013 * k) * hours) * np.cos(phi) ** k for k in (1, 2, 3) for f in (np.cos, np.sin)]
    return jnp.asarray(np.stack(columns, axis=-1), jnp.float32)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """Folder with archive, climatology and the file of an untrained prior."""
    folder = tmp_path_factory.mktemp("inputs")
    synthetic.write_archive(folder / "archive.zarr", synthetic.times(30), LATITUDE, LONGITUDE, levels=(500, 850))
    store = open_store(str(folder / "archive.zarr"), CHANNELS)
    mean = np.zeros((7, 8, 16, len(CHANNELS)), np.float32)
    mean[0] = store.read(0, 30).mean(0)
    Climatology(CHANNELS, store.grid, mean).save(folder / "climatology.npz")
    network = UViTConfig(
        channels=len(CHANNELS), latitude=8, longitude=16, patch=2, widths=(32,), blocks=("transformer",), depth=1,
        heads=2, embedding=32, remat=False,
    )  # fmt: skip
    params = pure_params(nnx.state(UViT(network, rngs=nnx.Rngs(0))))
    statistics = compute_statistics(store)
    save_prior(folder / "prior.npz", Prior(params, network, statistics, store.grid, FRAMES, "rectified", "x0"))
    return folder


def load(inputs, experiment, workdir, **overrides):
    """The shipped experiment, made small."""
    small = {
        "prior": inputs / "prior.npz", "data.path": inputs / "archive.zarr",
        "data.climatology": inputs / "climatology.npz", "workdir": workdir, "members": MEMBERS, "member_batch": MEMBERS,
        "cases": 2, "sampler.steps": 8,
    }  # fmt: skip
    small |= {"task.leads": 4, "task.context": 1} if experiment == "forecast" else {"task.fraction": 0.1}
    small |= {key.replace("__", "."): value for key, value in overrides.items()}
    arguments = [f"--config.{key}={value}" for key, value in small.items()]
    return config.load(["--config", str(EXPERIMENTS / f"{experiment}.py"), *arguments])[0]


def run_with_waves(c):
    """Runs an experiment with a `WavePrior` of the file's statistics."""

    def load_waves(path):
        prior = load_prior(path)
        fields = {f.name: getattr(prior, f.name) for f in dataclasses.fields(prior)}
        return WavePrior(**{**fields, "params": {"waves": waves()}})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(infer, "load_prior", load_waves)
        infer.infer(c)


@pytest.fixture(scope="session")
def runs(inputs, tmp_path_factory):
    """Experiment -> its workdir after a run."""
    folder = tmp_path_factory.mktemp("runs")
    for experiment in ("sparse_obs", "forecast"):
        run_with_waves(load(inputs, experiment, folder / experiment))
    return {experiment: folder / experiment for experiment in ("sparse_obs", "forecast")}


def posterior(workdir):
    return xarray.open_zarr(Path(workdir) / "posterior.zarr", chunks=None)


def test_sparse_obs_writes_what_it_promises(runs, inputs):
    workdir = runs["sparse_obs"]
    assert sorted(p.name for p in workdir.iterdir()) == [
        "config.json", "figures", "observations.zarr", "posterior.zarr", "scores.json", "truth.zarr"]  # fmt: skip
    assert sorted(p.name for p in (workdir / "figures").iterdir()) == ["reconstruction.png", "scores.png"]
    assert json.loads((workdir / "config.json").read_text())["task"]["fraction"] == 0.1
    data = posterior(workdir)
    assert dict(data.sizes) == {
        "time": 2, "number": 3, "prediction_timedelta": 3, "level": 2, "latitude": 8, "longitude": 16}  # fmt: skip
    assert not any(bool(np.isnan(x).any()) for x in data.values())
    archive = xarray.open_zarr(inputs / "archive.zarr", chunks=None)
    truth = xarray.open_zarr(workdir / "truth.zarr", chunks=None)
    observed = xarray.open_zarr(workdir / "observations.zarr", chunks=None)
    for name in VARIABLES:
        expected = archive[name].sel(time=(truth["time"] + truth["prediction_timedelta"]).values.ravel())
        np.testing.assert_array_equal(truth[name].values.reshape(expected.shape), expected)
        assert float(np.isfinite(observed[name]).mean()) == pytest.approx(13 / 128)
    error = (observed["2m_temperature"] - truth["2m_temperature"]).std()
    deviation = load_prior(inputs / "prior.npz").statistics.std[CHANNELS.index(channels(["2m_temperature"])[0])]
    assert 0.03 < float(error) / deviation < 0.07


def test_sparse_obs_scores_unobserved_cells(runs):
    """The error of climatology, recomputed by xarray over the cells without observation."""
    workdir = runs["sparse_obs"]
    found = json.loads((workdir / "scores.json").read_text())
    assert {r["method"] for r in found} == {"posterior", "interpolation", "climatology"}
    assert {r["metric"] for r in found} == {"rmse", "crps", "spread_skill_ratio"}
    assert {(r["variable"], r["level"]) for r in found} == {(c.name, c.level) for c in CHANNELS}
    assert all(np.isfinite(r["value"]) and r["lead_hours"] is None for r in found)
    truth = xarray.open_zarr(workdir / "truth.zarr", chunks=None)["2m_temperature"]
    hidden = xarray.open_zarr(workdir / "observations.zarr", chunks=None)["2m_temperature"].isnull()
    edges = np.sin(np.deg2rad(np.concatenate([[-90], (LATITUDE[1:] + LATITUDE[:-1]) / 2, [90]])))
    weights = xarray.DataArray(np.diff(edges), dims="latitude")
    mean = posterior(workdir)["2m_temperature"].mean("number")
    error = ((mean - truth) ** 2).where(hidden).weighted(weights).mean(("latitude", "longitude")).mean()
    value = next(
        r["value"] for r in found
        if (r["variable"], r["method"], r["metric"]) == ("2m_temperature", "posterior", "rmse")
    )  # fmt: skip
    assert value == pytest.approx(float(np.sqrt(error)), rel=1e-4)


def test_forecast_writes_what_it_promises(runs, inputs):
    workdir = runs["forecast"]
    assert sorted(p.name for p in workdir.iterdir()) == [
        "config.json", "figures", "posterior.zarr", "scores.json", "truth.zarr"]  # fmt: skip
    assert sorted(p.name for p in (workdir / "figures").iterdir()) == ["errors.png", "forecast.png"]
    data = posterior(workdir)
    assert (data["prediction_timedelta"] / np.timedelta64(1, "h")).values.tolist() == [6, 12, 18, 24]
    assert not any(bool(np.isnan(x).any()) for x in data.values())
    archive = xarray.open_zarr(inputs / "archive.zarr", chunks=None)
    truth = xarray.open_zarr(workdir / "truth.zarr", chunks=None)
    expected = archive["geopotential"].sel(time=truth["time"].values[1] + truth["prediction_timedelta"].values)
    np.testing.assert_array_equal(truth["geopotential"][1], expected)


def test_forecast_scores_persistence_by_lead(runs, inputs):
    found = json.loads((runs["forecast"] / "scores.json").read_text())
    assert {r["method"] for r in found} == {"posterior", "persistence", "climatology"}
    assert {r["lead_hours"] for r in found} == {6, 12, 18, 24}
    assert {r["metric"] for r in found} == {"rmse", "crps", "spread_skill_ratio", "acc"}
    truth = xarray.open_zarr(runs["forecast"] / "truth.zarr", chunks=None)["2m_temperature"]
    start = xarray.open_zarr(inputs / "archive.zarr", chunks=None)["2m_temperature"].sel(time=truth["time"])
    edges = np.sin(np.deg2rad(np.concatenate([[-90], (LATITUDE[1:] + LATITUDE[:-1]) / 2, [90]])))
    weights = xarray.DataArray(np.diff(edges), dims="latitude")
    error = ((truth - start) ** 2).weighted(weights).mean(("latitude", "longitude", "time"))
    values = [
        r["value"]
        for r in found
        if (r["variable"], r["method"], r["metric"]) == ("2m_temperature", "persistence", "rmse")
    ]
    np.testing.assert_allclose(values, np.sqrt(error), rtol=1e-4)


def rmse(workdir, method, lead_hours=None):
    found = json.loads((workdir / "scores.json").read_text())
    return scores.select(found, method=method, metric="rmse", lead_hours=lead_hours)


def test_the_right_prior_beats_what_a_user_would_try_first(runs):
    """Precipitation apart, whose waves are not those of its logarithm."""
    for experiment, lead, others in (
        ("sparse_obs", None, ("interpolation", "climatology")),
        ("forecast", 24, ("persistence", "climatology")),
    ):
        ours = rmse(runs[experiment], "posterior", lead)
        for key in ours.keys() - {("total_precipitation_6hr", None)}:
            for other in others:
                assert ours[key] < 0.5 * rmse(runs[experiment], other, lead)[key], (experiment, key, other)


@pytest.mark.parametrize("experiment", ["sparse_obs", "forecast"])
def test_same_seed_same_ensemble_whatever_the_batch(runs, inputs, tmp_path, experiment):
    overrides = {"member_batch": 2, "cases": 1, "figures": False}
    run_with_waves(load(inputs, experiment, tmp_path / "batch", **overrides))
    run_with_waves(load(inputs, experiment, tmp_path / "seed", seed=1, **overrides))
    whole = posterior(runs[experiment]).isel(time=[0])
    xarray.testing.assert_allclose(posterior(tmp_path / "batch"), whole, rtol=1e-4)
    other = posterior(tmp_path / "seed")["2m_temperature"]
    assert float(abs(other - whole["2m_temperature"]).max()) > 1e-3


def test_a_network_from_its_file(inputs, tmp_path):
    """An untrained U-ViT through the same path: its ensemble is drawn to the observations."""
    infer.infer(load(inputs, "sparse_obs", tmp_path / "run", cases=1, sampler__steps=2, figures=False))
    data = posterior(tmp_path / "run")["2m_temperature"]
    observed = xarray.open_zarr(tmp_path / "run" / "observations.zarr", chunks=None)["2m_temperature"]
    assert not bool(np.isnan(data).any())
    assert float(abs(data.mean("number") - observed).mean()) < float(observed.std())


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"prior": "nowhere.npz"}, "nowhere.npz"),
        ({"data__path": "nowhere.zarr"}, "nowhere.zarr"),
        ({"data__climatology": "nowhere.npz"}, "nowhere.npz"),
        ({"data__climatology": "prior"}, "carries no climatology"),
        ({"task__name": "nowcast"}, "'nowcast'.*sparse_obs"),
        ({"task__fraction": 1.5}, "1.5"),
        ({"task__error": -1}, "-1"),
        ({"task__variables": "('ozone',)"}, "ozone"),
        ({"cases": 100}, "100"),
        ({"members": 1}, "got 1"),
        ({"sampler__name": "rk4"}, "rk4"),
        ({"guidance__method": "magic"}, "magic"),
        ({"guidance__variance": "exact"}, "exact"),
        ({"data__period": "('2001', '2001')"}, "2001"),
    ],
)
def test_bad_input_is_named_before_anything_is_drawn(inputs, tmp_path, monkeypatch, overrides, named):
    monkeypatch.setattr(infer, "rollout", lambda *_: pytest.fail("sampling began"))
    with pytest.raises(ValueError, match=named):
        infer.infer(load(inputs, "sparse_obs", tmp_path / "run", **overrides))
    assert not (tmp_path / "run").exists()


def test_archive_that_does_not_fit(inputs, tmp_path):
    dataset = synthetic.fields(synthetic.times(12), LATITUDE, LONGITUDE, levels=(500, 850))
    synthetic.write(dataset.drop_vars("2m_temperature"), tmp_path / "lacks.zarr")
    with pytest.raises(ValueError, match="2m_temperature"):
        infer.infer(load(inputs, "forecast", tmp_path / "run", data__path=tmp_path / "lacks.zarr"))
    synthetic.write(dataset.isel(longitude=slice(None, None, 2)), tmp_path / "coarse.zarr")
    with pytest.raises(ValueError, match=r"\(8, 8\)"):
        infer.infer(load(inputs, "forecast", tmp_path / "run", data__path=tmp_path / "coarse.zarr"))
    with pytest.raises(ValueError, match="not writable"):
        infer.infer(load(inputs, "forecast", inputs / "prior.npz" / "run"))


def test_a_diverged_chain_is_an_error_and_leaves_nothing(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(infer, "rollout", lambda *_: iter([np.full((MEMBERS, 3, 8, 16, len(CHANNELS)), np.nan)]))
    with pytest.raises(ValueError, match="diverged in case 0"):
        infer.infer(load(inputs, "sparse_obs", tmp_path / "run"))
    assert not list((tmp_path / "run").iterdir())


def test_batches_are_equal_and_cover_the_members():
    for members in range(2, 9):
        for at_once in range(1, 10):
            batches = infer.member_batches(members, at_once)
            assert len({len(batch) for batch in batches}) == 1
            assert len(batches[0]) <= at_once
            np.testing.assert_array_equal(np.concatenate(batches)[:members], np.arange(members))
            assert len(np.concatenate(batches)[members:]) < len(batches[0])


def test_members_at_once_fall_with_the_size_of_the_prior(inputs):
    prior = load_prior(inputs / "prior.npz")
    assert infer.members_at_once(prior) > 100


def test_packaged_files_are_named_when_missing():
    assert embedded.resolve("own.npz", "prior.npz") == "own.npz"
    with pytest.raises(ValueError, match=r"'nothing\.npz'"):
        embedded.resolve("embedded", "nothing.npz")


def test_a_run_that_is_stopped_goes_on_where_it_was(runs, inputs, tmp_path, monkeypatch):
    """Killed in the second case between two windows: the same ensemble, and nothing is drawn twice."""
    c = load(inputs, "forecast", tmp_path / "run")
    drawn = []

    def stopping(*args):
        for frames in rollout(*args):
            if len(drawn) == 3:
                raise KeyboardInterrupt
            drawn.append(1)
            yield frames

    with monkeypatch.context() as patch:
        patch.setattr(infer, "rollout", stopping)
        with pytest.raises(KeyboardInterrupt):
            run_with_waves(c)
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".partial"]

    def counting(*args):
        for frames in rollout(*args):
            drawn.append(1)
            yield frames

    with monkeypatch.context() as patch:
        patch.setattr(infer, "rollout", counting)
        run_with_waves(c)
    assert len(drawn) == 4
    xarray.testing.assert_identical(posterior(tmp_path / "run"), posterior(runs["forecast"]))
    assert not (tmp_path / "run" / ".partial").exists()


def test_a_stopped_run_of_other_settings_is_not_gone_on_with(runs, inputs, tmp_path, monkeypatch):
    def failing(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(infer, "score", failing)
        with pytest.raises(KeyboardInterrupt):
            run_with_waves(load(inputs, "forecast", tmp_path / "run", seed=1, cases=1))
    assert (tmp_path / "run" / ".partial" / "posterior.zarr").exists()  # all is drawn, and kept
    run_with_waves(load(inputs, "forecast", tmp_path / "run", cases=1, figures=False))
    whole = posterior(runs["forecast"]).isel(time=[0])
    xarray.testing.assert_allclose(posterior(tmp_path / "run"), whole, rtol=1e-5)
