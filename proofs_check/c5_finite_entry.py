"""C5, finite entry (sign rule, step u, the same scores at every step, p_0 = 0, exact arithmetic).

*As stated*: every expert is inside the band of C4 from step N0 = ceil((E-1)(rho + 2u)/(2u)) on.

*Sharpened here, with proof in docs/claims.md*: with R = floor(rho / 2u) + 1, every expert is inside the *sharp* band
from step floor(E R / 2) on, and from step R on when E <= 3. Steps count biases: p_n is the bias after n updates. At E
= 2 the ratio entry / R tends to 1 (`late`), so that case is asymptotically tight; that R is enough
for E >= 4 as well is a conjecture (`conjecture`).

Our own claim (idea of proof in the theory page). BROKEN allows R steps from an arbitrary bias instead of from 0.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from alflb import bounds
from proofs_check._instances import Instance, draw
from proofs_check._search import climb
from proofs_check._verdict import Verdict, worst_of

CLAIM = "C5"
TITLE = "finite entry"
LONGEST = 300
"""Steps beyond which an instance is passed over (entry 0): a matter of time, not of the claim."""

Time = Callable[[int, float, float], int]
Band = Callable[[int, int], int | Fraction]


def check(seed: int = 0, instances: int = 700) -> Verdict:
    """Last step outside m (E - 1), plus one, against N0."""
    return worst_of(
        CLAIM, "upper", draw(seed, instances), lambda one: entry(one, bounds.entry_time, bounds.absorbing_band)
    )


def sharper(seed: int = 0, instances: int = 700) -> Verdict:
    """Last step outside the sharp band, plus one, against floor(E R / 2) or R."""
    verdict = worst_of(
        CLAIM, "upper", draw(seed, instances), lambda one: entry(one, bounds.sharp_entry_time, bounds.sharp_band)
    )
    known, bound = entry(late(400), bounds.sharp_entry_time, bounds.sharp_band)
    if not verdict.holds or Fraction(known, bound) < Fraction(verdict.ratio):
        return verdict
    return Verdict(CLAIM, "upper", verdict.instances + 1, known, bound, known <= bound, late(400).as_dict())


def conjecture(seed: int = 0, instances: int = 700) -> Verdict:
    """Unproved for E >= 4: R steps are enough for every E. A counterexample here would settle it."""
    return worst_of(CLAIM, "conjecture", draw(seed, instances), lambda one: entry(one, _reach, bounds.sharp_band))


def _reach(num_experts: int, score_range: float, step_size: float) -> int:
    """R = floor(rho / 2u) + 1, what is proved for two experts."""
    return bounds.sharp_entry_time(2, score_range, step_size)


def BROKEN(seed: int = 0, instances: int = 2000) -> Verdict:
    """The control: from an arbitrary bias the same time must be exceeded."""
    return worst_of(
        CLAIM,
        "upper",
        draw(seed, instances),
        lambda one: entry(one, bounds.sharp_entry_time, bounds.sharp_band, from_zero=False),
    )


def entry(one: Instance, time_of: Time, band_of: Band, *, from_zero: bool = True) -> tuple[int, int]:
    """The step from which on all experts are in the band, over a run past the bound, and the bound."""
    allowed = time_of(one.num_experts, one.score_range, one.step_size)
    if allowed > LONGEST:
        return 0, allowed
    band = band_of(bounds.crossing_multiplicity(one.problem.scores_TE, 2 * one.step_size), one.num_experts)
    load_NE = one.run(allowed + 3, from_zero=from_zero).load_NE
    outside = np.flatnonzero((np.abs(one.excess(load_NE)) > one.num_experts * band).any(axis=1))
    return int(outside.max(initial=-1)) + 1, allowed


def late(score_range: int) -> Instance:
    """E = 2, u = 1, two tokens that prefer expert 0 by rho and rho - 3: one leaves at step floor((rho-3)/2) + 1."""
    return Instance.of([[score_range, 0], [score_range - 3, 0]], 1)


def tightest(seed: int, seconds: float) -> Verdict:
    """How close a search from late entries comes to the sharp entry time; random instances mostly start in the band."""
    known = [late(score_range) for score_range in (9, 20, 41)]
    return climb(
        CLAIM,
        lambda one: entry(one, bounds.sharp_entry_time, bounds.sharp_band),
        seed=seed,
        seconds=seconds,
        known=known,
    )
