"""Tables of station reports: what is read, dropped, refused and split."""

import gzip

import jax
import numpy as np
import pandas as pd
import pytest

from wind_jax.channels import channels
from wind_jax.data.reports import COMPONENTS, leave_out, read_stations

CHANNELS = channels(levels=[500, 850])
ROWS = [
    ("01001", "2018-11-02 12:00:00", 70.9, -8.7, 9.0, "2m_temperature", 280.0),
    ("01001", "2018-11-02T12:00:00Z", 70.9, -8.7, 9.0, "10m_wind_speed", 10.0),
    ("01001", "2018-11-02 12:00:00", 70.9, -8.7, 9.0, "10m_wind_direction", 240.0),
    ("98223", "2018-11-02 15:00:00", 18.2, 120.5, np.nan, "mean_sea_level_pressure", 1.01e5),
    ("98223", "2018-11-02 15:00:00", 18.2, 120.5, np.nan, "2m_temperature", 300.0),
    ("98223", "2018-11-02 15:00:00", 18.2, 120.5, np.nan, "10m_wind_speed", np.nan),
    ("98223", "2018-11-02 15:00:00", 18.2, 120.5, np.nan, "2m_dewpoint_temperature", 297.0),
]


def table(rows=ROWS, **columns):
    names = ["station", "time", "latitude", "longitude", "elevation", "variable", "value"]
    return pd.DataFrame(rows, columns=names).assign(**columns)


@pytest.fixture
def write(tmp_path):
    def write(table, name="reports.csv"):
        path = tmp_path / name
        table.to_parquet(path) if name.endswith("parquet") else table.to_csv(path, index=False)
        return path

    return write


@pytest.mark.parametrize("name", ["reports.csv", "reports.csv.gz", "reports.parquet"])
def test_reads_each_format(write, name):
    reports = read_stations(write(table(), name), CHANNELS)
    assert reports.station.tolist() == ["01001", "01001", "98223"]
    assert reports.variable.tolist() == ["2m_temperature", "10m_wind_speed", "mean_sea_level_pressure"]
    assert reports.time[1] == np.datetime64("2018-11-02T12", "ns")
    assert reports.value.tolist() == [280.0, 10.0, 1.01e5]
    assert np.isnan(reports.error).all()
    assert not reports.level.any()
    assert reports.dropped == {
        "no value": 1,
        "10m_wind_direction is not used": 1,
        "2m_dewpoint_temperature is not used": 1,
        "2m_temperature without elevation": 1,
    }


def test_parquet_may_hold_times_and_levels(write):
    rows = [("a", pd.Timestamp("2018-11-02 12:00"), 0.0, 0.0, 0.0, "temperature", 250.0)]
    reports = read_stations(write(table(rows, level=500, error=0.7), "r.parquet"), CHANNELS)
    assert (reports.level[0], reports.error[0]) == (500, 0.7)
    assert reports.time[0] == np.datetime64("2018-11-02T12", "ns")


def test_components_of_a_wind_from_the_southwest(write):
    """A wind from 240 degrees blows to the northeast: u = 10 sin 60, v = 10 cos 60."""
    reports = read_stations(write(table()), CHANNELS, wind="components")
    u, v = (reports.value[reports.variable == name] for name in COMPONENTS)
    np.testing.assert_allclose([u, v], [[10 * np.sin(np.pi / 3)], [5.0]])
    assert "10m_wind_speed" not in reports.variable
    assert reports.dropped["10m_wind_direction is not used"] == 1


def test_copies_pair_in_order_and_a_lone_speed_stays(write):
    wind = [("a", "2018-11-02 12:00", 0.0, 0.0, 0.0, f"10m_wind_{what}", value) for what, value in
            [("speed", 1.0), ("speed", 2.0), ("direction", 270.0), ("direction", 180.0), ("speed", 3.0)]]  # fmt: skip
    reports = read_stations(write(table(wind)), CHANNELS, wind="components")
    u, v = (reports.value[reports.variable == name] for name in COMPONENTS)
    np.testing.assert_allclose([u, v], [[1, 0], [0, 2]], atol=1e-12)
    assert reports.value[reports.variable == "10m_wind_speed"].tolist() == [3.0]


def test_only_variables_asked_for(write):
    reports = read_stations(write(table()), CHANNELS, ["mean_sea_level_pressure"])
    assert set(reports.variable) == {"mean_sea_level_pressure"}


def test_a_real_report(shared_data):
    reports = read_stations(shared_data("synop_20181102T12.csv.gz"), CHANNELS)
    with gzip.open(shared_data("synop_20181102T12.csv.gz"), "rt") as file:
        lines = sum(1 for _ in file) - 1
    assert len(reports) + sum(reports.dropped.values()) == lines
    assert "2m_dewpoint_temperature" not in reports.variable
    assert reports.value[reports.variable == "2m_temperature"].max() > 370  # garbage is for quality control


def test_stations_are_left_out_whole(write):
    rows = [(f"s{i}", "2018-11-02 12:00", 0.0, 0.0, 0.0, name, 280.0) for i in range(20)
            for name in ("2m_temperature", "mean_sea_level_pressure")]  # fmt: skip
    reports = read_stations(write(table(rows)), CHANNELS)
    kept, withheld = leave_out(reports, 0.25, jax.random.key(0))
    assert len(set(withheld.station)) == 5
    assert len(withheld) == 10
    assert set(kept.station) | set(withheld.station) == set(reports.station)
    assert not set(kept.station) & set(withheld.station)
    other = leave_out(reports, 0.25, jax.random.key(1))[1]
    assert set(other.station) != set(withheld.station)
    for fraction in (0.0, 1.0, 0.001, float("nan")):
        with pytest.raises(ValueError, match="both sides"):
            leave_out(reports, fraction, jax.random.key(0))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (table().drop(columns=["elevation", "value"]), r"lacks the columns \['elevation', 'value'\]"),
        (table(time="yesterday"), "7 times cannot be read; the first is 'yesterday'"),
        (table(latitude=91.5), "7 latitudes are outside .*91.5"),
        (table(longitude=np.nan), "7 longitudes are outside"),
        (table(value="M"), "7 values of value are not finite numbers; the first is 'M'"),
        (table(error=0.0), "7 errors are not positive"),
        (table(variable="visibility"), r"visibility \(6 rows\)"),
        (table(variable="temperature", level=300), r"temperature at 300 hPa \(6 rows\)"),
        (table(variable="2m_dewpoint_temperature"), "no report that can be used"),
        (table([]), "no report that can be used"),
    ],
)
def test_refused(write, bad, message):
    with pytest.raises(ValueError, match=message):
        read_stations(write(bad), CHANNELS)


def test_refused_arguments(write, tmp_path, monkeypatch):
    path = write(table(), "reports.parquet")
    with pytest.raises(ValueError, match=r"cannot tell \['2m_dewpoint_temperature'\]"):
        read_stations(path, CHANNELS, ["2m_dewpoint_temperature"])
    with pytest.raises(ValueError, match="got 'both'"):
        read_stations(path, CHANNELS, wind="both")
    with pytest.raises(ValueError, match="No station table"):
        read_stations(tmp_path / "none.csv", CHANNELS)
    (tmp_path / "reports.xls").touch()
    with pytest.raises(ValueError, match=r"got reports\.xls"):
        read_stations(tmp_path / "reports.xls", CHANNELS)

    def without_pyarrow(path):
        raise ImportError

    monkeypatch.setattr(pd, "read_parquet", without_pyarrow)
    with pytest.raises(ValueError, match="needs the package pyarrow"):
        read_stations(path, CHANNELS)
