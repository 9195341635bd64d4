"""The settling experiment's arithmetic: fractions of interpolation's errors and their intervals over cases."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import synthetic
from flax import nnx

from studies import settle, solver
from wind_jax.channels import channels
from wind_jax.data.climatology import Climatology
from wind_jax.data.normalize import compute_statistics
from wind_jax.data.store import open_store
from wind_jax.model.uvit import UViT, UViTConfig
from wind_jax.prior import Prior, pure_params, save_prior
from wind_jax.sphere import Grid, area_weights

GRID = Grid(np.linspace(-75, 75, 6), np.arange(24) * 15.0)
CASES, CHANNELS = 12, 2


@pytest.fixture(scope="module")
def found():
    """The posterior's three members err by half of what interpolation does, the specialist by a fifth of it."""
    rng, weights = np.random.default_rng(0), area_weights(GRID)
    cases = []
    for _ in range(CASES):
        truth = rng.normal(size=(2, *GRID.shape, CHANNELS))
        error = rng.normal(size=truth.shape)
        about = np.array([-1.0, 0.0, 1.0])[:, None, None, None, None]
        solved = {
            "posterior": truth[None] + 0.5 * error[None] + 0.25 * about,
            "specialist": (truth + 0.2 * error)[None],
            "anomalies": (truth + error)[None],
            "interpolation": (truth + error)[None],
            "climatology": np.zeros((1, *truth.shape)),
        }
        case = {method: settle.moments(x, x, truth, weights) for method, x in solved.items()}
        cases.append(case | {"truth": {"power": settle.power(truth[None], weights).tolist()}})
    config = {"members": 3}
    return {"settings": {"config": config}, "channels": [["geopotential", 500], ["temperature", 850]], "cases": cases}


def test_fractions_of_interpolations_errors(found):
    every = np.arange(CASES)
    for method, fraction in {"specialist": 0.2, "anomalies": 1.0}.items():
        for channel in (None, 0, 1):
            assert settle.relative(found, method, "mse", channel, every) == pytest.approx(fraction, rel=1e-5)
    mse = lambda method: np.mean([case[method]["mse"][0] for case in found["cases"]])
    debiased = np.sqrt((mse("posterior") - 0.25**2 / 3) / mse("interpolation"))
    assert settle.relative(found, "posterior", "mse", 0, every) == pytest.approx(debiased, rel=1e-5)
    assert settle.relative(found, "specialist", "crps", 1, every) == pytest.approx(0.2, rel=1e-5)
    assert np.sqrt(found["cases"][0]["posterior"]["variance"]) == pytest.approx(0.25, rel=1e-5)


def test_an_interval_is_of_cases_drawn_again():
    """Of a mean: 1.96 standard errors on both sides, about."""
    x = np.random.default_rng(1).normal(size=400)
    mean, low, high = settle.interval(lambda chosen: float(x[chosen].mean()), x.size)
    assert mean == x.mean()
    assert (high - low) / 2 == pytest.approx(1.96 * x.std() / 20, rel=0.1)


def test_table_and_figure_have_every_method(found):
    heading, _, *rows = settle.table(found, "crps").splitlines()
    assert heading == "| field | posterior | specialist | anomalies | climatology |"
    assert [row.split(" | ")[0] for row in rows] == [
        "| mean of all fields", "| Geopotential height 500 hPa", "| Temperature 850 hPa"]  # fmt: skip
    assert rows[1].split(" | ")[2] == "**0.20** (0.20 to 0.20)"
    assert len(settle.spread_and_power(found).splitlines()) == 5
    axes = settle.figure({"spatial_downscaling": found}).axes
    assert [line.get_label() for line in axes[0].get_lines()[:4]] == list(settle.METHODS)


def test_unlike_networks_are_not_compared():
    def network(samples, config="a", mean=0.0):
        statistics = SimpleNamespace(channels=(SimpleNamespace(key="t"),), mean=np.full(1, mean), std=np.full(1, 2.0))
        return SimpleNamespace(config=config, statistics=statistics, provenance=json.dumps({"samples": samples}))

    settle.check_alike(network(8), network(8), "x")
    with pytest.raises(ValueError, match="trained on 8 windows, the specialist of x on 4"):
        settle.check_alike(network(8), network(4), "x")
    with pytest.raises(ValueError, match="another architecture"):
        settle.check_alike(network(8), network(8, "b"), "x")
    settle.check_alike(network(8), network(8, mean=0.03), "x")
    with pytest.raises(ValueError, match=r"other data: the means of t are 0\.03 standard deviations apart"):
        settle.check_alike(network(8), network(8, mean=0.06), "x")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """An archive, and one untrained network as prior and as specialist."""
    folder, levels = tmp_path_factory.mktemp("settle"), (500, 850)
    latitude, longitude = np.linspace(-78.75, 78.75, 8), np.arange(24) * 15.0
    synthetic.write_archive(folder / "archive.zarr", synthetic.times(60), latitude, longitude, levels=levels)
    dry = ("geopotential", "temperature", "2m_temperature")  # no network's rain: 10^x of what has not learnt anything
    store = open_store(str(folder / "archive.zarr"), channels(dry, levels))
    network = UViTConfig(
        channels=len(store.channels), latitude=8, longitude=24, patch=2, widths=(32,), blocks=("transformer",), depth=1,
        heads=2, embedding=32, forcings=10 + len(store.channels), remat=False,
    )  # fmt: skip
    mean = np.zeros((7, *store.grid.shape, len(store.channels)), np.float32)
    mean[0] = store.read(0, 60).mean(0)
    climatology = Climatology(store.channels, store.grid, mean)
    params = pure_params(nnx.state(UViT(network, rngs=nnx.Rngs(0))))
    statistics = compute_statistics(store, None, climatology.at)
    prior = Prior(params, network, statistics, store.grid, 5, "rectified", "x0", climatology, '{"samples": 4}')
    save_prior(folder / "prior.npz", prior)
    marks = [f"<!-- {which}settle {name} -->\n" for name in settle.TASKS for which in ("", "end of ")]
    (folder / "skill.md").write_text("".join(marks))
    small = {
        "workdir": folder, "prior": folder / "prior.npz", "path": folder / "archive.zarr", "docs": folder / "skill.md",
        "cases": 3, "members": 2, "tasks": ("temporal_downscaling",),
    }  # fmt: skip
    small |= {f"specialists.{name}": folder / "prior.npz" for name in settle.TASKS}
    return [f"--config.{key}={value}" for key, value in small.items()]


@pytest.mark.slow
def test_from_archive_to_page(arguments, monkeypatch):
    """An untrained specialist, whose network gives 0, is interpolation, and is dressed as that is."""
    folder = Path(arguments[0].partition("=")[2])
    c = settle.TASKS["temporal_downscaling"].get_config()
    c.sampler.steps = 2
    monkeypatch.setitem(settle.TASKS, "temporal_downscaling", SimpleNamespace(get_config=lambda: c))
    settle.main(arguments)
    page, found = (folder / "skill.md").read_text(), json.loads((folder / "temporal_downscaling.json").read_text())
    assert f"3 cases, 2 members, from `{folder}/temporal_downscaling.json`" in page
    assert len(found["cases"]) == 3
    for case in found["cases"]:
        for field in ("mse", "crps", "variance"):
            np.testing.assert_allclose(case["specialist"][field], case["interpolation"][field], rtol=1e-2)
        assert min(case["interpolation"]["variance"]) > 0
    with pytest.raises(ValueError, match="no '<!-- settle temporal_downscaling -->'"):
        settle.main([*arguments, f"--config.docs={__file__}"])
    with pytest.raises(ValueError, match="begin 0 frames from one, and share frames with it"):
        settle.main([*arguments, "--config.cases=30"])
    found["cases"][0]["posterior"]["crps"] = found["cases"][1]["posterior"]["crps"]
    (folder / "temporal_downscaling.json").write_text(json.dumps(found))
    settle.main(arguments)  # nothing is done again
    assert json.loads((folder / "temporal_downscaling.json").read_text()) == found
    c.sampler.steps = 3
    settle.main(arguments)  # of another task all of it is
    assert json.loads((folder / "temporal_downscaling.json").read_text())["cases"][1:] != found["cases"][1:]


@pytest.mark.slow
def test_the_study_of_solvers_compares_each_with_the_prior(arguments, tmp_path):
    """An untrained network gives the climatology at every t; its Jacobian, of nothing learnt, takes it no nearer."""
    chosen = dict(argument.removeprefix("--config.").split("=", 1) for argument in arguments)
    (tmp_path / "page.md").write_text("<!-- solvers -->\n<!-- end of solvers -->\n")
    small = {"prior": chosen["prior"], "path": chosen["path"], "docs": tmp_path / "page.md", "cases": 1}
    small |= {"times": (0.5, 0.1), "iterations": (1,)}
    solver.main([f"--config.{key}={value}" for key, value in small.items()])
    heading, _, *rows = (tmp_path / "page.md").read_text().splitlines()[1:5]
    assert heading == "| t | E[x given x_t] | CG, 1 | GMRES, 1 |"
    (noisy, *found), (clear, *again) = ([float(cell) for cell in row.strip("| ").split(" | ")] for row in rows)
    assert (noisy, clear) == (0.5, 0.1)
    assert found[0] == again[0]
    assert min(found + again) == found[0] > 1
