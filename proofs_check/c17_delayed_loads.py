"""C17, delayed loads: the bias moves by the load of d steps ago, and rests for the first d steps (equal targets).

*Sign rule, any batches* of range at most rho: spread(p_n) <= max(spread(p_0), rho + 2u (d + 1)).

*Sign rule, fixed scores*: with M = m(2u (d + 1)), an expert with |A_k - L| <= M (E - 1) at d + 1 successive steps has
it ever after. (Any targets.)

*Proportional rule, any N batches*, p_0 = 0: with the step of C12 over sqrt(2d + 1), its regret is at most
(rho / 2) sqrt((2d + 1) N K (E - K)).

Our own claims, with proofs in docs/theory/balancing.md and docs/theory/regret.md; the argument for regret is the usual
one for delayed gradients (Langford, Smola & Zinkevich 2009). A delay costs what a larger step costs.

BROKEN leaves the delay out of the spread.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import islice

import numpy as np

from alflb import bounds
from alflb.rules import make_rule
from proofs_check._instances import Instance, draw
from proofs_check._loop import run_rule
from proofs_check._random import first_failure_or_worst
from proofs_check._verdict import Verdict, worst_of
from proofs_check.c11_bounded_bias import Batches
from proofs_check.c12_adversarial_regret import regret, usable

CLAIM = "C17"
TITLE = "delayed loads"
NUM_STEPS = 60
LONGEST_DELAY = 4


def check(seed: int = 0, instances: int = 300) -> Verdict:
    """Largest spread over a run on changing batches, against the bound."""
    return worst_of(CLAIM, "tight", draw(seed, instances), lambda one: widest(one, counted=True))


def BROKEN(seed: int = 0, instances: int = 300) -> Verdict:
    """The control: the bound of an undelayed rule must be exceeded."""
    return worst_of(CLAIM, "tight", draw(seed, instances), lambda one: widest(one, counted=False))


def sharper(seed: int = 0, instances: int = 300) -> Verdict:
    """The band of fixed scores, and regret."""
    return first_failure_or_worst(
        [
            worst_of(CLAIM, "upper", draw(seed, instances), step_out),
            worst_of(CLAIM, "upper", usable(seed, instances // 2), delayed_regret),
        ]
    )


def delay_of(one: Instance) -> int:
    """A delay from 1 to 4 for each instance."""
    return 1 + int(one.scores.sum()) % LONGEST_DELAY


def widest(one: Instance, *, counted: bool) -> tuple[int, float]:
    """Largest spread(p_n) under the delayed sign rule, and its bound, with or without the delay."""
    delay = delay_of(one)
    bias_NE, _ = run_rule(
        Batches(one).batches(0),
        make_rule("sign", one.step_size),
        one.problem.target_E,
        top_k=one.top_k,
        num_steps=NUM_STEPS,
        bias_E=one.bias,
        delay=delay,
    )
    start = float(np.ptp(one.bias))
    allowed = bounds.bias_spread_bound(start, one.score_range, one.step_size, delay=delay if counted else 0)
    return int(np.ptp(bias_NE, axis=1).max()), allowed


def step_out(one: Instance) -> tuple[Fraction, Fraction]:
    """Worst |A_k - L| right after d + 1 steps inside the band, and the band, tokens."""
    delay, scores_TE = delay_of(one), one.problem.scores_TE
    _, load_NE = run_rule(
        [scores_TE] * NUM_STEPS,
        make_rule("sign", one.step_size),
        one.problem.target_E,
        top_k=one.top_k,
        num_steps=NUM_STEPS,
        bias_E=one.bias,
        delay=delay,
    )
    most = bounds.crossing_multiplicity(scores_TE, 2 * one.step_size * (delay + 1))
    band = bounds.absorbing_band(most, one.num_experts)
    excess_NE = np.abs(one.excess(load_NE))
    inside_NE = excess_NE <= one.num_experts * band
    settled_NE = np.lib.stride_tricks.sliding_window_view(inside_NE[:-1], delay + 1, axis=0).all(axis=2)
    worst = int(np.max(excess_NE[delay + 1 :], where=settled_NE, initial=0))
    return Fraction(worst, one.num_experts), Fraction(band)


def delayed_regret(one: Instance) -> tuple[float, float]:
    """Regret per token of the delayed proportional rule and its bound, over 12 batches."""
    num_steps, delay = 12, delay_of(one)
    eta = bounds.adversarial_step(one.score_range, num_steps, one.num_experts, one.top_k, delay=delay)
    batches = list(islice(Batches(one).batches(0), num_steps))
    bias_NE, _ = run_rule(
        batches,
        make_rule("proportional", eta * one.top_k / one.num_experts),
        one.problem.target_E,
        top_k=one.top_k,
        num_steps=num_steps,
        delay=delay,
    )
    measured, slip = regret(batches, bias_NE, one.top_k)
    return measured, slip + bounds.adversarial_regret(
        one.score_range, num_steps, one.num_experts, one.top_k, delay=delay
    )
