"""Tightness: random restarts and local moves towards the largest measured / bound."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable

import numpy as np

from proofs_check._instances import Instance, draw
from proofs_check._verdict import Measure, Verdict

_PATIENCE = 150
"""Local moves without progress before a restart."""


def climb(
    claim: str,
    measure: Measure,
    *,
    seed: int,
    seconds: float,
    integral: bool = False,
    dyadic: bool = False,
    known: Iterable[Instance] = (),
) -> Verdict:
    """The best instance found in `seconds`, climbing from known ones first; measured > bound would refute the claim."""
    rng = np.random.default_rng(seed)
    starts = itertools.chain(known, draw(seed, 10**9, integral=integral, dyadic=dyadic))
    best = Verdict(claim, "search", 0, 0, 1, True)
    tried, deadline = 0, time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        current = next(starts)
        value, idle = -1.0, 0
        while idle < _PATIENCE and time.perf_counter() < deadline:
            candidate = _moved(current, rng) if value >= 0 else current
            measured, bound = measure(candidate)
            tried += 1
            seen = Verdict(claim, "search", tried, measured, bound, measured <= bound, candidate.as_dict())
            if seen.ratio > best.ratio:
                best = seen
            idle = 0 if seen.ratio > value else idle + 1
            if seen.ratio >= value:  # sideways moves leave plateaus
                current, value = candidate, seen.ratio
    return Verdict(claim, "search", tried, best.measured, best.bound, best.holds, best.witness)


def _moved(one: Instance, rng: np.random.Generator) -> Instance:
    """One to three scores moved, a row copied, a bias moved, or another step size."""
    scores, bias, step = one.scores.copy(), one.bias.copy(), one.step_size
    kind = rng.integers(5)
    if kind <= 1:
        for _ in range(int(rng.integers(1, 4))):
            token, expert = rng.integers(one.num_tokens), rng.integers(one.num_experts)
            scores[token, expert] += int(rng.choice([-1, 1])) * int(rng.choice([1, 2, step, 2 * step, 10 * step]))
    elif kind == 2:
        scores[rng.integers(one.num_tokens)] = scores[rng.integers(one.num_tokens)]
    elif kind == 3:
        bias[rng.integers(one.num_experts)] += int(rng.choice([-step, step, -1, 1]))
    else:
        step = max(1, step + int(rng.integers(-2, 3)))
    return Instance(scores, one.top_k, bias, step, one.next_bias)
