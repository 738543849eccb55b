"""Means over seeds with a confidence interval."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import stats


class Estimate(NamedTuple):
    """A mean over seeds and its confidence interval."""

    mean: float
    low: float
    high: float
    num_seeds: int

    def __str__(self) -> str:
        if self.num_seeds == 1:
            return f"{self.mean:.3g} (one seed)"
        if self.high - self.low <= 1e-9 * abs(self.mean):  # nothing random in it
            return f"{self.mean:.4g}"
        digits = max(2, min(8, 2 + math.ceil(-math.log10((self.high - self.low) / max(abs(self.mean), 1e-300)))))
        return f"{self.mean:.{digits}g} [{self.low:.{digits}g}, {self.high:.{digits}g}]"


def mean_interval(values: Iterable[float], confidence: float = 0.95) -> Estimate:
    """The mean and Student's t interval of independent repetitions; one value has no interval.

    Raises
    ------
    ValueError
        If there are no values, or one of them is not finite.

    Examples
    --------
    >>> str(mean_interval([0.9, 1.0, 1.1]))
    '1 [0.75, 1.2]'
    """
    sample = np.array(list(values), dtype=np.float64)
    if sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"values are {sample.tolist()}; pass at least one, all finite")
    mean = float(sample.mean())
    if sample.size == 1:
        return Estimate(mean, math.nan, math.nan, 1)
    half = float(stats.t.ppf(0.5 + confidence / 2, sample.size - 1) * stats.sem(sample))
    return Estimate(mean, mean - half, mean + half, int(sample.size))
