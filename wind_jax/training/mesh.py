"""The device mesh and the rule that shards parameters over it. The model knows none of this.

Axes: `data` splits the batch; `fsdp` splits the batch too, and every large parameter with its optimizer moments and its
average; `space` splits longitude (its size divides well, 721 rows do not; the compiler exchanges the halos).
"""

import contextlib
import math
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Int

from wind_jax.model.flops import backward_bytes, by_sample

AXES = ("data", "fsdp", "space")
SMALLEST_SHARDED = 2**14  # elements; below it a copy on every device is cheaper than gathering
SMALLEST_LARGE = 2**20  # elements; from here on a copy on every device is what `fsdp` is there to avoid
SHORTEST_SPLIT = 64  # elements of an axis; never so few as to be that of stacked blocks


def make_mesh(data: int = -1, fsdp: int = 1, space: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """Mesh over all devices; `data=-1` takes what the other two axes leave.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if data == -1 and min(fsdp, space) > 0:
        data = len(devices) // (fsdp * space)
    if min(data, fsdp, space) < 1 or data * fsdp * space != len(devices):
        raise ValueError(
            f"mesh data={data} x fsdp={fsdp} x space={space} needs {data * fsdp * space} devices; "
            f"there are {len(devices)}."
        )
    shape = (data, fsdp, space)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays (b, t, h, w, ...): batch over `data` and `fsdp`, longitude over `space`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, None, "space"))


def parameter_sharding(mesh: Mesh, tree: Any) -> Any:
    """A sharding for every array of `tree` (parameters, average or optimizer state alike), from its shape alone.

    The larger of the last two axes that `fsdp` divides is split; the leading axes of stacked blocks never are, because
    the scan over blocks would have to gather them at every step. Small arrays stay whole.
    """
    size = mesh.shape["fsdp"]

    def rule(leaf) -> NamedSharding:
        shape = leaf.shape
        last_two = range(max(len(shape) - 2, 0), len(shape))
        candidates = [a for a in last_two if shape[a] % size == 0 and shape[a] >= SHORTEST_SPLIT]
        spec: list[str | None] = [None] * len(shape)
        if size > 1 and candidates and math.prod(shape) >= SMALLEST_SHARDED:
            spec[max(candidates, key=lambda a: shape[a])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(rule, tree)


def check_split(mesh: Mesh, tree: Any) -> None:
    """Check that `parameter_sharding` splits what is large: where it finds no axis to split, it says nothing.

    Raises:
        ValueError: `fsdp` divides none of the last two axes of a large array, which every device would hold whole.
    """
    size = mesh.shape["fsdp"]
    whole = [
        leaf.shape
        for leaf, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(parameter_sharding(mesh, tree)), strict=True)
        if leaf.size >= SMALLEST_LARGE and sharding.is_fully_replicated
    ]
    if size > 1 and whole:
        largest = max(whole, key=math.prod)
        raise ValueError(
            f"fsdp = {size} divides neither of the last two axes of {len(whole)} large arrays, the largest of shape "
            f"{largest}: every device would hold them whole. Choose an fsdp that divides config.model.widths, or 1."
        )


def device_bytes(shardings: Any, abstract: Any) -> int:
    """Bytes of a tree of arrays on one device."""
    size = lambda sharding, leaf: math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return sum(jax.tree.leaves(jax.tree.map(size, shardings, abstract)))


def step_memory(mesh: Mesh, loss: Callable, state: Any, batch: dict[str, jax.ShapeDtypeStruct]) -> dict[str, int]:
    """Bytes of a training step on each device, predicted from shapes in seconds.

    State and batch are exact. The rest is what the step holds when the backward pass is at the block that needs most:
    all that it still reads, that block's own, and gradients. Parameters that `fsdp` splits are whole where they are
    used: those outside of stacks from there on until the backward pass is through with them, those of a block while it
    runs, with their gradient. What a compiler adds is cotangents and scratch space of single operations; what it saves,
    it does by fusing them. The activations are those of the program as traced here.

    Args:
        loss: (params, batch) -> scalar.
        state: a `TrainState` of abstract arrays.
        batch: abstract arrays of the global batch.
    """
    samples = lambda n: {name: jax.ShapeDtypeStruct((n, *a.shape[1:]), a.dtype) for name, a in batch.items()}
    size = lambda n: backward_bytes(loss, state.params, samples(n))
    # What `fsdp` splits is gathered only where a mesh is set.
    with jax.set_mesh(mesh) if mesh.shape["fsdp"] > 1 else contextlib.nullcontext():
        (kept, as_used), blocks = by_sample(size)
    here = lambda sample: sample * batch["x"].shape[0] // mesh.size  # the batch is split over the mesh
    block, of_block = max(blocks, key=lambda b: here(b[0]) + 2 * b[1], default=(0, 0))
    held = lambda tree: device_bytes(parameter_sharding(mesh, tree), tree)
    return {
        "parameters": held(state.params),
        "their average": held(state.ema),
        "state of the optimizer": held(state.opt_state),
        "a batch": device_bytes(jax.tree.map(lambda _: batch_sharding(mesh), batch), batch),
        "gradients": held(state.params),
        "activations kept": here(kept),
        "parameters kept as they are used": as_used,
        "one block's activations": here(block),
        "one block's parameters with their gradient": 2 * of_block,
    }


def check_batch(mesh: Mesh, batch: int, longitudes: int, name: str = "batch_size") -> None:
    """Check that a global batch divides over the mesh.

    Args:
        mesh: of devices.
        batch: samples or members in it.
        longitudes: of a state.
        name: what the user calls the batch.

    Raises:
        ValueError: batch or longitude do not divide by the mesh.
    """
    parts, space = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["space"]
    if batch % parts:
        raise ValueError(f"{name} {batch} does not divide over data x fsdp = {parts} of mesh {dict(mesh.shape)}.")
    if longitudes % space:
        raise ValueError(f"{longitudes} longitudes do not divide over space = {space} of mesh {dict(mesh.shape)}.")


def process_rows(mesh: Mesh, batch_size: int, devices: Collection[jax.Device] | None = None) -> Int[np.ndarray, "rows"]:
    """Rows of a global batch, ascending, of which a process's devices hold parts: those that it has to read.

    Where `space` stays inside a process, no two processes share a row; where it does not, all that hold columns of the
    same rows read them.

    Args:
        mesh: of all processes.
        batch_size: of the global batch, one that `check_batch` passed.
        devices: of the process; None for this one.
    """
    held = NamedSharding(mesh, PartitionSpec(batch_sharding(mesh).spec[0])).devices_indices_map((batch_size,))
    mine = jax.local_devices() if devices is None else devices
    rows = np.arange(batch_size)
    return np.unique(np.concatenate([rows[held[device]] for device in mine]))


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray], batch_size: int) -> dict[str, jax.Array]:
    """The rows `process_rows` of a global batch, with all their longitudes -> global arrays on the mesh."""

    def put(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(batch_sharding(mesh), array, (batch_size, *array.shape[1:]))

    return {name: put(array) for name, array in batch.items()}


def put_flag(mesh: Mesh, flag: bool) -> Bool[jax.Array, "devices"]:
    """Each process's own flag, once for every device: no copies on several processes, which would have to agree."""
    sharding = NamedSharding(mesh, PartitionSpec(AXES))
    return jax.make_array_from_callback((mesh.size,), sharding, lambda _: np.full(1, flag))


def host_copy(tree: Any) -> Any:
    """The arrays of `tree` whole, on the host of process 0; None on other processes. All must call it.

    One array at a time, so that no device holds a copy of all.
    """

    def copy(leaf: jax.Array) -> np.ndarray | None:
        whole = np.asarray(leaf) if leaf.is_fully_addressable else multihost_utils.process_allgather(leaf, tiled=True)
        return whole if jax.process_index() == 0 else None

    return jax.tree.map(copy, tree)
