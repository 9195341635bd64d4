"""The sharding rule, by shapes; the mesh, by its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from wind_jax.training.mesh import make_mesh, parameter_sharding, put_batch


def test_rule_splits_the_larger_of_the_last_two_axes_and_never_the_stacked_one():
    mesh = make_mesh(data=2, fsdp=4)
    tree = {
        "stacked": jax.ShapeDtypeStruct((64, 3, 3, 64, 256), jnp.float32),
        "rows": jax.ShapeDtypeStruct((512, 130), jnp.float32),
        "odd": jax.ShapeDtypeStruct((333, 333), jnp.float32),
        "bias": jax.ShapeDtypeStruct((2**20,), jnp.float32),
        "small": jax.ShapeDtypeStruct((16, 16), jnp.float32),
    }
    specs = jax.tree.map(lambda s: s.spec, parameter_sharding(mesh, tree))
    assert specs["stacked"] == P(None, None, None, None, "fsdp")
    assert specs["rows"] == P("fsdp", None)
    assert all(axis is None for name in ("odd", "bias", "small") for axis in specs[name])


def test_sharded_bytes_fall_by_the_fsdp_factor():
    mesh = make_mesh(data=1, fsdp=8)
    array = jnp.zeros((256, 512))
    placed = jax.device_put(array, parameter_sharding(mesh, array))
    assert {shard.data.size for shard in placed.addressable_shards} == {array.size // 8}


def test_mesh_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="needs 12 devices; there are 8"):
        make_mesh(data=3, fsdp=4)


def test_batch_that_does_not_divide_is_refused():
    mesh = make_mesh(data=4, fsdp=2)
    with pytest.raises(ValueError, match="global batch of 6"):
        put_batch(mesh, {"x": np.zeros((6, 2, 4, 8, 3), np.float32)})
    placed = put_batch(mesh, {"x": np.zeros((16, 2, 4, 8, 3), np.float32)})["x"]
    assert {shard.data.shape[0] for shard in placed.addressable_shards} == {2}
