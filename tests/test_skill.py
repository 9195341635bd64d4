"""The tables of README.md and docs/skill.md say what the scores of the runs say."""

import json

import pytest

from studies import skill


def record(variable, level, unit, method, metric, value, lead=None):
    return {
        "variable": variable, "level": level, "method": method, "region": "global", "metric": metric,
        "lead_hours": lead, "value": value, "unit": unit, "cases": 2, "missing": 0.0,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Geopotential better than both baselines, temperature better than one; no interpolation of temperature's CRPS."""
    values = {
        ("geopotential", 500, "m2 s-2"): {"posterior": 98.0665, "interpolation": 196.133, "climatology": 490.3325},
        ("2m_temperature", None, "K"): {"posterior": 2.0, "interpolation": 1.0, "climatology": 4.0},
    }
    found = [
        record(*channel, method, metric, value * (1.5 if (method, metric) == ("posterior", "rmse") else 1))
        for channel, methods in values.items()
        for metric in ("rmse", "crps")
        for method, value in methods.items()
        if (channel[0], metric, method) != ("2m_temperature", "crps", "interpolation")
    ]
    for channel, methods in values.items():  # of the posterior the error of the mean of infinitely many members
        found += [record(*channel, "posterior", "debiased_rmse", methods["posterior"])]
    found += [record(*channel[:2], "1", "posterior", "spread_skill_ratio", 1.25) for channel in values]
    (tmp_path / "scores.json").write_text(json.dumps(found))
    return tmp_path


def test_rows_have_their_best_in_bold_in_units_of_readers(folder):
    found = json.loads((folder / "scores.json").read_text())
    assert skill.methods_of(found) == ["posterior", "climatology", "interpolation"]
    assert skill.rows(found, None) == [
        ["Geopotential height 500 hPa", "m", "**10**", "50", "20", "**10**", "50", "20", "1.25", "2"],
        ["2 m temperature", "K", "2", "4", "**1**", "**2**", "4", "", "1.25", "2"],
    ]


def test_the_summary_compares_with_the_best_baseline_of_each_field(folder):
    line = skill.summary({"sparse_obs": folder}).splitlines()[-1]
    assert (
        line
        == f"| sparse obs | climatology, interpolation | 1.25 (1 of 2) | 0.50 (2 of 2) | 2 | `{folder}/scores.json` |"
    )


def test_only_what_is_between_the_marks_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- skill -->\nold\n<!-- end of skill -->\nafter\n")
    skill.fill(str(page), "new\n")
    skill.fill(str(page), "newer\n")
    assert page.read_text() == "before\n<!-- skill -->\nnewer\n<!-- end of skill -->\nafter\n"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="to write the tables between"):
        skill.fill(str(page), "new")


def test_a_run_is_done_again_by_another_program_alone(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(skill, "infer", lambda c: made.append(c.workdir))
    monkeypatch.setattr(skill, "complete", lambda folder, c: str(folder) in made)
    for program, runs in (("a", 1), ("a", 1), ("b", 2)):
        monkeypatch.setattr(skill, "program", lambda program=program: program)
        assert skill.run("forecast", str(tmp_path)) == tmp_path / "forecast"
        assert len(made) == runs
