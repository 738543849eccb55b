"""What a check says, and the instances that checks draw: integers in, integers out, no tolerance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alflb.problem import AssignmentProblem

SCALE = 64
"""Scores, biases and targets are multiples of 1 / SCALE, so that sums of them are exact in float64."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of checking one claim on many instances."""

    claim: str
    kind: str
    """equality, upper, lower or condition."""
    instances: int
    measured: float
    """The worst value of what the claim bounds."""
    bound: float
    """What the claim allows at that instance."""
    holds: bool
    witness: dict[str, Any] = field(default_factory=dict)
    """A counterexample when it fails; the tightest instance otherwise."""

    @property
    def slack(self) -> float:
        """Bound minus measured, at the worst instance."""
        return self.bound - self.measured


def random_problems(seed: int, instances: int) -> Iterator[tuple[AssignmentProblem, np.random.Generator]]:
    """Small problems with many ties: few score levels, repeated rows, duplicated experts, K from 1 to E.

    Targets are whole numbers, so that every quantity is a multiple of 1 / SCALE and comparisons are exact.
    """
    rng = np.random.default_rng(seed)
    for _ in range(instances):
        num_experts = int(rng.integers(1, 7))
        top_k = int(rng.integers(1, num_experts + 1))
        period = num_experts // int(np.gcd(num_experts, top_k))
        num_tokens = period * int(rng.integers(1, 1 + max(1, 12 // period)))
        levels = int(rng.choice([1, 2, 4, 16, SCALE]))
        scores = rng.integers(0, levels + 1, (num_tokens, num_experts))
        if rng.random() < 0.25:
            scores[:] = scores[rng.integers(num_tokens, size=num_tokens)]
        if rng.random() < 0.25:
            scores = scores[:, rng.integers(num_experts, size=num_experts)]
        yield AssignmentProblem(scores / SCALE, top_k), rng


def random_bias(num_experts: int, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A bias on the same grid as the scores."""
    return rng.integers(-SCALE, SCALE + 1, num_experts) / SCALE


def witness(problem: AssignmentProblem, **more: Any) -> dict[str, Any]:
    """An instance in integers (units of 1 / SCALE), ready to be printed and turned into a test."""
    vectors = {name: (np.asarray(value) * SCALE).astype(int).tolist() for name, value in more.items()}
    return {"scores": (problem.scores_TE * SCALE).astype(int).tolist(), "top_k": problem.top_k, **vectors}
