"""Figures: the projection keeps areas, colours follow the truth, and nothing warns."""

import numpy as np
import pytest
import xarray

from wind_jax.evaluation import plots

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
