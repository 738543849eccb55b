"""The EMA rule: a proportional step along an exponential moving average of the shortfalls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from alflb.rules.base import RULES, Observation, ScheduledRule, State, check_fraction, relative_shortfall


@RULES.register("ema")
@dataclass(frozen=True)
class Ema(ScheduledRule):
    """ebar = beta ebar + (1 - beta) e; b += u ebar, with e = (target - load) / mean target and ebar = 0 at first.

    Parameters
    ----------
    schedule : float or Schedule
        u, score units per step.
    beta : float
        Share of the old average that is kept, 0 <= beta < 1.

    Notes
    -----
    In use: beta 0.5 with u = 0.1 on load fractions; as u is per mean load here, that is u = 0.1 / E. The average stays
    zero when all loads so far were on target. After that nothing moves at exact balance only once the average has
    faded: balance reached at average ebar is overshot by u ebar beta / (1 - beta).

    Source: `ema` of the repository Leonyuann/Auxiliary-loss-free (src/alf/router.py as of July 2026, read); no paper.

    Examples
    --------
    >>> import numpy as np
    >>> rule = Ema(1.0, beta=0.5)
    >>> seen = Observation(1, np.full(3, 2.0), load_E=np.array([3, 1, 2]))
    >>> rule.step(np.zeros(3), seen, rule.init(3))[0].tolist()
    [-0.25, 0.25, 0.0]
    """

    on_tensors: ClassVar[bool] = True

    beta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.beta, "beta")

    def init(self, num_experts: int) -> State:
        """The average shortfall, zero."""
        return np.zeros(num_experts)

    def step(self, bias_E: NDArray[np.float64], seen: Observation, state: State) -> tuple[NDArray[np.float64], State]:
        """A step along the new average, which is the memory, too."""
        average_E = self.beta * state + (1.0 - self.beta) * relative_shortfall(seen.load_E, seen.target_E)
        return bias_E + self.step_size(seen.t) * average_E, average_E
