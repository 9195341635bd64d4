"""A specialist: the prior's architecture trained from scratch for one downscaling task, to measure the prior against.

    x_hat = guess + network(guess - climatology, 0),  guess = interpolation of y = A(x)

It is told what the zero-shot posterior is told, and learns the mean of p(x | y) by squared error; it gives one field,
no ensemble.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from wind_jax.data.normalize import Statistics
from wind_jax.evaluation.baselines import refined, upsampled
from wind_jax.evaluation.metrics import cell_mean
from wind_jax.observations.twins import as_fields, check_means, means
from wind_jax.prior import Prior, graph, informed
from wind_jax.sphere import Grid, area_weights, coarsening

Video = Float[Array, "t h w c"]


def first_guess(
    task: Mapping[str, object], statistics: Statistics, grid: Grid, frames: int
) -> Callable[[Video], Video]:
    """The map x -> interpolation of A(x), model units, of one window (t, h, w, c).

    Args:
        task: {"name": "spatial_downscaling", "factor": ...} or {"name": "temporal_downscaling", "mean_over": ...}.
        statistics: of the channels.
        grid: of x.
        frames: of a window.

    Raises:
        ValueError: another task or other options.
    """
    channels = statistics.channels
    match dict(task):
        case {"name": "spatial_downscaling", "factor": int(factor), **others} if not others:
            cells, every = coarsening(grid, factor), 1
            interpolate = lambda y: upsampled(y, cells.grid, grid, channels)
        case {"name": "temporal_downscaling", "mean_over": int(n), **others} if not others:
            cells, every = None, n
            check_means(frames, every)
            interpolate = lambda y: refined(y, every, channels)
        case other:
            raise ValueError(
                'A specialist is for {"name": "spatial_downscaling", "factor": N} or {"name": "temporal_downscaling", '
                f'"mean_over": N}}, got {other}.'
            )

    def guess(x):
        y = means(statistics.denormalize(x), channels, target=cells, every=every)
        return statistics.normalize(interpolate(as_fields(y, channels)))

    return guess


def estimate(
    network: Callable[[Array, Array], Array], guess: Float[Array, "b t h w c"], mean: Float[ArrayLike, "..."] = 0.0
) -> Float[Array, "b t h w c"]:
    """What the specialist makes of the interpolated y; all in model units.

    Args:
        network: (x_t, t) -> out, of the specialist.
        guess: from `first_guess`.
        mean: climatology, as of `Prior.mean`.
    """
    return guess + network(guess - mean, jnp.zeros(guess.shape[:2], guess.dtype))


def specialist_loss(
    x_hat: Float[Array, "b t h w c"], x: Float[Array, "b t h w c"], weights: Float[Array, "h 1 c"]
) -> Float[Array, ""]:
    """Weighted squared error, with the weights of the prior's own loss."""
    return jnp.mean(weights[None, None] * (x_hat - x) ** 2)


def specialist_scores(
    x_hat: Float[Array, "b t h w c"], guess: Float[Array, "b t h w c"], x: Float[Array, "b t h w c"], grid: Grid
) -> dict[str, Array]:
    """`relative_rmse`: the specialist's error as a fraction of the interpolation's, mean over channels."""
    mse = lambda a: cell_mean(jnp.moveaxis(a - x, -1, 0) ** 2, area_weights(grid)).mean((1, 2))
    return {"relative_rmse": jnp.mean(jnp.sqrt(mse(x_hat) / mse(guess)))}


def make_specialist_validation(
    specialist: Prior, guess: Callable[[Video], Video], weights: Float[Array, "h 1 c"]
) -> Callable[..., dict[str, jax.Array]]:
    """Compiled validation (params, batch, key) -> metrics of one batch of held-out windows: `loss`, `relative_rmse`."""

    graphdef = graph(specialist.config)

    @jax.jit
    def validate(params, batch, key):
        del key  # nothing is drawn
        x, first = batch["x"], jax.vmap(guess)(batch["x"])
        network = informed(graphdef, params, batch["inputs"])
        x_hat = estimate(network, first, specialist.mean(batch["inputs"]))
        return {"loss": specialist_loss(x_hat, x, weights)} | specialist_scores(x_hat, first, x, specialist.grid)

    return validate
