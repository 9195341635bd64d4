"""Configurations: overrides keep their types, and what is wrong is named."""

import json

import pytest

from wind_jax import config

EXPERIMENT = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({"workdir": "runs/x", "seed": 0, "rate": 0.5, "flag": True, "shape": (1, 2),
                       "data": {"path": "embedded", "period": ()}, "lexicon": {}})
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "experiment.py").write_text(EXPERIMENT)
    return str(tmp_path / "experiment.py")


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


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config.sed=1"], "'sed'.*such as seed"),
        (["--config.data.paht=x"], "'data.paht'.*data.path"),
        (["--config.seed.x=1"], "'seed.x'"),
        (["--config.seed=many"], "'seed' is of type int, got 'many'"),
        (["--config.data=1"], "group; expected one of data.path"),
        (["--config.lexicon={}"], "group; the experiment file fills it"),
        (["--config.lexicon.ozone=1"], "'lexicon.ozone'"),
        (["--config.seed"], "needs a value"),
        (["--dryrun"], "'--dryrun'; expected .*--dry_run"),
        (["extra"], "'extra'"),
    ],
)
def test_bad_arguments(path, arguments, named):
    with pytest.raises(ValueError, match=named):
        config.load(["--config", path, *arguments], switches=["dry_run"])


def test_bad_files(tmp_path):
    with pytest.raises(ValueError, match="No configuration given"):
        config.load([])
    with pytest.raises(ValueError, match=r"'no\.py' does not exist"):
        config.load(["--config", "no.py"])
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match="no get_config"):
        config.load(["--config", str(tmp_path / "empty.py")])
