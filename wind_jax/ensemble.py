"""How an ensemble is laid out: over a mesh of devices, and in batches of members that fit their memory."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from wind_jax.model.flops import backward_bytes, by_sample
from wind_jax.prior import Prior
from wind_jax.training.mesh import check_batch, check_split, device_bytes, make_mesh, parameter_sharding


def ensemble_mesh(members: int, data: int = -1, fsdp: int = 1, space: int = 1, compete: bool = False) -> Mesh:
    """The mesh that members are split over: over `data` and `fsdp`, each over `space` by its longitudes.

    Args:
        members: that run together, at most.
        data: -1: as many devices as `fsdp` and `space` leave, but no more than there are members. Others are left idle
            where the product is less than all.
        fsdp: devices that share the network's parameters.
        space: devices that share a member.
        compete: the members, as those of TDS do, so that none may be added to fill devices.

    Raises:
        ValueError: there are fewer devices.
    """
    devices = jax.devices()
    if data == -1 and min(fsdp, space) > 0:
        most = max(len(devices) // (fsdp * space), 1)
        even = [n for n in range(1, most + 1) if members % (n * fsdp) == 0]
        data = max(even, default=1) if compete else min(most, -(-members // fsdp))
    wanted = data * fsdp * space
    return make_mesh(data, fsdp, space, devices[:wanted] if 0 < wanted <= len(devices) else devices)


def over_mesh(prior: Prior, mesh: Mesh, batch: int) -> Prior:
    """The prior with its parameters where the mesh has them, for `batch` members at once.

    Raises:
        ValueError: members or longitudes do not divide over the mesh, or `fsdp` divides no axis of large parameters.
    """
    check_batch(mesh, batch, prior.grid.shape[1], "the number of members at once,")
    check_split(mesh, prior.params)
    return dataclasses.replace(prior, params=jax.device_put(prior.params, parameter_sharding(mesh, prior.params)))


def member_batches(members: int, at_once: int, parts: int = 1) -> list[range]:
    """Members to run together, equally many in every batch so that one compiled sampler serves all.

    Where `at_once` allows it, they divide by the parts of the mesh, too: a last batch may hold more than are asked for.

    Raises:
        ValueError: fewer than two members, or a negative batch.
    """
    if members < 2 or at_once < 1:
        raise ValueError(f"An ensemble needs 2 or more members in batches of 1 or more, got {members} and {at_once}.")
    count = -(-members // at_once)
    size = -(-members // count)
    even = -(-size // parts) * parts
    size = (even if even <= at_once else even - parts) or size
    return [range(i * size, (i + 1) * size) for i in range(-(-members // size))]


def members_at_once(prior: Prior, mesh: Mesh) -> int:
    """How many members fit in the memory of a mesh while they are guided.

    A member takes what the network keeps of it for its backward pass and as much for what is pulled back through it,
    and one block's own; beside the members there are the parameters, and as much of them as the backward pass keeps
    converted. On an accelerator the budget is 80 % of its memory; on a CPU, where larger batches are no faster, half a
    GiB.
    """

    def denoise(x, params, inputs):
        return dataclasses.replace(prior, params=params).denoiser(inputs)(x, 0.5)

    def size(members: int) -> tuple[int, list[int]]:
        x = jax.ShapeDtypeStruct((members, *prior.shape), jnp.float32)
        inputs = jax.ShapeDtypeStruct(prior.inputs_shape, jnp.float32)
        return backward_bytes(denoise, x, prior.params, inputs)

    (kept, as_used), blocks = by_sample(size)
    one = 2 * kept + max((block for block, _ in blocks), default=0)
    held = device_bytes(parameter_sharding(mesh, prior.params), prior.params) + as_used
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    budget = (0.8 * limit if limit else 2**29) - held
    return mesh.size // mesh.shape["space"] * max(1, int(budget * mesh.shape["space"]) // one)
