"""The RMS rule: each shortfall divided by its own root mean square, as in RMSProp."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alflb.problem import check_number
from alflb.rules.base import RULES, Observation, ScheduledRule, State, check_fraction, relative_shortfall


@RULES.register("rms")
@dataclass(frozen=True)
class Rms(ScheduledRule):
    """v = b2 v + (1 - b2) e^2; m = b1 m + (1 - b1) e; b += u m / sqrt(v + eps), with v = m = 0 at first.

    Parameters
    ----------
    schedule : float or Schedule
        u, score units per step; 1e-3 in use.
    beta1 : float
        b1: 0 in use here, 0.6 in use in `adam`.
    beta2 : float
        b2, 0.9 in use.
    epsilon : float
        eps, 1e-8 in use; in squared mean loads, so far below one token for any batch that fits a machine.

    Notes
    -----
    A sign rule with a soft zero: a bias whose shortfall keeps its size moves by u per step, whatever the size.
    There is no correction for the start, so the first step is u (1 - b1) / sqrt(1 - b2), 3.2 u by default. With
    b1 = 0 nothing moves at exact balance; otherwise once m has faded.

    Source: `adaptive_per_expert` of the repository Leonyuann/Auxiliary-loss-free (src/alf/router.py as of July 2026,
    read; its errors are of load fractions, so its eps is E^2 times as large here); no paper. RMSProp (Tieleman &
    Hinton, 2012) and Adam (Kingma & Ba, arXiv 1412.6980) without bias correction.

    Examples
    --------
    >>> import numpy as np
    >>> rule = Rms(1.0, beta2=0.75, epsilon=1e-30)
    >>> seen = Observation(1, np.full(3, 2.0), load_E=np.array([3, 1, 2]))
    >>> rule.step(np.zeros(3), seen, rule.init(3))[0].tolist()
    [-2.0, 2.0, 0.0]
    """

    beta1: float = 0.0
    beta2: float = 0.9
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.beta1, "beta1")
        check_fraction(self.beta2, "beta2")
        check_number(self.epsilon, "epsilon", positive=True)

    def init(self, num_experts: int) -> State:
        """The averages m and v, zero."""
        return np.zeros(num_experts), np.zeros(num_experts)

    def step(self, bias_E: NDArray[np.float64], seen: Observation, state: State) -> tuple[NDArray[np.float64], State]:
        """A step along the ratio m / sqrt(v + eps)."""
        shortfall_E = relative_shortfall(seen.load_E, seen.target_E)
        mean_E = self.beta1 * state[0] + (1.0 - self.beta1) * shortfall_E
        square_E = self.beta2 * state[1] + (1.0 - self.beta2) * shortfall_E**2
        direction_E = mean_E / np.sqrt(square_E + self.epsilon)
        return bias_E + self.step_size(seen.t) * direction_E, (mean_E, square_E)
