"""What a study could have refuted: its rows held against weak duality and the claims C1, C2 and C6."""

from __future__ import annotations

import numpy as np

from alflb.io import Row
from alflb.studies.study import StudyResult
from alflb.verdict import Verdict

ROUNDING = 1e-10
"""Score units per pick: float64 sums over a batch, with room."""


def run_checks(result: StudyResult) -> list[Verdict]:
    """Hold the rows against the claims of the theory; a violated one makes the study end with exit code 1."""
    optima, runs = result.select(kind="optimum"), result.select(kind="static")
    picks = {row["source"]: row["num_tokens"] * row["top_k"] for row in optima}

    def per_pick(row: Row, value: float) -> float:
        return float(value) / picks[row["source"]]

    def verdict(claim: str, statement: str, instances: int, worst: float) -> Verdict:
        return Verdict.of(claim, statement, measured=worst, bound=ROUNDING, instances=instances)

    def over_bound(row: Row, values: str, bounds: str, sign: float = 1.0) -> float:
        return per_pick(row, float(np.max(sign * np.array(row[values]) - np.array(row[bounds]))))

    points = sum(len(row["certified_steps"]) for row in runs)
    return [
        verdict(
            "LP duality",
            "D(p*) equals the value of an integral, exactly balanced plan",
            len(optima),
            max(abs(per_pick(row, row["lp_upper_bound"] - row["lp_value"])) for row in optima),
        ),
        verdict(
            "weak duality",
            "D(p) never falls below LP*, at any step of any run",
            sum(row["num_steps"] for row in runs),
            max(per_pick(row, result.optimum(row["source"])["lp_value"] - row["dual_value_best"]) for row in runs),
        ),
        verdict(
            "C1",
            "Lagrangian identity: the change of D is benefit + ⟨A − L, δ⟩",
            points,
            max(per_pick(row, row["identity_residual"]) for row in runs),
        ),
        verdict(
            "C1",
            "the switching benefit is never negative",
            points,
            max(per_pick(row, -row["benefit_min"]) for row in runs),
        ),
        verdict(
            "C2",
            "sandwich: ⟨A − L, δ⟩ ≤ change of D ≤ ⟨A_next − L, δ⟩",
            points,
            max(per_pick(row, -row["sandwich_margin"]) for row in runs),
        ),
        verdict(
            "C6",
            "dual gap ≤ ½ ‖A − L‖₁ (spread(p) + ρ)",
            points,
            max(over_bound(row, "gap_n", "gap_bound_n") for row in runs),
        ),
        verdict(
            "C6",
            "affinity − LP* ≤ ½ ‖A − L‖₁ ρ",
            points,
            max(over_bound(row, "affinity_excess_n", "affinity_excess_bound_n") for row in runs),
        ),
        verdict(
            "C6",
            "LP* − affinity ≤ ½ ‖A − L‖₁ spread(p)",
            points,
            max(over_bound(row, "affinity_excess_n", "affinity_loss_bound_n", -1.0) for row in runs),
        ),
    ]
