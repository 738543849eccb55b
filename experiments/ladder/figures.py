"""The ladder in one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alflb.io import Row
from alflb.plotting import new_figure, styled
from experiments.ladder.tables import averaged, over_seeds
from experiments.train_moe import arm_styles


@styled
def figure(rungs: Mapping[str, Sequence[Row]], along: Sequence[Row], frozen: Sequence[Row]) -> Figure:
    """Balance by size, MaxVio against the computation batch, the lag of the bias, regret along training.

    Points are means over layers and seeds, bars 95% intervals over seeds.
    """
    drawing, (sizes, batches, lags, regret) = new_figure(2, 2, height=6.6)
    arms = dict.fromkeys(row["arm"] for rows in (*rungs.values(), along, frozen) for row in rows)
    styles = arm_styles(list(arms))
    _draw_sizes(sizes, rungs, styles)
    _draw_means(batches, [row for row in frozen if row["kind"] == "batch"], "tokens", "max_vio", styles)
    floor = averaged([row for row in frozen if row["kind"] == "batch"], ["tokens"], ["floor"])
    batches.plot([key[0] for key in floor], [group[0].mean for group in floor.values() if group[0]], "k:")
    _draw_means(lags, [row for row in along if row["kind"] == "lag"], "lag", "correlation", styles)
    _draw_means(regret, [row for row in along if row["kind"] == "regret"], "step", "near", styles)
    sizes.set(title="Balance at the end of training", ylabel="MaxVio of late batches", yscale="log")
    batches.set(
        title="MaxVio of tokens computed together", xlabel="tokens (dotted: sampling alone)", xscale="log", yscale="log"
    )
    lags.set(title="Bias in force and price of one batch", xlabel="steps from bias to batch", ylabel="correlation")
    regret.set(title="Regret per token while training", xlabel="step", ylabel="score units", yscale="log")
    handles = {label: handle for axis in (sizes, batches, lags, regret) for handle, label in _legend(axis)}
    drawing.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4)
    return drawing


def _legend(axis: Axes) -> list[tuple[Any, str]]:
    handles, labels = axis.get_legend_handles_labels()
    return list(zip(handles, labels, strict=True))


def _draw_sizes(axis: Axes, rungs: Mapping[str, Sequence[Row]], styles: Mapping[str, Mapping[str, Any]]) -> None:
    """MaxVio of late batches, one group of points for each rung."""
    for number, (arm, style) in enumerate(styles.items()):
        points = []
        for place, rows in enumerate(rungs.values()):
            estimate = over_seeds([r for r in rows if r["kind"] == "run" and r["arm"] == arm], "max_vio_end")
            if estimate is not None:
                points.append((place + 0.04 * (number - len(styles) / 2), estimate.mean, estimate.high - estimate.mean))
        if points:
            x, y, half = zip(*points, strict=True)
            axis.errorbar(x, y, half, capsize=2, **{**style, "linestyle": "none"})
    axis.set_xticks(range(len(rungs)), list(rungs))


def _draw_means(
    axis: Axes, rows: Sequence[Row], along: str, column: str, styles: Mapping[str, Mapping[str, Any]]
) -> None:
    for arm, style in styles.items():
        groups = averaged([row for row in rows if row["arm"] == arm], [along], [column])
        points = [(key[0], group[0].mean) for key, group in groups.items() if group[0] is not None]
        if points:
            axis.plot(*zip(*points, strict=True), **{**style, "marker": None})
