"""C20, the sign rule beyond Gumbel (T independent tokens with scores a_k + xi_k, equal targets, any K < E).

The noise xi of a token is exchangeable between experts (independent and alike, for example), with densities as in C7,
so that p* = mean(a) - a. Biases are projected onto {mean 0, |p| <= R}, which contains p*; within 2R of p* any
two experts tie at the top-K boundary with density c > 0 at least. With steps u_n = 1 / (m n) and
m = `alflb.bounds.sign_pull_of_ties`,

    E|p_n - p*|^2 <= max(E / m^2, 8 R^2) / n,

so regret is of order ln N. C13 has the same for Gumbel scores and K = 1, with a larger m.

Our own claim, with proof in docs/theory/noise.md: an expert whose bias is further above its p* is picked at least as
often, so every pair of experts pulls the right way, and the extreme pair by at least h(E c w).

Checked with the library's rules on normal, logistic and uniform noise; c is the least density on a grid of directions.

BROKEN takes 50 m for m: steps too small to arrive.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb import bounds
from alflb.population import IndependentScores
from proofs_check._random import SHAPES, first_failure_or_worst
from proofs_check._verdict import Verdict
from proofs_check.c13_sign_rule_noise import SignPath, distance_from_optimum

CLAIM = "C20"
TITLE = "sign rule beyond Gumbel"
NUM_TOKENS = 24
RADIUS = 0.2


class Family(NamedTuple):
    """Scores of one law, shifted by an offset per expert."""

    law: str
    top_k: int
    offsets: tuple[float, ...]


FAMILIES = (
    Family("normal", 1, (0.1, -0.1)),
    Family("logistic", 2, (0.1, 0.0, -0.1)),
    Family("uniform", 2, (0.05, 0.05, -0.05, -0.05)),
)


class ShiftedScores:
    """Batches of a family."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self.num_tokens, self.num_experts = NUM_TOKENS, len(family.offsets)

    def batches(self, seed: int) -> Iterator[NDArray[np.float64]]:
        """Batches of shape (T, E) without end."""
        rng = np.random.default_rng(seed)
        while True:
            noise_TE = SHAPES[self._family.law].rvs((self.num_tokens, self.num_experts), random_state=rng)
            yield noise_TE + np.array(self._family.offsets)


def check(seed: int = 0, instances: int = 12) -> Verdict:
    """The largest n E|p_n - p*|^2 of all steps n, over `instances` runs of each family, against its bound."""
    return first_failure_or_worst([_distance(family, seed, instances, boost=1.0) for family in FAMILIES])


def BROKEN(seed: int = 0, instances: int = 12) -> Verdict:
    """The control: a pull that is 50 times too strong."""
    return first_failure_or_worst([_distance(family, seed, instances, boost=50.0) for family in FAMILIES])


def least_tie_density(family: Family) -> float:
    """The least density of a tie of any pair at the top-K boundary, on a grid within 2R of p*."""
    num_experts = len(family.offsets)
    population = IndependentScores(SHAPES[family.law], family.top_k, offsets=np.zeros(num_experts))
    directions = np.random.default_rng(0).standard_normal((40, num_experts))
    pairs = np.eye(num_experts)[:, None] - np.eye(num_experts)[None]
    rays = np.concatenate([directions - directions.mean(axis=1, keepdims=True), pairs.reshape(-1, num_experts)])
    rays = rays[np.linalg.norm(rays, axis=1) > 0]
    off_diagonal = ~np.eye(num_experts, dtype=bool)
    points = [2 * RADIUS * part * ray / np.linalg.norm(ray) for ray in rays for part in (0.5, 1.0)]
    return min(float(population.tie_density(point)[off_diagonal].min()) for point in points)


def _distance(family: Family, seed: int, runs: int, *, boost: float) -> Verdict:
    density = least_tie_density(family)
    pull = boost * bounds.sign_pull_of_ties(NUM_TOKENS, len(family.offsets), family.top_k, RADIUS, density)
    words: dict[str, Any] = {**family._asdict(), "tie_density": density}
    optimum_E = -np.array(family.offsets)
    path = SignPath(ShiftedScores(family), optimum_E, family.top_k, RADIUS, pull)
    return distance_from_optimum(CLAIM, path, words, seed=seed, runs=runs)
