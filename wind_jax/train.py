"""Pre-train the prior: mesh -> data -> state -> loop.

    python -m wind_jax.train --config experiments/speedy.py [--config.workdir=runs/mine] [--dry_run]

A workdir that already holds a checkpoint is resumed: same batches, same noise, same losses. It receives:

    config.json  statistics.json  climatology.npz  metrics.jsonl  events.out.tfevents.*  checkpoints/
    prior.npz (the average's weights, with all that inference needs)
"""

import dataclasses
import functools
import itertools
import json
import os
import time

import jax
import jax.numpy as jnp
from flax import traverse_util
from ml_collections import ConfigDict
from rich.console import Console
from tensorboardX import SummaryWriter

from wind_jax import config as configuration
from wind_jax.data.climatology import Climatology, fit_climatology
from wind_jax.data.forcings import FORCING_NAMES, static_forcings
from wind_jax.data.normalize import Statistics, compute_statistics
from wind_jax.data.store import Store, open_store
from wind_jax.data.variables import channels as select_channels
from wind_jax.data.windows import windows
from wind_jax.diffusion.loss import Patterns, diffusion_forcing_loss, loss_weights
from wind_jax.diffusion.schedule import SCHEDULES
from wind_jax.model.flops import matmul_flops
from wind_jax.model.uvit import UViTConfig
from wind_jax.prior import Prior, apply, graph, save_prior
from wind_jax.progress import Progress
from wind_jax.sphere import cell_area
from wind_jax.training.checkpoint import Checkpointer
from wind_jax.training.mesh import batch_sharding, make_mesh, put_batch, replicated
from wind_jax.training.specialist import estimate, first_guess, make_specialist_validation, specialist_loss
from wind_jax.training.state import (
    abstract_state,
    init_state,
    make_optimizer,
    make_train_step,
    state_sharding,
)
from wind_jax.training.validation import average, make_validation

# Settings that a resumed run must share with its checkpoint; the others may change.
FIXED = (
    "seed",
    "data.variables",
    "data.levels",
    "data.frames",
    "data.grid",
    "data.climatology",
    "model",
    "diffusion",
    "batch_size",
    "specialist",
)


def train(c: ConfigDict, dry_run: bool = False) -> None:
    """Run the training that config `c` describes, from the start or from its last checkpoint.

    Args:
        c: as of `experiments/speedy.py`.
        dry_run: print parameters, FLOPs and memory per device, from the config alone, and return.

    Raises:
        ValueError: anything wrong with config, mesh, data, workdir or checkpoint, before the first step.
    """
    main_process = jax.process_index() == 0
    say = Console().print if main_process else lambda *_: None

    # ------------------------------------------------------------------------------------------ mesh, model, optimizer
    mesh = make_mesh(**c.mesh.to_dict())
    if c.batch_size % (mesh.shape["data"] * mesh.shape["fsdp"]):
        raise ValueError(f"batch_size {c.batch_size} does not divide over data x fsdp of mesh {dict(mesh.shape)}.")
    chosen = select_channels(c.data.variables or None, c.data.levels or None)
    height, width = c.data.grid
    model = UViTConfig(
        channels=len(chosen),
        latitude=height,
        longitude=width,
        forcings=len(FORCING_NAMES) + (len(chosen) if c.data.climatology else 0),
        **c.model.to_dict(),
    )
    optimizer = make_optimizer(**c.optimizer.to_dict())
    if c.diffusion.schedule not in SCHEDULES:
        raise ValueError(f"config.diffusion.schedule is {c.diffusion.schedule!r}, expected one of {list(SCHEDULES)}.")
    graphdef, schedule = graph(model), SCHEDULES[c.diffusion.schedule]()
    patterns = Patterns(**c.diffusion.patterns.to_dict())
    shardings = state_sharding(model, optimizer, mesh)

    def make_step(weights, guess=None):
        def loss(params, batch, key):
            network = lambda x_t, t: apply(graphdef, params, x_t, t, batch["inputs"])
            x, mean = batch["x"], batch["inputs"][..., len(FORCING_NAMES) :] if c.data.climatology else 0.0
            if guess:
                return specialist_loss(estimate(network, jax.vmap(guess)(x), mean), x, weights)
            return diffusion_forcing_loss(network, x - mean, key, schedule, weights, c.diffusion.prediction, patterns)

        return make_train_step(loss, optimizer, c.ema, c.seed, shardings)

    abstract = abstract_state(model, optimizer)
    x = jax.ShapeDtypeStruct((c.batch_size, c.data.frames, height, width, len(chosen)), jnp.float32)
    inputs = jax.ShapeDtypeStruct((*x.shape[:-1], model.forcings), jnp.float32)
    t = jax.ShapeDtypeStruct(x.shape[:2], jnp.float32)
    task = c.get("specialist")  # what is trained is a prior, unless the config names one task
    step_before_data = make_step(jnp.ones((height, 1, len(chosen)), jnp.float32), (lambda x: x) if task else None)
    # What is wrong with model or diffusion shows here, before any data are read.
    jax.eval_shape(step_before_data, abstract, {"x": x, "inputs": inputs})
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
    forward = matmul_flops(lambda *args: apply(graphdef, *args), abstract.params, x, t, inputs)
    step_flops = 3 * forward  # a backward pass costs two forward ones; recomputation is not counted
    say(f"mesh {dict(mesh.shape)} of {mesh.devices.flat[0].device_kind}")
    say(f"{parameters / 1e6:.1f} M parameters, {step_flops / 1e12:.3g} TFLOP a step of batch {c.batch_size}")
    if dry_run:
        batch_shards = batch_sharding(mesh)
        placed = jax.tree.map(lambda a, s: a.update(sharding=s), abstract, shardings)
        batch = {"x": x.update(sharding=batch_shards), "inputs": inputs.update(sharding=batch_shards)}
        memory = step_before_data.lower(placed, batch).compile().memory_analysis()
        gib = lambda size: f"{size / 2**30:.2f} GiB"
        say(f"per device: {gib(memory.argument_size_in_bytes)} of state and batch")
        say(f"            {gib(memory.temp_size_in_bytes)} of temporary memory in a step")
        return

    # ------------------------------------------------------------------------------------------------------------ data
    config = traverse_util.flatten_dict(json.loads(configuration.to_json(c)), sep=".")
    checkpointer = Checkpointer(
        os.path.join(c.workdir, "checkpoints"),
        {name: value for name, value in config.items() if name.startswith(FIXED)},
        keep=c.keep_checkpoints,
    )
    store = open_store(c.data.path, chosen, in_memory=c.data.in_memory)
    held_out = open_store(c.data.validation_path, chosen)
    for archive in (store, held_out):
        if archive.grid.shape != (height, width):
            raise ValueError(f"{archive.path!r} has the grid {archive.grid.shape}, config.data.grid is {c.data.grid}.")
    static = static_forcings(store, c.data.missing_static)
    statistics, climatology = run_statistics(c.workdir, store, c.data)
    prediction = f"{task.name} alone" if task else c.diffusion.prediction  # `Prior.denoiser` refuses a specialist
    prior = Prior(None, model, statistics, store.grid, c.data.frames, c.diffusion.schedule, prediction, climatology)
    guess = first_guess(task.to_dict(), statistics, store.grid, c.data.frames) if task else None
    dataset = functools.partial(
        windows, statistics=statistics, inputs=functools.partial(prior.inputs, static),
        frames=c.data.frames, seed=c.seed,
        process_index=jax.process_index(), process_count=jax.process_count(),
    )  # fmt: skip
    batches = iter(dataset(store, batch_size=c.batch_size, period=c.data.period or None, workers=c.data.workers))
    validation_batches = [
        put_batch(mesh, {name: batch[name] for name in ("x", "inputs")})
        for batch in itertools.islice(
            dataset(held_out, batch_size=c.batch_size, period=c.data.validation_period or None),
            max(c.validation.windows // c.batch_size, 1),
        )
    ]

    # ----------------------------------------------------------------------------------------------------------- state
    start = checkpointer.latest or 0
    if start:
        state, position = checkpointer.restore(abstract, shardings)
        batches.set_state(position["batches"])
        say(f"resumed from step {start} of {c.workdir}")
    else:
        state, position = init_state(model, optimizer, mesh, c.seed), {"seconds": 0.0}
    weights = jnp.asarray(loss_weights(cell_area(store.grid), chosen, statistics, c.loss_surface_weights.to_dict()))
    train_step = make_step(weights, guess)
    v = c.validation
    if guess:
        validate = make_specialist_validation(prior, guess, weights)
    else:
        validate = make_validation(prior, weights, members=v.members, context=v.context, sampler_steps=v.sampler_steps)

    # ------------------------------------------------------------------------------------------------------------ loop
    began = time.monotonic()
    log = RunLog(c.workdir, start) if main_process else None
    if main_process:
        with open(os.path.join(c.workdir, "config.json"), "w") as file:
            file.write(configuration.to_json(c) + "\n")
    say(f"training from step {start} to {c.optimizer.steps}")

    def save(step: int) -> None:
        seconds = position["seconds"] + time.monotonic() - began
        checkpointer.save(state, {"batches": batches.get_state(), "seconds": seconds})
        ema = jax.device_get(gather(state.ema))
        if main_process:
            provenance = {"step": step, "samples": step * c.batch_size, "seconds": round(seconds), **config}
            whole = dataclasses.replace(prior, params=ema, provenance=json.dumps(provenance))
            save_prior(os.path.join(c.workdir, "prior.npz"), whole)

    gather = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
    validation_key = jax.random.key(c.seed)
    logged = time.monotonic()
    recent: list[dict[str, jax.Array]] = []
    shown: dict[str, float] = {}
    with Progress("training", c.optimizer.steps, unit="step", log_every=60.0 if main_process else None) as bar:
        bar.update(start)
        for step in range(start + 1, c.optimizer.steps + 1):
            batch = next(batches)
            state, metrics = train_step(state, put_batch(mesh, {name: batch[name] for name in ("x", "inputs")}))
            recent.append(metrics)
            last = step == c.optimizer.steps
            bar.update(**shown)

            if step % c.log_every == 0 or last:
                values = average(jax.device_get(recent))  # waits for the device, once in `log_every` steps
                now = time.monotonic()
                rate = len(recent) / (now - logged)
                values |= {
                    "steps_per_s": rate,
                    "samples_per_s": rate * c.batch_size,
                    "flop_per_s": rate * step_flops,
                }
                shown = {
                    "loss": values["loss"],
                    "samples/s": rate * c.batch_size,
                    "GFLOP/s": rate * step_flops / 1e9,
                }
                if log:
                    log.write(step, values)
                recent, logged = [], now

            if last or step % c.validate_every == 0:
                keys = (jax.random.fold_in(validation_key, i) for i in range(len(validation_batches)))
                values = average([validate(state.ema, *args) for args in zip(validation_batches, keys, strict=True)])
                if log:
                    log.write(step, {f"validation/{name}": value for name, value in values.items()})
                say(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
                logged = time.monotonic()

            if last or step % c.checkpoint_every == 0:
                save(step)
                logged = time.monotonic()
    checkpointer.close()
    say(f"finished {c.optimizer.steps} steps; the prior is {os.path.join(c.workdir, 'prior.npz')}")


class RunLog:
    """Metrics of a run as JSON lines and TensorBoard events; on resuming, lines after the checkpoint are dropped."""

    def __init__(self, workdir: str, start: int):
        self._path = os.path.join(workdir, "metrics.jsonl")
        if os.path.exists(self._path):
            with open(self._path) as file:
                kept = [line for line in file if line.endswith("\n") and json.loads(line)["step"] <= start]
            with open(self._path + ".partial", "w") as file:
                file.writelines(kept)
            os.replace(self._path + ".partial", self._path)
        self._board = SummaryWriter(workdir, purge_step=start + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        with open(self._path, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()


def run_statistics(workdir: str, store: Store, data: ConfigDict) -> tuple[Statistics, Climatology | None]:
    """Statistics and climatology of this run: computed once, in one pass each over the archive, then read back."""
    period = tuple(data.period) or None
    path, climatology = os.path.join(workdir, "climatology.npz"), None
    if data.climatology:
        if not os.path.exists(path):
            fit_climatology(store, period).save(path)
        climatology = Climatology.load(path)
    path = os.path.join(workdir, "statistics.json")
    if not os.path.exists(path):
        compute_statistics(store, period, climatology.at if climatology else None).save(path)
    return Statistics.load(path), climatology


def main(argv: list[str]) -> None:
    """Entry point: bad input ends with one paragraph, before anything long."""
    c, switches = configuration.load(argv, switches=("dry_run",))
    # Set by the scripts of launch/: "auto" where JAX finds the processes by itself (TPU, Slurm), else an address.
    coordinator = os.environ.get("WIND_COORDINATOR")
    if coordinator == "auto":
        jax.distributed.initialize()
    elif coordinator:
        count, index = int(os.environ["WIND_PROCESS_COUNT"]), int(os.environ["WIND_PROCESS_ID"])
        jax.distributed.initialize(coordinator, count, index)
    train(c, dry_run="dry_run" in switches)


if __name__ == "__main__":
    configuration.command(main)
