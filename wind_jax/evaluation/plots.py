"""Figures of a run: xarray in, figure out; nothing is computed here but colour limits and map coordinates.

Maps use the Equal Earth projection (Savric, Patterson & Jenny 2018), so areas on paper are areas on Earth; where
cartopy is installed they can be globes. Coasts are those of `coasts`. Colours are told apart by colour-blind readers.
"""

import textwrap
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import xarray
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from wind_jax.evaluation.coasts import coastlines, seen_from


class Display(NamedTuple):
    """What readers expect of a variable: shown value = factor * value + offset, in `unit`."""

    label: str
    unit: str
    factor: float
    offset: float
    colours: str

    @property
    def difference_unit(self) -> str:
        """Of errors and spreads."""
        return "K" if self.unit == "°C" else self.unit


_DISPLAY = {
    "temperature": Display("Temperature", "°C", 1.0, -273.15, "plasma"),
    "2m_temperature": Display("2 m temperature", "°C", 1.0, -273.15, "plasma"),
    "geopotential": Display("Geopotential height", "m", 1 / 9.80665, 0.0, "viridis"),
    "specific_humidity": Display("Specific humidity", "g/kg", 1e3, 0.0, "YlGnBu"),
    "u_component_of_wind": Display("Zonal wind", "m/s", 1.0, 0.0, "PuOr_r"),
    "v_component_of_wind": Display("Meridional wind", "m/s", 1.0, 0.0, "PuOr_r"),
    "10m_u_component_of_wind": Display("10 m zonal wind", "m/s", 1.0, 0.0, "PuOr_r"),
    "10m_v_component_of_wind": Display("10 m meridional wind", "m/s", 1.0, 0.0, "PuOr_r"),
    "mean_sea_level_pressure": Display("Sea-level pressure", "hPa", 1e-2, 0.0, "cividis"),
    "surface_pressure": Display("Surface pressure", "hPa", 1e-2, 0.0, "cividis"),
    "10m_wind_speed": Display("10 m wind speed", "m/s", 1.0, 0.0, "viridis"),
    "total_precipitation_6hr": Display("Precipitation in 6 h", "mm", 1e3, 0.0, "YlGnBu"),
}
SPREAD, DIFFERENCE = "magma_r", "RdBu_r"  # colours of what is never negative, and of what has a sign
DIVERGING = ("PuOr_r", DIFFERENCE)
COLUMNS = {
    "truth": "Truth",
    "observations": "Observations",
    "interpolation": "Interpolation",
    "mean": "Posterior mean",
    "member_1": "Member 1",
    "member_2": "Member 2",
    "spread": "Spread (std)",
}
_CURVES = {
    "posterior": ("Posterior mean, RMSE", "#0072B2", "-"),
    "spread": ("Posterior, spread", "#56B4E9", "--"),
    "persistence": ("Persistence, RMSE", "#D55E00", "-"),
    "climatology": ("Climatology, RMSE", "#666666", "-"),
    "interpolation": ("Interpolation", "#D55E00", "-"),
    "kriging": ("Kriging", "#009E73", "-"),
    "cubic": ("Cubic interpolation", "#E69F00", "-"),
    "cubic_anomaly": ("Cubic interpolation of anomalies", "#009E73", "-"),
    "bicubic": ("Bicubic interpolation", "#E69F00", "-"),
    "bicubic_anomaly": ("Bicubic interpolation of anomalies", "#009E73", "-"),
    "storyline": ("Guided storyline", "#0072B2", "-"),
    "free": ("Free run from the warmer start", "#D55E00", "-"),
}


def name(variable: str, level: int | None) -> str:
    """What a reader calls a channel: "Temperature 850 hPa", "2 m temperature"."""
    label = display(variable).label
    return label if level is None else f"{label} {level} hPa"


def display(variable: str | None, units: str = "") -> Display:
    """How a variable is shown; one that is not of the table keeps its units."""
    return _DISPLAY.get(variable) or Display((variable or "").replace("_", " "), units, 1.0, 0.0, "viridis")


def ensemble_maps(
    rows: Mapping[str, xarray.Dataset],
    land: xarray.DataArray,
    title: str,
    centre: tuple[float, float] | None = None,
) -> Figure:
    """Maps of an ensemble beside the truth, one variable or time a row.

    Args:
        rows: label -> fields (latitude, longitude) in the units of the archive, in the order of the columns: `truth`,
            `observations` (NaN where there are none), `interpolation`, `mean`, `member_1`, `member_2`, `spread`,
            any of them; the attribute `variable` says what they are. One colour scale serves a row, the truth's;
            the spread has its own.
        land: (latitude, longitude), 1 on land, for the coasts.
        title: of the figure.
        centre: (latitude, longitude) in degrees above which the Earth is seen as a globe, with cartopy; without it,
            or for None, maps show the whole Earth.
    """
    columns = list(next(iter(rows.values())).data_vars)
    figure = Figure(figsize=(2.6 * len(columns) + 0.8, 1.35 * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False, subplot_kw=globe(centre))
    figure.suptitle(title, fontsize=12)
    for line, (label, fields) in zip(axes, rows.items(), strict=True):
        how = display(fields.attrs["variable"], fields.attrs.get("units", ""))
        shown = {key: fields[key] * how.factor + (0.0 if key == "spread" else how.offset) for key in columns}
        norm = limits(shown.get("truth", shown.get("mean")), how.colours)
        images = {}
        for ax, (key, field) in zip(line, shown.items(), strict=True):
            spread = key == "spread"
            scale = Normalize(0, float(field.quantile(0.99))) if spread else norm
            points = key == "observations" and bool(field.isnull().mean() > 0.5)
            images[spread] = draw_map(ax, field, land, SPREAD if spread else how.colours, scale, points)
            if ax in axes[0]:
                ax.set_title(COLUMNS[key], fontsize=10)
        line[0].text(
            -0.02,
            0.5,
            textwrap.fill(label, 20),
            transform=line[0].transAxes,
            rotation=90,
            ha="right",
            va="center",
            multialignment="center",
            fontsize=9,
        )
        for spread, image in images.items():
            group = [ax for ax, key in zip(line, columns, strict=True) if (key == "spread") == spread]
            bar = figure.colorbar(
                image,
                ax=group,
                pad=0.01,
                aspect=14,
                shrink=0.85,
                extend="max" if images[spread].norm.vmin == 0 else "both",
            )
            bar.set_label(how.difference_unit if spread else how.unit, fontsize=8)
            bar.ax.tick_params(labelsize=7)
            bar.outline.set_linewidth(0.4)
    return figure


def lead_curves(panels: Mapping[str, xarray.Dataset], title: str) -> Figure:
    """Error and spread, or a share of a signal, against lead time, one panel a channel.

    Args:
        panels: label -> `posterior`, `spread`, `persistence`, `climatology` along `lead_hours`, any of them, in the
            units of the archive; the attribute `variable` says what they are. Or `storyline` and `free`, with the
            attribute `units`.
        title: of the figure.
    """
    figure, axes = _panels(panels, title, "Lead time (days)")
    for ax, curves in zip(axes, panels.values(), strict=True):
        how = display(curves.attrs.get("variable"), curves.attrs.get("units", ""))
        for key, curve in curves.data_vars.items():
            text, colour, line = _CURVES[key]
            ax.plot(curve["lead_hours"] / 24, curve * how.factor, line, color=colour, label=text, linewidth=1.6)
        ax.set_ylabel(how.difference_unit, fontsize=9)
        ax.set_xlim(0, float(curves["lead_hours"][-1]) / 24)
        ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
    _legend(figure, axes[0])
    return figure


def spectra(panels: Mapping[str, xarray.Dataset], title: str) -> Figure:
    """Zonal power spectra, one panel a channel: a mean that lacks small scales shows, and members that do not.

    Args:
        panels: label -> `truth` and `mean` (wavenumber) and `members` (number, wavenumber), squares of the units of the
            archive; the attribute `variable` says what they are.
        title: of the figure.
    """
    figure, axes = _panels(panels, title, "Zonal wavenumber")
    for ax, power in zip(axes, panels.values(), strict=True):
        how = display(power.attrs.get("variable"), power.attrs.get("units", ""))
        power = power.isel(wavenumber=slice(1, None))  # the zonal mean has no place on this axis
        _plume(ax, power["wavenumber"], power * how.factor**2)
        unit = how.difference_unit
        squared = f"({unit})²" if " " in unit else "/".join(f"{part}²" for part in unit.split("/"))
        ax.set_ylabel(f"Variance ({squared})", fontsize=9)
        ax.loglog()
        ax.minorticks_off()
    _legend(figure, axes[0])
    return figure


def rank_histograms(panels: Mapping[str, xarray.DataArray], title: str) -> Figure:
    """Where the truth lies among the sorted members, one panel a channel; flat bars for a reliable ensemble.

    Args:
        panels: label -> share of the cells (rank), which sum to 1.
        title: of the figure.
    """
    figure, axes = _panels(panels, title, "Rank of the truth among the members")
    for ax, share in zip(axes, panels.values(), strict=True):
        ax.bar(np.arange(share.size), 100 * share, width=0.9, color="#56B4E9", label="Share of the cells")
        ax.axhline(100 / share.size, color="black", linewidth=1, label="Reliable ensemble")
        ax.set_ylabel("Cells (%)", fontsize=9)
        ax.xaxis.get_major_locator().set_params(integer=True)
    _legend(figure, axes[0])
    return figure


def point_series(panels: Mapping[str, xarray.Dataset], title: str) -> Figure:
    """The ensemble at one place in time, one panel a channel.

    Args:
        panels: label -> `truth` and `mean` (time), `members` (number, time) and, where there are some, `observations`
            (time), in the units of the archive; the attribute `variable` says what they are.
        title: of the figure, which should name the place.
    """
    figure, axes = _panels(panels, title, "Time (UTC)")
    for ax, series in zip(axes, panels.values(), strict=True):
        how = display(series.attrs.get("variable"), series.attrs.get("units", ""))
        _plume(ax, series["time"], series * how.factor + how.offset)
        ax.set_ylabel(how.unit, fontsize=9)
        dates = AutoDateLocator(minticks=3, maxticks=5)
        ax.xaxis.set_major_locator(dates)
        ax.xaxis.set_major_formatter(ConciseDateFormatter(dates, show_offset=False))
    _legend(figure, axes[0])
    return figure


def drift(mass: xarray.Dataset, title: str) -> Figure:
    """A conserved quantity against lead time: it should stay where it was.

    Args:
        mass: `truth` and `mean` (lead_hours) and `members` (number, lead_hours), differences from the value to keep;
            the attributes `quantity` and `units` say what they are.
        title: of the figure.
    """
    figure, (ax,) = _panels({mass.attrs["quantity"]: mass}, title, "Lead time (days)")
    figure.set_size_inches(5.4, 3.6)
    ax.axhline(0, color="#666666", linewidth=0.8)
    _plume(ax, mass["lead_hours"] / 24, mass)
    ax.set_ylabel(f"Change ({mass.attrs['units']})", fontsize=9)
    _legend(figure, ax)
    return figure


def skill_dots(ratios: xarray.DataArray, title: str) -> Figure:
    """Error of each method as a fraction of the climatology's, one line a channel.

    Args:
        ratios: (method, channel) with labels for both; 1 is as good as climatology.
        title: of the figure.
    """
    channels = ratios["channel"].values
    figure = Figure(figsize=(6.4, 0.21 * len(channels) + 1.3), layout="constrained")
    ax = figure.subplots()
    lines = np.arange(len(channels))
    ax.axvline(1, color="#666666", linewidth=1, label="Climatology")
    for method in ratios["method"].values:
        label, colour, _ = _CURVES[str(method)]
        values = ratios.sel({"method": method})
        ax.plot(values, lines, "o", color=colour, label=label.split(",")[0], markersize=5)
    ax.set_yticks(lines, channels, fontsize=8)
    ax.set_ylim(len(channels) - 0.4, -0.6)
    ax.set_xlim(left=0)
    ax.set_xlabel("RMSE / RMSE of climatology (less is better)", fontsize=9)
    ax.set_title(title, fontsize=11)
    _plain(ax)
    _legend(figure, ax)
    return figure


def globe(centre: tuple[float, float] | None) -> dict:
    """For `figure.subplots(subplot_kw=...)`: the Earth seen from above `centre`, where cartopy is installed."""
    if centre is None:
        return {}
    try:
        from cartopy.crs import Orthographic
    except ImportError:
        return {}
    return {"projection": Orthographic(central_longitude=centre[1], central_latitude=centre[0])}


def draw_map(ax: Axes, field: xarray.DataArray, land: xarray.DataArray, colours: str, norm: Normalize, points: bool):
    """One field (latitude, longitude) as cells or, of few values, as points; returns the artist.

    Args:
        ax: plain, for the whole Earth, or one of cartopy's with any of its projections.
        field: NaN where there is nothing to draw.
        land: (latitude, longitude), 1 on land, for the coasts.
        colours: name of a colour map.
        norm: its limits.
        points: whether to draw each value as a point.
    """
    centre = lambda longitude: (np.asarray(longitude, float) + 180) % 360 - 180
    field = field.isel(longitude=np.argsort(centre(field["longitude"])))
    longitude, latitude = centre(field["longitude"]), np.asarray(field["latitude"], float)
    step = 360 / longitude.size
    east = np.append(longitude, longitude[-1] + step) - step / 2
    north = np.concatenate([[-90], (latitude[1:] + latitude[:-1]) / 2, [90]])
    middle = (east[0] + east[-1]) / 2  # so that no cell crosses the edge of the map
    projection = getattr(ax, "projection", None)  # cartopy's
    if projection is None:
        place, corners, transform = equal_earth, equal_earth(*np.meshgrid(east - middle, north)), {}
        ax.fill(*_outline(), facecolor="#f2f2f2" if points else "none", edgecolor="black", linewidth=0.5, zorder=0)
        ax.set(aspect="equal", xlim=(-2.75, 2.75), ylim=(-1.35, 1.35))
        ax.set_axis_off()
    else:
        from cartopy.crs import PlateCarree

        plate = PlateCarree(central_longitude=middle)
        corners, transform = (east - middle, north), {"transform": plate}

        def place(x, y):
            xy = projection.transform_points(plate, np.ascontiguousarray(x), np.ascontiguousarray(y))
            return np.where(np.isfinite(xy), xy, np.nan).T[:2]  # NaN on the far side

        ax.set_global()
        ax.set_facecolor("#f2f2f2")
    if points:
        rows, columns = np.nonzero(np.isfinite(field.values))
        x, y = place(longitude[columns] - middle, latitude[rows])
        size = np.clip(4000 / max(rows.size, 1), 0.5, 12)
        colour = field.values[rows, columns]
        image = ax.scatter(x, y, size, colour, cmap=colours, norm=norm, edgecolors="black", linewidths=0.2, zorder=3)
    else:
        image = ax.pcolormesh(*corners, field.values, cmap=colours, norm=norm, rasterized=True, **transform)
    coast = seen_from(coastlines(land), middle)
    ax.plot(*place(coast[:, 0], coast[:, 1]), color="black", linewidth=0.4, zorder=2)
    return image


def _outline() -> tuple[np.ndarray, np.ndarray]:
    side = np.linspace(-90, 90, 91)
    return equal_earth(np.repeat([-180.0, 180.0], 91), np.concatenate([side, side[::-1]]))


def equal_earth(longitude: np.ndarray, latitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Map coordinates of degrees; longitude counted from the map's centre. The Earth's radius is 1."""
    a1, a2, a3, a4 = 1.340264, -0.081106, 0.000893, 0.003796
    theta = np.arcsin(np.sqrt(3) / 2 * np.sin(np.deg2rad(latitude)))
    slope = a1 + 3 * a2 * theta**2 + theta**6 * (7 * a3 + 9 * a4 * theta**2)
    x = 2 / np.sqrt(3) * np.deg2rad(longitude) * np.cos(theta) / slope
    return x, theta * (a1 + a2 * theta**2 + theta**6 * (a3 + a4 * theta**2))


def limits(field: xarray.DataArray, colours: str) -> Normalize:
    """Colour limits: symmetric for diverging colours, from zero and stretched for amounts, else the field's range."""
    low, high = (float(q) for q in field.quantile([0.005, 0.995]))
    if colours in DIVERGING:
        return Normalize(-max(-low, high), max(-low, high))
    if colours == "YlGnBu":
        return PowerNorm(0.5, 0, max(high, 1e-6))
    return Normalize(low, high)


def palette(colours: str, count: int) -> list[str]:
    """`count` colours of a map, from its low end to its high one, as #rrggbb."""
    rgb = (255 * colormaps[colours](np.linspace(0, 1, count))[:, :3]).round().astype(int)
    return ["#{:02x}{:02x}{:02x}".format(*c) for c in rgb]


def _panels(panels: Mapping[str, object], title: str, below: str) -> tuple[Figure, list[Axes]]:
    """A figure with one plain panel under each label, `below` along the lowest of each column."""
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    figure.suptitle(title, fontsize=12)
    for ax in axes[len(panels) :]:
        ax.remove()
    for i, (ax, label) in enumerate(zip(axes, panels, strict=False)):
        ax.set_title(label, fontsize=10)
        if i + columns >= len(panels):
            ax.set_xlabel(below, fontsize=9)
        _plain(ax)
    return figure, axes[: len(panels)]


def _plume(ax: Axes, x: xarray.DataArray, y: xarray.Dataset) -> None:
    """Members as thin lines, behind their mean and the truth."""
    for i, member in enumerate(y["members"]):
        ax.plot(x, member, color="#56B4E9", linewidth=0.7, alpha=0.7, label="Members" if i == 0 else None)
    ax.plot(x, y["mean"], color="#0072B2", linewidth=1.6, label="Posterior mean")
    ax.plot(x, y["truth"], "--", color="black", linewidth=1.4, label="Truth")
    if "observations" in y:
        ax.plot(x, y["observations"], "o", color="#D55E00", markersize=4, label="Observations")


def _legend(figure: Figure, ax: Axes) -> None:
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8)
