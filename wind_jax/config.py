"""Configurations: an experiment file with `get_config()`, laid over its defaults, changed on the command line, checked.

    wind-jax infer --config forecast --config.members=16 --config.data.path=gs://...

`wind_jax/experiments/defaults.py` states every key: its default, its meaning and its range.
"""

import ast
import difflib
import importlib.util
import json
import math
import numbers
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from wind_jax import experiments
from wind_jax.experiments import defaults
from wind_jax.experiments.defaults import Rule
from wind_jax.usage import flat, keys

KINDS = {"inference": "infer", "training": "train"}
"""The kinds of configurations, and the commands that take them."""
FOLDER = Path(experiments.__file__).parent
NOUNS = {bool: "true or false", int: "a whole number", float: "a number", tuple: "a tuple", dict: "a mapping"}


def load(argv: Sequence[str], kind: str | None = None, switches: Sequence[str] = ()) -> tuple[ConfigDict, set[str]]:
    """Reads `--config NAME|FILE`, any number of `--config.key=value`, and switches such as `--dry_run`.

    `--help` prints all of these and ends the program.

    Args:
        argv: the arguments, without the name of the program.
        kind: "inference" or "training": what the command takes. None: of a study, whose keys are its own.
        switches: names of the flags without a value that the command knows.

    Returns:
        The configuration, complete and locked, and the switches that were given.

    Raises:
        ValueError: an unknown argument or key (with the closest known ones), a value of a wrong type or out of range,
            or a file that is missing, fails or defines no configuration of this kind.
    """
    path, overrides, given, rest = None, [], set(), list(argv)
    if "--help" in rest or "-h" in rest:
        print(usage(kind, switches))
        raise SystemExit(0)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag.lstrip("-") in switches and flag.startswith("--") and not equals:
            given.add(flag.lstrip("-"))
            continue
        if flag != "--config" and not flag.startswith("--config."):
            known = ["--config NAME|FILE", "--config.KEY=VALUE", *(f"--{name}" for name in switches), "--help"]
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
        raise ValueError(
            f"No configuration given; expected --config FILE, or --config NAME with one of {', '.join(names())}."
        )
    return read(path, kind, overrides).lock(), given


def read(path: str, kind: str | None = None, overrides: Sequence[tuple[str, str]] = ()) -> ConfigDict:
    """The configuration of an experiment, complete and checked.

    Args:
        path: name of a packaged experiment, or path of a file.
        kind: as of `load`.
        overrides: keys and texts of their values.

    Raises:
        ValueError: as of `load`.
    """
    config = _run(find(path)).to_dict()
    if kind is None:
        return _complete(config, config, overrides, lambda key: Rule())
    other = next(name for name in KINDS if name != kind)
    if theirs := sorted(set(config) & set(every_default(other)) - set(every_default(kind))):
        raise ValueError(
            f"{path} is a configuration for {other}, with the keys {', '.join(theirs)}: it is for "
            f"wind-jax {KINDS[other]}, and wind-jax {KINDS[kind]} takes configurations for {kind}."
        )
    return _complete(every_default(kind, config, overrides), config, overrides, defaults.rule)


def every_default(
    kind: str, config: Mapping[str, Any] | None = None, overrides: Sequence[tuple[str, str]] = ()
) -> dict[str, Any]:
    """The defaults of a kind; of inference those of the task that a configuration or its overrides name.

    Raises:
        ValueError: an unknown task.
    """
    if kind == "training":
        return defaults.training().to_dict()
    task = (config or {}).get("task")
    named = [task["name"]] if isinstance(task, Mapping) and "name" in task else []
    named += [text for key, text in overrides if key == "task.name"]
    return defaults.inference(*map(str, named[-1:])).to_dict()


def names() -> list[str]:
    """The packaged experiments."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "defaults"))


def find(path: str) -> str:
    """The file of an experiment.

    Args:
        path: name of a packaged experiment, or path of a file.

    Raises:
        ValueError: there is none.
    """
    if path in names():
        return str(FOLDER / f"{path}.py")
    if not os.path.isfile(path):
        close = difflib.get_close_matches(path, names(), n=3, cutoff=0.5) or names()
        raise ValueError(
            f"The experiment {path!r} does not exist; expected the path of a file, or a name such as "
            f"{', '.join(close)}."
        )
    return path


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


def usage(kind: str | None, switches: Sequence[str] = ()) -> str:
    """What `--help` prints: the arguments, the packaged experiments, and every key with its default and meaning.

    Args:
        kind: as of `load`.
        switches: as of `load`.
    """
    flags = "".join(f" [--{name}]" for name in switches)
    if kind is None:
        return f"usage: [--config.KEY=VALUE ...]{flags}\n\nThe keys are those of get_config() in the study's file."
    of_kind = [name for name in names() if _kind(_run(find(name))) == kind]
    return (
        f"usage: wind-jax {KINDS[kind]} --config NAME|FILE [--config.KEY=VALUE ...]{flags}\n"
        f"       python -m wind_jax.{KINDS[kind]} ...\n\n"
        f"NAME is one of {', '.join(of_kind)}.\n"
        "FILE is Python; its get_config() returns an ml_collections.ConfigDict of what differs from the defaults.\n"
        "VALUE is text, or a number, tuple or mapping as Python or JSON writes it.\n\n"
        f"Keys and their defaults:\n\n{keys(kind)}"
    )


def _kind(config: ConfigDict) -> str:
    """The kind whose keys a configuration has."""
    return max(KINDS, key=lambda kind: len(set(config) & set(every_default(kind))))


def _run(path: str) -> ConfigDict:
    """What `get_config()` of a file returns.

    Raises:
        ValueError: the file fails, has no `get_config`, or that returns something else.
    """
    spec = importlib.util.spec_from_file_location("experiment", path)
    if spec is None:
        raise ValueError(f"The experiment file {path!r} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config() if hasattr(module, "get_config") else None
    except Exception as error:  # of the user's code: any
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        where = f", line {lines[-1]}" if lines else ""
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"The experiment file {path!r}{where} failed with {said}") from error
    if not hasattr(module, "get_config"):
        raise ValueError(f"The experiment file {path!r} defines no get_config().")
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"get_config() of {path!r} returned {type(config).__name__}, expected an ml_collections.ConfigDict."
        )
    return config


def _complete(
    default: Mapping[str, Any],
    config: Mapping[str, Any],
    overrides: Sequence[tuple[str, str]],
    rule: Callable[[str], Rule],
) -> ConfigDict:
    """The defaults with what a configuration and then its overrides change, checked."""
    values = _merge(default, config)
    for key, text in overrides:
        _override(default, values, key, text)
    return ConfigDict(_check(default, values, rule))


def _is_group(default: Any) -> bool:
    """Whether a default is a group of keys; an empty one is a tree, whose keys are an experiment's."""
    return isinstance(default, Mapping) and len(default) > 0


def _merge(values: Mapping[str, Any], changes: Any, prefix: str = "") -> dict[str, Any]:
    """The values with the changes in their place; a group is changed key by key, a tree as a whole."""
    if not isinstance(changes, Mapping):
        known = ", ".join(flat(values, prefix))
        raise ValueError(f"config.{prefix[:-1]} is {changes!r}, expected a group of keys: {known}.")
    out = dict(values)
    for name, value in changes.items():
        key = f"{prefix}{name}"
        if name not in values:
            raise _unknown(key, flat(values, prefix))
        out[name] = _merge(values[name], value, f"{key}.") if _is_group(values[name]) else value
    return out


def _override(default: Mapping[str, Any], values: dict[str, Any], key: str, text: str) -> None:
    """Changes the value of a key to what a text says."""
    *groups, name = key.split(".")
    node, fixed = values, default
    for group in groups:
        node = node.get(group) if isinstance(node, dict) else None
        fixed = fixed.get(group) if _is_group(fixed) else {}
    if not isinstance(node, dict) or (_is_group(fixed) and name not in fixed):
        raise _unknown(key, flat(values))
    old = fixed[name] if _is_group(fixed) else None
    value = text if isinstance(old, str) and text != "None" else _literal(text)
    node[name] = _merge(node[name], value, f"{key}.") if _is_group(old) else value


def _check(
    default: Mapping[str, Any], values: Mapping[str, Any], rule: Callable[[str], Rule], prefix: str = ""
) -> dict[str, Any]:
    """The values, each as the type of its default has it.

    Raises:
        ValueError: a value of a wrong type or out of range.
    """
    out = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if _is_group(default[name]):
            out[name] = _check(default[name], value, rule, f"{key}.")
        else:
            out[name] = _checked(key, default[name], value, rule(key))
    return out


def _checked(key: str, default: Any, value: Any, rule: Rule) -> Any:
    try:
        typed = _typed(default, value, rule)
        if rule.holds(typed):
            return typed
    except (TypeError, ValueError, OverflowError):
        pass
    noun = NOUNS.get(type(default), "" if rule.expected else "text")
    noun += " or None" if rule.none else " or a mapping of names to numbers" if rule.tree else ""
    expected = ", ".join(filter(None, [noun, rule.expected]))
    raise ValueError(f"config.{key} is {value!r}, expected {expected} (default {default!r}).")


def _typed(default: Any, value: Any, rule: Rule) -> Any:
    """A value as the type of its default has it.

    Raises:
        TypeError, ValueError, OverflowError: there is none such.
    """
    kind, is_number = type(default), not isinstance(value, bool)
    if kind not in (*NOUNS, str) or (value is None and rule.none):
        return value  # of a default that is None, or a function
    if isinstance(value, Mapping) and rule.tree:
        return {str(name): _typed(default, leaf, rule) for name, leaf in value.items()}
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, numbers.Integral) and is_number:
        return int(value)
    if kind is float and isinstance(value, numbers.Real) and is_number and math.isfinite(value):
        return float(value)
    if kind is str and isinstance(value, str) and "\0" not in value:
        return value
    if kind is tuple and isinstance(value, tuple | list):
        one_type = len(set(map(type, default))) == 1
        return tuple(_typed(default[0], each, rule) if one_type else each for each in value)
    if kind is dict and isinstance(value, Mapping):
        return {str(name): leaf for name, leaf in value.items()}
    raise TypeError(value)


def _unknown(key: str, known: Mapping[str, Any]) -> ValueError:
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.5) or list(known)
    return ValueError(f"Unknown configuration key {key!r}; expected one such as {', '.join(close)}.")


def _literal(text: str) -> Any:
    """A value as Python or JSON writes it; text where it is neither."""
    for parse in (ast.literal_eval, json.loads):
        try:
            return parse(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            pass
    return text
