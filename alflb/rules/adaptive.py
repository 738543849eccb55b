"""What the adaptive averages share: the sampling noise of loads, and the bounds of beta."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alflb.rules.base import check_fraction


def sampling_noise(load_E: NDArray[np.int64]) -> float:
    """(E - 1) / (K T): the mean square of the relative shortfall that picks drawn at random, evenly, would have.

    Examples
    --------
    >>> sampling_noise(np.array([3, 1, 4]))
    0.25
    """
    return (len(load_E) - 1) / float(load_E.sum())


def check_beta_range(beta_min: float, beta_max: float) -> None:
    """ValueError unless 0 <= beta_min <= beta_max < 1."""
    check_fraction(beta_min, "beta_min")
    check_fraction(beta_max, "beta_max")
    if beta_min > beta_max:
        raise ValueError(f"beta_min is {beta_min!r}, above beta_max = {beta_max!r}; pass beta_min <= beta_max")
