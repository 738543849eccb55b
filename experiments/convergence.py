"""A fixed batch: how many steps every rule and schedule needs to be nearly balanced, and nearly optimal."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alflb import make_rule, make_schedule, metrics, rule_names, simulate, solve_exact
from alflb.io import Row
from alflb.observers import make_observers
from alflb.plotting import new_figure, styled
from alflb.rules import RULES
from alflb.streams import Static
from alflb.verdict import Finding
from experiments._problems import static_problem
from experiments._statistics import mean_interval

CLAIM = "An annealed step reaches exact balance and the LP optimum; a constant one stops at a floor proportional to it."
VERDICT = (
    "Supported where the rule arrives; with u = 1e-3 a decaying step does not arrive within 500 steps, and a "
    "constant one ends closer."
)

SCHEDULES = ("constant", "inverse_sqrt", "linear")
STEP_SIZES = (1e-3, 1e-2, 1e-1)
BALANCE = (0.1, 0.03, 0.01)
"""MaxVio at which a batch counts as balanced."""
OPTIMALITY = (1e-3, 1e-4, 1e-5)
"""Gap of D over LP* at which a bias counts as optimal."""


def _arms() -> list[Row]:
    """Every registered rule; those with a step size with every schedule and size."""
    arms = []
    for rule in rule_names():
        if RULES.get(rule).takes_schedule:
            arms += [{"rule": rule, "schedule": s, "step_size": u} for s in SCHEDULES for u in STEP_SIZES]
        else:
            arms.append({"rule": rule, "schedule": "none", "step_size": 0.0})
    return arms


GRID = [
    {"source": source, **arm, "num_tokens": 1024, "num_steps": 500}
    for source in ("trace", "uniform")
    for arm in _arms()
]
SEEDS = 3
SMOKE = [
    cell | {"num_tokens": 256, "num_steps": 60}
    for cell in GRID
    if cell["source"] == "trace"
    and cell["schedule"] in ("none", "constant", "linear")
    and cell["step_size"] in (0.0, 1e-2)
]


def run(cell: Row, seed: int) -> list[Row]:
    """First steps from which MaxVio and the gap stay below each threshold, and where they end."""
    problem = static_problem(cell["source"], cell["num_tokens"], 64, 6, seed)
    schedule = None
    if RULES.get(cell["rule"]).takes_schedule:
        schedule = make_schedule(cell["schedule"], cell["step_size"], cell["num_steps"])
    path = simulate(
        Static(problem.scores_TE),
        make_rule(cell["rule"], schedule),
        top_k=problem.top_k,
        num_steps=cell["num_steps"],
        observers=make_observers("dual_value", "affinity"),
    )
    lp_value = solve_exact(problem).value
    gap_N = path.series["dual_value"] / lp_value - 1
    violation_N = metrics.max_vio(path)
    return [
        {
            **{f"balance_{level:g}": metrics.settled_from(violation_N, level) for level in BALANCE},
            **{f"gap_{level:g}": metrics.settled_from(gap_N, level) for level in OPTIMALITY},
            "max_vio_final": float(violation_N[-50:].mean()),
            "gap_final": float(gap_N[-50:].mean()),
            "affinity_final": float(path.series["affinity"][-50:].mean() / lp_value - 1),
        }
    ]


def findings(rows: list[Row]) -> list[Finding]:
    """The floor of a constant step, whether annealing removes it, and the fastest arms."""
    found = []
    sources = list(dict.fromkeys(row["source"] for row in rows))
    for source in sources:
        chosen = [row for row in rows if row["source"] == source]
        found += [_floor_finding(chosen, source, u) for u in sorted({row["step_size"] for row in chosen} - {0.0})]
        found.append(_fastest_finding(chosen, source, f"balance_{BALANCE[1]:g}", f"MaxVio <= {BALANCE[1]:g} for good"))
        found.append(_fastest_finding(chosen, source, f"gap_{OPTIMALITY[1]:g}", f"gap <= {OPTIMALITY[1]:g} for good"))
    return found


def _floor_finding(rows: list[Row], source: str, step_size: float) -> Finding:
    def final(schedule: str, column: str) -> list[float]:
        wanted = ("sign", schedule, step_size)
        return [row[column] for row in rows if (row["rule"], row["schedule"], row["step_size"]) == wanted]

    constant, annealed = (mean_interval(final(name, "gap_final")) for name in ("constant", "linear"))
    balance = [mean_interval(final(name, "max_vio_final")) for name in ("constant", "linear")]
    return Finding(
        f"{source}, sign, u = {step_size:g}: final gap, constant against linear decay",
        "annealed is lower",
        f"{constant.mean:.2g} against {annealed.mean:.2g} (MaxVio {balance[0].mean:.2g} against {balance[1].mean:.2g})",
        annealed.mean < constant.mean,
    )


def _fastest_finding(rows: list[Row], source: str, column: str, words: str) -> Finding:
    """Among all rules but the reference, by the mean over seeds; arms that fail on any seed do not count."""
    arms: dict[tuple[str, str, float], list[int | None]] = {}
    for row in rows:
        if not RULES.get(row["rule"]).is_reference:
            arms.setdefault((row["rule"], row["schedule"], row["step_size"]), []).append(row[column])
    reached = {arm: [n for n in steps if n is not None] for arm, steps in arms.items() if None not in steps}
    if not reached:
        return Finding(f"{source}: the soonest to {words}", "-", f"none of {len(arms)} arms", None)
    ranked = sorted(reached, key=lambda arm: float(np.mean(reached[arm])))[:3]
    listed = "; ".join(
        f"{rule} {schedule} {u:g}: {mean_interval(reached[rule, schedule, u])}" for rule, schedule, u in ranked
    )
    return Finding(
        f"{source}: the soonest to {words} (steps; {len(reached)} of {len(arms)} arms get there)", "-", listed, None
    )


@styled
def figure(rows: list[Row]) -> Figure:
    """For each rule at its best schedule and step size: steps to each threshold."""
    sources = list(dict.fromkeys(row["source"] for row in rows))
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    drawing, axes = new_figure(len(sources), 2, height=1.6 + len(sources) * (0.6 + 0.17 * len(rules)))
    for line, source in enumerate(sources):
        chosen = [row for row in rows if row["source"] == source]
        _draw_times(axes[2 * line], chosen, rules, [f"balance_{x:g}" for x in BALANCE], f"{source}: steps to MaxVio")
        _draw_times(axes[2 * line + 1], chosen, rules, [f"gap_{x:g}" for x in OPTIMALITY], f"{source}: steps to gap")
        axes[2 * line + 1].set_yticklabels([])
    return drawing


def _draw_times(axis: Axes, rows: list[Row], rules: list[str], columns: list[str], title: str) -> None:
    for column, marker, color in zip(columns, ("o", "s", "D"), ("#56B4E9", "#0072B2", "#1c1c1c")):
        bests = [_best_mean([row for row in rows if row["rule"] == rule], column) for rule in rules]
        reached = [(best, height) for height, best in enumerate(bests) if best is not None]
        label = f"<= {column.split('_')[1]}"
        axis.plot(*np.array(reached).reshape(-1, 2).T, marker, color=color, linestyle="none", label=label)
    axis.set_yticks(range(len(rules)), [rule.replace("_", " ") for rule in rules], fontsize=7)
    axis.set_ylim(len(rules) - 0.5, -0.5)
    axis.set_xscale("log")
    axis.set_xlim(0.8, None)
    axis.set(xlabel="steps (best schedule and u)", title=title)
    axis.legend(fontsize=6.5)


def _best_mean(rows: list[Row], column: str) -> float | None:
    """Least mean number of steps over the arms that reach the threshold on every seed."""
    arms: dict[tuple[str, float], list[int | None]] = {}
    for row in rows:
        arms.setdefault((row["schedule"], row["step_size"]), []).append(row[column])
    means = [float(np.mean([n for n in steps if n])) for steps in arms.values() if None not in steps]
    return min(means) if means else None
