"""How far CG and GMRES can be trusted on the Jacobian of a learned denoiser: guided estimates from true noisy states.

    python -m studies.solver

Windows of the packaged sample are noised to time t, and E[x | x_t, y] by MMPS, with y the means over 30 hours of
experiments/temporal_downscaling.py, is compared with them: the exact one is at least as good as E[x | x_t] at every t.
Errors are RMSE as fractions of that of y itself, repeated, mean over channels. The table is written into
docs/guidance.md.

Hardware: two CPU cores, 4 GB of memory, about 3 minutes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from studies.skill import fill, markdown
from wind_jax import config as configuration
from wind_jax.command import command
from wind_jax.data.forcings import static_forcings
from wind_jax.data.store import TIME_STEP, open_store
from wind_jax.diffusion.guidance import mmps
from wind_jax.embedded import resolve
from wind_jax.experiments import temporal_downscaling
from wind_jax.prior import load_prior
from wind_jax.problems.problem import Setting
from wind_jax.problems.registry import make_problem
from wind_jax.progress import track


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.prior = "embedded"
    c.path = "embedded"
    c.docs = "docs/guidance.md"
    c.cases = 4
    c.times = (0.95, 0.9, 0.8, 0.6, 0.4, 0.2)
    c.iterations = (4, 12)
    return c


def main(argv: list[str]) -> None:
    """Command line: `[--config.key=value ...]`."""
    c = configuration.load(["--config", __file__, *argv])[0]
    prior = load_prior(resolve(c.prior, "prior.npz"))
    statistics, schedule, key = prior.statistics, prior.schedule, jax.random.key(0)
    store = open_store(resolve(c.path, "sample.zarr"), statistics.channels)
    static = static_forcings(store)
    setting = Setting(prior, store, static, None, c.cases, (), key, "nominal")
    problem = make_problem(setting, **temporal_downscaling.get_config().task.to_dict())

    def estimates(x_t, t, inputs, told):
        """By each method, one after the other."""
        denoiser, observation = prior.denoiser(inputs), problem.observe(told)
        yield denoiser(x_t, t)
        for solver in ("cg", "gmres"):
            for iterations in c.iterations:
                yield mmps(denoiser, observation, schedule, iterations, solver)(x_t, t)

    estimate = jax.jit(lambda *args: jnp.concatenate(list(estimates(*args))))
    squares = []
    for case in track(range(c.cases), "cases", unit="case"):
        truth = statistics.normalize(problem.states(case, 0, prior.frames))
        given = statistics.normalize(problem.baseline(case, slice(0, prior.frames))["interpolation"])
        times = store.times[int(problem.starts[case])] + TIME_STEP * np.arange(prior.frames)
        inputs = jnp.asarray(prior.inputs(static, times))
        z = jax.random.normal(jax.random.fold_in(key, case), truth.shape)
        told = jax.tree.map(jnp.asarray, problem.told(case, 0))
        noised = lambda t: schedule.alpha(t) * truth + schedule.sigma(t) * z  # noqa: B023
        found = [np.asarray(estimate(noised(t)[None], jnp.float32(t), inputs, told)) for t in c.times]
        error = np.stack([*found, np.broadcast_to(given, found[0].shape)]) - truth
        squares.append((error**2).mean((2, 3, 4)))  # (times, methods, channels)
    rmse = np.sqrt(np.mean(squares, axis=0))
    relative = (rmse[:-1] / rmse[-1]).mean(-1)
    headings = ["E[x given x_t]", *(f"{s}, {i}" for s in ("CG", "GMRES") for i in c.iterations)]
    body = [[f"{t:g}", *(f"{value:.2f}" for value in row)] for t, row in zip(c.times, relative, strict=True)]
    text = markdown(["t", *headings], body)
    fill(c.docs, text, "solvers")
    print(text)


if __name__ == "__main__":
    command(main)
