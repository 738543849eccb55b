"""Balanced top-j sign: a sign step for the j most overloaded and the j most underloaded experts only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alflb.problem import check_count
from alflb.rules.base import RULES, DirectionRule


@RULES.register("top_j_sign")
@dataclass(frozen=True)
class TopJSign(DirectionRule):
    """The sign rule for the j largest and the j smallest values of target - load; the other biases stay.

    Parameters
    ----------
    schedule : float or Schedule
        u, score units per step.
    count : int
        j. No value is published; 4 is ours. From E on it is the sign rule.

    Notes
    -----
    Experts that tie with the j-th move as well, so which experts move does not depend on their numbering. Nothing
    moves at exact balance.

    Source: `balanced_topk_sign` of the repository Leonyuann/Auxiliary-loss-free (src/alf/router.py as of July 2026,
    read); no paper. There as many experts rise as fall, so j shrinks to the smaller of the two sides, and ties are
    broken by index; both are otherwise here.

    Examples
    --------
    >>> import numpy as np
    >>> TopJSign(0.5, count=1).direction(np.array([5, 3, 2, 2, 0, 0]), np.full(6, 2.0)).tolist()
    [-1.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    """

    count: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.count, "count")

    def direction(self, load_E: NDArray[np.int64], target_E: NDArray[np.float64]) -> NDArray[np.float64]:
        """sign(target - load) where it is among the j largest or the j smallest, 0 elsewhere."""
        shortfall_E = target_E - load_E
        ascending_E = np.sort(shortfall_E)
        count = min(self.count, len(ascending_E))
        rises_E = (shortfall_E > 0) & (shortfall_E >= ascending_E[-count])
        falls_E = (shortfall_E < 0) & (shortfall_E <= ascending_E[count - 1])
        return rises_E.astype(np.float64) - falls_E
