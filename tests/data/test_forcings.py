"""Forcings against astronomy that one can do in the head."""

import numpy as np
import pytest
import synthetic

from wind_jax.channels import channels
from wind_jax.data.forcings import FORCING_NAMES, forcings, static_forcings
from wind_jax.data.store import open_store


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "a.zarr"
    dataset = synthetic.write_archive(path, synthetic.times(4))
    return open_store(path, channels(["2m_temperature"])), dataset


def named(values, name):
    return values[..., FORCING_NAMES.index(name)]


def test_static_fields_and_position(archive):
    store, dataset = archive
    static = static_forcings(store)
    assert static.dtype == np.float32
    np.testing.assert_array_equal(named(static, "land_sea_mask"), dataset["land_sea_mask"])
    np.testing.assert_allclose(named(static, "soil_type").max(), 3 / 7)
    assert named(static, "orography").max() == pytest.approx(1.0, rel=1e-3)  # km
    np.testing.assert_allclose((static[..., 3:] ** 2).sum(-1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(static[3, 2, 3:], [0, 0, 1], atol=1e-6)  # the equator at 90 E
    np.testing.assert_allclose(static[-1, :, 3], 1.0)  # the north pole


def test_local_time_and_season(archive):
    times = np.array(["2001-01-01T00", "2001-01-01T06", "2001-07-02T12", "2001-12-31T18"], "datetime64[ns]")
    f = forcings(static_forcings(archive[0]), times)
    assert f.shape == (4, 7, 8, len(FORCING_NAMES))
    assert f.dtype == np.float32
    # midnight: cos = 1, six in the morning: sin = 1; 90 E (column 2) is six hours ahead of Greenwich
    for frame, column, phase in [
        (0, 0, 0.0),
        (0, 2, 0.25),
        (1, 0, 0.25),
        (1, 2, 0.5),
        (2, 0, 0.5),
        (3, 2, 0.0),
    ]:
        angle = 2 * np.pi * phase
        np.testing.assert_allclose(named(f, "sin_local_time")[frame, :, column], np.sin(angle), atol=1e-5)
        np.testing.assert_allclose(named(f, "cos_local_time")[frame, :, column], np.cos(angle), atol=1e-5)
    year = named(f, "cos_day_of_year")[:, 0, 0]
    np.testing.assert_allclose(year, [1, 1, -1, 1], atol=2e-3)
    for name in FORCING_NAMES[:6]:
        np.testing.assert_array_equal(named(f, name)[0], named(f, name)[3])


def test_missing_field(tmp_path):
    dataset = synthetic.fields(synthetic.times(2)).drop_vars("soil_type")
    store = open_store(synthetic.write(dataset, tmp_path / "a.zarr"), channels(["2m_temperature"]))
    with pytest.raises(ValueError, match="no static field 'soil_type'"):
        static_forcings(store)
    static = static_forcings(store, missing="zeros")
    assert not named(static, "soil_type").any()
    assert named(static, "land_sea_mask").any()
    with pytest.raises(ValueError, match="'ignore'"):
        static_forcings(store, missing="ignore")


def test_wrong_arguments(archive):
    static = static_forcings(archive[0])
    with pytest.raises(ValueError, match="datetime64"):
        forcings(static, np.arange(3))
