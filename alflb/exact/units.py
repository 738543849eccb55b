"""Exact arithmetic: scores as integer multiples of a quantum, target loads as whole units.

**Scores.** The quantum is a power of two, the finest that keeps every sum of scores and prices inside int64 (about
50 bits of score). Scores that are multiples of it, as all dyadic, bf16 and fp16 scores of ordinary size and
nearly all float32 ones are, lose nothing; others are rounded to the nearest multiple at first
(`alflb.exact.screening.refine` comes back to the rest).

**Loads.** Integral optima exist when targets are whole numbers of tokens. Other targets are counted in units:
E / gcd(E, K T) units to a pick make exact balance whole; targets of no common denominator are rounded to a unit
far below their own rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb.problem import FloatArray

WORD_BITS = 58
"""Bits for the longest sum the solver forms: a path of E price differences."""
_MANTISSA_BITS = 53
_FINEST_SCALE = 1000
"""Largest exponent of 1 / quantum that float64 holds with room to spare."""
_APART = 2.0**16
_SHARE_BITS = 50
_LOAD_BITS = 60


@dataclass(frozen=True)
class Grid:
    """The quantum of scores and prices."""

    exponent: int
    """quantum = 2 ** exponent."""

    @classmethod
    def finest(cls, largest: float, num_experts: int) -> Grid:
        """The finest grid for scores up to `largest` in size; whole numbers if they are all 0."""
        if largest == 0.0:
            return cls(0)
        bits = min(_MANTISSA_BITS, WORD_BITS - math.ceil(math.log2(num_experts)))
        return cls(max(math.frexp(largest)[1] - bits, -_FINEST_SCALE))

    @property
    def quantum(self) -> float:
        """One step of the grid, score units."""
        return math.ldexp(1.0, self.exponent)

    @property
    def per_unit(self) -> float:
        """Grid steps in one score unit."""
        return math.ldexp(1.0, -self.exponent)

    @property
    def is_ordinary(self) -> bool:
        """Whether no score is so small, in quanta, that float64 takes it for 0."""
        return self.exponent <= 0

    def prices(self, bias_E: NDArray[np.float64]) -> NDArray[np.int64]:
        """The nearest integer prices."""
        return np.rint(bias_E * self.per_unit).astype(np.int64)

    def bias(self, price_E: NDArray[np.int64]) -> NDArray[np.float64]:
        """Prices in score units."""
        return np.ldexp(price_E.astype(np.float64), self.exponent)


def target_units(target_E: NDArray[np.float64], num_tokens: int, top_k: int) -> tuple[NDArray[np.int64], int]:
    """Targets as whole numbers of units that sum to K T units exactly, and the units in one pick.

    Examples
    --------
    >>> units_E, unit = target_units(np.array([2 / 3, 2 / 3, 2 / 3]), num_tokens=2, top_k=1)
    >>> units_E.tolist(), unit
    ([2, 2, 2], 3)
    """
    picks = num_tokens * top_k
    for unit in (1, len(target_E) // math.gcd(len(target_E), picks)):
        units_E = np.rint(target_E * unit)
        close = np.all(np.abs(target_E * unit - units_E) <= 1e-9 * np.maximum(1.0, units_E))
        if close and int(units_E.sum()) == picks * unit:
            return units_E.astype(np.int64), unit
    unit = 2 ** min(_SHARE_BITS, _LOAD_BITS - picks.bit_length())
    return _rounded(target_E * (unit * picks / target_E.sum()), picks * unit, num_tokens * unit), unit


def _rounded(ideal_E: NDArray[np.float64], total: int, most: int) -> NDArray[np.int64]:
    """Whole numbers at most `most` that sum to `total`, within a unit or so of `ideal_E`."""
    units_E = np.minimum(np.floor(ideal_E).astype(np.int64), most)
    while (short := total - int(units_E.sum())) != 0:
        able = np.flatnonzero(units_E < most if short > 0 else units_E > 0)
        share = math.ceil(abs(short) / able.size)
        for k in able[: math.ceil(abs(short) / share)]:
            give = min(share, abs(short), int(most - units_E[k]) if short > 0 else int(units_E[k]))
            units_E[k] += give if short > 0 else -give
            short -= give if short > 0 else -give
    return units_E


class NeededScores(NamedTuple):
    """Sizes of the scores that some token cannot do without: of its K best, and of the best of all."""

    worst: float
    """The least K-th best score of a token."""
    limit: float
    """A negative score larger in size than this is left out while the others allow a balanced assignment."""

    @classmethod
    def of(cls, scores_TE: FloatArray, top_k: int) -> NeededScores:
        """Those of these tokens.

        Examples
        --------
        >>> NeededScores.of(np.array([[0.5, -1e9, 0.25]]), top_k=2)
        NeededScores(worst=0.25, limit=32768.0)
        """
        cut = scores_TE.shape[1] - top_k
        worst = float(np.partition(scores_TE, cut, axis=1)[:, cut].min())
        size = max(abs(worst), abs(float(scores_TE.max())))
        return cls(worst, _APART * size if size else math.inf)  # beside 0 nothing is huge


def none_is_huge(largest: float, some_scores: FloatArray) -> bool:
    """Whether the best of some scores tells already that none, up to `largest` in size, is beyond the limit."""
    return largest <= _APART * abs(float(some_scores.max()))
