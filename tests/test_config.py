"""Configurations: an experiment over its defaults, overrides that keep their types, and what is wrong is named."""

import inspect
import json
import os
from pathlib import Path

import pytest

from wind_jax import config, infer, train
from wind_jax.diffusion.guidance import defaults as options
from wind_jax.diffusion.posterior import ALL_METHODS
from wind_jax.experiments import defaults
from wind_jax.problems.registry import PROBLEMS
from wind_jax.usage import flat, keys

ROOT = Path(__file__).resolve().parents[1]
STUDY = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({"workdir": "runs/x", "seed": 0, "rate": 0.5, "flag": True, "shape": (1, 2),
                       "data": {"path": "embedded", "period": ()}, "lexicon": {}})
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "study.py").write_text(STUDY)
    return str(tmp_path / "study.py")


@pytest.fixture
def write(tmp_path):
    """Body of get_config() -> the file."""

    def write(body):
        file = tmp_path / "own.py"
        file.write_text(f"from ml_collections import ConfigDict\n\ndef get_config():\n    {body}\n")
        return str(file)

    return write


def test_overrides_keep_their_types(path):
    c, given = config.load(
        ["--config", path, "--config.seed=3", "--config.rate", "1", "--config.flag=false", "--config.shape=(4,)",
         "--config.data.path=12", "--config.data.period=('2000', '2001')", "--dry_run"],
        switches=["dry_run"],
    )  # fmt: skip
    assert (c.seed, c.rate, c.flag, c.shape) == (3, 1.0, False, (4,))
    assert type(c.rate) is float
    assert c.data.path == "12"
    assert c.data.period == ("2000", "2001")
    assert given == {"dry_run"}
    assert config.load([f"--config={path}"])[1] == set()


def test_json_has_every_value(path):
    c, _ = config.load(["--config", path])
    assert json.loads(config.to_json(c)) == {**c.to_dict(), "shape": [1, 2], "data": {"path": "embedded", "period": []}}


def test_the_configuration_is_locked(path):
    c, _ = config.load(["--config", path])
    with pytest.raises(AttributeError):
        c.sed = 1


def test_trees_on_the_command_line():
    arguments = [
        """--config.task.error={"temperature": 1, "geopotential": 30.0}""",
        "--config.guidance.tmpd.whiten=false",
        "--config.guidance.dps.scale=None",
        "--config.mesh={'data': 2}",
    ]
    c, _ = config.load(["--config", "sparse_obs", *arguments], "inference")
    assert c.task.error.to_dict() == {"temperature": 1.0, "geopotential": 30.0}
    assert not c.guidance.tmpd.whiten
    assert c.guidance.dps.scale is None
    assert c.mesh.to_dict() == {"data": 2, "fsdp": 1, "space": 1}
    kelvin = config.read("warming", "inference", [("task.kelvin", "{850: 2}")]).task.kelvin
    assert kelvin.to_dict() == {"850": 2.0}
    conserve = [("task.conserve.energy", "1e-3"), ("task.conserve.dry_air_mass", "1e-5")]
    c = config.read("conservation", "inference", conserve)
    assert c.task.conserve.to_dict() == {"dry_air_mass": 1e-5, "energy": 1e-3}
    c = config.read("conservation", "inference", [("task.conserve", '{"energy": 1e-3}')])
    assert c.task.conserve.to_dict() == {"energy": 1e-3}
    lexicon = '{"ozone": {"units": "kg kg-1", "on_levels": true}}'
    c = config.read("speedy", "training", [("data.lexicon", lexicon)])
    assert c.data.lexicon.ozone.on_levels is True


def test_another_task_has_its_own_defaults():
    c = config.read("sparse_obs", "inference", [("task.name", "reanalysis"), ("task.windows", "2")])
    assert (c.task.name, c.task.windows, c.task.fraction) == ("reanalysis", 2, defaults.sparse_obs().fraction)


@pytest.mark.parametrize("name", config.names())
def test_a_packaged_experiment_by_name_and_by_path(name):
    c = config.read(name)
    kind = "training" if "model" in c else "inference"
    assert config.read(name, kind) == c
    assert config.read(str(ROOT / "experiments" / f"{name}.py"), kind) == c
    assert c.workdir == f"runs/{name}"


def test_the_defaults_are_complete():
    """Every task has exactly the options of its problem, every method those of its function."""
    for name, problem in PROBLEMS.items():
        assert set(defaults.TASKS[name]()) == set(inspect.signature(problem).parameters) - {"s"}
    assert set(defaults.TASKS) == set(PROBLEMS)
    for name, method in ALL_METHODS.items():
        assert defaults.inference().guidance[name].to_dict() == options(method)


@pytest.mark.parametrize("kind", config.KINDS)
def test_every_key_has_a_meaning(kind):
    """Each line of --help that states a key goes on, or the next one is indented to where meanings stand."""
    lines = keys(kind).splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if " = " in line and not line.startswith("with "):
            assert line[44:].strip() or following.startswith(" " * 44), line


@pytest.mark.parametrize("pattern", defaults.RULES)
def test_every_rule_is_of_a_key(pattern):
    every = set(flat(defaults.training().to_dict()))
    every |= {key for task in defaults.TASKS for key in flat(defaults.inference(task).to_dict())}
    assert any(defaults.rule(key) is defaults.RULES[pattern] for key in every)


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        infer.main(["--help"])
    assert not ended.value.code
    text = capsys.readouterr().out
    for part in ("sparse_obs, ", "guidance.mmps.iterations = 2", "task.mean_over = 5", "members of the ensemble"):
        assert part in text
    with pytest.raises(SystemExit):
        train.main(["--dry_run", "-h"])
    text = capsys.readouterr().out
    for part in ("era5_1p5deg, ", "[--dry_run]", "model.patch = 2", "data.levels = ()"):
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config.sed=1"], "'sed'.*such as seed"),
        (["--config.data.paht=x"], "'data.paht'.*data.path"),
        (["--config.seed.x=1"], "'seed.x'.*seed"),
        (["--config.seed=many"], "config.seed is 'many', expected a whole number .default 0"),
        (["--config.seed=1.5"], "config.seed is 1.5, expected a whole number"),
        (["--config.seed=true"], "config.seed is True, expected a whole number"),
        (["--config.flag=1"], "config.flag is 1, expected true or false"),
        (["--config.rate=None"], "config.rate is None, expected a number"),
        (["--config.rate=1e999"], "config.rate is inf, expected a number"),
        (["--config.shape=5"], "config.shape is 5, expected a tuple"),
        (["--config.shape=(1.5, 2)"], r"config.shape is \(1.5, 2\), expected a tuple"),
        (["--config.data=1"], "config.data is 1, expected a group of keys: data.path, data.period"),
        (["--config.lexicon=ozone"], "config.lexicon is 'ozone', expected a mapping"),
        (["--config.seed"], "needs a value"),
        (["--dryrun"], "'--dryrun'; expected .*--dry_run"),
        (["extra"], "'extra'"),
    ],
)
def test_bad_arguments(path, arguments, named):
    with pytest.raises(ValueError, match=named):
        config.load(["--config", path, *arguments], switches=["dry_run"])


INFERENCE = [
    *((key, "None") for key in flat(defaults.inference().to_dict()) if key != "guidance.dps.scale"),
    ("workdir", ""), ("workdir", "a\0b"), ("seed", "-1"), ("seed", "99999999999999999999"), ("prior", ""),
    ("data.path", ""), ("data.path", "a\0b"), ("data.period", "('2001',)"), ("data.period", "('a', 'b')"),
    ("data.missing_static", "none"), ("task.name", "nowcast"), ("task.leads", "true"), ("task.leads", "0"),
    ("task.context", "0"), ("task.conserve", '{"dry_air_mass": -1}'), ("task.conserve", "1"), ("members", "true"),
    ("members", "1"), ("member_batch", "-1"), ("cases", "0"), ("mesh.data", "0"), ("mesh.space", "0"),
    ("sampler.name", "rk4"), ("sampler.steps", "0"), ("sampler.start", "1.5"), ("sampler.end", "1"),
    ("sampler.eta", "2"), ("sampler.snr", "0"), ("guidance.method", "magic"), ("guidance.variance", "exact"),
    ("guidance.mmps.iterations", "0"), ("guidance.mmps.solver", "lu"), ("guidance.dps.scale", "0"),
    ("guidance.tds.threshold", "2"), ("globe", "('a','b')"), ("globe", "(50.0,)"), ("figures", "0"),
]  # fmt: skip
TRAINING = [
    *((key, "None") for key in flat(defaults.training().to_dict())),
    ("workdir", ""), ("seed", "-1"), ("seed", str(2**32)), ("batch_size", "0"), ("batch_size", "-2"),
    ("optimizer.learning_rate", "-1"),
    ("optimizer.clip", "0"), ("optimizer.warmup", "-1"), ("optimizer.steps", "0"), ("ema", "2"), ("ema", "-1"),
    ("ema", "1"), ("ema", "0"), ("data.workers", "-1"), ("data.grid", "(8,)"), ("data.frames", "1"),
    ("data.levels", "('500',)"), ("data.levels", "500"), ("data.variables", "temperature"), ("data.path", ""),
    ("data.validation_path", ""), ("model.widths", "(32, 1.5)"), ("non_finite", "ignore"),
    ("log_every", "0"), ("keep_every", "-3"), ("keep_checkpoints", "0"), ("validate_every", "0"),
    ("checkpoint_every", "-1"), ("validation.members", "1"), ("validation.windows", "0"),
    ("diffusion.schedule", "linear"), ("diffusion.prediction", "noise"), ("diffusion.reference", "pink"),
    ("loss.weighting", "min"), ("loss.times.spread", "0"), ("loss.patterns.shared", "2"),
    ("specialist", '{"name": "forecast"}'),
]  # fmt: skip


@pytest.mark.parametrize(("key", "text"), INFERENCE)
def test_bad_values_of_inference(key, text):
    with pytest.raises(ValueError, match=rf"^config\.{key} is .*expected "):
        config.read("forecast", "inference", [(key, text)])


@pytest.mark.parametrize(("key", "text"), TRAINING)
def test_bad_values_of_training(key, text):
    with pytest.raises(ValueError, match=rf"^config\.{key} is .*expected "):
        config.read("speedy", "training", [(key, text)])


TASKS = [
    ("sparse_obs", "fraction", "1.5"), ("sparse_obs", "error", "-1"), ("sparse_obs", "error", '{"temperature": 0}'),
    ("sparse_obs", "error", '{"temperature": "x"}'), ("sparse_obs", "variables", "(1,)"),
    ("reanalysis", "windows", "0"), ("reanalysis", "overlap", "-1"), ("spatial_downscaling", "factor", "1"),
    ("temporal_downscaling", "mean_over", "1"), ("stations", "truth", "none at all"), ("stations", "count", "0"),
    ("stations", "withheld", "1"), ("stations", "error_scale", "0"), ("stations", "background_members", "1"),
    ("warming", "latitude", "(30.0, -30.0)"), ("warming", "kelvin", "'warm'"),
    ("warming", "kelvin", "None"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "key", "text"), TASKS)
def test_bad_values_of_tasks(task, key, text):
    with pytest.raises(ValueError, match=rf"^config\.task\.{key} is .*expected "):
        config.read(task, "inference", [(f"task.{key}", text)])


@pytest.mark.parametrize("key", ["workdir", "prior", "members", "mesh", "sampler", "data", "task", "globe", "figures"])
def test_a_key_that_an_experiment_leaves_out_has_its_default(write, key):
    body = f"c = ConfigDict({config.read('sparse_obs', 'inference').to_dict()!r}); del c.{key}; return c"
    default = defaults.inference("forecast" if key == "task" else "sparse_obs")
    assert config.read(write(body), "inference")[key] == default[key]


def test_an_experiment_may_be_empty(write):
    file = write("return ConfigDict()")
    assert config.read(file, "inference") == defaults.inference()
    with pytest.raises(ValueError, match=r"^config\.data\.path is '', expected not empty"):
        config.read(file, "training")


def test_values_of_files_become_those_of_the_defaults(write):
    c = config.read(write("return ConfigDict({'members': 3, 'sampler': {'eta': 1}, 'globe': [50, 8]})"), "inference")
    assert (c.members, c.sampler.eta, c.globe) == (3, 1.0, (50, 8))
    body = (
        "import numpy as np; return ConfigDict({'ema': np.float32(0.5), 'data': {'path': 'a', 'validation_path': 'b'}})"
    )
    assert type(config.read(write(body), "training").ema) is float


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("return ConfigDict({'figurs': True})", "'figurs'.*such as figures"),
        ("return ConfigDict({'sampler': {'stepz': 3}})", "'sampler.stepz'.*such as sampler.steps"),
        ("return ConfigDict({'sampler': 3})", "config.sampler is 3, expected a group"),
        ("return ConfigDict({'task': None})", "config.task is None, expected a group"),
        (
            "return ConfigDict({'task': {'name': None}})",
            "task.name is 'None', expected one of .*sparse_obs",
        ),
        ("return ConfigDict({'task': {'name': 'forecast', 'fraction': 0.1}})", "'task.fraction'"),
        ("return ConfigDict({'task': {'name': 'custom', 'error': 1.0}})", "operator is None.* function"),
        ("return ConfigDict({'members': None})", "config.members is None, expected a whole number, 2"),
        ("return None", "returned NoneType, expected an ml_collections.ConfigDict"),
        ("return {}", "returned dict, expected an ml_collections.ConfigDict"),
        ("return ConfigDict()['x']", r"own\.py', line 4 failed with KeyError"),
        ("return 1 +", r"own\.py'.* failed with SyntaxError.*line 4"),
        ("\0", r"own\.py'.* failed with (Syntax|Value)Error: source code"),
        ("pass\n   pass", r"own\.py'.* failed with IndentationError"),
    ],
)
def test_bad_files(write, body, named):
    with pytest.raises(ValueError, match=named):
        config.read(write(body), "inference")


def test_the_wrong_kind_is_named():
    with pytest.raises(ValueError, match=r"speedy is a configuration for training, .*wind-jax train"):
        infer.main(["--config", "speedy"])
    with pytest.raises(ValueError, match=r"forecast is a configuration for inference, .*wind-jax infer"):
        train.main(["--config", "forecast"])


def test_no_such_file(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"No configuration given.*sparse_obs"):
        config.load([])
    with pytest.raises(ValueError, match=r"'no\.py' does not exist"):
        config.load(["--config", "no.py"])
    with pytest.raises(ValueError, match=r"'sparse_ob' does not exist; .* a name such as sparse_obs"):
        config.load(["--config", "sparse_ob"])
    with pytest.raises(ValueError, match="does not exist"):
        config.load(["--config", "a\0b.py"])
    for name in ("empty.py", "text"):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match="defines no get_config"):
        config.load(["--config", str(tmp_path / "empty.py")])
    with pytest.raises(ValueError, match="is no Python file"):
        config.load(["--config", str(tmp_path / "text")])


def test_nothing_is_opened_before_the_values_are_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module, experiment, argument in ((infer, "sparse_obs", "cases=0"), (train, "speedy", "batch_size=0")):
        monkeypatch.setattr(module, "open_store", lambda *_: pytest.fail("an archive was opened"))
        with pytest.raises(ValueError, match="expected a whole number, 1 or more"):
            module.main(["--config", experiment, f"--config.{argument}"])
    assert os.listdir(tmp_path) == []


def test_a_switch_that_is_off_is_not_empty():
    """`data.climatology` is a file's name for inference and a switch for training."""
    c, _ = config.load(["--config", "speedy", "--config.data.climatology=False"], "training")
    assert c.data.climatology is False
    with pytest.raises(ValueError, match="not empty"):
        config.load(["--config", "sparse_obs", "--config.data.climatology="], "inference")
