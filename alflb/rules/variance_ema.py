"""Adaptive EMA by variance: the more the loads scatter beyond sampling noise, the shorter the memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alflb.problem import check_number
from alflb.rules.adaptive import check_beta_range, sampling_noise
from alflb.rules.base import RULES, Observation, ScheduledRule, State, relative_shortfall


@RULES.register("variance_ema")
@dataclass(frozen=True)
class VarianceEma(ScheduledRule):
    """`ema` with beta = beta_max - (beta_max - beta_min) X / (X + X_0), X = max(0, mean of e^2 - (E - 1) / (K T)).

    X is what the variance of the relative loads exceeds the sampling noise of equal loads by. A batch within noise is
    averaged with the long memory beta_max; one far off balance with the short one, beta_min.

    Parameters
    ----------
    schedule : float or Schedule
        u, score units per step; in use 0.05 and 0.1 on load fractions, that is 0.05 / E and 0.1 / E here.
    beta_min, beta_max : float
        0 <= beta_min <= beta_max < 1; 0.1 and 0.95 in use.
    reference : float
        X_0, the excess at which beta is half-way; 2.5e-3 in use.

    Notes
    -----
    The memory is one average, as for `ema`, and fades at exact balance; nothing moves once it has faded.

    Source: `adaptive_ema_variance` of the repository Leonyuann/Auxiliary-loss-free (docs/router_variants.md and
    src/alf/router.py as of July 2026, read); no paper.

    Examples
    --------
    >>> import numpy as np
    >>> rule = VarianceEma(1.0, beta_min=0.0, beta_max=0.5, reference=0.25)
    >>> rule.step(np.zeros(2), Observation(1, np.full(2, 2.0), load_E=np.array([3, 1])), rule.init(2))[0].tolist()
    [-0.25, 0.25]
    """

    beta_min: float = 0.1
    beta_max: float = 0.95
    reference: float = 2.5e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beta_range(self.beta_min, self.beta_max)
        check_number(self.reference, "reference", positive=True)

    def init(self, num_experts: int) -> State:
        """The average shortfall, zero."""
        return np.zeros(num_experts)

    def step(self, bias_E: NDArray[np.float64], seen: Observation, state: State) -> tuple[NDArray[np.float64], State]:
        """A step along the new average, which is the memory, too."""
        shortfall_E = relative_shortfall(seen.load_E, seen.target_E)
        excess = max(0.0, float((shortfall_E**2).mean()) - sampling_noise(seen.load_E))
        beta = self.beta_max - (self.beta_max - self.beta_min) * excess / (excess + self.reference)
        average_E = beta * state + (1.0 - beta) * shortfall_E
        return bias_E + self.step_size(seen.t) * average_E, average_E
