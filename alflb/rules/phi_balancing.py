"""Phi-balancing: the bias is the price that a convex potential puts on an average of the loads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from alflb.problem import check_number
from alflb.rules.base import RULES, STEP_SIZES, Observation, ScheduledRule, State, Tuned
from alflb.schedules import Schedule

LEAST_SHARE = 1e-8
"""Of its target; an expert without tokens is priced as one with this share, so that its bias stays finite."""


@RULES.register("phi_balancing")
@dataclass(frozen=True)
class PhiBalancing(ScheduledRule):
    """m = (1 - g) m + g c / L; b = b_1 - u log m, with m = 1 at first: the negative entropy of the loads as potential.

    The method minimizes a convex potential phi of the *population's* loads together with the routing loss. The price
    of an expert is phi'(m), with m a running average in place of the population, and phi(m) = sum of m log m - m.

    Parameters
    ----------
    schedule : float or Schedule
        u, score units per unit of log load; 1 is ours, for gates in [0, 1].
    gain : float
        g, 0 < g <= 1: weight of the newest batch in the average; 0.01 in use.

    Notes
    -----
    **It does not rest at exact balance**: there the bias draws back to b_1, the bias it started with. The bias is a
    function of the averaged loads alone, so it rests where log(c / L) = -(b - b_1) / u: an expert that needs the
    bias b* keeps a load off target by the factor exp(-b* / u). A larger u leaves less and needs a smaller g: the
    two act as one step u g of the proportional rule near balance.

    Source: Chen et al., arXiv 2605.15403 (ICML 2026); known to us are the abstract (potential of the expected routing
    distribution, convex dual, mirror descent, exponential average) and two implementations of others, both with
    negative entropy and g = 0.01. One subtracts u log m from the logits, with u = 0.01 and m the average of picks;
    that is the form here. The other adds the price times mean router probabilities to the loss. Which of the two the
    authors mean, and their constants, could not be confirmed. Relative loads c / L for unequal targets are ours.

    Examples
    --------
    >>> import numpy as np
    >>> rule, target_E = PhiBalancing(1.0, gain=0.5), np.full(2, 2.0)
    >>> bias_E, state = rule.step(np.zeros(2), Observation(1, target_E, load_E=np.array([4, 0])), rule.init(2))
    >>> np.exp(-bias_E).round(12).tolist()
    [1.5, 0.5]
    """

    tuned: ClassVar[Tuned | None] = Tuned("schedule", tuple(round(100 * u, 12) for u in STEP_SIZES))

    schedule: Schedule | float = 1.0
    gain: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if check_number(self.gain, "gain", positive=True) > 1:
            raise ValueError(f"gain is {self.gain!r}; pass a number with 0 < gain <= 1")

    def init(self, num_experts: int) -> State:
        """The bias the run started with (known at the first step), and the average of relative loads, 1."""
        return None, np.ones(num_experts)

    def step(self, bias_E: NDArray[np.float64], seen: Observation, state: State) -> tuple[NDArray[np.float64], State]:
        """Minus the price of the averaged loads, on top of the first bias."""
        start_E = bias_E if state[0] is None else state[0]
        average_E = (1.0 - self.gain) * state[1] + self.gain * (seen.load_E / seen.target_E)
        price_E = np.log(np.maximum(average_E, LEAST_SHARE))
        return start_E - self.step_size(seen.t) * price_E, (start_E, average_E)
