"""One deliberate style for figures: safe for color-blind readers, units on every axis, readable in print.

Helpers for axes and legends, and `save_figure`, which writes PNG and SVG: the same bytes each time. Nothing here
changes matplotlib's settings for anyone else, or needs a display.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from alflb.io import atomic_write

BLUE, ORANGE, GREEN, RED, PURPLE, GRAY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#6B6B6B"
"""Okabe and Ito's palette, distinguishable by readers with any common color vision, and a neutral."""

CATEGORIES = (BLUE, RED, GREEN, ORANGE, PURPLE, GRAY)
MARKERS = ("o", "s", "^", "D", "v", "P")
WIDTH = 7.2
"""Inches: a two-column page's text width."""

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "svg.hashsalt": "alflb",
    "svg.fonttype": "path",
}


_P = ParamSpec("_P")


def draw_in_style() -> AbstractContextManager[None]:
    """What is drawn in this context has `STYLE`; the settings of others stay as they are."""
    return mpl.rc_context(STYLE)


def styled(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Draw in `STYLE` without changing matplotlib's settings for anyone else."""

    @functools.wraps(draw)
    def in_style(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        with draw_in_style():
            return draw(*args, **kwargs)

    return in_style


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write ``path.png`` and ``path.svg`` atomically and return both paths."""
    stem = Path(path)
    written = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        target = stem.with_name(f"{stem.name}.{kind}")
        with draw_in_style(), atomic_write(target) as file:
            figure.savefig(file, format=kind, dpi=170, metadata=metadata)
        written.append(target)
    return written[0], written[1]


def new_figure(
    rows: int,
    columns: int,
    *,
    height: float,
    width: float = WIDTH,
    sharey: bool = False,
    ratios: Sequence[float] | None = None,
) -> tuple[Figure, list[Axes]]:
    """An empty figure and its axes, row by row; sizes in inches. Call it inside a `styled` function."""
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey, width_ratios=ratios)
    return figure, list(grid.ravel())


def ramp(count: int, name: str = "plasma") -> list[Any]:
    """Ordered colors, dark to light, without the palest end, which is lost on white."""
    color_map = mpl.colormaps[name]
    return [color_map(x) for x in np.linspace(0.0, 0.8 if name == "plasma" else 1.0, max(count, 1))]


def legend_below(figure: Figure, axis: Axes, *, columns: int = 7) -> None:
    """One legend for all axes, under them."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), columns))


def plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis 0.01, 0.02, 0.05, 0.1, ... where powers of ten alone would leave it bare."""
    low, high = axis.get_view_interval()
    subdivisions = (1.0, 2.0, 5.0) if high / max(low, 1e-300) < 1e3 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subdivisions))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
