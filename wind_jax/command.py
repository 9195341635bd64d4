"""How a command ends: bad input with one paragraph, never with a traceback."""

import sys
from collections.abc import Callable
from typing import NoReturn


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
