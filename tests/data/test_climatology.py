"""Harmonics put into an archive are found again; noise is averaged out as least squares should."""

import numpy as np
import pytest
import synthetic

from wind_jax.channels import channels
from wind_jax.data.climatology import HARMONICS, Climatology, fit_climatology, harmonics, main
from wind_jax.data.store import open_store
from wind_jax.sphere import Grid

CHANNELS = channels(["2m_temperature", "geopotential"], [500])
GRID = Grid(synthetic.LATITUDE, synthetic.LONGITUDE)


@pytest.fixture(scope="module")
def truth():
    scale = np.array([3e3, 10.0])  # geopotential, 2m temperature
    coefficients = np.random.default_rng(0).normal(size=(7, *GRID.shape, 2)) * scale
    coefficients[0] += [5e4, 280.0]
    return Climatology(CHANNELS, GRID, coefficients.astype(np.float32))


@pytest.fixture(scope="module")
def path(truth, tmp_path_factory):
    """Two years of nothing but the harmonics, with a gap, and a year of other values after them."""
    times = np.delete(synthetic.times(4 * 731 + 40), slice(100, 150))
    values = truth.at(times)
    values[times >= np.datetime64("2002")] = 1.0
    dataset = synthetic.fields(times, levels=(500,))[["geopotential", "2m_temperature"]]
    dataset["geopotential"][:] = values[:, None, :, :, 0]
    dataset["2m_temperature"][:] = values[..., 1]
    return synthetic.write(dataset, tmp_path_factory.mktemp("archive") / "a.zarr", time_chunk=500)


def test_harmonics_are_found(truth, path):
    fitted = fit_climatology(open_store(path, CHANNELS), ("2000", "2001"))
    assert fitted.channels == CHANNELS
    assert fitted.grid == GRID
    np.testing.assert_allclose(fitted.coefficients[..., 0], truth.coefficients[..., 0], atol=0.05)
    np.testing.assert_allclose(fitted.coefficients[..., 1], truth.coefficients[..., 1], atol=2e-4)


def test_values_at_times(truth):
    """At the turn of the year at midnight every cosine is one and every sine nought."""
    new_year = truth.at(np.array(["2003-01-01T00"], "datetime64[ns]"))
    assert new_year.dtype == np.float32
    a = dict(zip(HARMONICS, truth.coefficients))
    np.testing.assert_allclose(new_year[0], a["mean"] + a["cos_year"] + a["cos_half_year"] + a["cos_day"], rtol=1e-4)
    noon, midnight = truth.at(np.array(["2003-01-01T12", "2003-01-01T00"], "datetime64[ns]"))
    daily = (midnight - noon)[..., 1] / 2
    np.testing.assert_allclose(daily, a["cos_day"][..., 1], atol=0.3)  # the season moves on by half a day
    assert harmonics(synthetic.times(5)).shape == (5, 7)


def test_file_keeps_sixteen_bits_and_is_small(truth, tmp_path):
    file = tmp_path / "climatology.npz"
    truth.save(file)
    loaded = Climatology.load(file)
    assert loaded.channels == CHANNELS
    assert loaded.grid == GRID
    error = np.abs(loaded.coefficients - truth.coefficients).max(axis=(1, 2))
    assert (
        error < 1e-5 * np.ptp(truth.coefficients, axis=(1, 2)) + 1e-7 * np.abs(truth.coefficients).max((1, 2))
    ).all()
    assert file.stat().st_size < 2 * truth.coefficients.size + 4000
    with pytest.raises(ValueError, match="no climatology file"):
        Climatology.load(tmp_path / "other.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    with pytest.raises(ValueError, match="not a climatology"):
        Climatology.load(tmp_path / "other.npz")
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"climatology\.npz is damaged: .*Remove it"):
        Climatology.load(file)


def test_select(truth):
    swapped = truth.select(CHANNELS[::-1])
    np.testing.assert_array_equal(swapped.coefficients, truth.coefficients[..., ::-1])
    with pytest.raises(ValueError, match="lacks"):
        truth.select(channels(["2m_temperature", "temperature"], [500]))


def test_too_short_a_period_is_refused(path):
    store = open_store(path, CHANNELS)
    with pytest.raises(ValueError, match="do not determine the annual"):
        fit_climatology(store, ("2000-01", "2000-05"))
    with pytest.raises(ValueError, match="coefficients must have shape"):
        Climatology(CHANNELS, GRID, np.zeros((7, 2, 2, 2), np.float32))


def test_command_line(truth, path, tmp_path, capsys):
    file = tmp_path / "c.npz"
    options = "--variables 2m_temperature geopotential --levels 500 --period 2000 2001"
    main(["--data", path, "--out", str(file), *options.split()])
    assert "2 channels" in capsys.readouterr().out
    assert Climatology.load(file).coefficients == pytest.approx(truth.coefficients, rel=1e-3, abs=0.2)
