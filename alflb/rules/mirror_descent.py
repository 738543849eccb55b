"""Mirror descent with the hyperbolic entropy: proportional steps for small biases, relative ones for large."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alflb.problem import check_number
from alflb.rules.base import RULES, Observation, ScheduledRule, State, relative_shortfall


@RULES.register("mirror_descent")
@dataclass(frozen=True)
class MirrorDescent(ScheduledRule):
    """b = scale sinh(asinh(b / scale) + (u / scale) e + c), c such that the mean bias stays what it was.

    e = (target - load) / mean target. Mirror descent on the dual with the mirror map sum of b asinh(b / scale) -
    sqrt(b^2 + scale^2), whose gradient is asinh(b / scale): exponentiated gradient for numbers of either sign. Where
    abs(b) is far below `scale` it is the proportional rule with step u; far above, a step changes b by the factor
    exp(u e / scale). Adding c is the Bregman projection onto the biases of the same mean; without it the mean, which
    routing does not see, can grow exponentially.

    Parameters
    ----------
    schedule : float or Schedule
        u, score units per step at b = 0.
    scale : float
        Score units; where the steps turn from absolute to relative. 0.1 is ours.

    Notes
    -----
    With the Euclidean mirror map this is the proportional rule, so that map is not repeated here. (u / scale) e is
    clipped to [-1, 1] (ours), so that before the projection no step multiplies a bias by more than 2.718. It does not
    respect the gauge: a bias with another mean moves otherwise. Nothing moves at exact balance, to the last bit.

    Source: Ghai, Hazan & Singer, arXiv 1902.01903 (ALT 2020); for routing the choice is ours.

    Examples
    --------
    >>> import numpy as np
    >>> rule = MirrorDescent(1e-3, scale=1e3)  # a large scale: the proportional rule
    >>> rule.step(np.zeros(2), Observation(1, np.full(2, 2.0), load_E=np.array([3, 1])), ())[0].round(9).tolist()
    [-0.0005, 0.0005]
    """

    scale: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.scale, "scale", positive=True)

    def step(self, bias_E: NDArray[np.float64], seen: Observation, state: State) -> tuple[NDArray[np.float64], State]:
        """A step in the mirror's coordinates."""
        step_E = np.clip(
            self.step_size(seen.t) / self.scale * relative_shortfall(seen.load_E, seen.target_E), -1.0, 1.0
        )
        if not step_E.any():
            return bias_E, state
        moved_E = np.arcsinh(bias_E / self.scale) + step_E
        return self.scale * np.sinh(moved_E + _shift_to_sum(moved_E, float(bias_E.sum()) / self.scale)), state


def _shift_to_sum(angle_E: NDArray[np.float64], total: float) -> float:
    """The c with sum of sinh(angle + c) = total: that sum is sqrt(P N) sinh(c + log(P / N) / 2)."""
    positive, negative = np.exp(angle_E).sum(), np.exp(-angle_E).sum()
    return float(np.arcsinh(total / np.sqrt(positive * negative)) - 0.5 * np.log(positive / negative))
