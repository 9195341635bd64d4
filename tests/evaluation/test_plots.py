"""Figures: the projection keeps areas, colours follow the truth, and nothing warns."""

import sys

import numpy as np
import pytest
import xarray
from PIL import Image

from wind_jax.evaluation import coasts, plots
from wind_jax.evaluation.animation import animate

LATITUDE, LONGITUDE = np.linspace(-75, 75, 6), np.arange(0, 360, 30.0)


def field(value=None):
    rng = np.random.default_rng(0)
    x = rng.normal(280, 10, (6, 12)) if value is None else np.full((6, 12), float(value))
    return xarray.DataArray(x, {"latitude": LATITUDE, "longitude": LONGITUDE}, ("latitude", "longitude"))


def rows(variable):
    x = field()
    observed = x.where(np.random.default_rng(1).random(x.shape) < 0.2)
    columns = {"truth": x, "observations": observed, "mean": x, "member_1": x, "member_2": x, "spread": field(2)}
    return xarray.Dataset(columns, attrs={"variable": variable, "units": "K"})


def test_equal_earth_keeps_areas():
    """Cells of equal solid angle have equal area on the map, and the whole map has 4 pi."""
    sine = np.linspace(-1, 1, 801)
    x, y = plots.equal_earth(*np.meshgrid(np.array([-180.0, 180.0]), np.rad2deg(np.arcsin(sine))))
    width = x[:, 1] - x[:, 0]
    area = (width[1:] + width[:-1]) / 2 * np.diff(y[:, 0])
    np.testing.assert_allclose(area[1:-1], 4 * np.pi / 800, rtol=1e-2)
    assert area.sum() == pytest.approx(4 * np.pi, rel=1e-3)


@pytest.mark.parametrize("variable", ["2m_temperature", "u_component_of_wind", "total_precipitation_6hr", "ozone"])
def test_maps(variable, tmp_path):
    figure = plots.ensemble_maps({"one": rows(variable), "two": rows(variable)}, field(0) + (field() > 280), "Title")
    figure.savefig(tmp_path / "x.png", dpi=30)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["Truth", "Observations", "Posterior mean", "Member 1", "Member 2", "Spread (std)"]
    assert len(figure.axes) == 2 * 6 + 2 * 2  # a colour bar for the fields of a row and one for its spread


def test_a_row_shares_the_colours_of_the_truth():
    data = rows("u_component_of_wind")
    data["member_1"] = data["member_1"] * 5
    figure = plots.ensemble_maps({"one": data}, field(0), "Title")
    limits = [ax.collections[0].get_clim() for ax in figure.axes[:5]]
    assert len(set(limits)) == 1
    assert limits[0][0] == -limits[0][1]  # diverging colours are symmetric
    assert limits[0][1] <= float(data["truth"].max())


def test_curves_and_dots(tmp_path):
    hours = np.arange(6, 126, 6)
    panel = xarray.Dataset(
        dict.fromkeys(("posterior", "spread", "persistence", "climatology"), ("lead_hours", hours * 98.0665)),
        {"lead_hours": hours},
        {"variable": "geopotential", "units": "m2 s-2"},
    )
    figure = plots.lead_curves({str(i): panel for i in range(4)}, "Title")
    figure.savefig(tmp_path / "x.png", dpi=30)
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(line.get_xdata(), hours / 24)
    np.testing.assert_allclose(line.get_ydata(), hours * 10)  # m
    ratios = xarray.DataArray(
        np.array([[0.5, 0.8], [0.4, np.nan]]),
        {"method": ["posterior", "interpolation"], "channel": ["a", "b"]},
        ("method", "channel"),
    )
    figure = plots.skill_dots(ratios, "Title")
    figure.savefig(tmp_path / "y.png", dpi=30)
    assert figure.axes[0].lines[1].get_xdata().tolist() == [0.5, 0.8]


def test_names():
    assert plots.name("geopotential", 500) == "Geopotential height 500 hPa"
    assert plots.name("sea_ice_cover", None) == "sea ice cover"


def plume(dimension, values, **attrs):
    members = np.stack([values * (1 + 0.1 * i) for i in range(3)])
    columns = {
        "truth": (dimension, values),
        "mean": (dimension, members.mean(0)),
        "members": (("number", dimension), members),
    }
    return xarray.Dataset(columns, {dimension: np.arange(values.size)}, attrs)


def lines(ax, label):
    return next(line for line in ax.lines if line.get_label() == label)


def test_spectra_are_squares_of_the_shown_unit():
    power = plume("wavenumber", np.linspace(9.0, 1.0, 9), variable="geopotential", units="m2 s-2")
    figure = plots.spectra({"z": power, "u": power.assign_attrs(variable="u_component_of_wind")}, "Title")
    first, second = figure.axes
    assert (first.get_ylabel(), second.get_ylabel()) == ("Variance (m²)", "Variance (m²/s²)")
    line = lines(first, "Truth")
    assert line.get_xdata().tolist() == list(range(1, 9))  # not the zonal mean
    np.testing.assert_allclose(line.get_ydata(), power["truth"][1:] / 9.80665**2)
    assert first.get_xscale() == first.get_yscale() == "log"


def test_rank_histograms_show_shares_and_the_flat_line():
    figure = plots.rank_histograms({"z": xarray.DataArray([0.5, 0.25, 0.25, 0.0], dims="rank")}, "Title")
    (ax,) = figure.axes
    assert [bar.get_height() for bar in ax.patches] == [50, 25, 25, 0]
    assert lines(ax, "Reliable ensemble").get_ydata() == [25, 25]


def test_series_and_drift(tmp_path):
    series = plume("time", np.array([273.15, 283.15]), variable="2m_temperature", units="K")
    series = series.assign_coords(time=np.array(["2001-01-01T00", "2001-01-01T06"], "datetime64[ns]"))
    figure = plots.point_series({"t": series.assign(observations=("time", [273.15, np.nan]))}, "Title")
    figure.savefig(tmp_path / "x.png", dpi=30)
    np.testing.assert_allclose(lines(figure.axes[0], "Truth").get_ydata(), [0, 10], atol=1e-9)
    assert figure.axes[0].get_ylabel() == "°C"
    mass = plume("lead_hours", np.array([0.0, 0.1]), quantity="Dry air", units="hPa")
    (ax,) = plots.drift(mass.assign_coords(lead_hours=[24, 48]), "Title").axes
    assert lines(ax, "Truth").get_xdata().tolist() == [1, 2]  # days
    assert ax.get_ylabel() == "Change (hPa)"


def test_an_animation_has_a_picture_a_time(tmp_path):
    times = np.array(["2001-01-01T00", "2001-01-01T06", "2001-01-01T12"], "datetime64[ns]")
    moving = xarray.concat([field() + 3 * i for i in range(3)], "time").assign_coords(time=times)
    film = xarray.Dataset(
        {"truth": moving, "mean": moving}, attrs={"variable": "temperature", "units": "K", "level": 500}
    )
    animate(film, field(0), tmp_path / "x.gif")
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.n_frames == 3
        pictures = []
        for i in range(3):
            gif.seek(i)
            pictures.append(gif.convert("RGB").tobytes())
    assert len(set(pictures)) == 3


@pytest.fixture
def no_natural_earth(monkeypatch):
    monkeypatch.setattr(coasts, "_natural_earth", lambda: None)


def test_the_coast_of_a_hemisphere_is_two_meridians(no_natural_earth):
    """Land from 90 E to 240 E: the 0.5 contour lies half a cell outside, also across the date line."""
    land = field(0) + ((field()["longitude"] >= 90) & (field()["longitude"] <= 240))
    vertices = coasts.coastlines(land)
    assert set(np.unique(vertices[np.isfinite(vertices[:, 0]), 0])) == {75.0, 255.0}
    seen = coasts.seen_from(vertices, 170.0)
    assert set(np.unique(seen[np.isfinite(seen[:, 0]), 0])) == {-95.0, 85.0}
    assert coasts.coastlines(field(0)).shape == (1, 2)  # no land, no coast


def test_a_line_is_broken_at_the_edge_of_the_map():
    around = np.array([[170.0, 0.0], [179.0, 1.0], [188.0, 2.0], [197.0, 3.0]])
    seen = coasts.seen_from(around, 0.0)
    np.testing.assert_allclose(seen[:, 0], [170, 179, np.nan, -172, -163])
    np.testing.assert_array_equal(coasts.seen_from(around, 180.0)[:, 0], [-10, -1, 8, 17])


def test_natural_earth_is_taken_from_disk_and_never_fetched(tmp_path, monkeypatch):
    cartopy, shapefile = pytest.importorskip("cartopy"), pytest.importorskip("shapefile")
    monkeypatch.setitem(cartopy.config, "pre_existing_data_dir", tmp_path)
    monkeypatch.setitem(cartopy.config, "data_dir", tmp_path / "empty")
    coasts._natural_earth.cache_clear()
    assert coasts._natural_earth() is None
    path = tmp_path / "shapefiles" / "natural_earth" / "physical" / "ne_110m_coastline.shp"
    path.parent.mkdir(parents=True)
    with shapefile.Writer(str(path), shapeType=shapefile.POLYLINE) as writer:
        writer.field("name", "C")
        writer.line([[[0, 0], [10, 5]], [[20, 30], [40, 50]]])
        writer.record("coast")
    coasts._natural_earth.cache_clear()
    nan = np.nan
    np.testing.assert_array_equal(
        coasts.coastlines(field(0)), [[0, 0], [10, 5], [nan, nan], [20, 30], [40, 50], [nan, nan]]
    )
    coasts._natural_earth.cache_clear()


def test_a_globe_with_cartopy_and_a_plain_map_without(tmp_path, monkeypatch, no_natural_earth):
    pytest.importorskip("cartopy")
    data = rows("2m_temperature")[["truth", "observations"]].assign_attrs(variable="2m_temperature")
    figure = plots.ensemble_maps({"one": data}, field(0) + (field() > 280), "Title", centre=(50.0, 10.0))
    figure.savefig(tmp_path / "x.png", dpi=30)
    assert figure.axes[0].projection.proj4_params["lat_0"] == 50
    monkeypatch.setitem(sys.modules, "cartopy.crs", None)
    figure = plots.ensemble_maps({"one": data}, field(0), "Title", centre=(50.0, 10.0))
    assert not hasattr(figure.axes[0], "projection")
