"""Members over devices and in batches: by their numbers, and by the errors of those that do not fit."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wind_jax import ensemble
from wind_jax.channels import channels
from wind_jax.data.normalize import Statistics
from wind_jax.diffusion.guidance import guide
from wind_jax.diffusion.samplers import sample
from wind_jax.diffusion.schedule import time_grid
from wind_jax.ensemble import ensemble_mesh, member_batches, members_at_once, over_mesh
from wind_jax.model.uvit import UViT, UViTConfig
from wind_jax.observations.observation import Observation
from wind_jax.prior import Prior, pure_params
from wind_jax.sphere import Grid


@pytest.fixture(scope="module")
def prior():
    network = UViTConfig(
        channels=1, latitude=8, longitude=16, patch=2, widths=(32,), blocks=("transformer",), remat=False
    )
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
    assert sizes(12, compete=True) == (6, 1, 1)
    assert sizes(5, compete=True) == (5, 1, 1)
    assert sizes(11, compete=True) == (1, 1, 1)
    assert sizes(8, fsdp=2, compete=True) == (4, 2, 1)


def test_a_mesh_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="data=9 x fsdp=1 x space=1 needs 9 devices; there are 8"):
        ensemble_mesh(9, data=9)
    with pytest.raises(ValueError, match="data=0 x fsdp=1 x space=1 needs 0 devices; there are 8"):
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


def test_members_at_once_fit_in_what_is_counted_for_them(prior, monkeypatch):
    """By the compiler's account of a guided sampler; and they are not so few that memory lies idle."""

    def guided(prior, x_init, inputs, y):
        task = Observation(lambda x: x[:, ::2], y, 0.1)
        return sample(guide(prior.denoiser(inputs), task, prior.schedule, "mmps"), x_init, time_grid(4), prior.schedule)

    def memory(members):
        shapes = (members, *prior.shape), prior.inputs_shape, (3, 4, 16, 1)
        arrays = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
        account = jax.jit(guided).lower(prior, *arrays).compile().memory_analysis()
        return account.temp_size_in_bytes + account.argument_size_in_bytes

    for budget in (2**23, 2**25):
        limit = [SimpleNamespace(memory_stats=lambda budget=budget: {"bytes_limit": budget / 0.8})]
        with monkeypatch.context() as patch:
            mesh = ensemble_mesh(1)
            patch.setattr(ensemble.jax, "devices", lambda limit=limit: limit)
            members = members_at_once(prior, mesh)
        assert 0.4 * budget < memory(members) < budget


def test_devices_that_share_a_member_hold_more(prior):
    one = members_at_once(prior, ensemble_mesh(1))
    assert one > 10
    assert members_at_once(prior, ensemble_mesh(1, space=2)) == pytest.approx(2 * one, abs=1)
    assert members_at_once(prior, ensemble_mesh(2)) == 2 * one
