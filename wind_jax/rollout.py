"""Long trajectories from overlapping windows: each begins with the last frames of the one before.

Windows are yielded as they are drawn, so a trajectory of any length needs the memory of one window.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from wind_jax.diffusion.samplers import Step, ddim, euler, heun, initial, member_keys, sample
from wind_jax.diffusion.schedule import time_grid
from wind_jax.prior import Prior
from wind_jax.tasks.forecast import known_window, window_count

_STEPS = {"ddim": ddim, "euler": euler, "heun": heun}


class Chain(NamedTuple):
    """How a reverse diffusion is run; hashable, so that a sampler compiled for it is found again."""

    steps: int = 32
    start: float = 0.98
    step: Step | None = None


@lru_cache  # a step function is equal only to itself: the same chain again would compile again
def make_chain(name: str = "ddim", steps: int = 32, start: float = 0.98, eta: float = 0.0) -> Chain:
    """The chain that a configuration names.

    Args:
        name: "ddim", "euler" or "heun".
        steps: of the time grid.
        start: its first time.
        eta: fresh noise of "ddim", from 0 (none) to 1 (ancestral sampling).

    Raises:
        ValueError: an unknown name, or eta with a deterministic method.
    """
    if name not in _STEPS:
        raise ValueError(f"Unknown sampler {name!r}: expected one of {', '.join(_STEPS)}.")
    if name != "ddim" and eta:
        raise ValueError(f"The sampler {name!r} draws no noise: eta must be 0, got {eta}.")
    time_grid(steps, start=start)  # checks both
    return Chain(steps, start, ddim(eta) if name == "ddim" else _STEPS[name]())


def rollout(
    prior: Prior,
    known: Float[Array | np.ndarray, "..."],
    inputs: Float[Array | np.ndarray, "frames h w f"],
    members: int | Sequence[int],
    key: Key[Array, ""],
    chain: Chain = Chain(),  # noqa: B008
) -> Iterator[Float[Array, "b new h w c"]]:
    """Draws trajectories window by window.

    A member depends on `key` and on its index, not on how many run beside it.

    Args:
        prior: p(x) of one window.
        known: the first k frames in model units, (k, h, w, c) or (b, k, h, w, c), with 1 <= k < prior.frames.
        inputs: as of `Prior.inputs`, of all frames, known ones included: k + n * (prior.frames - k) for n windows.
        members: number of members, or the indices of those to run here.
        key: of the ensemble; window and member are folded in.
        chain: of the sampler.

    Yields:
        The new frames of each window, (b, prior.frames - k, h, w, c), model units.

    Raises:
        ValueError: frames that do not fill whole windows, or do not fit the prior's grid.
    """
    members = jnp.arange(members) if isinstance(members, int) else jnp.asarray(members)
    known = jnp.broadcast_to(jnp.asarray(known), (len(members), *known.shape[-4:]))
    context, total = known.shape[1], inputs.shape[0]
    new = prior.frames - context
    windows = window_count(total - context, prior.frames, context)
    if total != context + windows * new:
        raise ValueError(
            f"{total} frames of inputs do not fill windows: expected {context} known frames and a multiple of {new}."
        )
    if known.shape[2:] != prior.shape[1:] or inputs.shape[1:3] != prior.grid.shape:
        raise ValueError(
            f"Known frames {known.shape[2:]} and inputs {inputs.shape[1:3]} do not fit the prior's {prior.shape[1:]}."
        )
    for window in range(windows):
        first = window * new
        keys = member_keys(jax.random.fold_in(key, window), members)
        frames = _draw(prior, known, jnp.asarray(inputs[first : first + prior.frames]), keys, chain)
        known = frames[:, -context:]
        yield frames[:, context:]


@partial(jax.jit, static_argnames="chain")
def _draw(prior: Prior, known: Array, inputs: Array, keys: Array, chain: Chain) -> Array:
    """One window (b, t, h, w, c) whose first frames are known."""
    grid = time_grid(chain.steps, prior.frames, known=range(known.shape[1]), start=chain.start)
    known = known_window(known, prior.frames)
    x_init = initial(keys, prior.shape, grid[0], prior.schedule, known=known, mean=prior.mean(inputs))
    return sample(prior.denoiser(inputs), x_init, grid, prior.schedule, chain.step, keys)
