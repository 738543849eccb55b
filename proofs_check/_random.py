"""What the claims about random scores share: populations to try, and the false-alarm budget of a whole run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from alflb.population import IndependentScores
from proofs_check._verdict import Verdict

FALSE_ALARM = 1e-4
"""Chance that one statistical check fails although the claim is true.

C7, C8, C9, C13, C14, C19 and C20 have one each, so a quick run is red by chance at most 7 times in 10,000; a longer run
repeats them on fresh seeds, and each round counts again. C7, C8 and C19 use exact binomial tests, C9, C13 and C20
t-intervals (nominal: regrets and distances are not normal), C14 the normal law of a correlation.
"""

SHAPES: dict[str, Any] = {
    "logistic": stats.logistic(),
    "normal": stats.norm(),
    "Gumbel": stats.gumbel_r(),
    "uniform": stats.uniform(),
    "exponential": stats.expon(),
    "beta(2, 5)": stats.beta(2, 5),
    "t(5)": stats.t(5),
}


def populations(seed: int, count: int) -> Iterator[tuple[dict[str, Any], IndependentScores, np.ndarray]]:
    """`count` populations of mixed shapes and sizes, each with a bias; the dict names them for a witness."""
    rng = np.random.default_rng(seed)
    names = list(SHAPES)
    for index in range(count):
        num_experts = int(rng.integers(2, 9))
        top_k = int(rng.integers(1, num_experts))
        one = [names[index % len(names)]] * num_experts
        kinds = one if rng.random() < 0.6 else rng.choice(names, num_experts).tolist()
        offsets = np.round(0.4 * rng.standard_normal(num_experts), 3)
        bias = np.round(0.3 * rng.standard_normal(num_experts), 3)
        words = {"distributions": kinds, "top_k": top_k, "offsets": offsets.tolist(), "bias": bias.tolist()}
        yield words, IndependentScores([SHAPES[kind] for kind in kinds], top_k, offsets=offsets), bias


def sampled_batches(words: dict[str, Any], num_tokens: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Batches of independent tokens of a population, given by its words."""
    rng = np.random.default_rng([seed, 13])
    laws = [SHAPES[name] for name in words["distributions"]]
    while True:
        columns = [law.rvs(num_tokens, random_state=rng) for law in laws]
        yield np.column_stack(columns) + np.array(words["offsets"])


def first_failure_or_worst(verdicts: list[Verdict]) -> Verdict:
    """The verdict to report for a claim with several parts, counting the instances of all."""
    reported = next((one for one in verdicts if not one.holds), max(verdicts, key=lambda one: one.ratio))
    total = sum(one.instances for one in verdicts)
    return Verdict(
        reported.claim, reported.statement, total, reported.measured, reported.bound, reported.holds, reported.witness
    )
