"""The guarantee of approximate balancing (C4, C5) against what the sign rule does: deviation, and time to get there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from alflb import bounds, make_rule, metrics, simulate
from alflb.io import Row
from alflb.plotting import CATEGORIES, MARKERS, new_figure, ramp, styled
from alflb.streams import Static
from alflb.verdict import Finding
from experiments._problems import static_problem
from experiments._statistics import mean_interval

CLAIM = "On fixed scores every load is within m(2u)(E-1) of L from step N0 on, and that says how well balanced it is."
VERDICT = (
    "Supported, but mostly vacuous: at the step sizes in use the guaranteed band is wider than L, while loads "
    "rest within a few percent."
)

SHAPES = ((256, 8, 2), (2048, 8, 2), (1024, 32, 4), (4096, 64, 6))
SOURCES = ("uniform", "logistic", "gumbel", "linear_router", "trace")
GRID: list[Row] = [
    {
        "source": source,
        "num_tokens": num_tokens,
        "num_experts": num_experts,
        "top_k": top_k,
        "step_size": step_size,
        "most_steps": 6000,
    }
    for source in SOURCES
    for num_tokens, num_experts, top_k in SHAPES
    if source != "trace" or num_experts == 64
    for step_size in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
]
SEEDS = 5
SMOKE = [
    cell | {"most_steps": 300, "num_tokens": min(cell["num_tokens"], 256)}
    for cell in GRID
    if cell["step_size"] in (1e-3, 1e-1) and cell["num_experts"] in (8, 64) and cell["num_tokens"] != 2048
]


def cost(cell: Row) -> float:
    """Routed scores, and the pairs of experts whose crossing values are sorted."""
    return float(cell["num_tokens"] * cell["num_experts"] * (cell["most_steps"] + 20 * cell["num_experts"]))


def run(cell: Row, seed: int) -> list[Row]:
    """One run from p = 0, long enough to enter and to repeat itself where that can be had."""
    problem = static_problem(cell["source"], cell["num_tokens"], cell["num_experts"], cell["top_k"], seed)
    step_size, num_experts = cell["step_size"], problem.num_experts
    multiplicity = bounds.crossing_multiplicity(problem.scores_TE, 2 * step_size)
    band = bounds.absorbing_band(multiplicity, num_experts)
    promised = bounds.entry_time(num_experts, problem.score_range, step_size)
    num_steps = min(promised + 200, cell["most_steps"])
    path = simulate(Static(problem.scores_TE), make_rule("sign", step_size), top_k=problem.top_k, num_steps=num_steps)
    deviation_N = np.abs(path.load_NE - path.target_E).max(axis=1)
    resting = float(deviation_N[-max(1, num_steps // 5) :].max())
    inside_N = deviation_N <= band
    entered = _first(inside_N)
    return [
        {
            "score_range": problem.score_range,
            "target": float(path.target_E[0]),
            "multiplicity": multiplicity,
            "band": float(band),
            "sharp_band": float(bounds.sharp_band(multiplicity, num_experts)),
            "entry_promised": promised,
            "entry_promised_sharp": bounds.sharp_entry_time(num_experts, problem.score_range, step_size),
            "num_steps_run": num_steps,
            "deviation_first": float(deviation_N[0]),
            "deviation_resting": resting,
            "entered_at": entered,
            "left_again": bool(not inside_N[entered:].all()) if entered is not None else None,
            "settled_at": _settled(deviation_N, resting),
            "max_vio_resting": float(metrics.max_vio(path)[-max(1, num_steps // 5) :].max()),
        }
    ]


def _first(true_N: NDArray[np.bool_]) -> int | None:
    """Bias updates until the first step at which it is true: step n's bias is p_(n-1)."""
    return int(np.argmax(true_N)) if true_N.any() else None


def _settled(deviation_N: NDArray[np.float64], resting: float) -> int:
    """Bias updates until the deviation stays at what it is in the end."""
    outside = np.flatnonzero(deviation_N > resting)
    return int(outside[-1]) + 1 if outside.size else 0


def findings(rows: list[Row]) -> list[Finding]:
    """Violations of the guarantee, where it says something, and by how much it is loose."""
    entered = [row for row in rows if row["entered_at"] is not None]
    rested = _rested(rows)
    due = [row for row in rows if row["num_steps_run"] >= row["entry_promised"]]
    late = [row for row in due if row["entered_at"] is None or row["entered_at"] > row["entry_promised"]]
    left = [row for row in entered if row["left_again"]]
    over_sharp = [row for row in rested if row["deviation_resting"] > row["sharp_band"]]
    biting = [row for row in rows if row["band"] < row["deviation_first"]]
    useful = [row for row in rows if row["band"] < 0.1 * row["target"]]
    moved = [row for row in rows if row["entered_at"]]
    return [
        Finding("runs that left the band again (C4)", "0", f"{len(left)} of {len(entered)}", not left),
        Finding("runs outside the band at N0 (C5)", "0", f"{len(late)} of {len(due)} run that long", not late),
        Finding("runs that rest outside the sharper band", "0", f"{len(over_sharp)} of {len(rested)}", not over_sharp),
        Finding(
            "runs whose band is narrower than the deviation before any step",
            "-",
            f"{len(biting)} of {len(rows)}",
            None,
        ),
        Finding("runs whose band is below a tenth of L", "-", f"{len(useful)} of {len(rows)}", None),
        _ratio_finding(
            "deviation at rest / band m(E-1), runs at rest in it",
            rested,
            lambda row: row["deviation_resting"] / row["band"],
        ),
        _ratio_finding(
            "steps to enter / N0, runs that start outside", moved, lambda r: r["entered_at"] / r["entry_promised"]
        ),
        _ratio_finding("steps to the final deviation / N0", due, lambda row: row["settled_at"] / row["entry_promised"]),
        *(_rest_finding(rows, u) for u in sorted({row["step_size"] for row in rows})),
    ]


def _rested(rows: list[Row]) -> list[Row]:
    """Runs that are inside the band for the whole of their tail."""
    return [row for row in rows if row["entered_at"] is not None and row["entered_at"] < 0.8 * row["num_steps_run"]]


def _ratio_finding(statement: str, rows: list[Row], ratio: Callable[[Row], float]) -> Finding:
    values = sorted(ratio(row) for row in rows)
    if not values:
        return Finding(statement, "at most 1", "no such run", None)
    words = f"median {np.median(values):.2g}, from {values[0]:.2g} to {values[-1]:.2g} ({len(values)} runs)"
    return Finding(statement, "at most 1", words, values[-1] <= 1)


def _rest_finding(rows: list[Row], step_size: float) -> Finding:
    """Real scores: what the guarantee says and what is measured, in units of L."""
    chosen = [row for row in rows if row["source"] == "trace" and row["step_size"] == step_size]
    band = mean_interval(row["band"] / row["target"] for row in chosen)
    measured = mean_interval(row["deviation_resting"] / row["target"] for row in chosen)
    return Finding(
        f"shipped trace, u = {step_size:g}: deviation at rest, in units of L",
        f"at most {band.mean:.3g}",
        str(measured),
        None,
    )


@styled
def figure(rows: list[Row]) -> Figure:
    """Band and entry time against the guarantee, and the looseness over step sizes."""
    drawing, (left, middle, right) = new_figure(1, 3, height=3.3)
    for position, source in enumerate(dict.fromkeys(row["source"] for row in rows)):
        chosen = [row for row in rows if row["source"] == source and row["entered_at"] is not None]
        look: dict[str, Any] = {
            "marker": MARKERS[position],
            "color": CATEGORIES[position],
            "linestyle": "none",
            "alpha": 0.5,
            "ms": 3,
        }
        left.plot(
            [r["band"] / r["target"] for r in chosen],
            [r["deviation_resting"] / r["target"] for r in chosen],
            label=source,
            **look,
        )
        moved = [row for row in chosen if row["entered_at"]]
        middle.plot([r["entry_promised"] for r in moved], [r["entered_at"] for r in moved], **look)
    for axis in (left, middle):
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.axline((1.0, 1.0), (10.0, 10.0), color="black", linewidth=0.8, linestyle=":")
    left.axvline(1.0, color="gray", linewidth=0.8)
    left.set(xlabel="band m(E−1) / L", ylabel="deviation at rest / L", title="C4: the band")
    left.legend(fontsize=6.5)
    middle.set(xlabel="N0 (steps)", ylabel="steps to enter the band", title="C5: entry")
    shapes = sorted({(row["num_tokens"], row["num_experts"]) for row in rows if row["source"] == "uniform"})
    for (num_tokens, num_experts), color in zip(shapes, ramp(len(shapes))):
        chosen = [
            r
            for r in _rested(rows)
            if (r["source"], r["num_tokens"], r["num_experts"]) == ("uniform", num_tokens, num_experts)
        ]
        sizes = sorted({row["step_size"] for row in chosen})
        ratios = [
            [r["band"] / r["deviation_resting"] for r in chosen if r["step_size"] == u and r["deviation_resting"]]
            for u in sizes
        ]
        right.loglog(
            sizes,
            [np.median(values) if values else math.nan for values in ratios],
            "o-",
            color=color,
            label=f"T {num_tokens}, E {num_experts}",
        )
    right.set(xlabel="step size u (score units)", ylabel="band / deviation at rest", title="Looseness (uniform)")
    right.legend(fontsize=6.5)
    return drawing
