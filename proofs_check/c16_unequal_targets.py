"""C16, unequal targets (E >= 2, any feasible targets L_k: between 0 and T, and K T in all).

*Optimum*: some optimal bias has a spread of at most c rho, with c = 2, and c = 1 for K = 1 and K >= E - 1. So C6 holds
with c rho in place of rho:

    D(p) - LP* <= 1/2 ||A - L||_1 (spread(p) + c rho),   affinity - LP* <= 1/2 ||A - L||_1 c rho.

*Sign rule on fixed scores*, targets that are multiples of 1/d: |A_k - L_k| <= m (E - 1) - 1/d absorbs (m (E - 1) for
any targets), and from p = 0 every expert is inside from step floor(E R / 2) on, R = floor(c rho / 2u) + 1 (from step R
for E <= 3). *On any batches*, from p = 0 and with 0 < L_k < T: spread(p_n) <= c (rho + 2u). Next to a target of 0 or T
the bias can drift without end (`drifting`).

Our own claims, with proofs in docs/theory/balancing.md. The gap bound is attained with c = 2, the band for every m, E
and d (`tight`), so no smaller function of them will do.

BROKEN takes c = 1 for every K.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alflb import bounds, duality
from alflb.exact import solve_exact
from alflb.kernels import get_kernels
from alflb.problem import AssignmentProblem
from alflb.rules import make_rule
from proofs_check._instances import Instance, draw
from proofs_check._loop import run_rule
from proofs_check._random import first_failure_or_worst
from proofs_check._verdict import Verdict, worst_of
from proofs_check.c11_bounded_bias import Batches

CLAIM = "C16"
TITLE = "unequal targets"
NUM_STEPS = 40
LONGEST = 200
"""Entry times beyond which an instance is passed over: a matter of time, not of the claim."""


@dataclass(frozen=True, eq=False)
class Targeted(Instance):
    """An instance whose targets are whole multiples of 1 / `denominator`."""

    multiples: NDArray[np.int64]
    denominator: int

    @property
    def target_E(self) -> NDArray[np.float64]:
        """L_k, tokens; sums to K T up to rounding."""
        return self.multiples / self.denominator

    @property
    def wanted(self) -> AssignmentProblem:
        """The assignment problem with these targets."""
        return AssignmentProblem(self.scores.astype(np.float64), self.top_k, self.target_E)

    def deviation(self, load: NDArray[np.int64]) -> NDArray[np.int64]:
        """The deviations times the denominator, d |A - L|: whole numbers."""
        return np.abs(self.denominator * load - self.multiples)

    def follow(self, num_steps: int, *, from_zero: bool = False) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Biases and loads of the library's sign rule with these targets."""
        return run_rule(
            [self.scores.astype(np.float64)] * num_steps,
            make_rule("sign", self.step_size),
            self.target_E,
            top_k=self.top_k,
            num_steps=num_steps,
            bias_E=None if from_zero else self.bias,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain lists and integers, ready for JSON."""
        return super().as_dict() | {"multiples": self.multiples.tolist(), "denominator": self.denominator}

    @classmethod
    def aim(cls, one: Instance, multiples: Any, denominator: int) -> Targeted:
        """An instance with targets."""
        whole_E = np.asarray(multiples, dtype=np.int64)
        return cls(one.scores, one.top_k, one.bias, one.step_size, one.next_bias, whole_E, denominator)


NARROW_FAILS = Targeted.aim(Instance.of([[3, 0, 4, 4], [4, 2, 0, 0]], 2), [0, 2, 1, 1], 1)
"""Dual gap 8 at p = 0, where rho allows 4: c = 2 is attained."""


def check(seed: int = 0, instances: int = 200) -> Verdict:
    """Dual gap and excess of the affinity, against the bounds of the library's certificate."""
    return worst_of(
        CLAIM, "tight", _chosen(seed, instances, denominators=(1, 2)), lambda one: worst_gap(one, wide=True)
    )


def BROKEN(seed: int = 0, instances: int = 200) -> Verdict:
    """The control: rho in place of c rho must be exceeded."""
    chosen = _chosen(seed, instances, denominators=(1, 2))
    return worst_of(CLAIM, "tight", chosen, lambda one: worst_gap(one, wide=False))


def sharper(seed: int = 0, instances: int = 200) -> Verdict:
    """The band, the entry time and the spread."""
    drawn = list(_chosen(seed, instances, denominators=(1, 2, 3)))
    family = [tight(num_experts, most, d) for num_experts in (2, 3, 5) for most in (1, 2, 3) for d in (1, 2, 3)]
    strict = [one for one in drawn if 0 < one.multiples.min() <= one.multiples.max() < one.denominator * one.num_tokens]
    verdicts = [
        worst_of(CLAIM, "tight", [*family, *drawn], step_out),
        worst_of(CLAIM, "upper", drawn, entry),
        worst_of(CLAIM, "upper", strict, widest),
    ]
    missed = [one for one in family if step_out(one)[0] != band(one)]
    if missed:
        verdicts.append(Verdict(CLAIM, "tight", 0, step_out(missed[0])[0], band(missed[0]), False, missed[0].as_dict()))
    return first_failure_or_worst(verdicts)


def worst_gap(one: Targeted, *, wide: bool) -> tuple[float, float]:
    """(measured, bound) of the dual gap or of the affinity's excess, whichever is worse; exact for d = 1 and 2."""
    certificate = duality.gap_certificate(one.wanted, one.bias)
    value = round(solve_exact(one.wanted, method="highs").value * one.denominator) / one.denominator
    spread, half = duality.spread(one.bias), certificate.violation_l1 / 2
    gap_bound = certificate.gap_bound if wide else half * (spread + one.score_range)
    excess_bound = certificate.affinity_excess_bound if wide else half * one.score_range
    pairs = [(certificate.dual_value - value, gap_bound), (certificate.affinity - value, excess_bound)]
    return max(pairs, key=lambda pair: (pair[0] > pair[1], pair[0] / pair[1] if pair[1] else 0.0))


def band(one: Targeted) -> Fraction:
    """The sharp band of targets that are multiples of 1/d, m (E - 1) - 1/d tokens."""
    most = bounds.crossing_multiplicity(one.problem.scores_TE, 2 * one.step_size)
    return bounds.absorbing_band(most, one.num_experts) - Fraction(1, one.denominator)


def step_out(one: Targeted) -> tuple[Fraction, Fraction]:
    """Worst |A_k - L_k| right after a step inside the band, and the band, tokens."""
    _, load_NE = one.follow(NUM_STEPS)
    deviation_NE, allowed = one.deviation(load_NE), band(one)
    inside_NE = deviation_NE[:-1] <= int(one.denominator * allowed)
    return Fraction(int(np.max(deviation_NE[1:], where=inside_NE, initial=0)), one.denominator), allowed


def entry(one: Targeted) -> tuple[int, int]:
    """The step from which on all experts are in the band, from p = 0, and the bound; 0 where it may take too long."""
    allowed = bounds.sharp_entry_time(one.num_experts, _reach(one), one.step_size)
    if allowed > LONGEST:
        return 0, allowed
    _, load_NE = one.follow(allowed + 3, from_zero=True)
    outside = np.flatnonzero((one.deviation(load_NE) > int(one.denominator * band(one))).any(axis=1))
    return int(outside.max(initial=-1)) + 1, allowed


def widest(one: Targeted) -> tuple[int, float]:
    """Largest spread from p = 0 on batches that change at every step, and its bound."""
    bias_NE, _ = run_rule(
        Batches(one).batches(0),
        make_rule("sign", one.step_size),
        one.target_E,
        top_k=one.top_k,
        num_steps=NUM_STEPS,
    )
    width = one.score_range + 2 * one.step_size
    allowed = bounds.optimal_spread(width, one.num_experts, one.top_k, equal_targets=False)
    return int(np.ptp(bias_NE, axis=1).max()), allowed


def _reach(one: Targeted) -> float:
    """The spread that the narrowest optimal bias can need, c rho."""
    return bounds.optimal_spread(one.score_range, one.num_experts, one.top_k, equal_targets=False)


def tight(num_experts: int, most: int, denominator: int) -> Targeted:
    """K = 1 and m = `most`: expert 0 holds all tokens, 1/d more than its target, and loses m to every other expert.

    Expert 1 lacks that 1/d and the others are balanced without tokens, so all of them gain on expert 0, and all of its
    tokens are indifferent between it and one of them.
    """
    num_tokens = most * (num_experts - 1)
    high = 64 * num_tokens * num_experts
    # Everything else crosses at values 16 apart, so that no window of length 2 holds two of them.
    scores = -16 * np.outer(np.arange(1, num_tokens + 1), np.arange(1, num_experts + 1))
    scores[:, 0] = high
    scores[np.arange(num_tokens), 1 + np.arange(num_tokens) // most] = high
    multiples = np.zeros(num_experts, dtype=np.int64)
    multiples[:2] = denominator * num_tokens - 1, 1
    return Targeted.aim(Instance.of(scores, 1), multiples, denominator)


def drifting() -> Targeted:
    """One token, three experts with a third of it each: two of them rise at a step, and expert 0 (target 0) rests."""
    return Targeted.aim(Instance.of(np.zeros((1, 4)), 1), [0, 1, 1, 1], 3)


def _chosen(seed: int, count: int, *, denominators: tuple[int, ...]) -> Iterator[Targeted]:
    """The instance that attains the gap bound, then random ones: the targets are the mean loads of d random plans."""
    yield NARROW_FAILS
    rng = np.random.default_rng([seed, 16])
    loads = get_kernels("reference").loads
    several = (one for one in draw(seed, 2 * count) if one.num_experts > 1)
    for index, one in enumerate(islice(several, count)):
        denominator = denominators[index % len(denominators)]
        plans = rng.random((denominator, one.num_tokens, one.num_experts))
        favor_E = rng.integers(0, 2, one.num_experts) * rng.random()
        multiples = sum(loads(plan, favor_E, one.top_k)[0] for plan in plans)
        yield Targeted.aim(one, multiples, denominator)
