"""Experiment configurations: a Python file with `get_config()`, changed by name on the command line, locked.

python -m wind_jax.infer --config experiments/forecast.py --config.members=16 --config.data.path=gs://...
"""

import ast
import difflib
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict


def load(argv: Sequence[str], switches: Sequence[str] = ()) -> tuple[ConfigDict, set[str]]:
    """Reads `--config FILE`, any number of `--config.key=value`, and switches such as `--dry_run`.

    Args:
        argv: the arguments, without the name of the program.
        switches: names of the flags without a value that the command knows.

    Returns:
        The configuration, locked, and the switches that were given.

    Raises:
        ValueError: an unknown argument or key (with the closest known ones), a value of another type than the
            default's, or a file that is missing or defines no configuration.
    """
    path, overrides, given, rest = None, [], set(), list(argv)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag.lstrip("-") in switches and flag.startswith("--") and not equals:
            given.add(flag.lstrip("-"))
            continue
        if flag != "--config" and not flag.startswith("--config."):
            known = ["--config FILE", "--config.KEY=VALUE", *(f"--{name}" for name in switches)]
            raise ValueError(f"Unknown argument {flag!r}; expected {', '.join(known)}.")
        if not equals:
            if not rest:
                raise ValueError(f"{flag} needs a value.")
            value = rest.pop(0)
        if flag == "--config":
            path = value
        else:
            overrides.append((flag.removeprefix("--config."), value))
    if path is None:
        raise ValueError("No configuration given; expected --config FILE, such as --config experiments/sparse_obs.py.")
    config = read(path)
    for key, text in overrides:
        _override(config, key, text)
    return config.lock(), given


def read(path: str) -> ConfigDict:
    """Runs `get_config()` of the experiment file `path`.

    Raises:
        ValueError: no such file, or it has no `get_config`.
    """
    if not os.path.isfile(path):
        raise ValueError(f"The experiment file {path!r} does not exist.")
    spec = importlib.util.spec_from_file_location(f"experiment_{os.path.basename(path)[:-3]}", path)
    if spec is None:
        raise ValueError(f"The experiment file {path!r} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"The experiment file {path!r} defines no get_config().")
    return module.get_config()


def to_json(config: ConfigDict) -> str:
    """The configuration as JSON text; a tuple becomes a list, a function (an operator of the user's) its name."""
    return json.dumps(config.to_dict(), indent=2, default=lambda f: getattr(f, "__qualname__", repr(f)))


def claim(folder: Path, c: ConfigDict, *content: str) -> None:
    """Makes a folder that of one configuration, kept in its `config.json`, so that what it holds can be gone on with.

    Args:
        folder: created where it does not exist.
        c: configuration.
        content: digests of what the configuration only names.

    Raises:
        ValueError: the folder is another configuration's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark, text = folder / "config.json", json.dumps({**json.loads(to_json(c)), "content": content}, indent=2) + "\n"
    if mark.exists() and mark.read_text() != text:
        raise ValueError(f"{folder} holds a run of another configuration, see config.json: give another workdir.")
    mark.write_text(text)


def _override(config: ConfigDict, key: str, text: str) -> None:
    *parents, leaf = key.split(".")
    node: Any = config
    for name in [*parents, leaf]:
        if not isinstance(node, ConfigDict) or name not in node:
            known = _keys(config)
            close = difflib.get_close_matches(key, known, n=3, cutoff=0.5) or known
            raise ValueError(f"Unknown configuration key {key!r}; expected one such as {', '.join(close)}.")
        parent, node = node, node[name]
    if isinstance(node, ConfigDict):
        expected = (
            f"expected one of {', '.join(known)}" if (known := _keys(node, key)) else "the experiment file fills it"
        )
        raise ValueError(f"Configuration key {key!r} is a group; {expected}.")
    try:
        parent[leaf] = text if isinstance(node, str) else _literal(text)
    except TypeError:
        kind = type(node).__name__
        raise ValueError(f"Configuration key {key!r} is of type {kind}, got {text!r} (default {node!r}).") from None


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for name, value in config.items():
        full = f"{prefix}.{name}" if prefix else name
        names += _keys(value, full) if isinstance(value, ConfigDict) else [full]
    return names
