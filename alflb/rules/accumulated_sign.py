"""The accumulated sign rule: one sign step for the loads of several batches together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alflb.problem import check_count
from alflb.rules.base import RULES, Observation, ScheduledRule, State


@RULES.register("accumulated_sign")
@dataclass(frozen=True)
class AccumulatedSign(ScheduledRule):
    """b += u sign(sum over the last M batches of (target - load)), at every M-th batch; in between nothing moves.

    Parameters
    ----------
    schedule : float or Schedule
        u, score units per step it takes (at step M, 2 M, ...).
    interval : int
        M, batches between two steps.

    Notes
    -----
    What gradient accumulation does to the sign rule when the bias moves once per optimizer step. Nothing moves at the
    end of an interval whose shortfalls sum to zero; a run of balanced batches moves something at most once, at the end
    of the interval it starts in.

    Source: `accumulated_sign` of the repository Leonyuann/Auxiliary-loss-free (src/alf/router.py as of July 2026,
    read; M = 4, u = 1e-3); no paper. It sums shortfalls of load fractions: the same for batches of one size.

    Examples
    --------
    >>> import numpy as np
    >>> rule, target_E = AccumulatedSign(0.5, interval=2), np.full(3, 2.0)
    >>> first_E, state = rule.step(np.zeros(3), Observation(1, target_E, load_E=np.array([4, 1, 1])), rule.init(3))
    >>> second_E, state = rule.step(first_E, Observation(2, target_E, load_E=np.array([1, 2, 3])), state)
    >>> first_E.tolist(), second_E.tolist()
    ([0.0, 0.0, 0.0], [-0.5, 0.5, 0.0])
    """

    interval: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.interval, "interval")

    def init(self, num_experts: int) -> State:
        """The sum of shortfalls in tokens, and the number of batches in it."""
        return np.zeros(num_experts), 0

    def step(self, bias_E: NDArray[np.float64], seen: Observation, state: State) -> tuple[NDArray[np.float64], State]:
        """A step along the sign of the sum at the end of an interval, none before."""
        sum_E, count = state[0] + (seen.target_E - seen.load_E), state[1] + 1
        if count < self.interval:
            return bias_E, (sum_E, count)
        return bias_E + self.step_size(seen.t) * np.sign(sum_E), self.init(len(sum_E))
