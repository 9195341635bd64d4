"""The device mesh and the rule that shards parameters over it. The model knows none of this.

Axes: `data` splits the batch; `fsdp` splits the batch too, and every large parameter with its optimizer moments and its
average; `space` splits latitude bands (the compiler exchanges the halos).
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "space")
SMALLEST_SHARDED = 2**14  # elements; below it a copy on every device is cheaper than gathering


def make_mesh(data: int = -1, fsdp: int = 1, space: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """Mesh over all devices; `data=-1` takes what the other two axes leave.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if data == -1:
        data = len(devices) // (fsdp * space)
    if data < 1 or data * fsdp * space != len(devices):
        raise ValueError(
            f"mesh data={data} x fsdp={fsdp} x space={space} needs {data * fsdp * space} devices; "
            f"there are {len(devices)}."
        )
    shape = (data, fsdp, space)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays (b, t, h, ...): batch over `data` and `fsdp`, latitude over `space`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "space"))


def replicated(mesh: Mesh) -> NamedSharding:
    """One full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_sharding(mesh: Mesh, tree: Any) -> Any:
    """A sharding for every array of `tree` (parameters, average or optimizer state alike), from its shape alone.

    The larger of the last two axes that `fsdp` divides is split; the leading axes of stacked blocks never are, because
    the scan over blocks would have to gather them at every step. Small arrays stay whole.
    """
    size = mesh.shape["fsdp"]

    def rule(leaf) -> NamedSharding:
        spec: list[str | None] = [None] * len(leaf.shape)
        candidates = [a for a in range(max(len(leaf.shape) - 2, 0), len(leaf.shape)) if leaf.shape[a] % size == 0]
        if size > 1 and len(leaf.shape) > 1 and candidates and math.prod(leaf.shape) >= SMALLEST_SHARDED:
            spec[max(candidates, key=lambda a: leaf.shape[a])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(rule, tree)


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's part of the global batch -> global arrays on the mesh.

    Raises:
        ValueError: batch or latitude do not divide by the mesh.
    """
    sharding = batch_sharding(mesh)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]

    def put(name: str, array: np.ndarray) -> jax.Array:
        count = array.shape[0] * jax.process_count()
        if count % parts:
            raise ValueError(f"a global batch of {count} does not divide over data x fsdp = {parts} devices.")
        if array.shape[2] % mesh.shape["space"]:
            raise ValueError(
                f"{array.shape[2]} latitudes of {name!r} do not divide over space = {mesh.shape['space']}."
            )
        return jax.make_array_from_process_local_data(sharding, array)

    return {name: put(name, array) for name, array in batch.items()}
