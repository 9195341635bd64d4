"""The wheel has what a user needs: its commands, its experiments, the packaged prior and sample."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "wind_jax", "experiments")

pytestmark = pytest.mark.slow


def call(*line, status=0):
    """Runs a command outside of the checkout, as a user without our test settings would, and returns what it said."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    done = subprocess.run(line, cwd=line[0].parent, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """Folder of the programs of an environment that has our wheel, and sees the packages that it needs in this one."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "source" / name, **({"symlinks": True} if copy is shutil.copytree else {}))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "dist", folder / "source"]
    subprocess.run([*pip, *build], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (wheel,) = (folder / "dist").iterdir()
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    # Last, or pip would take the package that is installed there for the one to install.
    (own,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (own / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


def test_an_experiment_by_its_name(scripts):
    file = call(scripts / "python", "-c", "import wind_jax.experiments as e; print(e.__file__)").strip()
    assert Path(file).is_relative_to(scripts.parent)
    arguments = ("--config", "sparse_obs", "--config.members=2", "--config.sampler.steps=3")
    call(scripts / "wind-jax", "infer", *arguments)
    run = scripts / "runs" / "sparse_obs"
    assert {"posterior.zarr", "scores.json", "report.html"} <= {path.name for path in run.iterdir()}


def test_help_and_bad_input(scripts):
    assert "sparse_obs" in call(scripts / "wind-jax", "infer", "--help")
    assert "task.fraction" in call(scripts / "python", "-m", "wind_jax.infer", "--help")
    for argument in ("--config=sparse_ob", "--config.members=2"):
        assert call(scripts / "wind-jax", "infer", argument, status=2).startswith("error: ")
