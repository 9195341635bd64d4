"""Test session: eight virtual CPU devices, strict promotion, runtime checks of shapes and types, fixtures.

`pytest -m device` leaves the platform alone and runs on the accelerator instead.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Both are read when jax or matplotlib is first imported, so they come before every import below. Tests compile much and
# compute little: machine code that is not optimised takes half the time, and the program's layout is the same.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
).strip()
os.environ["MPLBACKEND"] = "agg"

import jax
import pytest
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

install_import_hook("wind_jax", "beartype.beartype")

collect_ignore_glob = ["*/conftest.py"]  # two of one name are no modules to collect doctests from


def pytest_configure(config: pytest.Config) -> None:
    if "device" not in config.option.markexpr.replace("not device", ""):
        jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".pytest_cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _finder(folder: Path) -> Callable[[str], Path]:
    def find(name: str) -> Path:
        path = folder / name
        if not path.exists():
            pytest.skip(f"{name} is not in ../{path.parent.relative_to(ROOT.parent)}")
        return path

    return find


@pytest.fixture(scope="session")
def reference() -> Callable[[str], Path]:
    """File name -> path of values that other implementations produced; skips the test where it is absent."""
    return _finder(SHARED / "reference")


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """File name -> path of a file of real data; skips the test where it is absent."""
    return _finder(SHARED / "data")


@pytest.fixture
def x64() -> Iterator[None]:
    """Float64 inside the test."""
    with jax.enable_x64(True):
        yield
