"""The settling experiment of warming from end to end, with a synthetic archive in SPEEDY's place and no training."""

import json

import numpy as np
import pytest
import synthetic
from flax import nnx

from studies import settle_warming
from wind_jax.channels import channels
from wind_jax.data.normalize import compute_statistics
from wind_jax.data.store import open_store
from wind_jax.evaluation.counterfactual import Record
from wind_jax.model.uvit import UViT, UViTConfig
from wind_jax.prior import Prior, pure_params, save_prior
from wind_jax.tasks.warming import shift

LATITUDE, LONGITUDE, LEVELS = np.linspace(-78.75, 78.75, 8), np.arange(24) * 15.0, (250, 500, 850)
CHANNELS = channels(None, LEVELS)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("warming")
    synthetic.write_archive(folder / "speedy.zarr", synthetic.times(40), LATITUDE, LONGITUDE, levels=LEVELS)
    store = open_store(str(folder / "speedy.zarr"), CHANNELS)
    network = UViTConfig(
        channels=len(CHANNELS), latitude=8, longitude=24, patch=2, widths=(32,), blocks=("transformer",), depth=1,
        heads=2, embedding=32, remat=False,
    )  # fmt: skip
    params = pure_params(nnx.state(UViT(network, rngs=nnx.Rngs(0))))
    prior = Prior(params, network, compute_statistics(store, None), store.grid, 4, "rectified", "x0")
    save_prior(folder / "prior.npz", prior)
    small = {
        "workdir": folder, "prior": folder / "prior.npz", "speedy.chunk_days": 2, "storms.middle_latitudes": 1,
        "storms.tropics": 1, "task.leads": 8, "members": 2, "sampler.steps": 2,
    }  # fmt: skip
    return [f"--config.{key}={value}" for key, value in small.items()]


@pytest.fixture(scope="module")
def found(arguments) -> list[Record]:
    """The numbers, where SPEEDY keeps all of the shift and nothing else changes."""

    class Shifted:
        def __init__(self, settings, kelvin, land):
            self.kelvin = kelvin

    def branch(out, model, archive, states):
        event = synthetic.fields(synthetic.times(40), LATITUDE, LONGITUDE, LEVELS).isel(time=slice(states, states + 8))
        synthetic.write(event, out)
        store = open_store(str(out), CHANNELS)
        warm = shift(store.read(0, 8), CHANNELS, model.kelvin, store.static("geopotential_at_surface"))
        for name in dict.fromkeys(c.name for c in CHANNELS):
            mine = np.moveaxis(warm[..., [i for i, c in enumerate(CHANNELS) if c.name == name]], -1, 1)
            event[name] = event[name].dims, mine if "level" in event[name].dims else mine[:, 0]
        synthetic.write(event, out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settle_warming, "simulate", lambda *_, **__: None)
        patch.setattr(settle_warming, "WarmedSpeedy", Shifted)
        patch.setattr(settle_warming, "branch", branch)
        settle_warming.main(arguments)
        folder = settle_warming.Path(arguments[0].partition("=")[2])
        drawn = {path: path.stat().st_mtime_ns for path in (folder / "members").iterdir()}
        assert len(drawn) == 2 * len(settle_warming.ARMS)
        first = (folder / "results.json").read_text()
        settle_warming.main(arguments)  # goes on: nothing is drawn again
        assert {path: path.stat().st_mtime_ns for path in (folder / "members").iterdir()} == drawn
        assert (folder / "results.json").read_text() == first
        with pytest.raises(ValueError, match="another configuration"):
            settle_warming.main([*arguments, "--config.seed=1"])
    for name in ("tables.md", "signal.png", "change.png"):
        assert (folder / name).stat().st_size > 1000
    return json.loads(first)


def test_storms_lie_in_their_belts_and_in_chunks_of_their_own(found):
    storms = found["storms"]
    assert len({storm["start"] for storm in storms}) == 2
    assert all(storm["start"] % 8 == 0 for storm in storms)
    assert sum(25 <= abs(storm["latitude"]) <= 65 for storm in storms) == 1
    assert sum(abs(storm["latitude"]) <= 20 for storm in storms) == 1


def test_a_truth_that_keeps_the_shift_is_aligned_with_it(found):
    numbers = found["numbers"]
    assert {record["cases"] for record in numbers if record["quantity"] == "signal_kept"} == {2}
    for arm in settle_warming.TRUTHS:
        kept = settle_warming.pick(numbers, arm=arm, quantity="signal_kept")
        np.testing.assert_allclose([record["mean"] for record in kept], np.ones(len(kept)), rtol=1e-3)
        (rain,) = settle_warming.pick(numbers, arm=arm, quantity="precipitation_mean", region="globe", lead_hours=None)
        np.testing.assert_allclose(rain["mean"], 0.0, atol=1e-3)


def test_more_leads_than_a_chunk_has_are_refused_before_anything_is_drawn(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(settle_warming, "simulate", lambda *_, **__: None)
    source = settle_warming.Path(arguments[0].partition("=")[2])
    (tmp_path / "speedy.zarr").symlink_to(source / "speedy.zarr")
    changed = [*arguments, f"--config.workdir={tmp_path}", "--config.task.leads=9"]
    with pytest.raises(ValueError, match="leads 9 take whole windows of 10 new frames"):
        settle_warming.main(changed)
