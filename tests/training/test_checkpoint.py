"""Checkpoints: what goes in comes out, on any mesh; those of another config and unwritable places are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wind_jax.training.checkpoint import Checkpointer
from wind_jax.training.mesh import make_mesh, parameter_sharding
from wind_jax.training.state import TrainState


def state(mesh, step=7):
    tree = {"kernel": jnp.arange(2.0**15).reshape(128, 256), "bias": jnp.ones(5)}
    whole = TrainState(jnp.int32(step), tree, jax.tree.map(lambda a: a + 1, tree), {"mu": tree})
    return jax.device_put(whole, parameter_sharding(mesh, whole))


def test_restores_bit_equal_on_another_mesh(tmp_path):
    saved = state(make_mesh(data=2, fsdp=4))
    checkpointer = Checkpointer(tmp_path, {"width": 3})
    assert checkpointer.latest is None
    checkpointer.save(saved, {"batches": {"next": 4}, "seconds": 1.5})
    checkpointer.close()

    mesh = make_mesh(data=1, fsdp=8)
    checkpointer = Checkpointer(tmp_path, {"width": 3})
    abstract = jax.eval_shape(lambda: state(mesh))
    restored, data = checkpointer.restore(abstract, parameter_sharding(mesh, abstract))
    checkpointer.close()
    assert data == {"batches": {"next": 4}, "seconds": 1.5}
    jax.tree.map(np.testing.assert_array_equal, restored, saved)
    assert restored.params["kernel"].sharding == parameter_sharding(mesh, abstract).params["kernel"]


def test_keeps_the_newest(tmp_path):
    checkpointer = Checkpointer(tmp_path, {}, keep=2)
    for step in (1, 2, 3):
        checkpointer.save(state(make_mesh(), step), {})
    checkpointer.close()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["2", "3"]


def test_another_config_is_refused_by_name(tmp_path):
    checkpointer = Checkpointer(tmp_path, {"model": {"widths": (3, 4), "depth": 1}})
    checkpointer.save(state(make_mesh()), {})
    checkpointer.close()
    with pytest.raises(ValueError, match=r"model.depth is 2, the checkpoint has 1"):
        Checkpointer(tmp_path, {"model": {"widths": (3, 4), "depth": 2}})


def test_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not writable"):
        Checkpointer(tmp_path / "file" / "checkpoints", {})
