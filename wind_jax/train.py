"""Pre-train the prior: mesh -> data -> state -> loop.

    python -m wind_jax.train --config experiments/speedy.py [--config.workdir=runs/mine] [--dry_run]

A workdir that already holds a checkpoint is resumed: same batches, same noise, same losses. It receives:

    run.json  config.json  statistics.json  climatology.npz  metrics.jsonl  events.out.tfevents.*  checkpoints/
    compile_cache/  prior.npz (the average's weights, with all that inference needs)

SIGTERM ends a run in order, with a checkpoint. docs/training.md tells of several processes and of what may go wrong.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import time
from concurrent import futures

import jax
import jax.numpy as jnp
from flax import traverse_util
from ml_collections import ConfigDict

from wind_jax import config as configuration
from wind_jax import run
from wind_jax.channels import Channel, channels, lexicon
from wind_jax.command import command, keep_compiled
from wind_jax.data.forcings import FORCING_NAMES, static_forcings
from wind_jax.data.store import open_store
from wind_jax.data.windows import LEAST_THREADS, window_starts, windows
from wind_jax.diffusion.loss import Objective, Patterns, Times, diffusion_forcing_loss, loss_weights
from wind_jax.diffusion.reference import WHITE, Spectrum
from wind_jax.diffusion.schedule import SCHEDULES
from wind_jax.files import join, write_bytes
from wind_jax.model.flops import matmul_flops
from wind_jax.model.uvit import UViTConfig
from wind_jax.prior import Prior, apply, graph, informed, load_prior, save_prior
from wind_jax.progress import Progress
from wind_jax.sphere import cell_area
from wind_jax.training import processes
from wind_jax.training.checkpoint import Checkpointer
from wind_jax.training.log import RunLog, average, in_a_row, summary
from wind_jax.training.mesh import (
    batch_sharding,
    check_batch,
    device_bytes,
    host_copy,
    make_mesh,
    process_rows,
    put_batch,
    put_flag,
    step_memory,
)
from wind_jax.training.processes import Termination, say
from wind_jax.training.specialist import estimate, first_guess, make_specialist_validation, specialist_loss
from wind_jax.training.state import (
    abstract_state,
    begin_from,
    init_state,
    make_optimizer,
    make_train_step,
    state_sharding,
)
from wind_jax.training.statistics import description, run_spectrum, run_statistics
from wind_jax.training.validation import make_validation

# Settings that a resumed run must share with its checkpoint; the others may change.
FIXED = (
    "seed",
    "data.variables",
    "data.levels",
    "data.lexicon",
    "data.frames",
    "data.grid",
    "data.climatology",
    "data.climate_path",
    "model",
    "diffusion",
    "loss",
    "batch_size",
    "specialist",
)
PROFILED = (5, 10)  # steps after the start between which `config.profile` traces
MOST_SKIPPED = 10  # steps in a row: of more that are not finite, `config.non_finite = "skip"` makes no training either


def train(c: ConfigDict, dry_run: bool = False) -> None:
    """Run the training that config `c` describes, from the start or from its last checkpoint.

    Args:
        c: complete, as `config.load` makes it for "training".
        dry_run: print parameters, FLOPs and memory per device, from the config alone, and return.

    Raises:
        ValueError: anything wrong with config, mesh, data, workdir or checkpoint, before the first step; another
            process trains in the workdir. Of several processes the first holds it; a bucket is not held.
        FloatingPointError: a loss or gradient that is not finite, unless config.non_finite is "skip".
        OSError: the last checkpoint of the run, or its prior, could not be written.
    """
    termination = Termination()
    with contextlib.nullcontext() if dry_run else termination, contextlib.ExitStack() as closing:
        try:
            _train(c, dry_run, termination, closing)
        except Termination.Interruption:
            say(f"SIGTERM before the first step: nothing new to save in {c.workdir}")


def _train(c: ConfigDict, dry_run: bool, termination: Termination, closing: contextlib.ExitStack) -> None:
    if not dry_run:
        run.check_place(c.workdir, "train")
        keep_compiled(c.workdir)
    config = traverse_util.flatten_dict(json.loads(configuration.to_json(c)), sep=".")
    processes.agree(config)
    if not dry_run:
        processes.on_first(lambda: closing.enter_context(run.claim(c.workdir, "train")))
    main_process = jax.process_index() == 0

    # ------------------------------------------------------------------------------------------ mesh, model, optimizer
    mesh = make_mesh(**c.mesh.to_dict())
    height, width = c.data.grid
    check_batch(mesh, c.batch_size, width)
    chosen, model = architecture(c)
    optimizer = make_optimizer(**c.optimizer.to_dict())
    if c.validation.context >= c.data.frames:
        raise ValueError(
            f"config.validation.context is {c.validation.context}, expected less than the {c.data.frames} frames of "
            "config.data.frames."
        )
    graphdef, schedule = graph(model), SCHEDULES[c.diffusion.schedule]()
    objective = training_objective(c)
    if c.diffusion.reference == "spectrum" and objective.prediction != "preconditioned":
        raise ValueError(
            f'config.diffusion.reference is "spectrum" and prediction {objective.prediction!r}: a spectrum is for '
            '"preconditioned"; take "white".'
        )
    shardings = state_sharding(model, optimizer, mesh)

    def make_loss(weights, reference, guess=None):
        def loss(params, batch, key):
            network = informed(graphdef, params, batch["inputs"])
            x, mean = batch["x"], batch["inputs"][..., len(FORCING_NAMES) :] if c.data.climatology else 0.0
            if guess:
                return specialist_loss(estimate(network, jax.vmap(guess)(x), mean), x, weights)
            return diffusion_forcing_loss(network, x - mean, key, schedule, weights, objective, reference)

        return loss

    make_step = lambda loss: make_train_step(loss, optimizer, c.ema, c.seed, shardings)
    abstract = abstract_state(model, optimizer)
    x = jax.ShapeDtypeStruct((c.batch_size, c.data.frames, height, width, len(chosen)), jnp.float32)
    filtered = filters(c)
    inputs = jax.ShapeDtypeStruct((*x.shape[:-1], model.forcings - filtered * len(chosen)), jnp.float32)
    forcings = inputs.update(shape=(*x.shape[:-1], model.forcings))
    t = jax.ShapeDtypeStruct(x.shape[:2], jnp.float32)
    task = c.specialist or None  # what is trained is a prior, unless the config names one task
    reference = WHITE
    if filtered:
        reference = Spectrum(jnp.zeros((width, height, height)), jnp.ones((width, height, len(chosen))))
    loss = make_loss(jnp.ones((height, 1, len(chosen)), jnp.float32), reference, (lambda x: x) if task else None)
    step_before_data = make_step(loss)
    # What is wrong with model or diffusion shows here, before any data are read.
    jax.eval_shape(step_before_data, abstract, {"x": x, "inputs": inputs})
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract.params))
    forward = matmul_flops(lambda *args: apply(graphdef, *args), abstract.params, x, t, forcings)
    step_flops = 3 * forward  # a backward pass costs two forward ones; recomputation is not counted
    say(f"mesh {dict(mesh.shape)} of {mesh.devices.flat[0].device_kind}")
    say(f"{parameters / 1e6:.1f} M parameters, {step_flops / 1e12:.3g} TFLOP a step of batch {c.batch_size}")
    if dry_run:
        batch_shards = batch_sharding(mesh)
        placed = jax.tree.map(lambda a, s: a.update(sharding=s), abstract, shardings)
        batch = {"x": x.update(sharding=batch_shards), "inputs": inputs.update(sharding=batch_shards)}
        sizes = step_memory(mesh, lambda *args: loss(*args, jax.random.key(0)), abstract, batch)
        for name, size in (sizes | {"all of these": sum(sizes.values())}).items():
            say(f"predicted: {size / 2**30:8.3f} GiB of {name}")
        row, ahead = 4 * (x.size + inputs.size) / c.batch_size, max(c.data.workers, LEAST_THREADS) + 1
        beside = sizes["a batch"] * (1 + max(c.validation.windows // c.batch_size, 1))
        say(f"beside the step: {beside / 2**30:8.3f} GiB of the batch ahead and those of validation")
        say(f"host: {ahead * row / 2**30:8.3f} GiB of {ahead} batches, for each of their rows that a process reads")
        say("compiling, which takes minutes ...")
        with jax.set_mesh(mesh):
            memory = step_before_data.lower(placed, batch).compile().memory_analysis()
        exact = {
            "state, exactly": device_bytes(shardings, abstract),
            "a batch, exactly": sizes["a batch"],
            "temporary memory in a step, says the compiler": memory.temp_size_in_bytes,
        }
        for name, size in exact.items():
            say(f"per device: {size / 2**30:8.3f} GiB of {name}")
        say(f"per device: {sum(exact.values()) / 2**30:8.3f} GiB in all")
        return

    # ------------------------------------------------------------------------------------------------------------ data
    checkpointer = Checkpointer(
        join(c.workdir, "checkpoints"),
        {name: value for name, value in config.items() if name.startswith(FIXED)},
        keep=c.keep_checkpoints,
        keep_every=c.keep_every,
    )
    store, held_out = (open_store(path, chosen) for path in (c.data.path, c.data.validation_path))
    closing.callback(store.close)  # however this ends: a thread that still reads would keep the process
    closing.callback(held_out.close)
    for archive, period in ((store, c.data.period), (held_out, c.data.validation_period)):
        if archive.grid.shape != (height, width):
            raise ValueError(f"{archive.path!r} has the grid {archive.grid.shape}, config.data.grid is {c.data.grid}.")
        window_starts(archive.times, c.data.frames, period or None)
    processes.agree({"path": description(store), "validation_path": description(held_out)}, "config.data")
    if held_out.grid != store.grid:
        raise ValueError(f"The cells of {held_out.path!r} are not those of {store.path!r}, though equally many.")
    static = static_forcings(store, c.data.missing_static)
    climate = store.only(c.data.climate_path) if c.data.climate_path else store
    if c.data.in_memory:
        store.load()
    period = tuple(c.data.period) or None
    statistics, climatology = run_statistics(c.workdir, climate, period, c.data.climatology, c.data.statistics)
    spectrum = None
    if filtered:
        spectrum = run_spectrum(c.workdir, store, period, statistics, climatology)
    prediction = f"{task.name} alone" if task else c.diffusion.prediction  # `Prior.denoiser` refuses a specialist
    prior = Prior(
        params=None,
        config=model,
        statistics=statistics,
        grid=store.grid,
        frames=c.data.frames,
        schedule_name=c.diffusion.schedule,
        prediction=prediction,
        climatology=climatology,
        spectrum=spectrum,
    )
    guess = first_guess(task.to_dict(), statistics, store.grid, c.data.frames) if task else None
    dataset = functools.partial(
        windows, statistics=statistics, inputs=functools.partial(prior.inputs, static),
        frames=c.data.frames, seed=c.seed,
        rows=process_rows(mesh, c.batch_size),
    )  # fmt: skip
    batches = iter(dataset(store, batch_size=c.batch_size, period=c.data.period or None, workers=c.data.workers))
    put = lambda batch: put_batch(mesh, {"x": batch["x"], "inputs": batch["inputs"]}, c.batch_size)
    validation_batches = [
        put(batch)
        for batch in itertools.islice(
            dataset(held_out, batch_size=c.batch_size, period=c.data.validation_period or None),
            max(c.validation.windows // c.batch_size, 1),
        )
    ]

    # ----------------------------------------------------------------------------------------------------------- state
    if checkpointer.latest is not None:
        start, state, saved = checkpointer.restore(abstract, shardings)
        batches.set_state(saved["batches"])
        say(f"resumed from step {start} of {c.workdir}")
    else:
        start, state, saved = 0, init_state(model, optimizer, mesh, c.seed), {"seconds": 0.0}
        if c.init:
            state = begin_from(load_prior(c.init), model, state)
            say(f"training begins from the parameters of {c.init}")
    weights = loss_weights(cell_area(store.grid), chosen, statistics, c.loss.channels, c.loss.surface_weights.to_dict())
    train_step = make_step(make_loss(jnp.asarray(weights), prior.reference, guess))
    v = c.validation
    if guess:
        validate = make_specialist_validation(prior, guess, jnp.asarray(weights))
    else:
        validate = make_validation(prior, members=v.members, context=v.context, sampler_steps=v.sampler_steps)

    # ------------------------------------------------------------------------------------------------------------ loop
    began = time.monotonic()
    processes.on_first(lambda: write_bytes(join(c.workdir, "config.json"), f"{configuration.to_json(c)}\n".encode()))
    log = processes.on_first(lambda: RunLog(c.workdir, start))
    for archive in (store, held_out):
        archive.check_unchanged()
    termination.hold()
    say(f"training from step {start} to {c.optimizer.steps}")

    seconds = lambda: saved["seconds"] + time.monotonic() - began
    prior_path, exports = join(c.workdir, "prior.npz"), []

    def export(step: int) -> None:
        """Has the average written as a prior while training goes on, once the export before is done."""
        if exports and (error := exports.pop().exception()):
            say(f"warning: {error}. Training goes on; the prior there is the one before.")
        ema = host_copy(state.ema)
        if main_process:
            provenance = {"step": step, "samples": step * c.batch_size, "seconds": round(seconds()), **config}
            whole = dataclasses.replace(prior, params=ema, provenance=json.dumps(provenance))
            exports.append(writer.submit(save_prior, prior_path, whole))

    def finish_export() -> None:
        if error := exports.pop().exception():
            raise OSError(f"Step {step} is saved, but not its prior: {error}. The same command tries again.") from error

    def check(skipped: int, longest: int) -> None:
        if longest < (1 if c.non_finite == "stop" else MOST_SKIPPED):
            return
        found = (
            f"The loss or its gradient was not finite in {skipped} of the steps {step - len(recent) + 1} to {step}, "
            f"{longest} in a row. Their updates were left out"
        )
        if ending:  # there may be no time for another start: what is good is saved
            say(f"warning: {found}.")
            return
        checkpointer.settle()
        raise FloatingPointError(
            f"{found}; the last good checkpoint is that of step {checkpointer.latest} in {checkpointer.directory!r}. "
            "Start again from it with a lower optimizer.learning_rate, or with --config.non_finite=skip to go on "
            "without such steps."
        )

    validation_key = jax.random.key(c.seed)
    logged = time.monotonic()
    recent: list[dict[str, jax.Array]] = []
    not_finite = [0]  # in a row, after each of these steps
    shown: dict[str, float] = {}
    step, ending, asked, profiled = start, False, False, [start + n for n in PROFILED if c.profile]
    with contextlib.ExitStack() as stack:
        stack.enter_context(checkpointer)
        writer = stack.enter_context(futures.ThreadPoolExecutor(1))
        stack.enter_context(log or contextlib.nullcontext())
        bar = Progress("training", c.optimizer.steps, unit="step", shown=main_process)
        stack.enter_context(bar).update(start)
        waits: list[float] = []

        def fetch() -> dict[str, jax.Array]:
            asked_for = time.monotonic()
            with termination.waiting():
                batch = next(batches)
            waits.append(time.monotonic() - asked_for)
            return {"asked": put_flag(mesh, termination.asked)} | put(batch)

        ahead = fetch()
        while step < c.optimizer.steps and not ending:
            step += 1
            if step in profiled[:1]:
                jax.profiler.start_trace(join(c.workdir, "profile"))
            with jax.set_mesh(mesh):  # the network then gathers its parameters, not activations
                state, metrics = train_step(state, ahead)
            asked_before, asked = asked, metrics.pop("asked")
            recent.append(metrics)
            position = batches.get_state()
            try:
                if step < c.optimizer.steps:
                    ahead = fetch()  # while the step runs
            except Termination.Interruption:
                ending = True
            # Waits for the step before: two under way keep the device busy, more would fill its memory with batches.
            ending |= bool(asked_before)
            if step in profiled[1:]:
                jax.block_until_ready(metrics)
                jax.profiler.stop_trace()
            bar.update(**shown)
            last = ending or step == c.optimizer.steps

            if step % c.log_every == 0 or last:
                values = summary(recent := jax.device_get(recent))  # waits for the device, once in `log_every` steps
                not_finite = in_a_row(recent, not_finite[-1])
                check(values["skipped"], max(not_finite))
                now = time.monotonic()
                rate = len(recent) / (now - logged)
                values |= {
                    "steps_per_s": rate,
                    "samples_per_s": rate * c.batch_size,
                    "flop_per_s": rate * step_flops,
                    "waiting_for_data": sum(waits) / (now - logged),  # of the host: the devices have work meanwhile
                }
                shown = {
                    "loss": values["loss"],
                    "samples/s": rate * c.batch_size,
                    "GFLOP/s": rate * step_flops / 1e9,
                }
                if log:
                    log.write(step, values)
                recent, waits, logged = [], [], now

            if step == c.optimizer.steps or (step % c.validate_every == 0 and not ending):
                keys = (jax.random.fold_in(validation_key, i) for i in range(len(validation_batches)))
                with jax.set_mesh(mesh):
                    found = [validate(state.ema, *args) for args in zip(validation_batches, keys, strict=True)]
                values = average(found)
                if log:
                    log.write(step, {f"validation/{name}": value for name, value in values.items()})
                whole = {name: value for name, value in values.items() if "/" not in name}  # not those of each channel
                say(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in whole.items()))
                logged = time.monotonic()

            if step % c.checkpoint_every == 0 or last:
                checkpointer.save(step, state, {"batches": position, "seconds": seconds()})
                export(step)
                logged = time.monotonic()
        if profiled and profiled[0] <= step < profiled[1]:  # stopped meanwhile
            jax.profiler.stop_trace()
        if start >= c.optimizer.steps:  # this run may have been killed before its last export, or that have failed
            export(step)
        checkpointer.settle()
        if checkpointer.latest != step:
            raise OSError(f"{c.workdir!r} has no checkpoint of step {step}, the last: see the warning above.")
        processes.on_first(finish_export)
    if ending:
        say(f"SIGTERM: saved step {step} of {c.workdir}; the same command goes on from there")
    else:
        say(f"finished {step} steps; the prior is {prior_path}")


def training_objective(c: ConfigDict) -> Objective:
    """What the network of a config learns, checked."""
    patterns, times = Patterns(**c.loss.patterns.to_dict()), Times(**c.loss.times.to_dict())
    objective = Objective(c.diffusion.prediction, c.loss.weighting, patterns, times)
    objective.check(c.data.frames)
    return objective


def filters(c: ConfigDict) -> bool:
    """Whether the network has the estimate of a spectrum as an input; a specialist has no noise to filter."""
    return c.diffusion.reference == "spectrum" and not c.specialist


def architecture(c: ConfigDict) -> tuple[tuple[Channel, ...], UViTConfig]:
    """The channels of a config, and its network."""
    chosen = channels(c.data.variables or None, c.data.levels or None, lexicon(c.data.lexicon.to_dict()))
    height, width = c.data.grid
    return chosen, UViTConfig(
        channels=len(chosen),
        latitude=height,
        longitude=width,
        forcings=len(FORCING_NAMES) + len(chosen) * (c.data.climatology + filters(c)),
        **c.model.to_dict(),
    )


def main(argv: list[str]) -> None:
    """Entry point: bad input ends with one paragraph, before anything long."""
    c, switches = configuration.load(argv, "training", switches=("dry_run",))
    dry_run = "dry_run" in switches
    if dry_run and min(c.mesh.values()) > 0:  # a given mesh is made of virtual devices, wherever this runs
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", math.prod(c.mesh.values()))
    processes.join()
    train(c, dry_run)


if __name__ == "__main__":
    command(main)
