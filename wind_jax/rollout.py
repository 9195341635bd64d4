"""Long trajectories from overlapping windows: each begins with the last frames of the one before.

Windows are yielded as they are drawn, so a trajectory of any length needs the memory of one window. Each may be
guided by observations of its own.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, PyTree

from wind_jax.diffusion.likelihood import ObservationLike
from wind_jax.diffusion.posterior import check_method, sample_posterior
from wind_jax.diffusion.samplers import (
    Multistep,
    Step,
    ddim,
    dpmpp_2m,
    euler,
    heun,
    initial,
    member_keys,
    predictor_corrector,
    sample,
)
from wind_jax.diffusion.schedule import time_grid
from wind_jax.diffusion.smc import Weights, twisted
from wind_jax.prior import Prior
from wind_jax.tasks.forecast import known_window

STEPS = {"ddim": ddim, "ddpm": ddim, "euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m}


class Chain(NamedTuple):
    """How a reverse diffusion is run; hashable, so that a sampler compiled for it is found again."""

    steps: int = 32
    start: float = 0.98
    step: Step | Multistep | None = None
    end: float = 0.0
    spacing: str = "linear"


class Guide(NamedTuple):
    """How a window is guided by what it is told; hashable.

    Attributes:
        observe: from arrays, the same shapes for all windows, to the observation of a window in model units.
        method: of `sample_posterior`.
        options: of the method, (name, value) pairs.
    """

    observe: Callable[[PyTree], ObservationLike]
    method: str = "mmps"
    options: tuple[tuple[str, object], ...] = ()


@lru_cache  # a step function is equal only to itself: the same chain again would compile again
def make_chain(
    name: str = "ddim",
    steps: int = 32,
    start: float = 0.98,
    end: float = 0.0,
    spacing: str = "linear",
    eta: float = 0.0,
    corrections: int = 0,
    snr: float = 0.1,
) -> Chain:
    """The chain that a configuration names.

    Args:
        name: "ddim", "ddpm", "euler", "heun" or "dpmpp_2m".
        steps: number of steps.
        start: time of the first step, 1 being pure noise.
        end: last time above 0, see `time_grid`; 0: equal steps down to 0.
        spacing: of the times, "linear", or "logit" for equal steps in the log-SNR.
        eta: fresh noise of "ddim", from 0 (none) to 1 (ancestral sampling, "ddpm").
        corrections: Langevin steps after each step.
        snr: signal-to-noise ratio of the Langevin steps, see `predictor_corrector`.

    Raises:
        ValueError: an unknown name, or eta with another method than "ddim".
    """
    if name not in STEPS:
        raise ValueError(f"Unknown sampler {name!r}: expected one of {', '.join(STEPS)}.")
    if name != "ddim" and eta:
        raise ValueError(f"The sampler {name!r} has no eta to choose: it must be 0, got {eta}.")
    time_grid(steps, start=start, end=end, spacing=spacing)  # checks them
    step = ddim(1.0 if name == "ddpm" else eta) if name in ("ddim", "ddpm") else STEPS[name]()
    return Chain(steps, start, predictor_corrector(step, corrections, snr) if corrections else step, end, spacing)


def window_frames(windows: int, frames: int, overlap: int) -> int:
    """Frames that some windows cover together.

    Raises:
        ValueError: no window, or an overlap that leaves no frame of a window free.
    """
    if windows < 1:
        raise ValueError(f"A trajectory needs at least one window, got {windows}.")
    if not 0 <= overlap < frames or (windows > 1 and overlap == 0):
        raise ValueError(f"Windows of {frames} frames share between 1 and {frames - 1} of them, got {overlap}.")
    return overlap + windows * (frames - overlap)


def rollout(
    prior: Prior,
    known: Float[Array | np.ndarray, "..."] | None,
    inputs: Float[Array | np.ndarray, "frames h w f"],
    members: int | Sequence[int] | Int[Array, "b"],
    key: Key[Array, ""],
    chain: Chain = Chain(),  # noqa: B008
    overlap: int = 0,
    guide: Guide | None = None,
    told: Iterable[PyTree] | None = None,
    first: int = 0,
    weighed: Callable[[int, Weights], None] | None = None,
    sharding: NamedSharding | None = None,
) -> Iterator[Float[Array, "b new h w c"]]:
    """Draws trajectories window by window.

    A member depends on `key` and on its index, not on how many run beside it.

    Args:
        prior: p(x) of one window.
        known: the first k frames in model units, (k, h, w, c) or (b, k, h, w, c), with 1 <= k < prior.frames; None
            where nothing is known, and the first window is drawn whole.
        inputs: as of `Prior.inputs`, of all frames of all windows, known ones included: see `window_frames`.
        members: number of members, or the indices of those to run here.
        key: of the ensemble; window and member are folded in.
        chain: of the sampler.
        overlap: frames that a window shares with the next; with known frames it is their number.
        guide: how windows are guided; None: not.
        told: for each window, what `guide.observe` makes an observation of.
        first: number of the first window drawn here: a run that was stopped goes on with the `known` frames before it.
        weighed: called with the number of each window that TDS drew, and what became of its members.
        sharding: of states (b, t, h, w, c) over devices, as of `training.mesh.batch_sharding`, which must divide the
            members; None: all on one.

    Yields:
        The new frames of each window, model units: (b, prior.frames - overlap, h, w, c), or all of a first window
        of which none is known.

    Raises:
        ValueError: frames that do not fill whole windows, or do not fit the prior's grid.
    """
    members = np.arange(members) if isinstance(members, int) else np.asarray(members)
    if known is not None:
        known = np.broadcast_to(known, (len(members), *known.shape[-4:]))  # on the host: no device holds all of it
        overlap = known.shape[1]
        if known.shape[2:] != prior.shape[1:]:
            raise ValueError(f"Known frames {known.shape[2:]} do not fit the prior's {prior.shape[1:]}.")
    new = prior.frames - overlap
    windows = (inputs.shape[0] - overlap) // max(new, 1)
    if inputs.shape[0] != window_frames(windows, prior.frames, overlap):
        raise ValueError(
            f"{inputs.shape[0]} frames of inputs do not fill windows: expected {overlap} known or shared ones and a "
            f"multiple of {new}."
        )
    if inputs.shape[1:3] != prior.grid.shape:
        raise ValueError(f"Inputs {inputs.shape[1:3]} do not fit the prior's grid {prior.grid.shape}.")
    axes = sharding.spec if sharding else ()  # of states

    def place(x, *spec):
        return jax.device_put(x, NamedSharding(sharding.mesh, PartitionSpec(*spec))) if sharding else jnp.asarray(x)

    members = place(members, *axes[:1])
    for window, data in zip(range(first, windows), told or iter(lambda: None, 0), strict=False):
        begin = window * new
        keys = member_keys(jax.random.fold_in(key, window), members)
        told_inputs = place(inputs[begin : begin + prior.frames], *axes[1:])
        known = known if known is None else place(known, *axes)
        with jax.set_mesh(sharding.mesh) if sharding else contextlib.nullcontext():  # for the network's parameters
            frames, weights = _draw(prior, known, told_inputs, data, keys, chain, guide, sharding)
        if weighed and weights:
            weighed(window, weights)
        yield frames if known is None else frames[:, overlap:]
        known = frames[:, prior.frames - overlap :]


def check_guide(guide: Guide) -> None:
    """Checks method and options.

    Raises:
        ValueError: an unknown method, or an option that it does not have.
    """
    check_method(guide.method, dict(guide.options))


@partial(jax.jit, static_argnames=("chain", "guide", "sharding"))
def _draw(
    prior: Prior, known: Array | None, inputs: Array, told: PyTree, keys: Array, chain: Chain, guide: Guide | None,
    sharding: NamedSharding | None,
) -> tuple[Array, Weights | None]:  # fmt: skip
    """One window (b, t, h, w, c) whose first frames may be known; and of TDS, what became of the members."""
    given = range(0 if known is None else known.shape[1])
    grid = time_grid(chain.steps, prior.frames, known=given, start=chain.start, end=chain.end, spacing=chain.spacing)
    known = None if known is None else known_window(known, prior.frames)
    x_init = initial(keys, prior.shape, grid[0], prior.schedule, known=known, mean=prior.mean(inputs))
    x_init = jax.lax.with_sharding_constraint(x_init, sharding) if sharding else x_init
    denoiser = prior.denoiser(inputs)
    if guide is None:
        return sample(denoiser, x_init, grid, prior.schedule, chain.step, keys), None
    task, options = (denoiser, guide.observe(told), x_init, grid, prior.schedule), dict(guide.options)
    if guide.method == "tds":
        return twisted(*task, keys, **options)
    return sample_posterior(*task, chain.step, keys, guide.method, options), None
