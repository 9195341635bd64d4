"""wind_jax: zero-shot atmospheric modelling with one frozen video-diffusion prior.

What a user of the library needs: a prior and data, observations, guidance, samplers. Everything else is in the modules
that docs/architecture.md lists.
"""

from wind_jax.data.forcings import static_forcings
from wind_jax.data.store import open_store
from wind_jax.diffusion.guidance import guide
from wind_jax.diffusion.likelihood import student_t
from wind_jax.diffusion.posterior import sample_posterior
from wind_jax.diffusion.samplers import ddim, ddpm, euler, heun, initial, member_keys, predictor_corrector, sample
from wind_jax.diffusion.schedule import cosine, rectified, time_grid, ve, vp
from wind_jax.observations.gridded import gridded
from wind_jax.observations.observation import Observation, check, compose, likelihood_grad, observe
from wind_jax.prior import Prior, load_prior

__all__ = [
    "Observation",
    "Prior",
    "check",
    "compose",
    "cosine",
    "ddim",
    "ddpm",
    "euler",
    "gridded",
    "guide",
    "heun",
    "initial",
    "likelihood_grad",
    "load_prior",
    "member_keys",
    "observe",
    "open_store",
    "predictor_corrector",
    "rectified",
    "sample",
    "sample_posterior",
    "static_forcings",
    "student_t",
    "time_grid",
    "ve",
    "vp",
]
