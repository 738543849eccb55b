"""The study's figures: each function takes trajectories, arrays or rows and draws; none of them computes results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, PercentFormatter
from numpy.typing import ArrayLike

from alflb import metrics
from alflb.duality import center
from alflb.io import Row
from alflb.plotting import (
    BLUE,
    CATEGORIES,
    GRAY,
    MARKERS,
    ORANGE,
    RED,
    legend_below,
    new_figure,
    plain_ticks,
    ramp,
    styled,
)
from alflb.schedules import Schedule
from alflb.studies.study import NO_SCHEDULE
from alflb.trajectory import Trajectory


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
    for (label, load_E), color in zip(loads.items(), (GRAY, ORANGE, BLUE)):
        busiest_first = np.sort(np.asarray(load_E))[::-1]
        right.step(np.arange(1, busiest_first.size + 1), busiest_first, where="mid", color=color, label=label)
    right.axhline(target_load, color="black", linewidth=0.8, linestyle=":", label=f"balance, L = {target_load:g}")
    right.set(xlabel="experts, busiest first", ylabel="load (tokens)", title="Loads")
    right.set_ylim(bottom=0)
    right.legend()
    return figure


@styled
def plot_convergence(runs: Mapping[float | None, Trajectory], lp_value: float) -> Figure:
    """Dual gap D(p_n) - LP* and MaxVio of runs on one fixed batch, one curve per step size.

    Parameters
    ----------
    runs : mapping of step size (None for a rule without one) to Trajectory
        Runs recorded with the observer ``dual_value``.
    lp_value : float
        LP*, the exact optimum of the same batch.
    """
    figure, (left, right) = new_figure(1, 2, height=3.0)
    colors = ramp(len(runs))
    floor = 1e-14 * abs(lp_value)  # a gap of exactly zero has no place on a log axis
    for (step_size, run), color in zip(_by_step_size(runs), colors):
        steps = np.arange(1, run.num_steps + 1)
        gap = np.maximum(run.series["dual_value"] - lp_value, floor) / abs(lp_value)
        left.loglog(steps, gap, color=color, label=f"u = {_short(step_size)}")
        right.loglog(steps, np.maximum(metrics.max_vio(run), 1e-5), color=color)
    left.set(xlabel="step n", ylabel="(D(p$_n$) − LP*) / LP*", title="Dual gap")
    right.set(xlabel="step n", ylabel="MaxVio = max load / L − 1", title="Violation")
    plain_ticks(right.yaxis)
    legend_below(figure, left)
    return figure


@styled
def plot_condition(runs: Mapping[float | None, Trajectory], rows: Sequence[Row]) -> Figure:
    """Where the monotonicity condition of claim C2 holds: switching benefit over descent term, step by step.

    Parameters
    ----------
    runs : mapping of step size (None for a rule without one) to Trajectory
        Runs on one fixed batch, recorded with ``benefit`` and ``monotonicity_slack``. A ratio above 1 is a step on
        which D rose.
    rows : sequence of rows
        Columns ``rule``, ``schedule``, ``step_size``, ``dual_rises``, ``num_steps``: the share of such steps.
    """
    figure, (left, right) = new_figure(1, 2, height=3.1)
    for (step_size, run), color in zip(_by_step_size(runs), ramp(len(runs))):
        benefit = run.series["benefit"]
        descent = run.series["monotonicity_slack"] + benefit
        steps = np.arange(1, run.num_steps + 1)
        shown = (benefit > 0) & (descent > 0)
        ratio = benefit[shown] / descent[shown]
        left.loglog(steps[shown], ratio, ".", color=color, markersize=2.5, label=f"u = {_short(step_size)}")
    left.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
    left.annotate("D rises", (0.02, 1.2), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    left.set(
        xlabel="step n", ylabel=r"benefit $\sum b_i$ / descent $\sum \epsilon_k (A_k - L)^2$", title="Step by step"
    )
    left.set_ylim(top=1e3)  # room for the legend
    left.legend(markerscale=4, fontsize=7, loc="upper left", ncols=2)
    for position, (name, chosen) in enumerate(_by_arm(rows).items()):
        _draw_over_steps(right, chosen, lambda row: row["dual_rises"] / row["num_steps"], position, name)
    right.set_xscale("log")
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
    """Centered bias of every expert, step by step, and where the exact optimum puts it."""
    figure, (axis,) = new_figure(1, 1, height=3.4)
    paths = center(trajectory.bias_NE)
    goal_E = center(lp_bias_E) if lp_bias_E is not None else paths[-1]
    order = np.argsort(goal_E)
    steps = np.arange(1, len(paths) + 1)
    for expert, color in zip(order, ramp(len(order), "coolwarm")):
        axis.plot(steps, paths[:, expert], color=color, linewidth=0.8)
    if lp_bias_E is not None:
        end = steps[-1] * 1.02
        axis.plot(np.full(len(order), end), goal_E, ".", color="black", markersize=3, clip_on=False)
        axis.annotate("dots: LP optimum p*", (1.0, 1.01), xycoords="axes fraction", ha="right")
    axis.set(xlabel="step n", ylabel="bias, centered (score units)", title=title)
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
            _draw_over_steps(axis, chosen, lambda row: max(row[column], 1e-4), position, name)
        axis.set_xscale("log")
        axis.set_yscale("log")
        if title in baselines:
            axis.axhline(baselines[title], color="black", linewidth=0.8, linestyle=":", label="no bias")
        axis.set(xlabel="step size u (score units)", title=title.replace(", ", ",\n"))
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
            axis.semilogx(
                [max(row["max_vio_tail"], 1e-4) for row in chosen],
                [row["affinity_ratio"] - 1.0 for row in chosen],
                **{**_look(position), "linestyle": "none"},
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
    """Whether tokens are stationary: a fitted bias on held-out tokens, and MaxVio of batch after batch.

    Parameters
    ----------
    splits : mapping of label to (no bias, in sample, held out)
        MaxVio of a bias fitted on one half of the tokens.
    runs : mapping of label to Trajectory
        The same rule on the same tokens in different orders.
    """
    figure, (left, right) = new_figure(1, 2, height=2.9, ratios=(1, 1.5))
    positions = np.arange(len(splits))
    for offset, (label, color) in enumerate((("no bias", GRAY), ("fitted half", BLUE), ("other half", RED))):
        heights = [values[offset] for values in splits.values()]
        bars = left.bar(positions + 0.27 * (offset - 1), heights, width=0.25, color=color, label=label)
        left.bar_label(bars, fmt=_two_digits, fontsize=7)
    left.set_xticks(positions, list(splits))
    left.grid(axis="x", visible=False)
    left.margins(y=0.12)
    left.set(ylabel="MaxVio = max load / L − 1", title="A bias fitted on half the tokens")
    left.legend()
    for (label, run), color in zip(runs.items(), CATEGORIES):
        violation = np.maximum(metrics.max_vio(run), 1e-4)
        right.semilogy(np.arange(1, run.num_steps + 1), violation, color=color, linewidth=0.8, label=label)
    plain_ticks(right.yaxis)
    right.set(xlabel="step n (one batch each)", ylabel="MaxVio of the batch", title="The same tokens in two orders")
    right.legend()
    return figure


@styled
def plot_schedules(schedules: Mapping[str, Schedule], num_steps: int) -> Figure:
    """Step size against step number, one curve per schedule, on linear and on logarithmic axes."""
    figure, (left, right) = new_figure(1, 2, height=2.9)
    step_N = np.unique(np.concatenate([np.geomspace(1, num_steps, 200), np.linspace(1, num_steps, 600)]).astype(int))
    for position, (name, schedule) in enumerate(schedules.items()):
        values = np.array([schedule(int(t)) for t in step_N])
        look = {**_look(position), "marker": ""}
        left.plot(step_N, values, label=name, **look)
        right.loglog(step_N[values > 0], values[values > 0], **look)
    left.set(xlabel="step n", ylabel="step size (score units per step)", title="Linear axes")
    right.set(xlabel="step n", title="Logarithmic axes; 0 is not drawn")
    legend_below(figure, left)
    return figure


def _draw_over_steps(axis: Axes, rows: Sequence[Row], value: Callable[[Row], float], position: int, name: str) -> None:
    """One arm's number against its step sizes; a level line for an arm that has none."""
    look = _look(position)
    if rows[0]["step_size"] is None:
        axis.axhline(value(rows[0]), label=name, color=look["color"], linestyle="--")
        return
    ordered = sorted(rows, key=lambda row: row["step_size"])
    axis.plot([row["step_size"] for row in ordered], [value(row) for row in ordered], label=name, **look)


def _look(position: int) -> dict[str, Any]:
    """Color, marker and line of the n-th curve of a figure; colors repeat after six, with another marker and line."""
    turn, place = divmod(position, len(CATEGORIES))
    return {
        "color": CATEGORIES[place],
        "marker": MARKERS[(place + turn) % len(MARKERS)],
        "linestyle": ("-", "--", ":", "-.")[turn % 4],
    }


def _by_arm(rows: Sequence[Row]) -> dict[str, list[Row]]:
    arms: dict[str, list[Row]] = {}
    for row in rows:
        arms.setdefault(arm_name(row), []).append(row)
    return arms


def arm_name(row: Row) -> str:
    """A rule and its schedule in a few words."""
    words = {"constant": "constant u", "inverse_sqrt": "u/√n", "inverse": "u/n", "linear": "linear decay"}
    rule = str(row["rule"]).replace("_", " ")
    if row["schedule"] == NO_SCHEDULE:
        return rule
    return f"{rule}, {words.get(row['schedule'], row['schedule'])}"


def step_words(row: Row) -> str:
    """A row's step size; "none" for a rule without one."""
    return _short(row["step_size"])


def _by_step_size(runs: Mapping[float | None, Trajectory]) -> list[tuple[float | None, Trajectory]]:
    return sorted(runs.items(), key=lambda item: item[0] or 0.0)


def _short(step_size: float | None) -> str:
    """3e-4 as 3·10⁻⁴, plain numbers as they are."""
    if step_size is None:
        return "none"
    if step_size >= 0.01:
        return f"{step_size:g}"
    mantissa, exponent = f"{step_size:.0e}".split("e")
    power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{power}" if mantissa == "1" else f"{mantissa}·10{power}"


_two_digits: Callable[[float], str] = "{:.2g}".format
