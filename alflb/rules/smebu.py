"""SMEBU, soft-clamped momentum expert bias updates: tanh of the shortfall, recentered, with momentum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alflb.problem import check_number
from alflb.rules.base import RULES, Observation, ScheduledRule, State, check_fraction, relative_shortfall
from alflb.schedules import Schedule


@RULES.register("smebu")
@dataclass(frozen=True)
class Smebu(ScheduledRule):
    """v = (cbar - c) / cbar; d = lam tanh(kappa v); d -= mean d; m = beta m + (1 - beta) d; b += m.

    Parameters
    ----------
    schedule : float or Schedule
        lam, score units per step; 5e-4 in use.
    beta : float
        Momentum, 0.5 in use.
    kappa : float
        Steepness of the clamp, 2 in use; for large kappa it is the recentered sign rule with momentum.

    Notes
    -----
    Nothing moves at exact balance once the momentum m has faded.

    Source: Trinity, arXiv 2602.17004. Formula and constants agree in two public summaries of the report, one with the
    constants of Trinity Large; the report itself was not at hand.

    Examples
    --------
    >>> import numpy as np
    >>> seen = Observation(1, np.full(3, 2.0), load_E=np.array([4, 1, 1]))
    >>> bias_E, _ = Smebu(1.0, kappa=1e9).step(np.zeros(3), seen, np.zeros(3))
    >>> bias_E.round(3).tolist()
    [-0.667, 0.333, 0.333]
    """

    schedule: Schedule | float = 5e-4
    beta: float = 0.5
    kappa: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.beta, "beta")
        check_number(self.kappa, "kappa", positive=True)

    def init(self, num_experts: int) -> State:
        """The momentum, zero, in score units."""
        return np.zeros(num_experts)

    def step(self, bias_E: NDArray[np.float64], seen: Observation, state: State) -> tuple[NDArray[np.float64], State]:
        """One step along the momentum."""
        step_E = self.step_size(seen.t) * np.tanh(self.kappa * relative_shortfall(seen.load_E, seen.target_E))
        momentum_E = self.beta * state + (1.0 - self.beta) * (step_E - step_E.mean())
        return bias_E + momentum_E, momentum_E
