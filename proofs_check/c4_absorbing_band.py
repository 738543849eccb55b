"""C4, the absorbing band (sign rule, step u, the same scores at every step, exact arithmetic).

Crossing value of token i for the pair (k, j): gamma_ik - gamma_ij; m = m(2u) is the most tokens whose crossing values
of one pair fit in a closed window of length 2u. Any K, any ties, any L, any starting bias.

*As stated*: an expert with |A_k - L| <= m (E - 1) at one step has it at every later step.

*Sharpened here, with proof in docs/theory/balancing.md*: the same holds with m (E - 1) - (1 - 1/E), and for every m
and E an instance attains that in a cycle of length 2 (`tight`), so no smaller function of m and E will do. The
guarantee L +- (E - 1) for m = 1 is in the line of Wang et al., arXiv 2408.15664, and Han & Zhong, arXiv 2512.03915;
m(2u) replaces their gap assumption.

BROKEN counts crossings in windows of length u instead of 2u.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np

from alflb import bounds
from proofs_check._instances import Instance, draw
from proofs_check._search import climb
from proofs_check._smt import Model, Proof
from proofs_check._verdict import Verdict, worst_of

CLAIM = "C4"
TITLE = "absorbing band"
NUM_STEPS = 40
Band = Callable[[int, int], int | Fraction]


def check(seed: int = 0, instances: int = 700) -> Verdict:
    """Largest deviation one step after a deviation inside m (E - 1)."""
    return worst_of(CLAIM, "upper", draw(seed, instances), lambda one: step_out(one, bounds.absorbing_band))


def sharper(seed: int = 0, instances: int = 700) -> Verdict:
    """The same for the sharp band, after the instances that attain it."""
    family = [tight(num_experts, most) for num_experts in (2, 3, 4, 5) for most in (1, 2, 3)]
    attained = all(measured == bound for measured, bound in (step_out(one, bounds.sharp_band) for one in family))
    verdict = worst_of(
        CLAIM, "tight", _chain(family, draw(seed, instances)), lambda one: step_out(one, bounds.sharp_band)
    )
    return verdict if attained or not verdict.holds else Verdict(CLAIM, "tight", 0, 0, 1, False, family[0].as_dict())


def BROKEN(seed: int = 0, instances: int = 2000) -> Verdict:
    """The control: m(u) in place of m(2u) must be exceeded."""
    return worst_of(CLAIM, "upper", draw(seed, instances), lambda one: step_out(one, bounds.absorbing_band, window=1))


def step_out(one: Instance, band_of: Band, window: int = 2) -> tuple[Fraction, Fraction]:
    """Worst |A_k - L| right after a step inside the band, and the band, tokens."""
    most = bounds.crossing_multiplicity(one.problem.scores_TE, window * one.step_size)
    band = Fraction(band_of(most, one.num_experts))
    excess_NE = np.abs(one.excess(one.run(NUM_STEPS).load_NE))
    inside_NE = excess_NE[:-1] <= one.num_experts * band
    return Fraction(int(np.max(excess_NE[1:], where=inside_NE, initial=0)), one.num_experts), band


def tight(num_experts: int, most: int) -> Instance:
    """K = 1 and m = `most`: expert 0 is alone overloaded, loses m tokens to every other, and gets them back next step.

    n = m (E - 1) - 1 tokens always sit on each other expert and m more are indifferent between it and expert 0, so
    the loads alternate between (n + 1, n, ..., n) and (0, n + m, ..., n + m), with L = n + 1/E.
    """
    resident = most * (num_experts - 1) - 1
    num_tokens = (resident + most) * (num_experts - 1)
    high = 64 * num_tokens * num_experts
    # Everything else crosses at values 16 apart, so that no window of length 2 holds two of them.
    scores = -16 * np.outer(np.arange(1, num_tokens + 1), np.arange(1, num_experts + 1))
    for token in range(num_tokens):
        home, place = 1 + token // (resident + most), token % (resident + most)
        scores[token, home] = high
        if place < most:
            scores[token, 0] = high
    return Instance.of(scores, 1)


def tightest(seed: int, seconds: float) -> Verdict:
    """How close the deviation after the entry time of C5 comes to m (E - 1), in a search."""
    return climb(CLAIM, final_deviation, seed=seed, seconds=seconds)


def final_deviation(one: Instance) -> tuple[Fraction, int]:
    """Largest |A_k - L| in 20 steps after entry from p = 0, and m (E - 1); 0 where entry may take over 200 steps."""
    entry = bounds.sharp_entry_time(one.num_experts, one.score_range, one.step_size)
    band = bounds.absorbing_band(
        bounds.crossing_multiplicity(one.problem.scores_TE, 2 * one.step_size), one.num_experts
    )
    if entry > 200:
        return Fraction(0), band
    excess_NE = np.abs(one.excess(one.run(entry + 20, from_zero=True).load_NE[entry:]))
    return Fraction(int(excess_NE.max()), one.num_experts), band


def _chain(first: list[Instance], rest: Iterator[Instance]) -> Iterator[Instance]:
    yield from first
    yield from rest


def negation(model: Model, *, broken: bool) -> object:
    """For some m, an expert inside the sharp band is outside after one sign step (u = 1) from any bias.

    Broken: nothing is assumed about crossing values.
    """
    before, after = model.step()
    picks, cases = model.top_k * model.num_tokens, []
    for most in range(1, model.num_tokens + 1):
        reach = int(model.num_experts * bounds.sharp_band(most, model.num_experts))
        inside = {n for n in range(model.num_tokens + 1) if abs(model.num_experts * n - picks) <= reach}
        leaves = [
            model.all(
                model.load_is(before, k, inside.__contains__), model.no(model.load_is(after, k, inside.__contains__))
            )
            for k in range(model.num_experts)
        ]
        cases.append(model.all(True if broken else model.multiplicity_at_most(most, 2), model.any(*leaves)))
    return model.all(model.sign_step(before), model.any(*cases))


PROOF = Proof(
    negation,
    sizes=lambda size: [(t, e, k) for t, e in size.shapes() if min(t, e) > 1 for k in range(1, e)],
    control=(3, 2, 1),
)
