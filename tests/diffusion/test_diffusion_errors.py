"""Bad input is refused by a ValueError that names it."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wind_jax.diffusion.denoiser import make_denoiser
from wind_jax.diffusion.guidance import guide
from wind_jax.diffusion.loss import Objective, Patterns, Times, draw_times, loss_weights
from wind_jax.diffusion.samplers import ddim, initial, member_keys, sample
from wind_jax.diffusion.schedule import rectified, time_grid
from wind_jax.diffusion.solve import SOLVERS
from wind_jax.tasks.observation import Observation

KEY = jax.random.key(0)
X = jnp.zeros((2, 3, 2, 2, 1))
OBSERVATION = Observation(lambda x: x[0], jnp.zeros((2, 2, 1)), 1.0)
CHANNELS = [SimpleNamespace(key="2m_temperature", level=None)]
STATISTICS = SimpleNamespace(std=np.ones(1), difference_std=np.ones(1))


def identity(x_t, t):
    return x_t


CASES = {
    "steps=0": lambda: time_grid(0),
    "start=1.5": lambda: time_grid(4, start=1.5),
    "give frames": lambda: time_grid(4, known=(0,)),
    r"\[5\] lie outside a video of 3": lambda: time_grid(4, frames=3, known=(0, 5)),
    "prediction 'x1'": lambda: make_denoiser(identity, rectified(), "x1"),
    "independent=0.5": lambda: draw_times(KEY, 2, 3, Objective(patterns=Patterns(0.5, 0.0, 0.0))),
    "frames=1": lambda: draw_times(KEY, 2, 1, Objective(patterns=Patterns(0.0, 0.0, 1.0))),
    "rain": lambda: loss_weights(np.ones(2), CHANNELS, STATISTICS, "paper", {"rain": 1.0}),
    "got 1.5": lambda: ddim(1.5),
    "eta=0.5 draws": lambda: sample(identity, X, time_grid(2), rectified(), ddim(0.5)),
    r"got \(3, 2\)": lambda: sample(identity, X, time_grid(2, frames=2), rectified()),
    r"from 0.0 to 1.0": lambda: sample(identity, X, np.array([0.0, 1.0]), rectified()),
    "weighting 'snr'": lambda: Objective(weighting="snr").check(3),
    '"logit_normal" with a positive spread': lambda: Objective(times=Times("logit_normal", 0.0, 0.0)).check(3),
    "channel weights 'equal'": lambda: loss_weights(np.ones(2), CHANNELS, STATISTICS, "equal"),
    "give known": lambda: initial(member_keys(KEY, 2), X.shape[1:], np.array([0.0, 0.9, 0.9]), rectified()),
    "'dpm'": lambda: guide(identity, OBSERVATION, rectified(), "dpm"),
    r"\['scale'\]": lambda: guide(identity, OBSERVATION, rectified(), "mmps", scale=1.0),
    "'lu'": lambda: guide(identity, OBSERVATION, rectified(), solver="lu"),
    "MMPS needs at least one iteration": lambda: guide(identity, OBSERVATION, rectified(), iterations=0),
    r"\(2, 2, 1\), but y has \(4,\)": lambda: guide(identity, OBSERVATION._replace(y=jnp.zeros(4)), rectified())(
        X, 0.5
    ),
    "solver needs at least one iteration, got 0": lambda: SOLVERS["cg"](identity, X, 0),
    "solver needs at least one iteration, got -1": lambda: SOLVERS["gmres"](identity, X, -1),
}


@pytest.mark.parametrize("message", CASES)
def test_refused(message):
    with pytest.raises(ValueError, match=message):
        CASES[message]()
