"""Members over devices and in batches: by their numbers, and by the errors of those that do not fit."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wind_jax.data.normalize import Statistics
from wind_jax.data.variables import channels
from wind_jax.ensemble import ensemble_mesh, member_batches, members_at_once, over_mesh
from wind_jax.model.uvit import UViT, UViTConfig
from wind_jax.prior import Prior, pure_params
from wind_jax.sphere import Grid


@pytest.fixture(scope="module")
def prior():
    network = UViTConfig(channels=1, latitude=8, longitude=16, patch=2, widths=(32,), blocks=("transformer",), depth=1)
    statistics = Statistics(channels(["temperature"], [500]), *np.ones((3, 1), np.float32))
    grid = Grid(np.linspace(-78.75, 78.75, 8), np.arange(16) * 22.5)
    return Prior(
        pure_params(nnx.state(UViT(network, rngs=nnx.Rngs(0)))), network, statistics, grid, 3, "rectified", "x0"
    )


def sizes(*args, **kwargs):
    return tuple(ensemble_mesh(*args, **kwargs).shape.values())


def test_mesh_takes_no_more_devices_than_members_keep_busy():
    assert sizes(50) == (8, 1, 1)
    assert sizes(3) == (3, 1, 1)
    assert sizes(3, fsdp=2) == (2, 2, 1)
    assert sizes(50, space=4) == (2, 1, 4)
    assert sizes(1, space=4) == (1, 1, 4)


def test_a_mesh_may_leave_devices_to_others():
    assert sizes(50, data=2, space=2) == (2, 1, 2)


def test_members_that_compete_are_split_evenly():
    assert sizes(12, compete=True) == (4, 1, 1)
    assert sizes(5, compete=True) == (1, 1, 1)
    assert sizes(8, fsdp=2, compete=True) == (4, 2, 1)


def test_a_mesh_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="data=9 x fsdp=1 x space=1 needs 9 devices; there are 8"):
        ensemble_mesh(9, data=9)
    with pytest.raises(ValueError, match="data=0 x fsdp=1 x space=1 needs 0 devices"):
        ensemble_mesh(8, data=0)
    with pytest.raises(ValueError, match="data=1 x fsdp=3 x space=4 needs 12 devices; there are 8"):
        ensemble_mesh(8, fsdp=3, space=4)


def test_a_prior_that_does_not_divide_over_the_mesh_is_refused(prior):
    with pytest.raises(ValueError, match="the number of members at once, 3 does not divide over data x fsdp = 8"):
        over_mesh(prior, ensemble_mesh(8), 3)
    with pytest.raises(ValueError, match="16 longitudes do not divide over space = 3"):
        over_mesh(prior, ensemble_mesh(2, space=3), 2)


def test_parameters_are_split_over_fsdp(prior):
    wide = dataclasses.replace(prior, params={"kernel": jnp.zeros((2, 256, 64))})
    split = over_mesh(wide, ensemble_mesh(8, fsdp=4), 8)
    assert split.params["kernel"].addressable_shards[0].data.shape == (2, 64, 64)


def test_batches_are_equal_and_cover_the_members():
    for members in range(2, 9):
        for at_once in range(1, 10):
            batches = member_batches(members, at_once)
            assert len({len(batch) for batch in batches}) == 1
            assert len(batches[0]) <= at_once
            np.testing.assert_array_equal(np.concatenate(batches)[:members], np.arange(members))
            assert len(np.concatenate(batches)[members:]) < len(batches[0])


@pytest.mark.parametrize(
    ("members", "at_once", "size"), [(50, 100, 56), (50, 12, 8), (16, 16, 16), (5, 100, 8), (5, 5, 5)]
)
def test_batches_divide_by_the_parts_where_they_may(members, at_once, size):
    batches = member_batches(members, at_once, parts=8)
    assert {len(batch) for batch in batches} == {size}
    np.testing.assert_array_equal(np.concatenate(batches)[:members], np.arange(members))


def test_members_at_once_fall_with_the_size_of_the_prior(prior):
    assert members_at_once(prior) > 100
    assert members_at_once(prior, space=2) == pytest.approx(2 * members_at_once(prior), abs=1)
