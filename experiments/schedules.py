"""Which schedule, from which step size: imbalance against affinity kept, on stationary, drifting and real streams."""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from alflb import duality, make_rule, make_schedule, make_stream, metrics, simulate, solve_exact
from alflb.io import Row
from alflb.plotting import CATEGORIES, MARKERS, legend_below, new_figure, plain_ticks, styled
from alflb.problem import AssignmentProblem
from alflb.schedules import Schedule
from alflb.streams import Stream
from alflb.streams.trace import TraceReplay
from alflb.trajectory import Trajectory
from alflb.verdict import Finding
from experiments._statistics import mean_interval

CLAIM = "A constant step of 1e-3, then 0 for the last 3% of the run (DeepSeek-V3), balances as well as any schedule."
VERDICT = (
    "Refuted where scores move: 1e-3, then 0 is as good as any on stationary scores and twice as bad as the "
    "best on drifting ones."
)

SCHEDULES = ("constant", "inverse_sqrt", "inverse", "linear", "cosine", "deepseek_v3", "warm_up")
STEP_SIZES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
WORDS = {
    "constant": "constant u",
    "inverse_sqrt": "u/sqrt(n)",
    "inverse": "u/n",
    "linear": "linear to 0",
    "cosine": "cosine to 0",
    "deepseek_v3": "u, then 0 for 3%",
    "warm_up": "warm-up, then u",
}

GRID = [
    {"source": source, "schedule": schedule, "step_size": step_size, "num_tokens": 512, "num_steps": 960}
    for source in ("logistic", "drift", "text")
    for schedule in SCHEDULES
    for step_size in STEP_SIZES
] + [
    {"source": source, "schedule": "none", "step_size": 0.0, "num_tokens": 512, "num_steps": 960}
    for source in ("logistic", "drift", "text")
]
SEEDS = 3
SMOKE = [cell | {"num_tokens": 128, "num_steps": 48} for cell in GRID if cell["step_size"] in (0.0, 1e-3, 1e-2)]

NUM_EXPERTS, TOP_K = 32, 4
PRICED = 8
"""Batches of the tail whose LP optimum is found."""


def run(cell: Row, seed: int) -> list[Row]:
    """The last fifth of a run: MaxVio a batch and of the sum, and affinity over the LP optimum of the same batches."""
    stream, top_k = _stream(cell)
    rule = make_rule("sign", _schedule(cell))
    path = simulate(stream, rule, top_k=top_k, num_steps=cell["num_steps"], seed=seed)
    tail = cell["num_steps"] // 5
    per_batch = metrics.max_vio(path)
    return [
        {
            "max_vio_tail": float(per_batch[-tail:].mean()),
            "max_vio_worst": float(per_batch[-tail:].max()),
            "max_vio_run": float(per_batch.mean()),
            "max_vio_global": metrics.max_vio_global(path, first_step=cell["num_steps"] - tail + 1),
            **_priced(stream, path, top_k, seed, tail),
        }
    ]


def _stream(cell: Row) -> tuple[Stream, int]:
    """The shipped trace in its order has 64 experts, top-6; a seed has no say in it."""
    if cell["source"] == "text":
        return TraceReplay(num_tokens=cell["num_tokens"]), 6
    period = {"period": 4.0 * cell["num_steps"]} if cell["source"] == "drift" else {}
    return make_stream(cell["source"], num_tokens=cell["num_tokens"], num_experts=NUM_EXPERTS, **period), TOP_K


def _schedule(cell: Row) -> Schedule | float:
    if cell["schedule"] == "none":
        return 0.0
    if cell["schedule"] == "warm_up":
        return make_schedule("constant", cell["step_size"], cell["num_steps"], warm_up=cell["num_steps"] // 10)
    return make_schedule(cell["schedule"], cell["step_size"], cell["num_steps"])


def _priced(stream: Stream, path: Trajectory, top_k: int, seed: int, tail: int) -> Row:
    """Affinity and D against LP* on some batches of the tail, each with the bias that routed it."""
    wanted = np.linspace(path.num_steps - tail, path.num_steps - 1, PRICED).astype(int).tolist()
    affinity = optimum = dual = 0.0
    for n, batch in enumerate(itertools.islice(stream.batches(seed), path.num_steps)):
        if n in wanted:
            problem = AssignmentProblem(batch, top_k)
            affinity += duality.affinity(problem, duality.allocate(problem, path.bias_NE[n]).experts_TK)
            dual += duality.dual_value(problem, path.bias_NE[n])
            optimum += solve_exact(problem).value
    return {"affinity_kept": affinity / optimum, "gap": dual / optimum - 1}


def findings(rows: list[Row]) -> list[Finding]:
    """The best arm of each source against DeepSeek-V3's, what freezing does, and what balance costs."""
    found: list[Finding] = []
    for source in dict.fromkeys(row["source"] for row in rows):
        chosen = [row for row in rows if row["source"] == source]
        found += [_published_finding(chosen, source), _freeze_finding(chosen, source), _cost_finding(chosen, source)]
        found += [_schedule_finding(chosen, source, schedule) for schedule in SCHEDULES]
    return found


def _arm(rows: list[Row], schedule: str, step_size: float, column: str = "max_vio_tail") -> list[float]:
    return [row[column] for row in rows if row["schedule"] == schedule and row["step_size"] == step_size]


def _best_size(rows: list[Row], schedule: str) -> float:
    sizes = {row["step_size"] for row in rows if row["schedule"] == schedule}
    return min(sorted(sizes), key=lambda u: float(np.mean(_arm(rows, schedule, u))))


def _published_finding(rows: list[Row], source: str) -> Finding:
    best = min(SCHEDULES, key=lambda name: np.mean(_arm(rows, name, _best_size(rows, name))))
    size = _best_size(rows, best)
    published = mean_interval(_arm(rows, "deepseek_v3", 1e-3))
    winner = mean_interval(_arm(rows, best, size))
    return Finding(
        f"{source}: MaxVio of a batch, 1e-3 then 0, against the best arm",
        "no worse",
        f"{published} against {winner} ({WORDS[best]}, u = {size:g})",
        published.mean <= 1.1 * winner.mean,
    )


def _freeze_finding(rows: list[Row], source: str) -> Finding:
    """The same step size, frozen at the end or not."""
    size = _best_size(rows, "constant")
    frozen, moving = (mean_interval(_arm(rows, name, size, "max_vio_worst")) for name in ("deepseek_v3", "constant"))
    return Finding(
        f"{source}, u = {size:g}: worst MaxVio of the tail, frozen for the last 3% against not",
        "-",
        f"{frozen} against {moving}",
        None,
    )


def _cost_finding(rows: list[Row], source: str) -> Finding:
    size = _best_size(rows, "constant")
    kept = mean_interval(_arm(rows, "constant", size, "affinity_kept"))
    free = mean_interval(_arm(rows, "none", 0.0, "affinity_kept"))
    imbalance = mean_interval(_arm(rows, "none", 0.0))
    words = f"{kept}; without a bias {free} at MaxVio {imbalance}"
    return Finding(f"{source}, constant u = {size:g}: affinity over LP* of the same batches", "-", words, None)


def _schedule_finding(rows: list[Row], source: str, schedule: str) -> Finding:
    size = _best_size(rows, schedule)
    per_batch, overall = (
        mean_interval(_arm(rows, schedule, size, column)) for column in ("max_vio_tail", "max_vio_global")
    )
    return Finding(
        f"{source}, {WORDS[schedule]}: best u, MaxVio of a batch, of the tail's sum",
        "-",
        f"u = {size:g}: {per_batch}, {overall}",
        None,
    )


@styled
def figure(rows: list[Row]) -> Figure:
    """Heat maps of MaxVio over schedule and step size, and imbalance against affinity kept, for each source."""
    sources = list(dict.fromkeys(row["source"] for row in rows))
    drawing, axes = new_figure(2, len(sources), height=5.8)
    for axis, source in zip(axes, sources):
        _draw_heat(axis, [row for row in rows if row["source"] == source], source, first=source == sources[0])
    for axis, source in zip(axes[len(sources) :], sources):
        _draw_front(axis, [row for row in rows if row["source"] == source])
    axes[len(sources)].set_ylabel("affinity / LP* − 1")
    legend_below(drawing, axes[-1], columns=4)
    return drawing


def _draw_heat(axis: Axes, rows: list[Row], source: str, *, first: bool) -> None:
    sizes = sorted({row["step_size"] for row in rows} - {0.0})
    grid = np.array([[np.mean(_arm(rows, name, u)) for u in sizes] for name in SCHEDULES])
    axis.imshow(np.log10(grid), aspect="auto", cmap="viridis_r")
    for (i, j), value in np.ndenumerate(grid):
        dark = np.log10(value) > np.log10(grid).mean()
        axis.text(j, i, f"{value:.2g}", ha="center", va="center", fontsize=5.5, color="white" if dark else "black")
    axis.set_xticks(range(len(sizes)), [f"{u:g}" for u in sizes], rotation=60, fontsize=7)
    axis.set_yticks(
        range(len(SCHEDULES)), [WORDS[name] for name in SCHEDULES] if first else [""] * len(SCHEDULES), fontsize=7
    )
    axis.grid(False)
    axis.set(xlabel="u (score units)", title=f"{source}: MaxVio")


def _draw_front(axis: Axes, rows: list[Row]) -> None:
    for position, name in enumerate(SCHEDULES):
        sizes = sorted({row["step_size"] for row in rows if row["schedule"] == name})
        points = [(np.mean(_arm(rows, name, u)), np.mean(_arm(rows, name, u, "affinity_kept")) - 1) for u in sizes]
        axis.plot(
            *zip(*points),
            marker=MARKERS[position % len(MARKERS)],
            color=CATEGORIES[position % len(CATEGORIES)],
            markerfacecolor="none" if position >= len(CATEGORIES) else None,
            linestyle="none",
            label=WORDS[name],
        )
    free = [row for row in rows if row["schedule"] == "none"]
    axis.plot(
        np.mean([r["max_vio_tail"] for r in free]),
        np.mean([r["affinity_kept"] for r in free]) - 1,
        "x",
        color="black",
        label="no bias",
    )
    axis.axhline(0.0, color="black", linewidth=0.8, linestyle=":")
    axis.set_xscale("log")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.2g}%"))
    plain_ticks(axis.xaxis)
    axis.tick_params(axis="x", labelsize=6.5)
    axis.set(xlabel="MaxVio of a batch")
