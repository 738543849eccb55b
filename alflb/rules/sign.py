"""The sign rule of ALF-LB: b += u sign(target - load)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from alflb.rules.base import RULES, DirectionRule, library_of


@RULES.register("sign")
@dataclass(frozen=True)
class Sign(DirectionRule):
    """Every overloaded expert's bias falls by u, every underloaded one's rises by u; a balanced one stays.

    Source: Wang et al., arXiv 2408.15664, u = 1e-3 (also DeepSeek-V3, Megatron-Core, OLMo-core). In the
    notation of claim C1 it is delta_k = eps_k (L - A_k) with eps_k = u / |L - A_k|.

    Examples
    --------
    >>> import numpy as np
    >>> Sign(0.5).direction(np.array([3, 1, 2]), np.array([2.0, 2.0, 2.0])).tolist()
    [-1.0, 1.0, 0.0]
    """

    on_tensors: ClassVar[bool] = True

    def direction(self, load_E: NDArray[np.int64], target_E: NDArray[np.float64]) -> NDArray[np.float64]:
        """sign(target - load), with sign(0) = 0."""
        shortfall_E = target_E - load_E
        return library_of(shortfall_E).sign(shortfall_E)
