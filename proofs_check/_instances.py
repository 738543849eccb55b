"""Instances in integers: random, structured and adversarial, named witnesses, and the smallest of a kind.

Scores, biases and steps are whole numbers held in float64, so sums and comparisons are exact. Where D is evaluated
(`dyadic=True`) the target load L = K T / E is a multiple of 1 / 8, so that <L, p> is exact too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alflb.problem import AssignmentProblem
from alflb.rules import Rule, make_rule
from alflb.simulation import simulate
from alflb.streams import Static
from alflb.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class Instance:
    """Scores, K, a bias, a step size and a second bias: what the claims on deterministic scores speak of."""

    scores: NDArray[np.int64]
    top_k: int
    bias: NDArray[np.int64]
    step_size: int
    next_bias: NDArray[np.int64]

    @cached_property
    def problem(self) -> AssignmentProblem:
        """The assignment problem of these scores."""
        return AssignmentProblem(self.scores.astype(np.float64), self.top_k)

    @property
    def num_tokens(self) -> int:
        """T."""
        return int(self.scores.shape[0])

    @property
    def num_experts(self) -> int:
        """E."""
        return int(self.scores.shape[1])

    @property
    def score_range(self) -> int:
        """The range rho."""
        return int(np.ptp(self.scores, axis=1).max())

    def run(self, num_steps: int, *, rule: Rule | None = None, from_zero: bool = False) -> Trajectory:
        """The library's own trajectory from `bias` (or from 0); the sign rule with `step_size` by default."""
        return simulate(
            Static(self.scores.astype(np.float64)),
            rule or make_rule("sign", self.step_size),
            top_k=self.top_k,
            num_steps=num_steps,
            backend="reference",
            bias_init=None if from_zero else self.bias,
        )

    def excess(self, load: NDArray[np.int64]) -> NDArray[np.int64]:
        """E (A - L), a whole number whatever L is."""
        return self.num_experts * load - self.top_k * self.num_tokens

    def as_dict(self) -> dict[str, Any]:
        """Plain lists and integers, ready for JSON."""
        return {
            "scores": self.scores.tolist(),
            "top_k": self.top_k,
            "bias": self.bias.tolist(),
            "step_size": self.step_size,
            "next_bias": self.next_bias.tolist(),
        }

    @classmethod
    def of(cls, scores: Any, top_k: int, *, bias: Any = None, step_size: int = 1, next_bias: Any = None) -> Instance:
        """From plain lists; biases are zero unless given."""
        array = np.asarray(scores, dtype=np.int64)
        zero = np.zeros(array.shape[1], dtype=np.int64)
        first = zero if bias is None else np.asarray(bias, dtype=np.int64)
        second = zero if next_bias is None else np.asarray(next_bias, dtype=np.int64)
        return cls(array, top_k, first, step_size, second)


def draw(seed: int, count: int, *, dyadic: bool = False, integral: bool = False) -> Iterator[Instance]:
    """`count` instances of all families in turn; see `FAMILIES`."""
    rng = np.random.default_rng(seed)
    shape = _integral_shape if integral else _dyadic_shape if dyadic else _any_shape
    for index in range(count):
        num_tokens, num_experts, top_k = shape(rng)
        scores, spacing = FAMILIES[index % len(FAMILIES)](rng, num_tokens, num_experts)
        reach = int(rng.choice([1, 2, spacing, 2 * spacing, 8 * spacing]))
        # Steps on either side of half the spacing of crossing values, where m(2u) jumps.
        step_size = max(1, spacing // 2 + int(rng.integers(-1, 2))) if rng.random() < 0.7 else int(rng.integers(1, 20))
        bias = rng.integers(-reach, reach + 1, (2, num_experts))
        yield Instance(scores, top_k, bias[0], step_size, bias[1])


def _any_shape(rng: np.random.Generator) -> tuple[int, int, int]:
    """T, E, K with any L, often with K = E - 1."""
    num_experts = int(rng.integers(1, 8))
    top_k = max(1, num_experts - 1) if rng.random() < 0.25 else int(rng.integers(1, num_experts + 1))
    return int(rng.integers(1, 17)), num_experts, top_k


def _dyadic_shape(rng: np.random.Generator) -> tuple[int, int, int]:
    """T, E, K with L a multiple of 1/8: E a power of two, or a whole L."""
    num_tokens, num_experts, top_k = _any_shape(rng)
    if num_experts in (1, 2, 4):
        return num_tokens, num_experts, top_k
    return _integral_shape(rng)


def _integral_shape(rng: np.random.Generator) -> tuple[int, int, int]:
    """T, E, K with a whole L."""
    _, num_experts, top_k = _any_shape(rng)
    period = num_experts // int(np.gcd(num_experts, top_k))
    return period * int(rng.integers(1, 1 + max(1, 14 // period))), num_experts, top_k


Scores = tuple[NDArray[np.int64], int]


def _few_levels(rng: np.random.Generator, num_tokens: int, num_experts: int) -> Scores:
    """Ties everywhere: two to five score levels."""
    return rng.integers(0, int(rng.integers(1, 5)) + 1, (num_tokens, num_experts)), 1


def _generic(rng: np.random.Generator, num_tokens: int, num_experts: int) -> Scores:
    """Levels so many that ties are rare."""
    return rng.integers(0, 257, (num_tokens, num_experts)), 64


def _identical_rows(rng: np.random.Generator, num_tokens: int, num_experts: int) -> Scores:
    """One to three kinds of tokens."""
    kinds = rng.integers(0, 17, (int(rng.integers(1, 4)), num_experts))
    return kinds[rng.integers(len(kinds), size=num_tokens)], 4


def _duplicated_experts(rng: np.random.Generator, num_tokens: int, num_experts: int) -> Scores:
    """Experts with the same scores on every token."""
    scores = rng.integers(0, 17, (num_tokens, num_experts))
    return scores[:, rng.integers(num_experts, size=num_experts)], 4


def _ladder(rng: np.random.Generator, num_tokens: int, num_experts: int) -> Scores:
    """Crossing values a fixed spacing apart, so that m(2u) jumps as u passes half the spacing."""
    spacing = int(rng.integers(2, 9))
    weight = rng.permutation(num_experts)
    return spacing * np.outer(rng.permutation(num_tokens), weight).astype(np.int64), spacing


def _one_favorite(rng: np.random.Generator, num_tokens: int, num_experts: int) -> Scores:
    """Everybody prefers the same expert by nearly the whole range: late entry."""
    scores = rng.integers(0, 8, (num_tokens, num_experts))
    scores[:, rng.integers(num_experts)] += int(rng.integers(1, 100))
    return scores, 8


def _extreme(rng: np.random.Generator, num_tokens: int, num_experts: int) -> Scores:
    """Scores at either end of the range only."""
    return 32 * rng.integers(0, 2, (num_tokens, num_experts)), 32


FAMILIES = (_few_levels, _generic, _identical_rows, _duplicated_experts, _ladder, _one_favorite, _extreme)


def smallest(predicate: Callable[[Instance], bool], *, max_size: int = 6, max_level: int = 2) -> Instance | None:
    """The first instance satisfying `predicate`, by T E, then largest integer, then E, by exhaustion; bias zero."""
    shapes = [
        (num_tokens, num_experts)
        for size in range(1, max_size + 1)
        for num_experts in range(1, size + 1)
        for num_tokens in [size // num_experts]
        if num_tokens * num_experts == size
    ]
    for num_tokens, num_experts in shapes:
        for level in range(max_level + 1):
            for top_k in range(1, num_experts + 1):
                for flat in itertools.product(range(level + 1), repeat=num_tokens * num_experts):
                    for step_size in range(1, level + 2):
                        if max(*flat, step_size - 1, 0) < level:
                            continue  # tried at a smaller level
                        scores = np.reshape(flat, (num_tokens, num_experts))
                        instance = Instance.of(scores, top_k, step_size=step_size)
                        if predicate(instance):
                            return instance
    return None
