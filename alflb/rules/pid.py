"""A PID controller of the loads, in velocity form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from alflb.problem import check_number
from alflb.rules.base import RULES, Observation, ScheduledRule, State, relative_shortfall


@RULES.register("pid")
@dataclass(frozen=True)
class Pid(ScheduledRule):
    """b += u [e + kp (e - e') + kd (e - 2 e' + e'')], with e', e'' the shortfalls of the last two steps, zero at first.

    In rules.md's letters ki = u, and kp, kd are given relative to it, so one step size scales the controller. The
    plain proportional rule is the integral part alone, kp = kd = 0: the bias sums the shortfalls.

    Parameters
    ----------
    schedule : float or Schedule
        u, score units per step.
    proportional : float
        kp: how much of the bias follows the present shortfall; damps swings of the loads. 1 is ours.
    derivative : float
        kd: how much follows its change; 0.1 is ours.

    Notes
    -----
    Source: textbook control (velocity form); rules.md gives no constants. On fresh batches kp and kd feed
    sampling noise into the bias. Nothing moves at exact balance from the third balanced step on, and sooner if the
    loads before were balanced as well; the bias then has kept the integral part only.

    Examples
    --------
    >>> import numpy as np
    >>> rule, target_E = Pid(1.0, proportional=1.0, derivative=0.5), np.full(2, 2.0)
    >>> first_E, state = rule.step(np.zeros(2), Observation(1, target_E, load_E=np.array([3, 1])), rule.init(2))
    >>> second_E, state = rule.step(first_E, Observation(2, target_E, load_E=np.array([2, 2])), state)
    >>> first_E.tolist(), second_E.tolist()
    ([-1.25, 1.25], [-0.25, 0.25])
    """

    on_tensors: ClassVar[bool] = True

    proportional: float = 1.0
    derivative: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.proportional, "proportional")
        check_number(self.derivative, "derivative")

    def init(self, num_experts: int) -> State:
        """The shortfalls of the last step and of the one before, zero."""
        return np.zeros(num_experts), np.zeros(num_experts)

    def step(self, bias_E: NDArray[np.float64], seen: Observation, state: State) -> tuple[NDArray[np.float64], State]:
        """A step along the integral, proportional and derivative parts together."""
        last_E, before_E = state
        now_E = relative_shortfall(seen.load_E, seen.target_E)
        change_E, change_before_E = now_E - last_E, last_E - before_E
        direction_E = now_E + self.proportional * change_E + self.derivative * (change_E - change_before_E)
        return bias_E + self.step_size(seen.t) * direction_E, (now_E, last_E)
