"""C5, finite entry (sign rule, step u, the same scores at every step, p_0 = 0, exact arithmetic).

*As stated*: every expert is inside the band of C4 from step N0 = ceil((E-1)(rho + 2u)/(2u)) on.

*Sharpened here, with proof in docs/theory/balancing.md*: with R = floor(rho / 2u) + 1, every expert is inside the
*sharp* band from step floor(E R / 2) on, and from step R on when E <= 3. Steps count biases: p_n is the bias after n
updates. At E = 2 the ratio entry / R tends to 1 (`late`), so that case is asymptotically tight.

*Withdrawn*: that R steps are enough for E >= 4 as well. `rotating` needs about 2 (E - 1)/(E + 1) R steps: 6/5 R at
E = 4, nearly 2 R for many experts. The largest entry / R for a given E lies between that and E / 2; which it is, is
open.

Our own claim (idea of proof in the theory page). BROKEN allows R steps from an arbitrary bias instead of from 0.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial

import numpy as np
from numpy.typing import NDArray

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


def rotating(num_experts: int, distance: int) -> Instance:
    """K = 1, u = 2, m = 1: expert 0 keeps a surplus while the others take turns in being overloaded.

    Each pair of the other experts shares one token that is indifferent between the two, so their loads are those of a
    tournament, and not all of them are underloaded at once. Enough tokens prefer expert 0, by `distance` and a little
    more, to keep it outside the band until the first of them leaves.
    """
    step_size = 2
    rng = np.random.default_rng(num_experts)
    width, rows = 16, None
    while rows is None:  # the narrowest values, nearly, among which crossing values can be more than 2u apart
        width += width // 4
        rows = _spread_out(_proposals(rng, num_experts, distance, width), apart=2 * step_size)
    return Instance.of(rows, 1, step_size=step_size)


def _proposals(
    rng: np.random.Generator, num_experts: int, distance: int, width: int
) -> list[Callable[[], NDArray[np.int64]]]:
    """For each token a function that draws its scores."""

    def shared(j: int, k: int) -> NDArray[np.int64]:
        score_E = -rng.integers(width // 4, width, num_experts)
        score_E[[j, k]] = 0
        return score_E

    def loyal() -> NDArray[np.int64]:
        return np.append(0, -distance - rng.integers(0, width, num_experts - 1))

    others = range(1, num_experts)
    surplus = len(others) + (len(others) - 1) // 2 + 1
    return [*(partial(shared, j, k) for j in others for k in others if j < k), *[loyal] * surplus]


def _spread_out(proposals: list[Callable[[], NDArray[np.int64]]], apart: int) -> NDArray[np.int64] | None:
    """One draw of each token such that no two crossing values of a pair are within `apart`; None if that is too rare.

    Crossing values of a pair are compared through the differences of score differences.
    """
    rows: list[NDArray[np.int64]] = []
    for propose in proposals:
        for _ in range(3000):
            score_E = propose()
            gap_NE = np.reshape(rows, (-1, len(score_E))) - score_E
            between_NEE = np.abs(gap_NE[:, :, None] - gap_NE[:, None, :])
            if (between_NEE > apart).sum() == gap_NE.size * (len(score_E) - 1):
                rows.append(score_E)
                break
        else:
            return None
    return np.array(rows)


def tightest(seed: int, seconds: float) -> Verdict:
    """How close a search from late entries comes to the sharp entry time; random instances mostly start in the band."""
    known = [*(late(score_range) for score_range in (9, 20, 41)), rotating(4, 300)]
    return climb(
        CLAIM,
        lambda one: entry(one, bounds.sharp_entry_time, bounds.sharp_band),
        seed=seed,
        seconds=seconds,
        known=known,
    )
