"""Figures in one deliberate style: colour-blind safe, every axis labelled with its unit, readable in print.

Each function takes trajectories, arrays or rows and returns a matplotlib `Figure`; none of them computes results,
touches global state, or needs a display. `save_figure` writes PNG and SVG, the same bytes each time.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, PercentFormatter
from numpy.typing import ArrayLike

from alflb import metrics
from alflb.duality import center
from alflb.io import Row, atomic_write
from alflb.trajectory import Trajectory

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#6B6B6B"
"""Okabe and Ito's palette, told apart by readers with any common colour vision, and a neutral."""

CATEGORIES = (BLUE, RED, GREEN, ORANGE, PURPLE, GREY)
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


def styled(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Draw in `STYLE` without changing matplotlib's settings for anyone else."""

    @functools.wraps(draw)
    def in_style(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return in_style


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write ``path.png`` and ``path.svg`` atomically and return both paths."""
    stem = Path(path)
    written = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        target = stem.with_name(f"{stem.name}.{kind}")
        with mpl.rc_context(STYLE), atomic_write(target) as file:
            figure.savefig(file, format=kind, dpi=170, metadata=metadata)
        written.append(target)
    return written[0], written[1]


@styled
def plot_scores(scores_TE: ArrayLike, loads: Mapping[str, ArrayLike], target_load: float) -> Figure:
    """What a router's scores look like, and what top-K makes of them: histogram, and loads sorted by expert.

    Parameters
    ----------
    scores_TE : array_like, shape (T, E)
    loads : mapping of label to (E,) loads
        For example at bias 0, at the bias in force, at the optimal bias.
    target_load : float
        L, tokens.
    """
    figure, (left, right) = new_figure(1, 2, height=2.7)
    values = np.asarray(scores_TE).ravel()
    left.hist(values[np.isfinite(values)], bins=80, color=BLUE, alpha=0.85)
    left.set(xlabel="score (score units)", ylabel="token-expert pairs", title="Scores")
    for (label, load_E), colour in zip(loads.items(), (GREY, ORANGE, BLUE)):
        busiest_first = np.sort(np.asarray(load_E))[::-1]
        right.step(np.arange(1, busiest_first.size + 1), busiest_first, where="mid", color=colour, label=label)
    right.axhline(target_load, color="black", linewidth=0.8, linestyle=":", label=f"balance, L = {target_load:g}")
    right.set(xlabel="experts, busiest first", ylabel="load (tokens)", title="Loads")
    right.set_ylim(bottom=0)
    right.legend()
    return figure


@styled
def plot_convergence(runs: Mapping[float, Trajectory], lp_value: float, *, title: str) -> Figure:
    """Dual gap D(p_n) - LP* and MaxVio of runs on one fixed batch, one curve a step size.

    Parameters
    ----------
    runs : mapping of step size to Trajectory
        Runs recorded with the observer ``dual_value``.
    lp_value : float
        LP*, the exact optimum of the same batch.
    """
    figure, (left, right) = new_figure(1, 2, height=3.0)
    colours = ramp(len(runs))
    floor = 1e-14 * abs(lp_value)  # a gap of exactly zero has no place on a log axis
    for (step_size, run), colour in zip(sorted(runs.items()), colours):
        steps = np.arange(1, run.num_steps + 1)
        gap = np.maximum(run.series["dual_value"] - lp_value, floor) / abs(lp_value)
        left.loglog(steps, gap, color=colour, label=f"u = {_short(step_size)}")
        right.loglog(steps, np.maximum(metrics.max_vio(run), 1e-5), color=colour)
    left.set(xlabel="step n", ylabel="(D(p$_n$) − LP*) / LP*", title=f"{title}: dual gap")
    right.set(xlabel="step n", ylabel="MaxVio = max load / L − 1", title=f"{title}: violation")
    plain_ticks(right.yaxis)
    legend_below(figure, left)
    return figure


@styled
def plot_condition(runs: Mapping[float, Trajectory], rows: Sequence[Row]) -> Figure:
    """Where the monotonicity condition of claim C2 holds: switching benefit over descent term, step by step.

    Parameters
    ----------
    runs : mapping of step size to Trajectory
        Runs on one fixed batch, recorded with ``benefit`` and ``monotonicity_slack``. A ratio above 1 is a step on
        which D rose.
    rows : sequence of rows
        Columns ``rule``, ``schedule``, ``step_size``, ``dual_rises``, ``num_steps``: the share of such steps.
    """
    figure, (left, right) = new_figure(1, 2, height=3.1)
    for (step_size, run), colour in zip(sorted(runs.items()), ramp(len(runs))):
        benefit = run.series["benefit"]
        descent = run.series["monotonicity_slack"] + benefit
        steps = np.arange(1, run.num_steps + 1)
        shown = (benefit > 0) & (descent > 0)
        ratio = benefit[shown] / descent[shown]
        left.loglog(steps[shown], ratio, ".", color=colour, markersize=2.5, label=f"u = {_short(step_size)}")
    left.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    left.annotate("D rises", (0.02, 1.2), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    left.set(xlabel="step n", ylabel=r"benefit $\sum b_i$ / descent $\sum \epsilon_k (A_k - L)^2$", title="Sign rule")
    left.set_ylim(top=1e3)  # room for the legend
    left.legend(markerscale=4, fontsize=7, loc="upper left", ncols=2)
    for position, (name, chosen) in enumerate(_by_arm(rows).items()):
        ordered = sorted(chosen, key=lambda row: row["step_size"])
        right.semilogx(
            [row["step_size"] for row in ordered],
            [row["dual_rises"] / row["num_steps"] for row in ordered],
            color=CATEGORIES[position % len(CATEGORIES)],
            marker=MARKERS[position % len(MARKERS)],
            label=name,
        )
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    right.set(xlabel="step size u (score units)", ylabel="steps on which D rose", title="How often the condition fails")
    right.set_ylim(top=0.75)  # room for the legend; more than every other step cannot go up for long
    right.legend(fontsize=7, loc="upper left")
    return figure


@styled
def plot_load_heat_map(trajectory: Trajectory, *, title: str) -> Figure:
    """Loads over experts and steps, in units of the target; experts sorted by their load at the first step."""
    figure, (axis,) = new_figure(1, 1, height=3.1)
    order = np.argsort(trajectory.load_NE[0])[::-1]
    relative_EN = (trajectory.load_NE / trajectory.target_E)[:, order].T
    image = axis.imshow(
        np.log2(np.maximum(relative_EN, 2.0**-4)),
        aspect="auto",
        cmap="RdBu_r",
        vmin=-2.0,
        vmax=2.0,
        extent=(0.5, trajectory.num_steps + 0.5, len(order) + 0.5, 0.5),
        interpolation="nearest",
    )
    axis.grid(False)
    bar = figure.colorbar(image, ax=axis, extend="both", ticks=[-2, -1, 0, 1, 2], pad=0.02)
    bar.ax.set_yticklabels(["¼", "½", "1", "2", "4"])
    bar.set_label("load / L")
    axis.set(xlabel="step n", ylabel="expert, busiest at n = 1 first", title=title)
    return figure


@styled
def plot_bias_paths(trajectory: Trajectory, lp_bias_E: ArrayLike | None = None, *, title: str) -> Figure:
    """Centred bias of every expert, step by step, and where the exact optimum puts it."""
    figure, (axis,) = new_figure(1, 1, height=3.4)
    paths = center(trajectory.bias_NE)
    goal_E = center(lp_bias_E) if lp_bias_E is not None else paths[-1]
    order = np.argsort(goal_E)
    steps = np.arange(1, len(paths) + 1)
    for expert, colour in zip(order, ramp(len(order), "coolwarm")):
        axis.plot(steps, paths[:, expert], color=colour, linewidth=0.8)
    if lp_bias_E is not None:
        end = steps[-1] * 1.02
        axis.plot(np.full(len(order), end), goal_E, ".", color="black", markersize=3, clip_on=False)
        axis.annotate("dots: LP optimum p*", (1.0, 1.01), xycoords="axes fraction", ha="right")
    axis.set(xlabel="step n", ylabel="bias, centred (score units)", title=title)
    axis.set_xlim(1, steps[-1] * 1.03)
    return figure


@styled
def plot_step_sizes(
    panels: Mapping[str, Sequence[Row]], *, column: str, label: str, baselines: Mapping[str, float]
) -> Figure:
    """One number against step size: a panel for each source, a curve for each rule and schedule.

    Parameters
    ----------
    panels : mapping of panel title to rows
        Rows with columns ``rule``, ``schedule``, ``step_size`` and `column`.
    column, label : str
        What is drawn, and the words for the axis.
    baselines : mapping of panel title to float
        Drawn as a dotted line: the value without a bias.
    """
    figure, axes = new_figure(1, len(panels), height=2.9, sharey=True)
    for axis, (title, rows) in zip(axes, panels.items()):
        for position, (name, chosen) in enumerate(_by_arm(rows).items()):
            ordered = sorted(chosen, key=lambda row: row["step_size"])
            axis.loglog(
                [row["step_size"] for row in ordered],
                [max(row[column], 1e-4) for row in ordered],
                color=CATEGORIES[position % len(CATEGORIES)],
                marker=MARKERS[position % len(MARKERS)],
                label=name,
            )
        if title in baselines:
            axis.axhline(baselines[title], color="black", linewidth=0.8, linestyle=":", label="no bias")
        axis.set(xlabel="step size u (score units)", title=title)
    axes[0].set_ylabel(label)
    plain_ticks(axes[0].yaxis)
    legend_below(figure, axes[0])
    return figure


@styled
def plot_pareto(panels: Mapping[str, Sequence[Row]], *, label: str) -> Figure:
    """Affinity against imbalance: each point a rule, a schedule and a step size.

    Rows need ``rule``, ``schedule``, ``step_size``, ``max_vio_tail`` and ``affinity_ratio``.
    """
    figure, axes = new_figure(1, len(panels), height=3.0, sharey=True)
    for axis, (title, rows) in zip(axes, panels.items()):
        for position, (name, chosen) in enumerate(_by_arm(rows).items()):
            ordered = sorted(chosen, key=lambda row: row["step_size"])
            axis.semilogx(
                [max(row["max_vio_tail"], 1e-4) for row in ordered],
                [row["affinity_ratio"] - 1.0 for row in ordered],
                color=CATEGORIES[position % len(CATEGORIES)],
                marker=MARKERS[position % len(MARKERS)],
                linestyle="none",
                alpha=0.8,
                label=name,
            )
        axis.axhline(0.0, color="black", linewidth=0.8, linestyle=":")
        axis.set_yscale("symlog", linthresh=1e-5)
        axis.yaxis.set_major_locator(FixedLocator([-1e-1, -1e-3, -1e-5, 0.0, 1e-5, 1e-3, 1e-1]))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+g} %" if value else "0"))
        axis.set(xlabel="MaxVio, mean of the tail", title=title)
    axes[0].set_ylabel(label)
    legend_below(figure, axes[0])
    return figure


@styled
def plot_gap_bounds(groups: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Figure:
    """Measured dual gap against the a-posteriori bound of claim C6; the claim puts every point below the line.

    Parameters
    ----------
    groups : mapping of label to (bounds, measured gaps)
        Score units.
    """
    figure, (axis,) = new_figure(1, 1, height=3.4, width=4.6)
    for position, (label, (bounds, gaps)) in enumerate(groups.items()):
        bound, gap = np.asarray(bounds, dtype=float), np.asarray(gaps, dtype=float)
        positive = bound > 0  # at exact balance both are zero
        axis.loglog(
            bound[positive],
            np.maximum(gap[positive], 1e-8),
            MARKERS[position],
            color=CATEGORIES[position],
            alpha=0.55,
            markersize=4,
            label=label,
        )
    ends = np.array(axis.get_xlim())
    axis.plot(ends, ends, color="black", linewidth=0.8, linestyle=":", label="bound = gap")
    axis.set(
        xlim=ends,
        xlabel=r"bound $\frac{1}{2}\|A - L\|_1 (\mathrm{spread}(p) + \rho)$ (score units)",
        ylabel="measured D(p) − LP* (score units)",
        title="Balance implies near-optimality (C6)",
    )
    axis.legend(loc="upper left")
    return figure


@styled
def plot_stationarity(splits: Mapping[str, tuple[float, float, float]], runs: Mapping[str, Trajectory]) -> Figure:
    """Real text is not stationary: a fitted bias on held-out tokens, and MaxVio of batch after batch.

    Parameters
    ----------
    splits : mapping of label to (no bias, in sample, held out)
        MaxVio of a bias fitted on one half of the tokens.
    runs : mapping of label to Trajectory
        The same rule on the same tokens in different orders.
    """
    figure, (left, right) = new_figure(1, 2, height=2.9, ratios=(1, 1.5))
    positions = np.arange(len(splits))
    for offset, (label, colour) in enumerate((("no bias", GREY), ("fitted half", BLUE), ("other half", RED))):
        heights = [values[offset] for values in splits.values()]
        bars = left.bar(positions + 0.27 * (offset - 1), heights, width=0.25, color=colour, label=label)
        left.bar_label(bars, fmt=_two_digits, fontsize=7)
    left.set_xticks(positions, list(splits))
    left.grid(axis="x", visible=False)
    left.margins(y=0.12)
    left.set(ylabel="MaxVio = max load / L − 1", title="A bias fitted on half the tokens")
    left.legend()
    for (label, run), colour in zip(runs.items(), CATEGORIES):
        violation = np.maximum(metrics.max_vio(run), 1e-4)
        right.semilogy(np.arange(1, run.num_steps + 1), violation, color=colour, linewidth=0.8, label=label)
    plain_ticks(right.yaxis)
    right.set(xlabel="step n (one batch each)", ylabel="MaxVio of the batch", title="The same tokens in two orders")
    right.legend()
    return figure


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


def ramp(count: int, name: str = "viridis") -> list[Any]:
    """Ordered colours, dark to light, without the palest end."""
    colour_map = mpl.colormaps[name]
    return [colour_map(x) for x in np.linspace(0.0, 0.92 if name == "viridis" else 1.0, max(count, 1))]


def _by_arm(rows: Sequence[Row]) -> dict[str, list[Row]]:
    arms: dict[str, list[Row]] = {}
    for row in rows:
        arms.setdefault(arm_name(row), []).append(row)
    return arms


def arm_name(row: Row) -> str:
    """A rule and its schedule in a few words."""
    words = {"constant": "constant u", "inverse_sqrt": "u/√n", "inverse": "u/n", "linear": "linear decay"}
    rule = str(row["rule"]).replace("_", " ")
    return f"{rule}, {words.get(row['schedule'], row['schedule'])}"


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


def _short(step_size: float) -> str:
    """3e-4 as 3·10⁻⁴, plain numbers as they are."""
    if step_size >= 0.01:
        return f"{step_size:g}"
    mantissa, exponent = f"{step_size:.0e}".split("e")
    power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{power}" if mantissa == "1" else f"{mantissa}·10{power}"


_two_digits: Callable[[float], str] = "{:.2g}".format
