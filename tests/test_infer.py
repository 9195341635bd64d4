"""Both experiments from files to files: with a prior whose posterior is known, and with a network never trained."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic
import xarray
from flax import nnx
from ml_collections import ConfigDict

from wind_jax import config, embedded, infer
from wind_jax.channels import channels
from wind_jax.data.climatology import Climatology
from wind_jax.data.normalize import compute_statistics
from wind_jax.data.store import open_store
from wind_jax.evaluation import scores
from wind_jax.model.uvit import UViT, UViTConfig
from wind_jax.observations.observation import Observation
from wind_jax.prior import Prior, load_prior, pure_params, save_prior
from wind_jax.problems import diagnosis
from wind_jax.problems.problem import Setting, fingerprint
from wind_jax.problems.registry import make_problem
from wind_jax.rollout import rollout

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
        "data.covariance": "", "cases": 2, "sampler.steps": 8, "sampler.end": 0.0, "mesh.data": 1,
    }  # fmt: skip
    if experiment == "forecast":
        small |= {"task.leads": 4, "task.context": 1}
    else:
        small |= {"task.fraction": 0.1}
    small |= {key.replace("__", "."): value for key, value in overrides.items()}
    arguments = [f"--config.{key}={value}" for key, value in small.items()]
    return config.load(["--config", experiment, *arguments], "inference")[0]


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
        "config.json", "figures", "observations.zarr", "posterior.zarr", "report.html", "report.json", "run.json",
        "scores.json", "static.zarr", "truth.zarr"]  # fmt: skip
    assert sorted(p.name for p in (workdir / "figures").iterdir()) == [
        "point.png", "ranks.png", "reconstruction.png", "scores.png", "spectra.png"]  # fmt: skip
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


def test_report_tells_how_real_truth_and_members_are(runs):
    told = json.loads((runs["sparse_obs"] / "report.json").read_text())["realism"]
    assert told == [{"of": of, "negative_total_precipitation_6hr (1)": 0.0} for of in ("truth", "members")]


def test_sparse_obs_scores_unobserved_cells(runs):
    """The error of climatology, recomputed by xarray over the cells without observation."""
    workdir = runs["sparse_obs"]
    found = json.loads((workdir / "scores.json").read_text())
    assert {r["method"] for r in found} == {"posterior", "interpolation", "climatology"}
    assert {r["metric"] for r in found} == {"rmse", "debiased_rmse", "crps", "spread_skill_ratio"}
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
        "config.json", "figures", "posterior.zarr", "report.html", "report.json", "run.json", "scores.json",
        "static.zarr", "truth.zarr"]  # fmt: skip
    assert sorted(p.name for p in (workdir / "figures").iterdir()) == [
        "errors.png", "forecast.png", "point.png", "ranks.png", "spectra.png"]  # fmt: skip
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
    assert {r["metric"] for r in found} == {"rmse", "debiased_rmse", "crps", "spread_skill_ratio", "acc"}
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


@pytest.mark.parametrize("experiment", ["sparse_obs", "forecast"])
def test_same_seed_same_ensemble_whatever_the_mesh(runs, inputs, tmp_path, capsys, experiment):
    mesh = {"mesh__data": -1, "mesh__space": 2}
    run_with_waves(load(inputs, experiment, tmp_path / "mesh", cases=1, figures=False, **mesh))
    assert f"{MEMBERS} at a time, on 6 x cpu" in capsys.readouterr().out
    xarray.testing.assert_allclose(posterior(tmp_path / "mesh"), posterior(runs[experiment]).isel(time=[0]), rtol=1e-4)


def test_a_network_from_its_file(inputs, tmp_path):
    """An untrained U-ViT through the same path: its ensemble is drawn to the observations."""
    few = {"sampler__name": "ddim", "sampler__spacing": "linear", "sampler__start": 0.9, "sampler__steps": 2}
    infer.infer(load(inputs, "sparse_obs", tmp_path / "run", cases=1, figures=False, **few))
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
        ({"task__variables": "('ozone',)"}, "ozone"),
        ({"cases": 100}, "100"),
        ({"mesh__data": 9}, "needs 9 devices; there are 8"),
        ({"mesh__space": 3}, "16 longitudes do not divide over space = 3"),
        ({"mesh__fsdp": 2, "guidance__method": "tds"}, "the number of members at once, 3 does not divide over .* = 2"),
        ({"sampler__end": 0.985}, "got 0.985 by 8"),
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
    assert not (tmp_path / "run").exists()


def test_a_diverged_chain_keeps_and_names_what_is_finished(inputs, tmp_path, monkeypatch):
    """The second case diverges; the first one's members can be read where the message says."""

    def failing(*args):
        frames = np.zeros((MEMBERS, 3, 8, 16, len(CHANNELS)), np.float32)
        return iter([frames if failing.calls.pop() else np.nan * frames])

    failing.calls = [False, True]
    monkeypatch.setattr(infer, "rollout", failing)
    with pytest.raises(ValueError, match=r"in case 1.*errors from the start.*finished is kept in .*\.partial") as error:
        infer.infer(load(inputs, "sparse_obs", tmp_path / "run"))
    assert "most of all" in str(error.value)
    kept = posterior(tmp_path / "run" / ".partial")["2m_temperature"]
    assert np.isfinite(kept[0]).all()
    assert np.isnan(kept[1]).all()


def test_the_observation_that_is_furthest_off_is_named():
    """Residuals of 1 of 0.1 and of 30 of 1, in units of their errors; and of what is not finite, that."""
    x = jnp.zeros((1, 2, 2, 1))
    y = {"near": np.ones(3, np.float32), "far": np.full(3, 30.0, np.float32)}
    operator = lambda x: {"near": x.sum() * jnp.ones(3), "far": x.sum() * jnp.ones(3)}
    told = Observation(operator, y, {"near": 0.01, "far": 1.0})
    assert "observation ['far'] most of all, which is 30 errors" in diagnosis.furthest(told, x)
    bad = told._replace(operator=lambda x: operator(x) | {"near": jnp.log(x.sum()) * jnp.ones(3)})
    assert "['near'] most of all, which is inf" in diagnosis.furthest(bad, x)
    assert diagnosis.furthest(told._replace(variance="adaptive"), x) == "the observations ['far'], ['near']"


def test_tds_reports_its_effective_sample_size(inputs, tmp_path, capsys):
    c = load(inputs, "sparse_obs", tmp_path / "run", guidance__method="tds", figures=False, mesh__data=3)
    run_with_waves(c)  # they compete across devices
    records = json.loads((tmp_path / "run" / "report.json").read_text())["tds"]
    assert [record["case"] for record in records] == [0, 1]
    for record in records:
        assert len(record["effective_sample_size"]) == 9
        assert all(1 <= round(size, 4) <= MEMBERS for size in record["effective_sample_size"])
        assert 1 <= record["distinct_ancestors"] <= MEMBERS
    last = min(record["effective_sample_size"][-1] for record in records)
    assert f"TDS: effective sample size {last:.1f} of {MEMBERS} members" in capsys.readouterr().out


def test_few_effective_members_are_warned_of():
    said = lambda last: diagnosis.weights_lines([{"effective_sample_size": [8.0, 3.0, last]}], 16)
    assert said(6.0) == ["TDS: effective sample size 6.0 of 16 members at the end, 3.0 at the least"]
    assert "Warning: the ensemble is copies of a few members" in said(2.0)[1]


def custom(inputs, workdir, operator, error=0.1):
    c = load(inputs, "sparse_obs", workdir)
    with c.unlocked():
        c.task = ConfigDict({"name": "custom", "operator": operator, "error": error})
    return c


@pytest.mark.parametrize(
    ("operator", "error", "named"),
    [
        (lambda x: {"mean": jnp.asarray(np.asarray(x).mean())}, 0.1, "cannot be differentiated"),
        (lambda x: {"mean": x.mean() * jnp.nan}, 0.1, r"y\['mean'\] has values that are not finite"),
        (lambda x: {"mean": jnp.log(x[..., 0].std(0)).mean()}, 0.1, r"result\['mean'\] is not finite"),
        (lambda x: {"mean": jax.lax.stop_gradient(x).mean()}, 0.1, "does not depend on the state"),
        (lambda x: {"mean": x.mean((1, 2))}, {"mean": np.ones(5)}, r"shape \(5,\): expected one that broadcasts to"),
        (lambda x: {"mean": x.mean()}, {"man": 0.1}, "no part of y's"),
        (lambda x: {"mean": x.mean()}, 0.0, "positive and finite, got 0.0"),
        (lambda x: {"mean": x.mean()}, -0.1, "positive and finite, got -0.1"),
    ],
)
def test_bad_operators_are_named_before_anything_is_drawn(inputs, tmp_path, monkeypatch, operator, error, named):
    monkeypatch.setattr(infer, "rollout", lambda *_: pytest.fail("sampling began"))
    with pytest.raises(ValueError, match=named):
        infer.infer(custom(inputs, tmp_path / "run", lambda channels, grid: operator, error))


@pytest.mark.parametrize(
    ("conserve", "named"),
    [
        ({"dry_air_mass": 0.0}, "must be positive, got {'dry_air_mass': 0.0}"),
        ({"dry_air_mass": -1e-6}, "must be positive, got {'dry_air_mass': -1e-06}"),
        ({"dry_air_mass": 1e-6}, "dry_air_mass needs specific_humidity"),
        ({"momentum": 1e-6}, "Unknown quantity 'momentum'"),
    ],
)
def test_bad_conservation_is_named(inputs, tmp_path, conserve, named):
    c = load(inputs, "forecast", tmp_path / "run")
    with c.unlocked():
        c.task.conserve = ConfigDict(conserve)
    with pytest.raises(ValueError, match=named):
        infer.infer(c)


def test_another_content_of_what_the_config_names_is_another_run(inputs, tmp_path):
    """Prior, fields of the archive, table, and the file that an operator comes from: each changes its own digest."""
    prior, table, source = load_prior(inputs / "prior.npz"), tmp_path / "reports.csv", tmp_path / "own.py"
    store = open_store(str(inputs / "archive.zarr"), CHANNELS)
    static = np.zeros((8, 16, 6), np.float32)
    setting = Setting(prior, store, static, None, 2, (), jax.random.key(0), "nominal")
    problem = make_problem(setting, "forecast", context=1, leads=2)
    table.write_text("a")
    source.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n    return ConfigDict({'operator': lambda channels, grid: lambda x: x.mean()})\n"
    )
    task = {"path": str(table), "operator": config.read(str(source)).operator}
    mark = partial(fingerprint, task)
    whole = mark(prior, problem, static)
    assert mark(load_prior(inputs / "prior.npz"), problem, static.copy()) == whole
    changed = lambda new: {name for name in whole if new[name] != whole[name]}
    bias = jax.tree.map(lambda leaf: leaf + 1e-3, prior.params)
    assert changed(mark(dataclasses.replace(prior, params=bias), problem, static)) == {"prior"}
    assert changed(mark(prior, problem, static + 1)) == {"archive"}
    warmer = problem._replace(states=lambda *where: problem.states(*where) + 1)
    assert changed(mark(prior, warmer, static)) == {"archive"}
    table.write_text("b")
    assert changed(mark(prior, problem, static)) == {"table"}
    table.write_text("a")
    source.write_text(source.read_text().replace("mean", "sum"))
    assert changed(mark(prior, problem, static)) == {"operator"}
    task["operator"] = partial(max, 1)  # no one knows what is in it
    assert mark(prior, problem, static)["operator"] != mark(prior, problem, static)["operator"]


def test_stations_without_a_truth(inputs, tmp_path):
    """A table of a day that the archive does not have: an analysis and its report, but no truth, scores or figures."""
    rows = [f"s{i},2018-11-02T0{6 * (i % 2)}:00,{5 * i},{20 * i},0,2m_temperature,285" for i in range(6)]
    table = tmp_path / "reports.csv"
    table.write_text("\n".join(["station,time,latitude,longitude,elevation,variable,value", *rows]))
    c = load(inputs, "sparse_obs", tmp_path / "run", cases=1, data__period="('2018-11-02', '2018-11-02T12')")
    with c.unlocked():
        c.task = config.read("stations", "inference").task
        c.task.update({"path": str(table), "variables": ("2m_temperature",), "truth": "none", "threshold": 0.0})
    run_with_waves(c)
    workdir = tmp_path / "run"
    assert sorted(p.name for p in workdir.iterdir()) == [
        "config.json", "observations.zarr", "posterior.zarr", "report.json", "run.json", "scores.json"]  # fmt: skip
    assert json.loads((workdir / "scores.json").read_text()) == []
    record = json.loads((workdir / "report.json").read_text())["stations"][0]
    assert record["assimilated"] + record["withheld"]["2m_temperature"]["reports"] == 6
    data = posterior(workdir)
    assert data["time"].values[0] == np.datetime64("2018-11-02")
    assert not bool(np.isnan(data["2m_temperature"]).any())


def test_packaged_files_are_named_when_missing():
    assert embedded.resolve("own.npz", "prior.npz") == "own.npz"
    with pytest.raises(ValueError, match=r"'nothing\.npz'"):
        embedded.resolve("embedded", "nothing.npz")


@pytest.mark.parametrize(("then", "draws"), [({}, 4), ({"member_batch": 2, "mesh__data": -1}, 6)])
def test_a_run_that_is_stopped_goes_on_where_it_was(runs, inputs, tmp_path, monkeypatch, then, draws):
    """Killed in the second case between two windows, then at its figures: the same ensemble, nothing drawn twice. Other
    batches begin anew only where they reach beyond what was drawn: with the last member's two windows here."""
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
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [".partial", "run.json"]

    c = load(inputs, "forecast", tmp_path / "run", **then)

    def stopped(*_):
        raise KeyboardInterrupt

    def counting(*args):
        for frames in rollout(*args):
            drawn.append(1)
            yield frames

    with monkeypatch.context() as patch:
        patch.setattr(infer, "rollout", counting)
        patch.setattr(infer.figures, "draw", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_with_waves(c)
    run_with_waves(c)
    assert len(drawn) == draws
    assert (tmp_path / "run" / "report.html").exists()
    same = partial(xarray.testing.assert_allclose, rtol=1e-4) if then else xarray.testing.assert_identical
    same(posterior(tmp_path / "run"), posterior(runs["forecast"]))
    assert not (tmp_path / "run" / ".partial").exists()


def test_a_stopped_run_of_other_settings_is_not_gone_on_with_but_kept(runs, inputs, tmp_path, monkeypatch, capsys):
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
    assert "unfinished-1" in capsys.readouterr().out.replace("\n", "")
    other = posterior(tmp_path / "run" / "unfinished-1")["2m_temperature"]
    assert float(abs(other - whole["2m_temperature"]).max()) > 1e-3
