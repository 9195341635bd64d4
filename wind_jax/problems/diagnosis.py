"""What is to be said of a chain that went wrong, of an ensemble thinner than it looks, of how real its states are."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from wind_jax.channels import Channel
from wind_jax.diffusion.likelihood import misfit, noise_variance
from wind_jax.diffusion.smc import Weights
from wind_jax.evaluation.realism import realism, units
from wind_jax.files import write_bytes
from wind_jax.prior import Prior
from wind_jax.rollout import Guide
from wind_jax.sphere import Grid
from wind_jax.tasks.observation import Observation


def plausible(prior: Prior, inputs: np.ndarray, known: np.ndarray | None = None) -> jax.Array:
    """A window (t, h, w, c) in model units: climatology, after its known frames where there are any."""
    x = jnp.broadcast_to(jnp.asarray(prior.mean(inputs), jnp.float32), prior.shape)
    return x if known is None else x.at[: known.shape[-4]].set(known.reshape(-1, *known.shape[-4:])[0])


def diverged(
    case: int, window: int, guide: Guide | None, observation: Observation | None, start: jax.Array, kept: Path | None
) -> str:
    """What to say of a chain whose values are not finite.

    Args:
        case: number of the case.
        window: of the window.
        guide: how it was guided; None: not.
        observation: by which.
        start: (t, h, w, c) the last finite state there is, from `plausible`.
        kept: folder of what is finished; None where nothing is.
    """
    if not np.isfinite(start).all():
        why = "its known frames are not finite"
    elif guide is None:
        why = "the prior alone, without guidance, diverged: lower config.sampler.start, or raise config.sampler.steps"
    else:
        why = (
            f"guidance by {guide.method} drove it, by {furthest(observation, start)}. Lower config.sampler.start, "
            "raise config.sampler.steps or the error in config.task, or try another variance or method of guidance"
        )
    finished = f" What is finished is kept in {kept}, until this run resumes or another moves it aside."
    return f"The chain diverged in case {case}, window {window}: {why}.{finished if kept else ''}"


def furthest(observation: Observation, x: jax.Array) -> str:
    """Which of the observations is the furthest from a state, in units of its error."""
    residual = misfit(observation, observation.operator(x))
    scaled = jax.tree.map(lambda r, v: jnp.sqrt(jnp.mean(r**2 / v)), residual, noise_variance(observation, residual))
    sizes = {jax.tree_util.keystr(path) or "y": float(r) for path, r in jax.tree.leaves_with_path(scaled)}
    if any(isinstance(v, str) for v in jax.tree.leaves(observation.variance)):  # then every residual is one error
        return f"the observations {', '.join(sizes)}"
    worst = max(sizes, key=lambda name: sizes[name] if np.isfinite(sizes[name]) else np.inf)
    return f"the observation {worst} most of all, which is {sizes[worst]:.3g} errors from the start of the chain"


def realism_record(
    of: str,
    trajectories: Iterable[tuple[Float[np.ndarray, "t h w c"], Float[np.ndarray, "h w c"] | None]],
    channels: Sequence[Channel],
    grid: Grid,
    surface_geopotential: Float[np.ndarray, "h w"] | None,
) -> dict[str, str | float]:
    """Size of each diagnostic of `evaluation.realism`, mean over frames and trajectories, by name, level and unit.

    Args:
        of: what the states are, kept under "of".
        trajectories: physical units, frames 6 h apart; and the known frame before the first, if there is one.
        channels: of the states.
        grid: of the states.
        surface_geopotential: m2 s-2; None leaves out what needs the ground.
    """
    found = [realism(x, channels, grid, surface_geopotential, before=before) for x, before in trajectories]
    size = {key: np.abs([each[key] for each in found]) for key in found[0]}
    label = lambda name, level: f"{name}{'' if level is None else f', {level} hPa'} ({units(name)})"
    return {"of": of} | {label(*key): float(np.nanmean(a)) for key, a in size.items() if np.isfinite(a).any()}


def read_report(path: Path) -> dict:
    """What a report.json says already; nothing where there is none.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}. Remove {path.parent} to draw all members anew.") from error


def write_weights(report: Path, case: int, window: int, weights: Weights) -> None:
    """Says in report.json what became of the members of a case that TDS drew."""
    said = {"tds": []} | read_report(report)
    sizes, ancestors = np.asarray(weights.effective_size).tolist(), int(np.unique(weights.ancestors).size)
    said["tds"][case : case + 1] = [{"case": case, "effective_sample_size": sizes, "distinct_ancestors": ancestors}]
    write_bytes(report, f"{json.dumps(said, indent=1)}\n".encode())


def weights_lines(records: list[dict], members: int) -> list[str]:
    """The effective sample size of TDS in the worst case, and a warning where the last one is small."""
    last = min(record["effective_sample_size"][-1] for record in records)
    least = min(min(record["effective_sample_size"]) for record in records)
    lines = [f"TDS: effective sample size {last:.1f} of {members} members at the end, {least:.1f} at the least"]
    if last < members / 4:
        lines.append(
            "Warning: the ensemble is copies of a few members, and its spread means little: raise config.members, "
            "config.sampler.steps or config.guidance.tds.spread, or take another method"
        )
    return lines
