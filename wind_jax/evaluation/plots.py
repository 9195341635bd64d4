"""Figures of a run: xarray in, figure out; nothing is computed here but colour limits and map coordinates.

Maps use the Equal Earth projection (Savric, Patterson & Jenny 2018), so areas on paper are areas on Earth; coasts are
the 0.5 contour of the land-sea mask. Colours are told apart by colour-blind readers.
"""

import textwrap
from collections.abc import Mapping

import numpy as np
import xarray
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure

# Units that readers expect, as (label, unit, factor, offset, colours); other variables keep those of the archive.
_DISPLAY = {
    "temperature": ("Temperature", "°C", 1.0, -273.15, "plasma"),
    "2m_temperature": ("2 m temperature", "°C", 1.0, -273.15, "plasma"),
    "geopotential": ("Geopotential height", "m", 1 / 9.80665, 0.0, "viridis"),
    "specific_humidity": ("Specific humidity", "g/kg", 1e3, 0.0, "YlGnBu"),
    "u_component_of_wind": ("Zonal wind", "m/s", 1.0, 0.0, "PuOr_r"),
    "v_component_of_wind": ("Meridional wind", "m/s", 1.0, 0.0, "PuOr_r"),
    "10m_u_component_of_wind": ("10 m zonal wind", "m/s", 1.0, 0.0, "PuOr_r"),
    "10m_v_component_of_wind": ("10 m meridional wind", "m/s", 1.0, 0.0, "PuOr_r"),
    "mean_sea_level_pressure": ("Sea-level pressure", "hPa", 1e-2, 0.0, "cividis"),
    "total_precipitation_6hr": ("Precipitation in 6 h", "mm", 1e3, 0.0, "YlGnBu"),
}
_COLUMNS = {
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
    "storyline": ("Guided storyline", "#0072B2", "-"),
    "free": ("Free run from the warmer start", "#D55E00", "-"),
}


def name(variable: str, level: int | None) -> str:
    """What a reader calls a channel: "Temperature 850 hPa", "2 m temperature"."""
    label = _DISPLAY[variable][0] if variable in _DISPLAY else variable.replace("_", " ")
    return label if level is None else f"{label} {level} hPa"


def ensemble_maps(rows: Mapping[str, xarray.Dataset], land: xarray.DataArray, title: str) -> Figure:
    """Maps of an ensemble beside the truth, one variable or time a row.

    Args:
        rows: label -> fields (latitude, longitude) in the units of the archive, in the order of the columns: `truth`,
            `observations` (NaN where there are none), `interpolation`, `mean`, `member_1`, `member_2`, `spread`,
            any of them; the attribute `variable` says what they are. One colour scale serves a row, the truth's;
            the spread has its own.
        land: (latitude, longitude), its 0.5 contour is the coast.
        title: of the figure.
    """
    columns = list(next(iter(rows.values())).data_vars)
    figure = Figure(figsize=(2.6 * len(columns) + 0.8, 1.35 * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    figure.suptitle(title, fontsize=12)
    for line, (label, fields) in zip(axes, rows.items(), strict=True):
        _, unit, factor, offset, colours = _DISPLAY.get(
            fields.attrs["variable"], ("", fields.attrs.get("units", ""), 1.0, 0.0, "viridis")
        )
        shown = {key: fields[key] * factor + (0.0 if key == "spread" else offset) for key in columns}
        reference = shown.get("truth", shown.get("mean"))
        norm = _limits(reference, colours)
        images = {}
        for ax, (key, field) in zip(line, shown.items(), strict=True):
            spread = key == "spread"
            scale = Normalize(0, float(field.quantile(0.99))) if spread else norm
            points = key == "observations" and bool(field.isnull().mean() > 0.5)
            images[spread] = draw_map(ax, field, land, "magma_r" if spread else colours, scale, points)
            if ax in axes[0]:
                ax.set_title(_COLUMNS[key], fontsize=10)
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
            bar.set_label(_difference(unit) if spread else unit, fontsize=8)
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
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(title, fontsize=12)
    for ax, (label, curves) in zip(axes.flat, panels.items(), strict=False):
        _, unit, factor, _, _ = _DISPLAY.get(
            curves.attrs.get("variable"), ("", curves.attrs.get("units", ""), 1.0, 0, "")
        )
        for key, curve in curves.data_vars.items():
            text, colour, line = _CURVES[key]
            ax.plot(curve["lead_hours"] / 24, curve * factor, line, color=colour, label=text, linewidth=1.6)
        ax.set_title(label, fontsize=10)
        ax.set_ylabel(_difference(unit), fontsize=9)
        ax.set_xlim(0, float(curves["lead_hours"][-1]) / 24)
        ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
        _plain(ax)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    for ax in axes[-1]:
        ax.set_xlabel("Lead time (days)", fontsize=9)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9
    )
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
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def draw_map(ax: Axes, field: xarray.DataArray, land: xarray.DataArray, colours: str, norm: Normalize, points: bool):
    """One field (latitude, longitude) on `ax`, as cells or, where most of it is NaN, as points; returns the artist."""
    centre = lambda longitude: (np.asarray(longitude, float) + 180) % 360 - 180
    order = np.argsort(centre(field["longitude"]))
    field, land = field.isel(longitude=order), land.isel(longitude=order)
    longitude, latitude = centre(field["longitude"]), np.asarray(field["latitude"], float)
    step = 360 / longitude.size
    east = np.append(longitude, longitude[-1] + step) - step / 2
    north = np.concatenate([[-90], (latitude[1:] + latitude[:-1]) / 2, [90]])
    middle = (east[0] + east[-1]) / 2  # so that no cell crosses the edge of the map
    if points:
        rows, columns = np.nonzero(np.isfinite(field.values))
        x, y = equal_earth(longitude[columns] - middle, latitude[rows])
        size = np.clip(4000 / max(rows.size, 1), 0.5, 12)
        colour = field.values[rows, columns]
        image = ax.scatter(x, y, size, colour, cmap=colours, norm=norm, edgecolors="black", linewidths=0.2, zorder=3)
    else:
        x, y = equal_earth(*np.meshgrid(east - middle, north))
        image = ax.pcolormesh(x, y, field.values, cmap=colours, norm=norm, rasterized=True)
    x, y = equal_earth(*np.meshgrid(longitude - middle, latitude))
    ax.contour(x, y, land.values, levels=[0.5], colors="black", linewidths=0.4, zorder=2)
    side = np.linspace(-90, 90, 91)
    x, y = equal_earth(np.concatenate([np.full(91, -180), np.full(91, 180)]), np.concatenate([side, side[::-1]]))
    ax.fill(
        x, y, facecolor="#f2f2f2" if points else "none", edgecolor="black", linewidth=0.5, zorder=0 if points else 2
    )
    ax.set(aspect="equal", xlim=(-2.75, 2.75), ylim=(-1.35, 1.35))
    ax.set_axis_off()
    return image


def equal_earth(longitude: np.ndarray, latitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Map coordinates of degrees; longitude counted from the map's centre. The Earth's radius is 1."""
    a1, a2, a3, a4 = 1.340264, -0.081106, 0.000893, 0.003796
    theta = np.arcsin(np.sqrt(3) / 2 * np.sin(np.deg2rad(latitude)))
    slope = a1 + 3 * a2 * theta**2 + theta**6 * (7 * a3 + 9 * a4 * theta**2)
    x = 2 / np.sqrt(3) * np.deg2rad(longitude) * np.cos(theta) / slope
    return x, theta * (a1 + a2 * theta**2 + theta**6 * (a3 + a4 * theta**2))


def _limits(field: xarray.DataArray, colours: str) -> Normalize:
    """Colour limits: symmetric for diverging colours, from zero and stretched for amounts, else the field's range."""
    low, high = (float(q) for q in field.quantile([0.005, 0.995]))
    if colours == "PuOr_r":
        return Normalize(-max(-low, high), max(-low, high))
    if colours == "YlGnBu":
        return PowerNorm(0.5, 0, max(high, 1e-6))
    return Normalize(low, high)


def _difference(unit: str) -> str:
    return "K" if unit == "°C" else unit


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8)
