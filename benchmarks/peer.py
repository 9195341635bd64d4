"""The paper's network in JAX and in plain PyTorch, in turn: seconds of a forward pass and of a training step on CPU.

    python benchmarks/peer.py [--repeats 7] [--batch_size 2] [--frames 5] [--width 64] [--depth 2]

Needs the extra `convert`. Levels of `width` times 1, 2, 4 and 4 channels, 70 variables on 32 x 64 cells, geometry
"paper". The PyTorch network is of PyTorch's own modules under the published names, so that `wind_jax.model.convert`
brings its random weights to ours; outputs in float32 must agree to 1e-4 of the largest. Both are timed in float32 and
in bfloat16 (`dtype="bfloat16"` here, autocast there); a step is the gradient of a mean square, and AdamW. `ratios` are
ours over PyTorch's, of runs that followed each other, as least, median and largest: below 1 ours is faster. They are
given by the clock and by the processor's time: where other work shares the machine, compare the latter, on one core
(`taskset -c 0`).
"""

import argparse
import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from measure import clocks, report
from torch import nn
from torch.nn import functional as F

from wind_jax.model.convert import convert_parameters
from wind_jax.model.layers import EPSILON, GROUPS, rotary_angles
from wind_jax.model.uvit import UViT, UViTConfig

LEARNING_RATE = 1e-5
AUTOCAST = {"float32": contextlib.nullcontext, "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16)}


class ResBlock(nn.Module):
    def __init__(self, width: int, embedding: int):
        super().__init__()
        conv = lambda: nn.Conv2d(width, width, 3, padding=1)
        self.emb_layer = nn.Conv2d(embedding, 2 * width, 1)
        self.in_layers = nn.Sequential(nn.GroupNorm(GROUPS, width, EPSILON), nn.SiLU(), conv())
        self.out_norm = nn.GroupNorm(GROUPS, width, EPSILON)
        self.out_rest = nn.Sequential(nn.SiLU(), conv())

    def forward(self, x, embedding):
        """Of frames `(b t, c, h, w)`."""
        scale, shift = self.emb_layer(embedding[:, :, None, None]).chunk(2, 1)
        return x + self.out_rest(self.out_norm(self.in_layers(x)) * (1 + scale) + shift)


class RMSNorm(nn.RMSNorm):
    def forward(self, x):
        """By PyTorch's fused kernel, which asks for a weight of the input's type."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class AdaptiveNorm(nn.Module):
    def __init__(self, width: int, embedding: int):
        super().__init__()
        self.emb_layer = nn.Linear(embedding, 2 * width)
        self.norm = RMSNorm(width, EPSILON)

    def forward(self, x, embedding):
        scale, shift = self.emb_layer(embedding)[:, None].chunk(2, -1)
        return self.norm(x) * (1 + scale) + shift


class TransformerBlock(nn.Module):
    def __init__(self, width: int, embedding: int, heads: int, turn: torch.Tensor):
        super().__init__()
        self.heads = heads
        self.register_buffer("turn", turn, persistent=False)
        self.norm = AdaptiveNorm(width, embedding)
        self.fused_attn_mlp_proj = nn.Linear(width, 7 * width)
        self.q_norm = RMSNorm(width // heads, EPSILON)
        self.k_norm = RMSNorm(width // heads, EPSILON)
        self.attn_out = nn.Linear(width, width)
        self.mlp_out = nn.Sequential(nn.SiLU(), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x, embedding):
        """Of frames `(b t, c, h, w)`; tokens are those of `turn`, `(t h w, d / 2)`."""
        n, c, h, w = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(-1, self.turn.shape[0], c)
        qkv, mlp = self.fused_attn_mlp_proj(self.norm(tokens, embedding)).split([3 * c, 4 * c], -1)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.rotate(self.q_norm(q)), self.rotate(self.k_norm(k))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + self.attn_out(attended) + self.mlp_out(mlp)
        return tokens.reshape(n, h, w, c).permute(0, 3, 1, 2)

    def rotate(self, x):
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * self.turn).flatten(-2).to(x.dtype)


class Resample(nn.Module):
    """Down, or up, with its convolution under the published name `main.conv.conv`."""

    def __init__(self, width_in: int, width_out: int, up: bool):
        super().__init__()
        self.up, self.width_out = up, width_out
        conv = nn.Conv2d(width_in, 4 * width_out if up else width_out // 4, 3, padding=1)
        self.main = nn.ModuleDict({"conv": nn.ModuleDict({"conv": conv})})

    def forward(self, x, embedding):
        y = self.main["conv"]["conv"](x)
        if self.up:
            return F.pixel_shuffle(y + x.repeat_interleave(4 * self.width_out // x.shape[1], 1), 2)
        shortcut = F.pixel_unshuffle(x, 2).unflatten(1, (self.width_out, -1)).mean(2)
        return F.pixel_unshuffle(y, 2) + shortcut


class Projection(nn.Module):
    def __init__(self, conv: nn.Module):
        super().__init__()
        self.proj = conv

    def forward(self, x):
        return self.proj(x)


class Peer(nn.Module):
    """The published network on a grid of whole cells."""

    def __init__(self, config: UViTConfig, frames: int):
        super().__init__()
        if config.network_grid != (config.latitude, config.longitude):
            raise ValueError(f"Grid {config.latitude} x {config.longitude}: expected whole cells of {config.cell}.")

        def blocks(level: int) -> list[nn.Module]:
            width = config.widths[level]
            if config.blocks[level] == "res":
                return [ResBlock(width, config.embedding) for _ in range(config.depth)]
            cell = config.patch * 2**level
            size = frames, config.latitude // cell, config.longitude // cell
            angles = rotary_angles(*size, width // config.heads, "paper")
            placed = zip(angles, (np.s_[:, None, None], np.s_[:, None], np.s_[:]))
            angle = np.concatenate([np.broadcast_to(a[where], (*size, a.shape[-1])) for a, where in placed], -1)
            turn = torch.from_numpy(np.exp(1j * angle).astype(np.complex64)).flatten(0, 2)
            return [TransformerBlock(width, config.embedding, config.heads, turn) for _ in range(config.depth)]

        widths, patch, coarsest = config.widths, config.patch, len(config.widths) - 1
        self.learned_noise_cond = nn.Parameter(torch.randn(1, 1, config.embedding))
        inputs = config.channels + config.forcings
        self.embed_input = Projection(nn.Conv2d(inputs, widths[0], patch, patch))
        level_down = lambda i: [*blocks(i), Resample(widths[i], widths[i + 1], up=False)]
        level_up = lambda i: [Resample(widths[i + 1], widths[i], up=True), *blocks(i)]
        self.down_blocks = nn.ModuleList(nn.ModuleList(level_down(i)) for i in range(coarsest))
        self.mid_blocks = nn.ModuleList(blocks(coarsest))
        self.up_blocks = nn.ModuleList(nn.ModuleList(level_up(i)) for i in reversed(range(coarsest)))
        self.project_output = Projection(nn.ConvTranspose2d(widths[0], config.channels, patch, patch))

    def forward(self, x):
        """State and forcings of all frames `(b t, c, h, w)` -> states."""
        embedding, skips = self.learned_noise_cond[0], []
        x = self.embed_input(x)
        for level in self.down_blocks:
            for block in level[:-1]:
                x = block(x, embedding)
            fine, x = x, level[-1](x, embedding)
            skips.append((fine, x))
        for block in self.mid_blocks:
            x = block(x, embedding)
        for level, (fine, coarse) in zip(self.up_blocks, reversed(skips)):
            x = level[0](x - coarse, embedding) + fine
            for block in level[1:]:
                x = block(x, embedding)
        return self.project_output(x).float()


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name, default in {"repeats": 7, "batch_size": 2, "frames": 5, "width": 64, "depth": 2}.items():
    parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
options = parser.parse_args()
if min(vars(options).values()) < 1 or options.width % GROUPS:
    parser.error(f"all must be positive, and width a multiple of {GROUPS}, got {vars(options)}")

sizes = {
    "channels": 70, "latitude": 32, "longitude": 64, "widths": [options.width * n for n in (1, 2, 4, 4)],
    "depth": options.depth, "geometry": "paper", "remat": False,
}  # fmt: skip
torch.manual_seed(0)
peer = Peer(UViTConfig(**sizes), options.frames).to(memory_format=torch.channels_last)
published = {name: array.numpy().copy() for name, array in peer.state_dict().items()}  # steps change the peer's own
draw = np.random.default_rng(0)
grid = (options.batch_size, options.frames, 32, 64)
inputs, target = (draw.standard_normal((*grid, c), np.float32) for c in (80, 70))
frames_of = lambda a: torch.from_numpy(a).flatten(0, 1).permute(0, 3, 1, 2)  # channels last in memory
theirs_in, theirs_target = frames_of(inputs), frames_of(target)
x_t, forcings, times = jnp.asarray(inputs[..., :70]), jnp.asarray(inputs[..., 70:]), jnp.zeros(grid[:2])
optimizer = optax.adamw(LEARNING_RATE)


def ours(dtype: str) -> tuple:
    """A forward pass and a training step."""
    config = UViTConfig(**sizes, dtype=dtype)
    params = convert_parameters(published, config)
    graph = nnx.graphdef(nnx.eval_shape(lambda: UViT(config, rngs=nnx.Rngs(0))))
    apply = jax.jit(lambda params, *inputs: nnx.merge(graph, nnx.State(params))(*inputs))

    def step(params, state, target, *inputs):
        loss = lambda params: jnp.mean(jnp.square(apply(params, *inputs) - target))
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    def steps():
        trained, state = jax.tree.map(jnp.copy, params), optimizer.init(params)
        update = jax.jit(step, donate_argnums=(0, 1))
        while True:
            trained, state = update(trained, state, target, x_t, times, forcings)
            yield jax.block_until_ready(trained)

    return lambda: jax.block_until_ready(apply(params, x_t, times, forcings)), steps().__next__


def theirs(dtype: str) -> tuple:
    """A forward pass and a training step."""
    adamw = torch.optim.AdamW(peer.parameters(), LEARNING_RATE, weight_decay=1e-4, fused=True)

    def forward():
        with torch.inference_mode(), AUTOCAST[dtype]():
            return peer(theirs_in)

    def step():
        with AUTOCAST[dtype]():
            loss = F.mse_loss(peer(theirs_in), theirs_target)
        loss.backward()
        adamw.step()
        adamw.zero_grad()

    return forward, step


result = {"parameters": sum(array.size for array in published.values()), "torch": torch.__version__, **vars(options)}
for dtype in AUTOCAST:
    (forward, step), (peer_forward, peer_step) = ours(dtype), theirs(dtype)
    if dtype == "float32":
        expected = peer_forward().permute(0, 2, 3, 1).reshape(target.shape).numpy()
        result["difference"] = float(np.abs(np.asarray(forward()) - expected).max() / np.abs(expected).max())
        if result["difference"] > 1e-4:
            raise ValueError(f"Outputs differ by {result['difference']:.1e} of their largest value; expected 1e-4.")
    for name, calls in {"forward": (forward, peer_forward), "step": (step, peer_step)}.items():
        # In turn, so that what else the machine does meets both; the first runs compile.
        taken = np.array([[clocks(call) for call in calls] for _ in range(options.repeats + 1)])[1:]
        medians, ratios = np.median(taken, axis=0), np.quantile(taken[:, 0] / taken[:, 1], [0, 0.5, 1], axis=0)
        result[f"{name} {dtype}"] = {
            clock: {"ours": medians[0, i], "torch": medians[1, i], "ratios": ratios[:, i].round(3).tolist()}
            for i, clock in enumerate(("seconds", "processor_seconds"))
        }
report(result)
