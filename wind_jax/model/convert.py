"""Released PyTorch WIND weights -> our parameters.

    python -m wind_jax.model.convert weights.pt out/ --latitude 121 --longitude 240

writes `out/parameters.npz`, one array a parameter under its path in `wind_jax.model.uvit.UViT` (joined by
dots), and `out/config.json`, the `UViTConfig` read off the shapes. Only the command needs PyTorch.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from wind_jax.command import command
from wind_jax.model.uvit import GEOMETRIES, UViT, UViTConfig

# Published name -> ours, for the parameters of one block.
RES_BLOCK = {
    "emb_layer.weight": "embed.kernel",
    "emb_layer.bias": "embed.bias",
    "in_layers.0.weight": "in_norm.scale",
    "in_layers.0.bias": "in_norm.bias",
    "in_layers.2.weight": "in_conv.kernel",
    "in_layers.2.bias": "in_conv.bias",
    "out_norm.weight": "out_norm.scale",
    "out_norm.bias": "out_norm.bias",
    "out_rest.1.weight": "out_conv.kernel",
    "out_rest.1.bias": "out_conv.bias",
}
TRANSFORMER_BLOCK = {
    "norm.emb_layer.weight": "embed.kernel",
    "norm.emb_layer.bias": "embed.bias",
    "norm.norm.weight": "norm.scale",
    "fused_attn_mlp_proj.weight": "project.kernel",
    "fused_attn_mlp_proj.bias": "project.bias",
    "q_norm.weight": "q_norm.scale",
    "k_norm.weight": "k_norm.scale",
    "attn_out.weight": "attention_out.kernel",
    "attn_out.bias": "attention_out.bias",
    "mlp_out.2.weight": "mlp_out.kernel",
    "mlp_out.2.bias": "mlp_out.bias",
}
RESAMPLE = {"main.conv.conv.weight": "conv.kernel", "main.conv.conv.bias": "conv.bias"}
ENDS = {
    "learned_noise_cond": "noise_constant",
    "embed_input.proj.weight": "patch_embed.kernel",
    "embed_input.proj.bias": "patch_embed.bias",
    "project_output.proj.weight": "patch_unembed.kernel",
    "project_output.proj.bias": "output_bias",
}


def _names(config: UViTConfig) -> dict[str, str | list[str]]:
    """Path of each of our parameters -> its published name, or those of the blocks stacked in it."""
    names = {ours: theirs for theirs, ours in ENDS.items()}

    def stack(level: int, prefix: str, first: int, path: str):
        table = RES_BLOCK if config.blocks[level] == "res" else TRANSFORMER_BLOCK
        for theirs, ours in table.items():
            names[f"{path}.{ours}"] = [f"{prefix}.{first + i}.{theirs}" for i in range(config.depth)]

    coarsest = len(config.widths) - 1
    for i in range(coarsest):
        up = f"up_blocks.{coarsest - 1 - i}"
        stack(i, f"down_blocks.{i}", 0, f"levels.{i}.down_blocks")
        stack(i, up, 1, f"levels.{i}.up_blocks")
        for theirs, ours in RESAMPLE.items():
            names[f"levels.{i}.down.{ours}"] = f"down_blocks.{i}.{config.depth}.{theirs}"
            names[f"levels.{i}.up.{ours}"] = f"{up}.0.{theirs}"
    stack(coarsest, "mid_blocks", 0, "mid_blocks")
    return names


def _layout(name: str, shape: tuple[int, ...], config: UViTConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of the published array that becomes ours of `shape`, and the order of axes that leads there."""
    patch = (config.patch, config.patch)
    if name == "embed_input.proj.weight":
        return (shape[1], config.channels + config.forcings, *patch), (2, 3, 1, 0)
    if name == "project_output.proj.weight":
        return (shape[0], config.channels, *patch), (0, 2, 3, 1)
    if len(shape) == 4:
        return (shape[3], shape[2], *shape[:2]), (2, 3, 1, 0)
    if len(shape) == 2:
        one_by_one = name.endswith("emb_layer.weight") and not name.endswith("norm.emb_layer.weight")
        return (shape[1], shape[0], *(1, 1) * one_by_one), ((2, 3, 1, 0) if one_by_one else (1, 0))
    return shape, tuple(range(len(shape)))


def convert_parameters(parameters: Mapping[str, np.ndarray], config: UViTConfig) -> dict:
    """Bring the parameters of the published network to ours.

    Args:
      parameters: arrays under their published names, in PyTorch's layouts.
      config: the network they belong to; `noise_conditioning` off and `frame_kernel` 1. Either geometry.

    Returns:
      float32 parameters as nested dictionaries of arrays, like those of a `Prior`; `nnx.State` of them merges with
      the graph of `UViT(config, ...)`.

    Raises:
      ValueError: listing every name that is unknown or missing, and every array of an unexpected shape.
    """
    if config.noise_conditioning or config.frame_kernel != 1:
        raise ValueError(
            f"noise_conditioning = {config.noise_conditioning}, frame_kernel = {config.frame_kernel}: the "
            "published network has a learned constant instead (False) and no convolution along frames (1)."
        )
    names = _names(config)
    known = {name for theirs in names.values() for name in ([theirs] if isinstance(theirs, str) else theirs)}
    faults = [f"unknown {name}" for name in sorted(parameters.keys() - known)]
    faults += [f"missing {name}" for name in sorted(known - parameters.keys())]

    def convert(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        if name not in parameters:
            return None
        array = np.asarray(parameters[name], np.float32)
        published, order = _layout(name, shape, config)
        if array.shape != published:
            faults.append(f"{name} of shape {array.shape} instead of {published}")
            return None
        return array.transpose(order).reshape(shape)

    state = nnx.eval_shape(lambda: nnx.state(UViT(config, rngs=nnx.Rngs(0))))
    converted = []
    for path, variable in nnx.to_flat_state(state):
        theirs = names[".".join(map(str, path))]
        if isinstance(theirs, str):
            converted.append((path, convert(theirs, variable.shape)))
        else:
            converted.append((path, [convert(name, variable.shape[1:]) for name in theirs]))
    if faults:
        raise ValueError(f"Parameters do not fit {config}: " + "; ".join(faults) + ".")
    return traverse_util.unflatten_dict({path: jnp.asarray(np.asarray(array)) for path, array in converted})


def infer_config(
    parameters: Mapping[str, np.ndarray], latitude: int, longitude: int, geometry: str = "paper"
) -> UViTConfig:
    """Read the configuration of a published network off the shapes of its parameters.

    Args:
      parameters: arrays under their published names.
      latitude: rows of the grid the network was trained on.
      longitude: columns of it.
      geometry: "paper" to compute what the published network computes.

    Raises:
      ValueError: listing every parameter that sizes are read off and that is missing or has other axes.
    """
    parts = lambda prefix: len({n.removeprefix(prefix).split(".")[0] for n in parameters if n.startswith(prefix)})
    levels = parts("down_blocks.") + 1
    depth = max(parts("mid_blocks."), parts("down_blocks.0.") - 1)
    shape = {name: np.shape(array) for name, array in parameters.items()}
    resampling = [f"down_blocks.{i}.{depth}.main.conv.conv.weight" for i in range(levels - 1)]
    axes = dict.fromkeys(("embed_input.proj.weight", "project_output.proj.weight", *resampling), 4)
    axes["learned_noise_cond"] = len(shape.get("learned_noise_cond", "?")) or 1  # the last of any
    if faults := [f"missing {name}" for name in axes if name not in shape] + [
        f"{name} of {len(shape[name])} axes instead of {n}"
        for name, n in axes.items()
        if name in shape and len(shape[name]) != n
    ]:
        raise ValueError("These are not the parameters of a published WIND network: " + "; ".join(faults) + ".")
    width, inputs, patch, _ = shape["embed_input.proj.weight"]
    widths = [width, *(4 * shape[name][0] for name in resampling)]
    firsts = [f"down_blocks.{i}.0" for i in range(levels - 1)] + ["mid_blocks.0"]
    blocks = ["transformer" if f"{first}.q_norm.weight" in parameters else "res" for first in firsts]
    heads = [
        width // shape[f"{first}.q_norm.weight"][0]
        for width, block, first in zip(widths, blocks, firsts)
        if block == "transformer"
    ]
    channels = shape["project_output.proj.weight"][1]
    return UViTConfig(
        channels=channels,
        latitude=latitude,
        longitude=longitude,
        forcings=inputs - channels,
        patch=patch,
        widths=tuple(widths),
        blocks=tuple(blocks),
        depth=depth,
        heads=heads[0] if heads else 1,
        embedding=shape["learned_noise_cond"][-1],
        geometry=geometry,
    )


def strip_prefix(parameters: Mapping[str, np.ndarray], prefix: str | None = None) -> dict[str, np.ndarray]:
    """Keep the parameters of one network out of all that a training checkpoint holds.

    Args:
      parameters: arrays by name, those of nested dictionaries joined by dots ("state_dict.module.embed_...").
      prefix: what the names of the wanted network begin with; None to find it.

    Raises:
      ValueError: where `prefix` is None and there is no such network or more than one.
    """
    mark = "embed_input.proj.weight"
    if prefix is None:
        found = [name.removesuffix(mark) for name in parameters if name.endswith(mark)]
        if len(found) != 1:
            raise ValueError(f"Prefixes found before the name {mark}: {found}; expected one, or --prefix to choose.")
        prefix = found[0]
    return {name.removeprefix(prefix): a for name, a in parameters.items() if name.startswith(prefix)}


def read_torch(path: str) -> dict[str, np.ndarray]:
    """All tensors of a PyTorch file as float32 by names joined by dots. Runs no code of the file."""
    try:
        import torch
    except ImportError as error:
        raise ImportError("A PyTorch file needs the package torch to be read: pip install torch") from error

    tensors = {}

    def collect(value, name: str):
        if isinstance(value, torch.Tensor):
            tensors[name] = value.float().numpy()
        elif isinstance(value, Mapping):
            for key, part in value.items():
                collect(part, f"{name}.{key}" if name else str(key))

    collect(torch.load(path, map_location="cpu", weights_only=True), "")
    return tensors


def write(folder: Path, parameters: dict, config: UViTConfig) -> None:
    """Write `parameters.npz` and `config.json` into a folder, made if it is absent."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "parameters.npz", **traverse_util.flatten_dict(parameters, sep="."))
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def main(arguments: list[str]) -> None:
    """The command; see the module's description."""
    parser = argparse.ArgumentParser(prog="python -m wind_jax.model.convert", description=__doc__.split("\n")[0])
    parser.add_argument("weights", help="PyTorch file of the released weights")
    parser.add_argument("folder", type=Path, help="where to write parameters.npz and config.json")
    parser.add_argument("--latitude", type=int, default=121, help="rows of the network's native grid")
    parser.add_argument("--longitude", type=int, default=240, help="columns of the network's native grid")
    parser.add_argument("--geometry", default="paper", choices=GEOMETRIES)
    parser.add_argument("--prefix", help='what its names begin with, such as "ema."; default: found by itself')
    options = parser.parse_args(arguments)
    parameters = strip_prefix(read_torch(options.weights), options.prefix)
    config = infer_config(parameters, options.latitude, options.longitude, options.geometry)
    write(options.folder, convert_parameters(parameters, config), config)


if __name__ == "__main__":
    command(main)
