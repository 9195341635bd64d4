"""wind_jax: zero-shot atmospheric modelling with one frozen video-diffusion prior."""
