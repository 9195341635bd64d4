"""The layout block of docs/architecture.md is the order of imports; these tests hold the code to it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "wind_jax"
ENTRY_POINTS = {"config.py", "train.py", "infer.py", "evaluate.py"}
# Distribution -> the only modules that may import it.
CONFINED = {
    "ml_collections": ENTRY_POINTS,
    "absl": ENTRY_POINTS,
    "matplotlib": ENTRY_POINTS | {f"evaluation/{name}.py" for name in ("plots", "animation", "viewer")},
    "orbax": {"training/checkpoint.py"},
    "jcm": {"data/speedy.py", "data/speedy_warming.py"},
    "apache_beam": {"data/pipeline.py"},
    "xarray_beam": {"data/pipeline.py"},
    "torch": {"model/convert.py"},
}
TEXT = {".py", ".md", ".sh", ".toml", ".yaml", ".yml", ""}
# Spelled without their slashes, or this file would name the paths it looks for.
MACHINE_FOLDERS = "root|home|work|Users|mnt|scratch|var/tmp"


def layout(text: str) -> list[str]:
    """Modules in the order of the layout block, as paths below `wind_jax/`."""
    block = text.split("## Layout")[1].split("\n##")[0]
    package = re.search(r"^ {4}wind_jax/\n((?: {6}.*\n)+)", block, re.MULTILINE)
    assert package, "docs/architecture.md has no layout block that starts with wind_jax/"
    modules, folder = [], ""
    for line in package[1].splitlines():
        if line.startswith(" " * 8) and not folder:
            raise AssertionError(f"this line of the layout is in no folder: {line!r}")
        if not line.startswith(" " * 8):
            opened = re.match(r" {6}(\w+/)", line)
            folder = opened[1] if opened else ""
        names = re.match(r"\s+((?:\w+\.py\s*)*)", line)[1].split()
        modules += [folder + name for name in names]
    return modules


def dotted(module: str) -> str:
    return "wind_jax." + module.removesuffix(".py").replace("/", ".")


def imported(source: str, module: str, known: set[str]) -> set[str]:
    """Dotted names that `module` imports anywhere in it; a module taken from a package counts as itself."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = dotted(module).split(".")[: -node.level]
                base = ".".join([*parent, *filter(None, [base])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                found.add(submodule if submodule in known else base)
    return found


def violations(source: str, module: str, order: list[str]) -> list[str]:
    """What `module` imports and must not."""
    rank = {dotted(name): i for i, name in enumerate(order)}
    if dotted(module) not in rank:
        return [f"{module} is not in the layout"]
    bad = []
    for name in sorted(imported(source, module, set(rank))):
        top = name.split(".")[0]
        if name in rank and rank[name] >= rank[dotted(module)]:
            bad.append(f"{module} imports {name}, which is not above it in the layout")
        if module not in CONFINED.get(top, {module}):
            bad.append(f"{module} imports {top}, which only {', '.join(sorted(CONFINED[top]))} may")
    return bad


MODULES = sorted(str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")
ORDER = layout((ROOT / "docs" / "architecture.md").read_text())


def test_every_module_is_in_the_layout_and_the_reverse():
    assert sorted(ORDER) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_upwards(module):
    assert violations((PACKAGE / module).read_text(), module, ORDER) == []


def test_packages_import_none_of_their_modules():
    for init in PACKAGE.glob("*/**/__init__.py"):  # the topmost names what users of the library need
        names = imported(init.read_text(), str(init.relative_to(PACKAGE)), set())
        assert not [name for name in names if name.startswith("wind_jax")], init


@pytest.mark.parametrize("module", MODULES)
def test_names(module):
    source = (PACKAGE / module).read_text()
    assert Path(module).name not in {"utils.py", "helpers.py", "misc.py", "common.py"}
    assert re.findall(r"^\s*class (\w+V\d+)\b", source, re.MULTILINE) == []


def test_no_path_of_one_machine():
    pattern = re.compile(rf"(?<![\w.~}}/:*-])/({MACHINE_FOLDERS})/")
    folders = ["wind_jax", "experiments", "studies", "launch", "benchmarks", "tests", "docs", ".ci"]
    files = [p for p in ROOT.iterdir() if p.is_file() and p.name != ".git"]  # a worktree's says where its clone is
    files += [p for f in folders for p in (ROOT / f).rglob("*")]
    binary = {"__pycache__", "sample.zarr"}
    text = [p for p in files if p.is_file() and p.suffix in TEXT and not binary.intersection(p.parts)]
    assert len(text) > len(MODULES)
    found = [f"{p.relative_to(ROOT)}: {m[0]}" for p in text if (m := pattern.search(p.read_text()))]
    assert found == []
    assert pattern.search('open("' + "/".join(["", "home", "someone", 'file.py")']))


@pytest.mark.parametrize(
    ("module", "source", "culprit"),
    [
        ("data/store.py", "from wind_jax.prior import Prior", "wind_jax.prior"),
        ("data/store.py", "def f():\n    from wind_jax import prior", "wind_jax.prior"),
        ("data/store.py", "from . import windows", "wind_jax.data.windows"),
        ("data/store.py", "from ..model.uvit import UViT", "wind_jax.model.uvit"),
        ("sphere.py", "import wind_jax.progress as p", "wind_jax.progress"),
        ("sphere.py", "import orbax.checkpoint as ocp", "orbax"),
        ("evaluation/metrics.py", "import matplotlib.pyplot as plt", "matplotlib"),
    ],
)
def test_a_wrong_import_is_seen(module, source, culprit):
    assert [culprit in line for line in violations(source, module, ORDER)] == [True]
