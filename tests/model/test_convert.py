"""Names of the published network: all of them arrive, and nothing else is let through."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from wind_jax.model import convert
from wind_jax.model.uvit import UViT, UViTConfig


@pytest.fixture
def published(reference):
    data = np.load(reference("uvit_parity.npz"))
    return {name[6:]: data[name] for name in data.files if name.startswith("param/")}


def test_configuration_is_read_off_the_shapes(published):
    assert convert.infer_config(published, 31, 48) == UViTConfig(
        channels=6,
        latitude=31,
        longitude=48,
        forcings=10,
        patch=2,
        widths=(32, 32, 64, 128),
        blocks=("res", "res", "transformer", "transformer"),
        depth=1,
        heads=2,
        embedding=16,
        geometry="paper",
    )


def test_every_published_number_arrives_once(published):
    config = convert.infer_config(published, 31, 48)
    converted = convert.convert_parameters(published, config)
    expected = nnx.to_pure_dict(nnx.eval_shape(lambda: nnx.state(UViT(config, rngs=nnx.Rngs(0)))))
    assert jax.tree.structure(converted) == jax.tree.structure(expected)
    assert [leaf.shape for leaf in jax.tree.leaves(converted)] == [leaf.shape for leaf in jax.tree.leaves(expected)]
    ours = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(converted)])
    theirs = np.concatenate([np.ravel(array) for array in published.values()])
    np.testing.assert_array_equal(np.sort(ours), np.sort(theirs))


def test_blocks_of_a_level_are_stacked_in_their_order(published):
    config = convert.infer_config(published, 31, 48)
    deeper = {name: array for name, array in published.items() if "_blocks" not in name}
    for name, array in published.items():
        if name.startswith("mid_blocks.0."):
            first, second = name, name.replace("mid_blocks.0", "mid_blocks.1")
        elif match := re.fullmatch(r"(down|up)_blocks\.(\d)\.(\d)\.(.*)", name):
            side, level, index, rest = match.groups()
            place = lambda i: f"{side}_blocks.{level}.{i}.{rest}"  # noqa: B023
            if (side, index) == ("down", "1"):
                deeper[place(2)] = array  # the way down comes after two blocks now
                continue
            if (side, index) == ("up", "0"):
                deeper[name] = array
                continue
            first, second = name, place(int(index) + 1)
        else:
            continue
        deeper[first], deeper[second] = array, 2 * array
    two = convert.infer_config(deeper, 31, 48)
    assert two.depth == 2
    one, both = (
        flatten_dict(convert.convert_parameters(p, c), sep=".") for p, c in ((published, config), (deeper, two))
    )
    stacked = [name for name in one if "_blocks." in name]
    assert len(stacked) == 4 * 10 + 3 * 11
    for name in stacked:
        np.testing.assert_array_equal(both[name], jnp.concatenate([one[name], 2 * one[name]]))


def test_all_faults_are_listed_together(published):
    config = convert.infer_config(published, 31, 48)
    published["mid_blocks.0.mlp.weight"] = published.pop("mid_blocks.0.attn_out.weight")
    published["down_blocks.0.0.out_norm.bias"] = np.zeros((31,), np.float32)
    published["up_blocks.1.0.main.conv.conv.weight"] = np.zeros((128, 64, 3), np.float32)
    with pytest.raises(ValueError, match=r"unknown mid_blocks\.0\.mlp\.weight") as raised:
        convert.convert_parameters(published, config)
    message = str(raised.value)
    assert "missing mid_blocks.0.attn_out.weight" in message
    assert "down_blocks.0.0.out_norm.bias of shape (31,) instead of (32,)" in message
    assert "up_blocks.1.0.main.conv.conv.weight of shape (128, 64, 3) instead of (128, 64, 3, 3)" in message


def test_networks_that_were_never_published_are_refused(published):
    config = UViTConfig(channels=6, latitude=32, longitude=48, frame_kernel=3)
    with pytest.raises(ValueError, match="frame_kernel = 3"):
        convert.convert_parameters(published, config)
    with pytest.raises(ValueError, match=r"missing embed_input\.proj\.weight; missing project_output\.proj\.weight"):
        convert.infer_config({"weight": np.zeros(3)}, 31, 48)


def test_faults_of_a_file_are_listed_together(published):
    """By `infer_config` those that sizes are read off, else by `convert_parameters`, of sizes read off the rest."""
    missing = {"mid_blocks.0.attn_out.weight", "down_blocks.0.0.out_norm.bias", "project_output.proj.bias"}
    faulty = {name: array for name, array in published.items() if name not in missing}
    with pytest.raises(ValueError, match="missing mid_blocks") as raised:
        convert.convert_parameters(faulty, convert.infer_config(faulty, 31, 48))
    assert all(f"missing {name}" in str(raised.value) for name in missing)
    assert "unknown" not in str(raised.value)
    del faulty["learned_noise_cond"]
    faulty["embed_input.proj.weight"] = np.zeros((32, 20))
    with pytest.raises(ValueError, match=r"embed_input\.proj\.weight of 2 axes instead of 4") as raised:
        convert.infer_config(faulty, 31, 48)
    assert "missing learned_noise_cond" in str(raised.value)


def test_prefix_is_found_or_asked_for():
    mark = "embed_input.proj.weight"
    arrays = {f"state_dict.module.{mark}": np.ones(1), "optimizer.step": np.ones(1)}
    assert list(convert.strip_prefix(arrays)) == [mark]
    arrays[f"ema.{mark}"] = np.zeros(1)
    with pytest.raises(ValueError, match="--prefix"):
        convert.strip_prefix(arrays)
    assert convert.strip_prefix(arrays, "ema.") == {mark: np.zeros(1)}


def test_command_writes_parameters_and_configuration(published, tmp_path, monkeypatch):
    checkpoint = {f"model.module.{name}": array for name, array in published.items()}
    monkeypatch.setattr(convert, "read_torch", lambda path: checkpoint)
    convert.main(["weights.pt", str(tmp_path / "out"), "--latitude", "31", "--longitude", "48"])
    config = UViTConfig(**json.loads((tmp_path / "out" / "config.json").read_text()))
    assert config == convert.infer_config(published, 31, 48)
    written = np.load(tmp_path / "out" / "parameters.npz")
    expected = flatten_dict(convert.convert_parameters(published, config), sep=".")
    assert set(written.files) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(written[name], array)


def test_reads_nested_pytorch_files(tmp_path):
    torch = pytest.importorskip("torch")
    weight = torch.arange(6.0).reshape(2, 3).to(torch.bfloat16)
    torch.save({"step": 3, "ema": {"module.weight": weight}}, tmp_path / "weights.pt")
    arrays = convert.read_torch(str(tmp_path / "weights.pt"))
    assert list(arrays) == ["ema.module.weight"]
    np.testing.assert_array_equal(arrays["ema.module.weight"], np.arange(6, dtype=np.float32).reshape(2, 3))
