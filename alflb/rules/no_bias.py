"""No balancing: the bias stays what it is. The baseline every rule has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from alflb.rules.base import RULES, Observation, Rule, State


@RULES.register("none")
@dataclass(frozen=True)
class NoBias(Rule):
    """The bias never moves: zero from the start, or frozen at the one given to `simulate` as `bias_init`.

    Examples
    --------
    >>> import numpy as np
    >>> seen = Observation(1, np.array([1.0, 1.0]), load_E=np.array([2, 0]))
    >>> bias_E, _ = NoBias().step(np.array([0.5, 0.0]), seen, ())
    >>> bias_E.tolist()
    [0.5, 0.0]
    """

    on_tensors: ClassVar[bool] = True
    exchanged: ClassVar[str | None] = "none"

    def step(self, bias_E: NDArray[np.float64], seen: Observation, state: State) -> tuple[NDArray[np.float64], State]:
        """The bias as it was."""
        return bias_E, state
