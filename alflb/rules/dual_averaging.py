"""Dual averaging (FTRL): the bias from the running sum of all shortfalls, weighted by 1/sqrt(t)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from alflb.rules.base import RULES, STEP_SIZES, Observation, ScheduledRule, State, Tuned, relative_shortfall


@RULES.register("dual_averaging")
@dataclass(frozen=True)
class DualAveraging(ScheduledRule):
    """b_(t+1) = b_1 + (u / sqrt(t)) sum of e_1, ..., e_t, with e = (target - load) / mean target.

    Follow the regularized leader on the linearized dual with the regularizer sqrt(t) |p - b_1|^2 / (2 u): what the
    gradient step with u / sqrt(t) is to mirror descent, with the same weight on all gradients, old and new. Without
    the factor 1/sqrt(t) it is the proportional rule, sum by sum.

    Parameters
    ----------
    schedule : float or Schedule
        u, score units; it multiplies 1/sqrt(t), which belongs to the rule.

    Notes
    -----
    **It does not rest at exact balance**: with e = 0 the bias draws back to b_1 by the factor sqrt(t / (t + 1)), so it
    rests only at b_1 itself, and keeps a load off target by about b* / (2 u sqrt(t)), which fades. Source: simple dual
    averaging of Xiao, JMLR 11 (2010), on the problem of theory.md, section 5; for routing the choice is ours.

    Examples
    --------
    >>> import numpy as np
    >>> rule, target_E = DualAveraging(0.5), np.full(2, 2.0)
    >>> bias_E, state = rule.step(np.zeros(2), Observation(1, target_E, load_E=np.array([3, 1])), rule.init(2))
    >>> bias_E.tolist()
    [-0.25, 0.25]
    >>> rule.step(bias_E, Observation(4, target_E, load_E=np.array([2, 2])), state)[0].tolist()
    [-0.125, 0.125]
    """

    tuned: ClassVar[Tuned | None] = Tuned("schedule", tuple(round(10 * u, 12) for u in STEP_SIZES))

    def init(self, num_experts: int) -> State:
        """The bias the run started with (known at the first step), and the sum of shortfalls."""
        return None, np.zeros(num_experts)

    def step(self, bias_E: NDArray[np.float64], seen: Observation, state: State) -> tuple[NDArray[np.float64], State]:
        """The weighted sum on top of the first bias."""
        start_E = bias_E if state[0] is None else state[0]
        sum_E = state[1] + relative_shortfall(seen.load_E, seen.target_E)
        return start_E + self.step_size(seen.t) / np.sqrt(seen.t) * sum_E, (start_E, sum_E)
