"""The accumulated sign rule: one sign step for the loads of several batches together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alflb.problem import check_count
from alflb.rules._base import RULES, MemoryRule, State


@RULES.register("accumulated_sign")
@dataclass(frozen=True)
class AccumulatedSign(MemoryRule):
    """b += u sign(sum over the last M batches of (target - load)), at every M-th batch; in between nothing moves.

    Parameters
    ----------
    schedule : float or Schedule
        u, score units per step it takes (at step M, 2 M, ...).
    interval : int
        M, batches between two steps.

    Notes
    -----
    What gradient accumulation does to the sign rule when the bias moves once per optimizer step. No value of M is
    published; 4 is ours. Nothing moves at the end of an interval whose shortfalls sum to zero; a run of balanced
    batches moves something at most once, at the end of the interval it starts in.

    Examples
    --------
    >>> import numpy as np
    >>> rule, target_E = AccumulatedSign(0.5, interval=2), np.full(3, 2.0)
    >>> first_E, state = rule.direction(np.array([4, 1, 1]), target_E, rule.init(3))
    >>> second_E, state = rule.direction(np.array([1, 2, 3]), target_E, state)
    >>> first_E.tolist(), second_E.tolist()
    ([0.0, 0.0, 0.0], [-1.0, 1.0, 0.0])
    """

    interval: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.interval, "interval")

    def init(self, num_experts: int) -> State:
        """The sum of shortfalls in tokens, and the number of batches in it."""
        return np.zeros(num_experts), 0

    def direction(
        self, load_E: NDArray[np.int64], target_E: NDArray[np.float64], state: State
    ) -> tuple[NDArray[np.float64], State]:
        """The sign of the sum at the end of an interval, zero before."""
        sum_E, count = state[0] + (target_E - load_E), state[1] + 1
        if count < self.interval:
            return np.zeros_like(sum_E), (sum_E, count)
        return np.sign(sum_E), self.init(len(sum_E))
