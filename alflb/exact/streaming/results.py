"""What comes out of `solve_streaming`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alflb.exact.batched import Batch
from alflb.exact.certificate import proves_optimum

MapBatches = Callable[[Callable[[tuple[int, Batch]], Any], Iterable[tuple[int, Batch]]], Iterable[Any]]
"""Like the builtin `map`: results in the order of the batches."""


def relative_gap(lower_bound: float, upper_bound: float) -> float:
    """The distance of the bounds over the larger size of the two; inf unless both are finite."""
    if not (math.isfinite(lower_bound) and math.isfinite(upper_bound)):
        return math.inf
    if lower_bound == upper_bound:
        return 0.0
    return (upper_bound - lower_bound) / max(abs(upper_bound), abs(lower_bound))


@dataclass(frozen=True)
class Pass:
    """What one pass with a bias found."""

    lower_bound: float
    """Value of the better of the two repaired assignments, rounding deducted; -inf if neither met the targets."""
    upper_bound: float
    """D(p), rounding added."""
    violation: float
    """||A(p) - L||_1, tokens."""
    repair: str
    """Which repair gave the bound: "swaps", "closest" or "none"."""


@dataclass(frozen=True, eq=False)
class StreamingSolution:
    """Bounds of LP* that meet within the tolerance, and the bias that proves the upper one."""

    lower_bound: float
    """Value of a feasible assignment, at most LP* (score units summed over tokens; rounding is deducted)."""
    upper_bound: float
    """D(p) of `bias_E`, at least LP* (rounding is added)."""
    bias_E: NDArray[np.float64]
    """The best bias found, centered (mean zero)."""
    load_E: NDArray[np.int64]
    """Loads of its top-K assignment, tokens; ties within the dither are broken at random."""
    num_tokens: int
    num_batches: int
    passes: int
    """How often the batches were read, the survey included."""
    history: tuple[Pass, ...]
    """The passes after the survey, in order."""
    tolerance: float
    """The relative gap asked for."""

    @property
    def gap(self) -> float:
        """upper_bound - lower_bound, the most by which either is off."""
        return self.upper_bound - self.lower_bound

    @property
    def relative_gap(self) -> float:
        """The gap over the larger size of the two bounds."""
        return relative_gap(self.lower_bound, self.upper_bound)

    @property
    def converged(self) -> bool:
        """Whether the relative gap is within the tolerance."""
        largest = max(abs(self.lower_bound), abs(self.upper_bound))
        return proves_optimum(self.gap, self.tolerance * largest)
