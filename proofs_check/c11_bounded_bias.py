"""C11, bounded bias (sign rule, step u, equal targets, any batches, even chosen by an adversary, exact arithmetic).

If no token's scores span more than rho in any batch, then spread(p_n) <= max(spread(p_0), rho + 2u) at every step.

Our own claim, with proof in docs/theory/balancing.md: an expert that leads another by more than rho beats it on every
token, so its load is not smaller and the lead does not grow; any other lead grows by at most 2u. Together with C4 to C6
it gives, on fixed scores and from p_0 = 0, D(p_n) - LP* <= E B (rho + u) from step floor(E R / 2) on, with B the sharp
band (`sharper`).

BROKEN allows a step of u where the claim has 2u.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np

from alflb import bounds, duality
from alflb.exact import solve_exact
from alflb.rules import make_rule
from alflb.simulation import simulate
from proofs_check._instances import Instance, draw
from proofs_check._verdict import Verdict, worst_of

CLAIM = "C11"
TITLE = "bounded bias"
NUM_STEPS = 60
LONGEST = 200
"""Entry times beyond which the corollary is not run: a matter of time, not of the claim."""


class Batches:
    """The rows of an instance in another order, with another expert first, at every step; range at most rho."""

    def __init__(self, one: Instance) -> None:
        self._one = one
        self.num_tokens, self.num_experts = one.num_tokens, one.num_experts

    def batches(self, seed: int) -> Iterator[np.ndarray]:
        """Batches of shape (T, E) in which rows repeat and experts trade places."""
        rng = np.random.default_rng(seed)
        while True:
            row_T = rng.integers(self.num_tokens, size=self.num_tokens)
            column_E = np.arange(self.num_experts) if rng.random() < 0.5 else rng.permutation(self.num_experts)
            yield self._one.scores[row_T][:, column_E].astype(np.float64)


def check(seed: int = 0, instances: int = 300) -> Verdict:
    """Largest spread over a run on changing batches, against the bound."""
    return worst_of(CLAIM, "tight", draw(seed, instances), lambda one: widest(one, bounds.bias_spread_bound))


def BROKEN(seed: int = 0, instances: int = 1000) -> Verdict:
    """The control: half the growth per step must be exceeded."""
    return worst_of(
        CLAIM,
        "tight",
        draw(seed, instances),
        lambda one: widest(one, lambda start, rho, u: bounds.bias_spread_bound(start, rho, u / 2)),
    )


def sharper(seed: int = 0, instances: int = 300) -> Verdict:
    """The corollary on fixed scores: dual gap from the entry time on, against E B (rho + u)."""
    return worst_of(CLAIM, "upper", draw(seed, instances, dyadic=True), late_gap)


def widest(one: Instance, bound_of: Callable[[float, float, float], float]) -> tuple[int, float]:
    """Largest spread(p_n) on batches that change at every step, and its bound."""
    run = simulate(
        Batches(one),
        make_rule("sign", one.step_size),
        top_k=one.top_k,
        num_steps=NUM_STEPS,
        backend="reference",
        bias_init=one.bias,
    )
    start = float(np.ptp(one.bias))
    return int(np.ptp(run.bias_NE, axis=1).max()), bound_of(start, one.score_range, one.step_size)


def late_gap(one: Instance) -> tuple[Fraction, Fraction]:
    """Largest dual gap of five steps after the entry time, from p_0 = 0, and its bound."""
    entry = bounds.sharp_entry_time(one.num_experts, one.score_range, one.step_size)
    band = bounds.sharp_band(bounds.crossing_multiplicity(one.problem.scores_TE, 2 * one.step_size), one.num_experts)
    bound = one.num_experts * band * (one.score_range + one.step_size)
    if entry > LONGEST:
        return Fraction(0), bound
    optimum = solve_exact(one.problem).value
    late_NE = one.run(entry + 5, from_zero=True).bias_NE[entry:-1]
    return max(Fraction(duality.dual_value(one.problem, bias_E) - optimum) for bias_E in late_NE), bound
