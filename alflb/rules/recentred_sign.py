"""The sign rule with the mean of the step taken out: b += d - mean(d), d = u sign(target - load)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from alflb.rules.base import RULES, DirectionRule, library_of


@RULES.register("recentred_sign")
@dataclass(frozen=True)
class RecentredSign(DirectionRule):
    """Sign rule whose steps sum to zero, so the mean bias never drifts. Loads are those of the plain sign rule.

    Source: torchtitan (u = 1e-3) and Moonlight. Top-K does not see a common shift of all biases (the gauge), so
    this changes the biases' mean and, up to rounding, nothing else.

    Examples
    --------
    >>> import numpy as np
    >>> RecentredSign(0.5).direction(np.array([4, 1, 1]), np.array([2.0, 2.0, 2.0])).round(3).tolist()
    [-1.333, 0.667, 0.667]
    """

    on_tensors: ClassVar[bool] = True
    routes_as: ClassVar[str | None] = "sign"

    def direction(self, load_E: NDArray[np.int64], target_E: NDArray[np.float64]) -> NDArray[np.float64]:
        """sign(target - load) minus its mean over the experts."""
        shortfall_E = target_E - load_E
        sign_E = library_of(shortfall_E).sign(shortfall_E)
        return sign_E - sign_E.sum() / len(sign_E)
