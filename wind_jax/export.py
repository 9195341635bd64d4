"""Write the average of a checkpoint as a prior, the one file that inference reads.

    python -m wind_jax.export --workdir runs/mine --step 12000 [--out prior.npz]

Training leaves `prior.npz` of its newest checkpoint in the workdir; this is for the others that it keeps, such as those
of `keep_every`. Of a checkpoint the average alone is read, on whatever devices there are.
"""

import argparse
import dataclasses
import json
import os

from wind_jax.command import command
from wind_jax.files import join
from wind_jax.prior import load_prior, save_prior
from wind_jax.training.checkpoint import saved_average


def export(workdir: str, step: int, out: str | None = None) -> str:
    """Write the average after a step beside, or in place of, the prior that training left.

    Args:
        workdir: of a training, path or URL.
        step: of a checkpoint that it holds.
        out: path or URL of the file; None: `prior_STEP.npz` in the workdir.

    Returns:
        The path.

    Raises:
        ValueError: the workdir has no prior yet, no checkpoint of that step, or one that is not whole.
        OSError: the file could not be written.
    """
    newest = load_prior(join(workdir, "prior.npz"))  # all but the parameters is the same
    average, seconds = saved_average(join(workdir, "checkpoints"), step, newest.params)
    provenance = json.loads(newest.provenance)
    provenance |= {"step": step, "samples": step * provenance["batch_size"], "seconds": round(seconds)}
    path = out or join(workdir, f"prior_{step}.npz")
    save_prior(path, dataclasses.replace(newest, params=average, provenance=json.dumps(provenance)))
    return path


def main(argv: list[str]) -> None:
    """Command line, see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="of a training, path or URL")
    parser.add_argument("--step", type=int, required=True, help="of a checkpoint that it holds")
    parser.add_argument("--out", help="path or URL; prior_STEP.npz in the workdir where it is left out")
    options = parser.parse_args(argv)
    print(f"the prior is {os.fspath(export(options.workdir, options.step, options.out))}")


if __name__ == "__main__":
    command(main)
