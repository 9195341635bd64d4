"""Commands end bad input with one paragraph."""

import importlib
import runpy
import sys

import pytest

from wind_jax.__main__ import COMMANDS, script
from wind_jax.command import command


@pytest.mark.parametrize(
    ("error", "status"), [(None, 0), (ValueError, 2), (ImportError, 2), (OSError, 1), (FloatingPointError, 1)]
)
def test_what_ends_a_command(monkeypatch, capsys, error, status):
    def run(argv):
        if error:
            raise error(f"Unknown {argv}.")

    monkeypatch.setattr(sys, "argv", ["program", "x"])
    with pytest.raises(SystemExit) as ended:
        command(run)
    assert ended.value.code == status
    assert capsys.readouterr().err == ("error: Unknown ['x'].\n" if error else "")


def test_a_defect_shows_where_it_is():
    with pytest.raises(TypeError):
        command(lambda argv: len(1))


@pytest.mark.parametrize(
    ("module", "arguments", "named"),
    [
        ("data.speedy", "--out x.zarr --days 0", "days 0"),
        ("data.climatology", "--data nowhere.zarr --out x.npz", "nowhere.zarr"),
        ("evaluation.kriging", "--data nowhere.zarr --out x.json", "nowhere.zarr"),
        ("evaluation.report", "nowhere", "nowhere"),
        ("data.prepare", "--data nowhere.zarr --out x.zarr", ""),  # or that Beam is not installed
        ("model.convert", "nowhere.pt out", ""),  # or PyTorch
        ("evaluate", "--forecast nowhere.zarr --truth nowhere.zarr", "nowhere.zarr"),
        ("infer", "--config nowhere.py", "nowhere.py"),
        ("train", "--config nowhere.py", "nowhere.py"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_every_command_ends_so(module, arguments, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["program", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"wind_jax.{module}", run_name="__main__")
    assert ended.value.code in (1, 2)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert named in last


@pytest.mark.parametrize("name", COMMANDS)
def test_the_console_script_runs_every_program(monkeypatch, name):
    called = []
    module = importlib.import_module(COMMANDS[name][0])
    monkeypatch.setattr(module, "main", called.append)
    monkeypatch.setattr(sys, "argv", ["wind-jax", name, "--out", "x"])
    with pytest.raises(SystemExit) as ended:
        script()
    assert ended.value.code == 0
    assert called == [["--out", "x"]]


@pytest.mark.parametrize(("arguments", "named"), [([], "''"), (["nowcast"], "'nowcast'")])
def test_the_console_script_names_its_commands(monkeypatch, capsys, arguments, named):
    monkeypatch.setattr(sys, "argv", ["wind-jax", *arguments])
    with pytest.raises(SystemExit) as ended:
        script()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: Unknown command {named}: expected one of infer, train, ")
    monkeypatch.setattr(sys, "argv", ["wind-jax", "--help"])
    with pytest.raises(SystemExit) as ended:
        script()
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)
