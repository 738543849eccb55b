"""No balancing: the bias stays what it is. The baseline every rule has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alflb.rules._base import RULES, State


@RULES.register("none")
@dataclass(frozen=True)
class NoBias:
    """The bias never moves: zero from the start, or frozen at the one given to `simulate` as `bias_init`.

    Examples
    --------
    >>> import numpy as np
    >>> bias_E, _ = NoBias().update(np.array([0.5, 0.0]), np.array([2, 0]), np.array([1.0, 1.0]), 1, ())
    >>> bias_E.tolist()
    [0.5, 0.0]
    """

    def init(self, num_experts: int) -> State:
        """No memory."""
        return ()

    def update(
        self,
        bias_E: NDArray[np.float64],
        load_E: NDArray[np.int64],
        target_E: NDArray[np.float64],
        t: int,
        state: State,
    ) -> tuple[NDArray[np.float64], State]:
        """The bias as it was."""
        return bias_E, state
