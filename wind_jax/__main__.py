"""The console script `wind-jax`: each command is the program of a module, with the module's own arguments."""

import importlib
import sys

from wind_jax.command import command

COMMANDS = {
    "infer": ("wind_jax.infer", "draws an ensemble with a prior"),
    "train": ("wind_jax.train", "trains a prior"),
    "evaluate": ("wind_jax.evaluate", "scores a forecast"),
    "prepare": ("wind_jax.data.prepare", "rechunks an archive for training"),
    "speedy": ("wind_jax.data.speedy", "makes an archive with the SPEEDY model"),
    "convert": ("wind_jax.model.convert", "reads PyTorch weights of WIND"),
    "export": ("wind_jax.export", "makes a prior of a checkpoint"),
}


def main(argv: list[str]) -> None:
    """Runs the command that the first argument names.

    Raises:
        ValueError: none, or an unknown one; and as the command does.
    """
    name, *arguments = argv or [""]
    if name in ("--help", "-h"):
        lines = "\n".join(f"  {name:10}{what}" for name, (_, what) in COMMANDS.items())
        print(f"usage: wind-jax COMMAND ...\n\n{lines}\n\nwind-jax COMMAND --help lists its arguments.")
        return
    if name not in COMMANDS:
        raise ValueError(f"Unknown command {name!r}: expected one of {', '.join(COMMANDS)}, or --help.")
    sys.argv[0] = f"wind-jax {name}"  # as it stands in messages about arguments
    importlib.import_module(COMMANDS[name][0]).main(arguments)


def script() -> None:
    """What the console script calls."""
    command(main)


if __name__ == "__main__":
    script()
