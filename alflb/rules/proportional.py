"""The proportional rule: b += u (target - load) / mean target, the (sub)gradient step on the dual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from alflb.rules.base import RULES, DirectionRule, relative_shortfall


@RULES.register("proportional")
@dataclass(frozen=True)
class Proportional(DirectionRule):
    """Each bias moves in proportion to how far its load is off, measured in mean loads.

    An expert with twice the target load falls by u, so u is in score units per step for any batch size. In
    claim C1 this is a common eps = u / L; as online gradient descent on the load fractions (claim C9) it is
    eta = u E / K.

    Source: the proportional variant of Wang et al., arXiv 2408.15664, who list u = 1e-4 ... 1e-2 without a unit
    for the load; the normalization here is ours. Written on load fractions, b += u' (1/E - f), it is u' = u E.

    Examples
    --------
    >>> import numpy as np
    >>> Proportional(0.5).direction(np.array([3, 1, 2]), np.array([2.0, 2.0, 2.0])).tolist()
    [-0.5, 0.5, 0.0]
    """

    on_tensors: ClassVar[bool] = True

    def direction(self, load_E: NDArray[np.int64], target_E: NDArray[np.float64]) -> NDArray[np.float64]:
        """(target - load) / mean target."""
        return relative_shortfall(load_E, target_E)
