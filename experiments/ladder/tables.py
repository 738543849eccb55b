"""Markdown tables of results: arms, signs of comparisons, studies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from alflb.io import Row
from experiments import train_moe
from experiments._statistics import Estimate, mean_interval

STUDIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "parts": (
        ("size", "arm"),
        ("held_out", "held_out_mixed", "training", "training_mixed", "frozen", "averaged", "priced", "floor"),
    ),
    "batch": (("size", "arm", "tokens"), ("max_vio", "floor")),
    "composition": (("size", "arm", "drawn"), ("bias_correlation", "price_correlation", "overdispersion")),
    "law": (
        ("arm",),
        ("curvature", "curvature_low", "curvature_high", "overdispersion", "price_speed", "lag_predicted", "floor"),
    ),
    "lag": (("arm", "lag"), ("correlation",)),
    "pool": (("arm", "batches"), ("correlation", "neighbors", "neighbors_predicted")),
    "regret": (("arm", "step"), ("own", "near", "max_vio")),
}
"""For each kind of row: what makes a line of its table, and what is averaged in it."""


def study_tables(rows: Sequence[Row]) -> list[str]:
    """One table for each kind of row that a study wrote."""
    tables = []
    for kind, (keys, values) in STUDIES.items():
        of_kind = [row for row in rows if row["kind"] == kind]
        if of_kind:
            groups = averaged(of_kind, keys, values)
            lines = [[*map(str, key), *(_cell(estimate) for estimate in group)] for key, group in groups.items()]
            tables.append(f"{kind}\n\n{_table([*keys, *values], lines)}")
    return tables


def averaged(
    rows: Iterable[Row], keys: Sequence[str], values: Sequence[str]
) -> dict[tuple[Any, ...], list[Estimate | None]]:
    """Rows with the same keys: mean over layers, then over seeds with an interval; None where nothing is known."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return {key: [over_seeds(group, value) for value in values] for key, group in groups.items()}


def over_seeds(rows: Sequence[Row], column: str) -> Estimate | None:
    """Mean over layers, then over seeds; None where nothing is known."""
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        if row.get(column) is not None:
            by_seed.setdefault(row["seed"], []).append(row[column])
    return mean_interval(float(np.mean(of_seed)) for of_seed in by_seed.values()) if by_seed else None


def arm_table(rows: Sequence[Row]) -> str:
    """Every arm of one rung."""
    final = max(row["step"] for row in rows if row["kind"] == "look")
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        runs = [row for row in rows if row["kind"] == "run" and row["arm"] == arm]
        looks = [row for row in rows if row["kind"] == "look" and row["arm"] == arm and row["step"] == final]
        perplexity = mean_interval(math.exp(row["validation_loss"]) for row in runs)
        cells = [over_seeds(runs, "max_vio_global"), over_seeds(runs, "max_vio_end"), perplexity]
        last = [over_seeds(looks, column) for column in ("gap", "correlation", "halves")]
        dead = np.mean([row["dead_experts"] for row in runs])
        lines.append([f"`{arm}`", *map(_cell, cells), f"{dead:.3g}", *map(_cell, last)])
    head = ["arm", "MaxVio_global", "MaxVio, last tenth", "perplexity", "dead", "(D(p) - LP\\*) / LP\\*",
            "correlation of p and p\\*", "two halves"]  # fmt: skip
    return _table(head, lines)


PHASES = (0.0, 0.1, 0.3, 0.5, 0.9, 1.0)
"""Where the phases of a run end, as shares of its steps."""


def phase_table(rows: Sequence[Row]) -> str:
    """MaxVio of training batches by arm and phase of the run: who is early, and who is best in the end."""
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        layers = [row for row in rows if row["kind"] == "layer" and row["arm"] == arm]
        phases = [
            [{"seed": row["seed"], "mean": float(np.mean(_slice(row["max_vio"], low, high)))} for row in layers]
            for low, high in itertools.pairwise(PHASES)
        ]
        lines.append([f"`{arm}`", *(_cell(over_seeds(phase, "mean")) for phase in phases)])
    heads = [f"{low:.0%} to {high:.0%}" for low, high in itertools.pairwise(PHASES)]
    return _table(["MaxVio of batches", *heads], lines)


def _slice(series: Sequence[float], low: float, high: float) -> Sequence[float]:
    return series[round(low * len(series)) : max(round(high * len(series)), round(low * len(series)) + 1)]


def sign_table(rungs: Mapping[str, Sequence[Row]]) -> str:
    """The published comparisons, one column for each rung."""
    cells: dict[str, dict[str, str]] = {}
    for name, rows in rungs.items():
        for finding in train_moe.findings(list(rows)):
            if finding.expected != "-":
                verdict = {True: "yes", False: "**no**", None: "open"}[finding.holds]
                cells.setdefault(finding.statement, {})[name] = f"{finding.measured} ({verdict})"
    lines = [[statement, *(own.get(name, "-") for name in rungs)] for statement, own in cells.items()]
    return _table(["", *rungs], lines)


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    if math.isnan(estimate.high):
        return f"{estimate.mean:.3g}"
    half = estimate.high - estimate.mean
    digits = 3 if half == 0 else max(0, min(6, 1 - math.floor(math.log10(half))))
    return f"{estimate.mean:.{digits}f} ± {half:.{digits}f}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines))
