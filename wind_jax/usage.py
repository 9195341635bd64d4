"""Every key of a configuration as `--help` shows it: default and meaning, as `experiments/defaults.py` states them."""

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any

from wind_jax.experiments import defaults

WIDTH, MEANINGS_FROM = 120, 44  # columns


def keys(kind: str) -> str:
    """The keys of "inference" or "training", a line or more each; those of a task under its name."""
    function = getattr(defaults, kind)
    tree = function().to_dict()
    if kind == "training":
        return "\n".join(_lines(tree, function))
    tree["task"] = {"name": tree["task"]["name"]}  # the rest of it depends on the task
    lines = _lines(tree, function)
    for name, task in defaults.TASKS.items():
        lines += ["", f"with task.name = {name!r}: {inspect.getdoc(task)}", *_lines({"task": task().to_dict()}, task)]
    return "\n".join(lines)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a configuration by dotted key; an empty group is a value.

    >>> flat({"mesh": {"data": -1}, "lexicon": {}})
    {'mesh.data': -1, 'lexicon': {}}
    """
    out = {}
    for name, value in tree.items():
        inner = isinstance(value, Mapping) and value
        out |= flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return out


def _lines(tree: Mapping[str, Any], function: Callable) -> list[str]:
    """Lines of the keys of a tree, in the order in which a function sets them."""
    values, own = flat(tree), _comments(function)
    comments = _comments(defaults.mesh) | _comments(defaults.sparse_obs) | own
    lines = []
    for key in sorted(values, key=lambda key: _place(key, list(own))):
        group, _, name = key.rpartition(".")
        meaning = comments.get(key) or _arguments(defaults.OPTIONS.get(group)).get(name, "").rstrip(".")
        if expected := defaults.rule(key).expected:
            meaning += f" [{expected}]"
        head, parts = f"  {key} = {values[key]!r}", textwrap.wrap(meaning, WIDTH - MEANINGS_FROM)
        if len(head) > MEANINGS_FROM - 2:
            lines.append(head)
            head = ""
        lines += [f"{start:{MEANINGS_FROM}}{part}" for start, part in zip_longest([head], parts, fillvalue="")]
    return lines


def _place(key: str, order: list[str]) -> int:
    """Where a function sets a key. One that it sets with the whole group comes after those that it sets by name."""
    while key:
        places = [i for i, other in enumerate(order) if other == key or other.startswith(f"{key}.")]
        if places:
            return max(places)
        key = key.rpartition(".")[0]
    return len(order)


def _comments(function: Callable) -> dict[str, str]:
    """By key in the order of the source, the comment beside or above its default."""
    out, above = {}, []
    for line in inspect.getsource(function).splitlines():
        line = line.strip()
        if line.startswith("#"):
            above.append(line.removeprefix("#").strip())
        elif found := re.match(r"c\.([\w.]+) = .*?(?:  # (.*))?$", line):
            out[found[1]] = found[2] or " ".join(above)
            above = []
    return out


def _arguments(function: Callable | None) -> dict[str, str]:
    """By name what the docstring of a function says of an argument, in one line."""
    text = inspect.getdoc(function) if function else ""
    entries = re.findall(r"^( +)(\w+): (.*(?:\n\1 +.*)*)", text, re.MULTILINE)
    return {name: " ".join(text.split()) for _, name, text in entries}
