"""Every key of a configuration: its default, its meaning, and what its value has to be.

`wind_jax.config` lays an experiment over these defaults, checks every value by its type and by `RULES`, and prints them
for `--help`. The type of a value is that of its default. A group that is empty here is a tree: an experiment fills it.
"""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from wind_jax.diffusion.denoiser import PREDICTIONS
from wind_jax.diffusion.guidance import defaults as options
from wind_jax.diffusion.loss import CHANNEL_WEIGHTS, WEIGHTINGS
from wind_jax.diffusion.posterior import ALL_METHODS
from wind_jax.diffusion.schedule import SCHEDULES
from wind_jax.diffusion.solve import SOLVERS
from wind_jax.model.uvit import UViTConfig
from wind_jax.rollout import STEPS, make_chain
from wind_jax.training.state import make_optimizer

# Groups whose keys are the arguments of a function that have a default; its docstring gives their meaning.
OPTIONS = {"sampler": make_chain, "model": UViTConfig, "optimizer": make_optimizer}
OPTIONS |= {f"guidance.{name}": method for name, method in ALL_METHODS.items()}


def inference(task: str = "forecast") -> ConfigDict:
    """Every key of an experiment for `wind_jax.infer`.

    Args:
        task: name of the task, whose keys are those of `config.task`.

    Raises:
        ValueError: an unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"config.task.name is {task!r}, expected one of {', '.join(TASKS)}.")
    c = ConfigDict()
    c.workdir = "runs/inference"  # folder of the results
    c.seed = 0  # of all random numbers
    c.prior = "embedded"  # the packaged prior, or the path of a prior.npz

    c.data = ConfigDict()
    c.data.path = "embedded"  # the packaged sample, or the path or URL of an archive
    c.data.covariance = "embedded"  # of the baselines with a spread: a file of wind_jax.evaluation.kriging; empty: none
    c.data.climatology = "prior"  # the prior's own, or a file of wind_jax.data.climatology
    c.data.period = ()  # first and last day of the cases; empty: all of the archive
    c.data.missing_static = "error"  # where the archive lacks static fields; "zeros" takes zeros for them

    c.task = TASKS[task]()
    c.task.name = task  # what is known of each case

    c.cases = 2  # number of cases, spread evenly over the period
    c.members = 8  # members of the ensemble of each case
    c.member_batch = 0  # members drawn at once; 0: as many as the memory holds
    c.mesh = mesh()

    c.sampler = ConfigDict(options(make_chain))
    c.sampler.name = "dpmpp_2m"
    c.sampler.spacing = "logit"
    c.sampler.steps = 16

    c.guidance = ConfigDict()
    c.guidance.method = "mmps"  # a method of docs/guidance.md
    c.guidance.variance = "nominal"  # the squares of the stated errors; "adaptive": the mean squared residual
    for name, method in ALL_METHODS.items():
        c.guidance[name] = ConfigDict(options(method))

    c.figures = True  # whether figures and report.html are made
    c.globe = ()  # (latitude, longitude) that maps are centred on, by cartopy; empty: flat maps of the whole Earth
    return c


def training() -> ConfigDict:
    """Every key of an experiment for `wind_jax.train`."""
    c = ConfigDict()
    c.workdir = "runs/training"  # folder of the results, local or in a bucket
    c.seed = 0  # of all random numbers

    c.data = ConfigDict()
    c.data.path = ""  # paths or URLs of archives, joined by commas
    c.data.validation_path = ""  # an archive that is held out
    c.data.climate_path = ""  # those of `path` that give climatology and statistics; empty: all
    c.data.variables = ()  # names of variables; empty: the ten of the paper
    c.data.levels = ()  # pressure levels, hPa; empty: all 13
    c.data.lexicon = ConfigDict()  # further variables by name, {"units": "kg kg-1", "on_levels": True}: docs/data.md
    c.data.period = ()  # first and last day of training; empty: all of the archive
    c.data.validation_period = ()  # first and last day of validation; empty: all of the archive
    c.data.grid = (121, 240)  # rows and columns that the archives must have
    c.data.statistics = ""  # folder of a run or a prepared archive whose statistics are taken; empty: computed here
    c.data.climatology = True  # the network sees anomalies from the climatology; False: from the mean, as in the paper
    c.data.frames = 5  # frames of a window, 6 h apart
    c.data.missing_static = "error"  # where the archive lacks static fields; "zeros" takes zeros for them
    c.data.in_memory = False  # archives are read once and kept in memory, 2 bytes a value
    c.data.workers = 0  # threads that read batches ahead, at least 4

    c.model = ConfigDict(options(UViTConfig))
    del c.model.forcings  # follows from the data
    c.model.noise_conditioning = True  # the network is told the diffusion time of each frame; False: as in the paper
    c.model.frame_kernel = 3  # frames seen by each residual block; 1: as in the paper

    c.diffusion = ConfigDict()
    c.diffusion.schedule = "rectified"  # noise schedule
    c.diffusion.prediction = "preconditioned"  # what the network's output is; "x0" in the paper
    c.diffusion.reference = "spectrum"  # of the preconditioning; "white": one spread for all, as in EDM

    c.loss = ConfigDict()
    c.loss.weighting = "edm"  # every noise level counts alike; "paper": the error of x0_hat itself
    c.loss.channels = "uniform"  # weights of the channels; "paper": those of a forecaster
    c.loss.surface_weights = ConfigDict()  # of "paper", by channel, beside 2 m temperature 1, others 0.1
    c.loss.times = ConfigDict()
    c.loss.times.name = "logit_normal"  # distribution of the times that carry noise; "uniform" in the paper
    c.loss.times.mean = 0.0  # mean of logit(t)
    c.loss.times.spread = 1.5  # standard deviation of logit(t)
    c.loss.patterns = ConfigDict()
    c.loss.patterns.independent = 0.25  # share of samples whose frames have times of their own
    c.loss.patterns.shared = 0.4  # share of samples with one time for all frames
    c.loss.patterns.context = 0.35  # share of samples whose first frames are clean

    c.specialist = ConfigDict()  # the one task that a specialist is trained for; empty: a prior is trained
    c.init = ""  # a prior.npz whose parameters training starts from; empty: random ones

    c.optimizer = ConfigDict(options(make_optimizer))
    c.optimizer.learning_rate = 1e-4
    c.optimizer.warmup = 5000
    c.optimizer.steps = 300_000
    c.ema = 0.999  # decay of the average of the parameters, a step
    c.batch_size = 32  # windows in a step, over all devices
    c.mesh = mesh()

    c.log_every = 100  # steps between two lines of metrics
    c.checkpoint_every = 1000  # steps between two checkpoints
    c.keep_checkpoints = 2  # number of the last checkpoints that are kept
    c.keep_every = 0  # checkpoints at multiples of so many steps are kept for good; 0: none
    c.non_finite = "stop"  # the run, at a loss that is not finite; "skip": its step is left out and counted
    c.profile = False  # a trace of a few steps is written to the workdir
    c.validate_every = 10_000  # steps between two validations
    c.validation = ConfigDict()
    c.validation.windows = 64  # number of held-out windows
    c.validation.members = 4  # members of the forecasts
    c.validation.context = 2  # known frames of the forecasts
    c.validation.sampler_steps = 24  # steps of the sampler
    return c


def mesh() -> ConfigDict:
    """The mesh of devices; docs/training.md."""
    c = ConfigDict({"mesh": {}})
    c.mesh.data = -1  # parts of the batch or of the members; -1: as many as there are devices left
    c.mesh.fsdp = 1  # devices that share the parameters, and split the batch too
    c.mesh.space = 1  # devices that split a sample by longitude
    return c.mesh


# --------------------------------------------------------------------------------------------------------------- tasks
def forecast() -> ConfigDict:
    """New frames from known ones."""
    c = ConfigDict({"task": {}})
    c.task.context = 2  # known frames at the start of each window
    c.task.leads = 20  # new frames, 6 h apart
    c.task.conserve = ConfigDict()  # relative error by quantity, {"dry_air_mass": 1e-6}; empty: nothing is held
    return c.task


def sparse_obs() -> ConfigDict:
    """One window from single cells."""
    c = ConfigDict({"task": {}})
    c.task.fraction = 0.01  # share of the cells of each field that are observed
    c.task.error = 0.05  # standard deviation as a fraction of the channel's; or by variable, in its units
    c.task.variables = ()  # observed variables; empty: all
    return c.task


def reanalysis() -> ConfigDict:
    """Several windows from single cells, one after the other."""
    c = ConfigDict({"task": sparse_obs()})
    c.task.windows = 4  # number of windows
    c.task.overlap = 2  # frames that a window shares with the next
    return c.task


def spatial_downscaling() -> ConfigDict:
    """One window from means over coarse cells."""
    c = ConfigDict({"task": {}})
    c.task.factor = 4  # rows and columns of fine cells in a coarse one
    c.task.error = 0.02  # standard deviation of the means' error as a fraction of the channel's; or by variable
    c.task.variables = ()  # variables of the coarse fields; empty: all
    return c.task


def temporal_downscaling() -> ConfigDict:
    """One window from means over frames; of precipitation, sums."""
    c = ConfigDict({"task": {}})
    c.task.mean_over = 5  # frames of a mean
    c.task.error = 0.02  # standard deviation of the means' error as a fraction of the channel's; or by variable
    c.task.variables = ()  # variables of the means; empty: all
    return c.task


def stations() -> ConfigDict:
    """One window from station reports, after quality control."""
    c = ConfigDict({"task": {}})
    c.task.path = ""  # a CSV or Parquet table of reports; empty: a random network reports the archive's states
    c.task.truth = "archive"  # the archive's states are the truth; "none", with a table: nothing is scored
    c.task.count = 400  # stations of the random network
    # variables that the random network reports; those used of a table, of which an empty tuple takes all
    c.task.variables = ("2m_temperature", "mean_sea_level_pressure", "10m_wind_speed")
    c.task.gross_errors = 0.02  # share of the random network's reports that are grossly wrong
    c.task.withheld = 0.2  # share of the stations that are kept back for verification
    c.task.threshold = 5.0  # of quality control, in standard deviations; 0: no quality control
    c.task.background_members = 8  # free samples of the prior that quality control compares with
    c.task.degrees_of_freedom = 0.0  # of a Student t likelihood; 0: Gaussian
    c.task.error_scale = 1.0  # factor of the default errors of reports
    return c.task


def warming() -> ConfigDict:
    """A storyline: an event and its large scale, warmer."""
    c = ConfigDict({"task": {}})
    c.task.context = 2  # known frames at the start of each window
    c.task.leads = 20  # new frames, 6 h apart
    c.task.kelvin = 2.0  # warming, K; or by pressure level, {"850": 2.0}
    c.task.factor = 4  # rows and columns of fine cells in a mean of the large scale
    c.task.error = 0.1  # standard deviation of the means' error as a fraction of the channel's
    c.task.variables = ("temperature", "specific_humidity", "geopotential", "2m_temperature")  # guided ones
    c.task.latitude = (-90.0, 90.0)  # southern and northern edge of the box in which it is warmer
    c.task.longitude = (0.0, 360.0)  # western and eastern edge of the box
    return c.task


def custom() -> ConfigDict:
    """One window from what an operator of the user's makes of it."""
    c = ConfigDict({"task": {}})
    c.task.operator = None  # function (channels, grid) -> A, see docs/library.md
    c.task.error = None  # standard deviation of y: a number, or a tree of numbers like y
    return c.task


TASKS = {
    task.__name__: task
    for task in (
        forecast,
        sparse_obs,
        reanalysis,
        spatial_downscaling,
        temporal_downscaling,
        stations,
        warming,
        custom,
    )
}


# -------------------------------------------------------------------------------------------------------------- ranges
class Rule(NamedTuple):
    """What a value has to be, beside its type.

    Attributes:
        expected: the end of a message, "expected a whole number, <expected>".
        holds: whether a value of the right type is allowed.
        none: whether None is allowed too.
        tree: whether a mapping of names to such values is allowed too.
    """

    expected: str = ""
    holds: Callable[[Any], bool] = lambda value: True
    none: bool = False
    tree: bool = False


def at_least(least: int) -> Rule:
    return Rule(f"{least} or more", lambda value: value >= least)


def one_of(*names: str) -> Rule:
    return Rule(f"one of {', '.join(names)}", lambda value: value in names)


def share(zero: bool = True, one: bool = True) -> Rule:
    """From 0 to 1; `zero` and `one` say whether these are included."""
    text = f"in {'[' if zero else '('}0, 1{']' if one else ')'}"
    return Rule(text, lambda value: 0 < value < 1 or (zero and value == 0) or (one and value == 1))


def is_period(value: tuple) -> bool:
    """Raises ValueError for what is no date."""
    return len(value) in (0, 2) and all(isinstance(date, str) and np.datetime64(date) for date in value)


def is_positive(tree: Any) -> bool:
    """Whether all numbers of a tree, which is not None, are above 0."""
    return tree is not None and all((np.asarray(leaf) > 0).all() for leaf in jax.tree.leaves(tree))


POSITIVE = Rule("above 0", lambda value: value > 0)
NOT_EMPTY = Rule("not empty", lambda value: value is False or bool(value))
PERIOD = Rule("two dates such as ('2018-11-01', '2018-11-30'), or empty", is_period)
NAMES = Rule(
    "names of variables such as ('temperature',), or empty",
    lambda value: all(isinstance(name, str) for name in value),
)

# Of keys, or of patterns of keys; the first that fits counts.
RULES = {
    "workdir": NOT_EMPTY,
    "seed": Rule("0 to 4294967295", lambda value: 0 <= value < 2**32),
    "mesh.data": Rule("1 or more, or -1", lambda value: value == -1 or value >= 1),
    "mesh.*": at_least(1),
    "data.path": NOT_EMPTY,
    "data.*period": PERIOD,
    "data.missing_static": one_of("error", "zeros"),
    "*.variables": NAMES,
    # inference
    "prior": NOT_EMPTY,
    "data.climatology": NOT_EMPTY,
    "cases": at_least(1),
    "members": at_least(2),
    "member_batch": at_least(0),
    "globe": Rule(
        "(latitude, longitude) in degrees, or empty",
        lambda value: not value or (len(value) == 2 and abs(value[0]) <= 90 and abs(value[1]) <= 360),
    ),
    "sampler.name": one_of(*STEPS),
    "sampler.spacing": one_of("linear", "logit"),
    "sampler.steps": at_least(1),
    "sampler.start": share(zero=False),
    "sampler.end": share(one=False),
    "sampler.eta": share(),
    "sampler.corrections": at_least(0),
    "sampler.snr": POSITIVE,
    "guidance.method": one_of(*ALL_METHODS),
    "guidance.variance": one_of("nominal", "adaptive"),
    "guidance.*.iterations": at_least(1),
    "guidance.*.solver": one_of(*SOLVERS),
    "guidance.dps.scale": Rule("above 0", lambda value: value is None or value > 0, none=True),
    "guidance.sda.gamma": at_least(0),
    "guidance.diffpir.strength": POSITIVE,
    "guidance.repaint.resamplings": at_least(1),
    "guidance.pgdm_step.eta": share(),
    "guidance.tds.threshold": share(),
    "guidance.tds.spread": at_least(0),
    # tasks
    "task.name": one_of(*TASKS),
    "task.context": at_least(1),
    "task.leads": at_least(1),
    "task.conserve": Rule(
        "relative errors above 0, such as {'dry_air_mass': 1e-6}",
        lambda value: all(error > 0 for error in value.values()),
    ),
    "task.fraction": share(zero=False),
    "task.error": Rule("above 0", is_positive, tree=True),
    "task.windows": at_least(1),
    "task.overlap": at_least(0),
    "task.factor": at_least(2),
    "task.mean_over": at_least(2),
    "task.truth": one_of("archive", "none"),
    "task.count": at_least(1),
    "task.gross_errors": share(one=False),
    "task.withheld": share(one=False),
    "task.threshold": at_least(0),
    "task.background_members": at_least(2),
    "task.degrees_of_freedom": at_least(0),
    "task.error_scale": POSITIVE,
    "task.kelvin": Rule(tree=True),
    "task.latitude": Rule("two degrees", lambda value: len(value) == 2 and -90 <= value[0] < value[1] <= 90),
    "task.longitude": Rule("two degrees", lambda value: len(value) == 2 and max(map(abs, value)) <= 360),
    "task.operator": Rule("a function (channels, grid) -> A", callable),
    # training
    "data.validation_path": NOT_EMPTY,
    "data.levels": Rule(
        "pressures in hPa such as (500, 850), or empty",
        lambda value: all(type(level) is int and level > 0 for level in value),
    ),
    "data.grid": Rule("(rows, columns)", lambda value: len(value) == 2 and min(value) >= 1),
    "data.frames": at_least(2),
    "data.workers": at_least(0),
    "diffusion.schedule": one_of(*SCHEDULES),
    "diffusion.prediction": one_of(*PREDICTIONS),
    "diffusion.reference": one_of("spectrum", "white"),
    "loss.weighting": one_of(*WEIGHTINGS),
    "loss.channels": one_of(*CHANNEL_WEIGHTS),
    "loss.times.name": one_of("logit_normal", "uniform"),
    "loss.times.spread": POSITIVE,
    "loss.patterns.*": share(),
    "specialist": Rule(
        "{'name': 'spatial_downscaling', 'factor': 4}, {'name': 'temporal_downscaling', 'mean_over': 5} or empty",
        lambda value: not value or value.get("name") in ("spatial_downscaling", "temporal_downscaling"),
    ),
    "optimizer.learning_rate": POSITIVE,
    "optimizer.final_learning_rate": POSITIVE,
    "optimizer.clip": POSITIVE,
    "optimizer.steps": at_least(1),
    "optimizer.*": at_least(0),
    "ema": share(zero=False, one=False),
    "batch_size": at_least(1),
    "keep_every": at_least(0),
    "*_every": at_least(1),
    "keep_checkpoints": at_least(1),
    "non_finite": one_of("stop", "skip"),
    "validation.members": at_least(2),
    "validation.*": at_least(1),
}


def rule(key: str) -> Rule:
    """What the value of a key has to be."""
    return next((RULES[pattern] for pattern in RULES if fnmatchcase(key, pattern)), Rule())
