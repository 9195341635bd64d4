"""The Python of README.md and docs/ runs as it is printed, and gives what the text says."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import wind_jax

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "docs/library.md"]
BLOCKS = [
    (page, code) for page in PAGES for code in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
]


def run(code):
    """As a user would, without the strictness of the tests."""
    names = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(code, "docs", "exec"), names)
    return names


@pytest.mark.parametrize(("page", "code"), BLOCKS, ids=[f"{page}-{i}" for i, (page, _) in enumerate(BLOCKS)])
def test_a_block_is_short(page, code):
    assert len(code.splitlines()) < 25


def test_samplers_with_somebody_elses_denoiser():
    x = run(next(code for _, code in BLOCKS if "covariance" in code))["x"]
    np.testing.assert_allclose(x.mean(0), [2.0, 1.6], atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("code", [code for _, code in BLOCKS if "load_prior" in code])
def test_blocks_with_the_packaged_prior(code):
    names = run(code)
    ensemble, prior = np.asarray(names["ensemble"]), names["prior"]
    assert ensemble.shape[1:] == prior.shape
    temperature = ensemble[..., [c.key for c in prior.statistics.channels].index("temperature_850")]
    assert 180 < temperature.min() < temperature.max() < 340
    if "land_mean" in names:
        for member in ensemble:
            np.testing.assert_allclose(names["land_mean"](member), names["warmer"].y, atol=0.5)


def test_exports_are_what_the_pages_use_and_what_goes_with_it():
    assert len(set(wind_jax.__all__)) == len(wind_jax.__all__)
    assert set(re.findall(r"wj\.(\w+)", "".join(code for _, code in BLOCKS))) <= set(wind_jax.__all__)
