"""How a command ends: bad input with one paragraph, never with a traceback; and where it keeps what it compiles."""

import sys
from collections.abc import Callable
from typing import NoReturn

import jax

from wind_jax.files import join


def command(run: Callable[[list[str]], None]) -> NoReturn:
    """Runs an entry point on the arguments of the process.

    Exit status: 0; 2 after bad input or where a package is missing; 1 where something else failed that the run itself
    cannot mend, such as a full disk. Any other exception is a defect, and shows where it was raised.
    """
    try:
        run(sys.argv[1:])
    except (ValueError, ImportError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError | ImportError) else 1)
    sys.exit(0)


def keep_compiled(workdir: str) -> None:
    """Has what XLA compiles kept in `compile_cache/` of a workdir, unless another place is set; before any of it is."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", join(workdir, "compile_cache"))
