"""Statistics of a run: made once, and never taken for those of other data."""

import json
import shutil

import numpy as np
import pytest
import synthetic

from wind_jax.channels import channels
from wind_jax.data.normalize import compute_statistics
from wind_jax.data.store import open_store
from wind_jax.training.statistics import run_statistics

CHANNELS = channels(("temperature", "2m_temperature"), (500,))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "a.zarr"
    synthetic.write_archive(path, synthetic.times(1480), levels=(500, 850), time_chunk=370)
    path.with_name("other.zarr").symlink_to(path)
    return open_store(path, CHANNELS)


def test_read_back_without_another_pass(archive, tmp_path, monkeypatch):
    statistics, climatology = run_statistics(str(tmp_path), archive, None, True)
    np.testing.assert_allclose(statistics.std, compute_statistics(archive, None, climatology.at).std, rtol=1e-6)
    monkeypatch.setattr("wind_jax.training.statistics.compute_statistics", None)
    again, fitted = run_statistics(str(tmp_path), archive, None, True)
    np.testing.assert_array_equal(again.std, statistics.std)
    np.testing.assert_array_equal(fitted.coefficients, climatology.coefficients)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["climatology.npz", "statistics.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda path: (open_store(path, CHANNELS), ("2000-01-01", "2000-06-30"), False),
            "period is .*2000-06-30'., there it is None",
        ),
        (lambda path: (open_store(path, CHANNELS), None, True), "climatology is True, there it is False"),
        (lambda path: (open_store(path, CHANNELS[:1]), None, False), "channels is .*there it is .*2m_temperature"),
        (lambda path: (open_store(path.replace("a.zarr", "other.zarr"), CHANNELS), None, False), "archive is "),
    ],
)
def test_those_of_other_settings_are_refused(archive, tmp_path, change, message):
    run_statistics(str(tmp_path), archive, None, False)
    with pytest.raises(ValueError, match=message):
        run_statistics(str(tmp_path), *change(archive.path))


def test_a_file_that_says_nothing_of_its_settings_is_made_anew(archive, tmp_path):
    path = tmp_path / "statistics.json"
    statistics, _ = run_statistics(str(tmp_path), archive, None, False)
    path.write_text(json.dumps(statistics.to_dict() | {"mean": [0.0, 0.0]}))
    again, _ = run_statistics(str(tmp_path), archive, None, False)
    np.testing.assert_array_equal(again.mean, statistics.mean)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        run_statistics(str(tmp_path), archive, None, False)


@pytest.mark.parametrize("about", [False, True])
def test_what_prepare_found_is_taken_for_all_of_an_archive(archive, tmp_path, about):
    """Its files beside the arrays, with a mean that no pass would find; a part of the archive is worked out anew."""
    place = tmp_path / "prepared.zarr"
    shutil.copytree(archive.path, place)
    prepared = open_store(place, CHANNELS)
    statistics, climatology = run_statistics(str(tmp_path / "a"), prepared, None, about)
    times = [len(prepared), str(prepared.times[0]), str(prepared.times[-1])]
    (place / "prepare.json").write_text(json.dumps({"times": times, "climatology": "c.npz" if about else None}))
    (place / "statistics.json").write_text(json.dumps(statistics.to_dict() | {"mean": [1.0, 2.0]}))
    if about:
        climatology.save(place / "climatology.npz")
    found, fitted = run_statistics(str(tmp_path / "b"), prepared, ("2000-01-01", "2001-12-31"), about)
    np.testing.assert_array_equal(found.mean, [1.0, 2.0])
    if about:
        np.testing.assert_allclose(fitted.coefficients, climatology.coefficients, rtol=1e-3, atol=1e-3)
    for i, other in enumerate([(None, not about), (("2000-01-02", "2001-12-31"), about)]):
        own, _ = run_statistics(str(tmp_path / f"{i}"), prepared, *other)
        np.testing.assert_allclose(own.mean, statistics.mean, rtol=1e-2)
    fewer, _ = run_statistics(str(tmp_path / "c"), open_store(place, CHANNELS[:1]), None, about)
    np.testing.assert_allclose(fewer.mean, statistics.mean[:1], rtol=1e-6)


@pytest.mark.parametrize("about", [False, True])
def test_those_of_another_run_are_taken_where_they_are_given(archive, tmp_path, about, monkeypatch):
    """Its folder, for a part of the archive; not for other channels."""
    first, climatology = run_statistics(str(tmp_path / "a"), archive, None, about)
    monkeypatch.setattr("wind_jax.training.statistics.compute_statistics", None)
    monkeypatch.setattr("wind_jax.training.statistics.fit_climatology", None)
    part, given = ("2000-01-01", "2000-06-30"), str(tmp_path / "a")
    statistics, fitted = run_statistics(str(tmp_path / "b"), archive, part, about, given)
    np.testing.assert_array_equal(statistics.std, first.std)
    if about:
        np.testing.assert_allclose(fitted.coefficients, climatology.coefficients, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"given is None, there it is '.*a'"):
        run_statistics(str(tmp_path / "b"), archive, part, about)
    with pytest.raises(ValueError, match=f"config.data.climatology is {not about}"):
        run_statistics(str(tmp_path / "c"), archive, part, not about, given)
    with pytest.raises(ValueError, match=r"of the channels \['temperature_500', '2m_temperature'\], the run has"):
        run_statistics(str(tmp_path / "c"), open_store(archive.path, CHANNELS[:1]), part, about, given)
