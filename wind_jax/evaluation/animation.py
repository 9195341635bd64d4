"""A run as a film: the maps of `plots`, one frame a lead time, in a small GIF."""

from pathlib import Path

import numpy as np
import xarray
from matplotlib.animation import PillowWriter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from wind_jax.evaluation.plots import COLUMNS, display, draw_map, globe, limits, name


def animate(
    fields: xarray.Dataset,
    land: xarray.DataArray,
    path: Path,
    frames_per_second: float = 4.0,
    centre: tuple[float, float] | None = None,
) -> None:
    """Writes a GIF of maps side by side; one colour scale, the truth's, serves all of it.

    Args:
        fields: any of the columns of `plots.ensemble_maps` but `spread`, each (time, latitude, longitude), in the units
            of the archive; the attribute `variable` says what they are, and `level` at which pressure in hPa, if any.
        land: (latitude, longitude), 1 on land, for the coasts.
        path: of the GIF.
        frames_per_second: of the film.
        centre: as for `plots.ensemble_maps`.
    """
    how = display(fields.attrs["variable"], fields.attrs.get("units", ""))
    shown = fields * how.factor + how.offset
    norm = limits(shown.get("truth", shown.get("mean")), how.colours)
    figure = Figure(figsize=(2.9 * len(shown) + 0.7, 1.9), layout="constrained", dpi=90)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(shown), squeeze=False, subplot_kw=globe(centre))[0]
    first = shown.isel(time=0)
    images = []
    for ax, key in zip(axes, shown, strict=True):
        images.append(draw_map(ax, first[key], land, how.colours, norm, points=False))
        ax.set_title(COLUMNS[key], fontsize=9)
    bar = figure.colorbar(images[0], ax=list(axes), pad=0.01, aspect=14, shrink=0.7, extend="both")
    bar.set_label(how.unit, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    title = figure.suptitle(" ", fontsize=10)
    what = name(fields.attrs["variable"], fields.attrs.get("level"))
    writer = PillowWriter(fps=frames_per_second)
    with writer.saving(figure, path, figure.dpi):
        for step, time in enumerate(fields["time"].values):
            title.set_text(f"{what}, {np.datetime_as_string(time, unit='h').replace('T', ' ')} UTC")
            for image, key in zip(images, shown, strict=True):
                image.set_array(shown[key].isel(time=step).values)
            writer.grab_frame()
