"""D, affinity and violation along ALF-LB on fixed scores, and the steps on which D rises after all."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from alflb import make_rule, metrics, simulate, solve_exact
from alflb.io import Row
from alflb.observers import make_observers
from alflb.plotting import BLUE, MARKERS, RED, new_figure, plain_ticks, ramp, styled
from alflb.streams import Static
from alflb.trajectory import Trajectory
from alflb.verdict import Finding
from experiments._problems import static_problem
from experiments._statistics import mean_interval

CLAIM = "Every step of ALF-LB lowers the Lagrangian, as the first versions of arXiv 2512.03915 have it."
VERDICT = (
    "Refuted: on real scores the sign rule raises D on up to half of its steps; the condition of version 3 "
    "predicts every rise."
)

STEP_SIZES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
GRID = [
    {"source": source, "rule": rule, "step_size": step_size, "num_tokens": 4096, "num_steps": 600}
    for source in ("trace", "linear_router", "uniform")
    for rule in ("sign", "proportional")
    for step_size in STEP_SIZES
]
SEEDS = 5
SMOKE = [cell | {"num_tokens": 256, "num_steps": 60} for cell in GRID if cell["step_size"] in (1e-3, 1e-2)]


def run(cell: Row, seed: int) -> list[Row]:
    """One run on one batch, its rises of D, and what C1 and C2 say about them."""
    problem = static_problem(cell["source"], cell["num_tokens"], 64, 6, seed)
    path = simulate(
        Static(problem.scores_TE),
        make_rule(cell["rule"], cell["step_size"]),
        top_k=problem.top_k,
        num_steps=cell["num_steps"] + 1,
        observers=make_observers("dual_value", "affinity", "benefit", "monotonicity_slack"),
    )
    lp_value = solve_exact(problem).value
    series = path.series
    change_N = np.diff(series["dual_value"])  # D(p_(n+1)) - D(p_n), measured
    said_N = -series["monotonicity_slack"][:-1]  # the same by C1: total benefit minus descent term
    rounding = 1e-12 * abs(lp_value)
    rises_N = change_N > rounding
    way = int(np.argmin(series["dual_value"]))  # the approach ends where D is least
    shown = np.unique(np.geomspace(1, cell["num_steps"], 60).astype(int)) - 1
    return [
        {
            "rise_share": float(rises_N.mean()),
            "rise_share_approach": float(rises_N[:way].mean()) if way else None,
            "first_rise": int(np.argmax(rises_N)) + 1 if rises_N.any() else None,
            "approach_steps": way,
            "risen_over_fallen": float(change_N[rises_N].sum() / -change_N[change_N < 0].sum()),
            "identity_error": float(np.abs(change_N - said_N).max() / abs(lp_value)),
            "condition_disagrees": int((rises_N != (said_N > rounding)).sum()),
            "sure_share": _surely_falls(path),
            "gap_final": float(series["dual_value"][-1] / lp_value - 1),
            "shown_n": (shown + 1).tolist(),
            "gap_n": (series["dual_value"][shown] / lp_value - 1).tolist(),
            "affinity_excess_n": (series["affinity"][shown] / lp_value - 1).tolist(),
            "max_vio_n": metrics.max_vio(path)[shown].tolist(),
        }
    ]


def _surely_falls(path: Trajectory) -> float:
    """Share of steps with <A_next - L, delta> <= 0, C2's sufficient condition, which needs only loads."""
    next_excess_NE = path.load_NE[1:] - path.target_E
    return float((np.einsum("ne,ne->n", next_excess_NE, np.diff(path.bias_NE, axis=0)[:-1]) <= 0).mean())


def findings(rows: list[Row]) -> list[Finding]:
    """How often D rises, per rule and step size on the shipped trace, and whether C2 knows which steps they are."""
    found = [
        Finding(
            "steps on which C2's condition and the measured D disagree, all runs",
            "0",
            str(sum(row["condition_disagrees"] for row in rows)),
            all(row["condition_disagrees"] == 0 for row in rows),
        ),
        Finding(
            "largest residual of identity C1, relative to LP*",
            "rounding",
            f"{max(row['identity_error'] for row in rows):.1e}",
            max(row["identity_error"] for row in rows) < 1e-11,
        ),
    ]
    for rule, step_size in sorted({(row["rule"], row["step_size"]) for row in rows}, reverse=True):
        chosen = [row for row in rows if (row["source"], row["rule"], row["step_size"]) == ("trace", rule, step_size)]
        share = mean_interval(row["rise_share"] for row in chosen)
        approach = [row["rise_share_approach"] for row in chosen if row["rise_share_approach"] is not None]
        words = f"{share} of all steps, {mean_interval(approach) if approach else '-'} before D is least"
        found.append(Finding(f"{rule}, u = {step_size:g}, shipped trace: D rises", "never", words, share.high <= 0))
    for rule in ("sign", "proportional"):
        chosen = [row for row in rows if row["rule"] == rule]
        quiet = [row for row in chosen if row["first_rise"] is None]
        words = f"{len(quiet)} of {len(chosen)}"
        found.append(Finding(f"{rule}: runs without any rise, all sources", "all", words, len(quiet) == len(chosen)))
    return found


@styled
def figure(rows: list[Row]) -> Figure:
    """D's gap, and affinity against violation, of the sign rule on the trace; the share of rises everywhere."""
    drawing, axes = new_figure(2, 2, height=6.0)
    first = [row for row in rows if row["seed"] == 0 and row["source"] == "trace"]
    for axis, rule in zip(axes[:2], ("sign", "proportional")):
        _draw_gaps(axis, [row for row in first if row["rule"] == rule], rule)
    _draw_paths(axes[2], [row for row in first if row["rule"] == "sign"])
    _draw_shares(axes[3], rows)
    return drawing


def _draw_gaps(axis: Axes, runs: list[Row], rule: str) -> None:
    for row, color in zip(runs, ramp(len(runs))):
        axis.loglog(row["shown_n"], np.maximum(row["gap_n"], 1e-9), color=color, label=f"u = {row['step_size']:g}")
    axis.set(xlabel="step n", ylabel="D(p$_n$) / LP* − 1", title=f"{rule}, shipped trace")
    axis.legend(fontsize=6.5, ncols=2)


def _draw_paths(axis: Axes, runs: list[Row]) -> None:
    for row, color in zip(runs, ramp(len(runs))):
        axis.plot(
            np.maximum(row["max_vio_n"], 1e-3), 100 * np.array(row["affinity_excess_n"]), ".-", color=color, lw=0.8
        )
    axis.axhline(0.0, color="black", linewidth=0.8, linestyle=":")
    axis.set_xscale("log")
    plain_ticks(axis.xaxis)
    axis.set(
        xlabel="violation: MaxVio",
        ylabel="affinity / LP* − 1 (%)",
        title="sign: affinity against violation",
    )


def _draw_shares(axis: Axes, rows: list[Row]) -> None:
    sources = list(dict.fromkeys(row["source"] for row in rows))
    for (rule, color), (position, source) in (
        (pair, place) for pair in (("sign", BLUE), ("proportional", RED)) for place in enumerate(sources)
    ):
        chosen = [row for row in rows if row["rule"] == rule and row["source"] == source]
        sizes = sorted({row["step_size"] for row in chosen})
        means = [np.mean([row["rise_share"] for row in chosen if row["step_size"] == u]) for u in sizes]
        style = ("-", "--", ":")[position]
        axis.semilogx(sizes, means, style, color=color, marker=MARKERS[position], label=f"{rule}, {source}")
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.set(xlabel="step size u (score units)", ylabel="steps on which D rose", title="How often D rises")
    axis.legend(fontsize=6.5, loc="upper left")
