"""What a rule is, and the direction x schedule shape most of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from alflb.problem import FloatArray
from alflb.registry import Registry
from alflb.schedules import Schedule, as_schedule

State = Any
"""A rule's memory between steps; () for rules without one. Rules never keep memory on themselves."""


class Rule(Protocol):
    """A dual update: a frozen value whose methods are pure functions."""

    def init(self, num_experts: int) -> State:
        """Memory before the first step."""

    def update(
        self,
        bias_E: NDArray[np.float64],
        load_E: NDArray[np.int64],
        target_E: NDArray[np.float64],
        t: int,
        state: State,
    ) -> tuple[NDArray[np.float64], State]:
        """The next bias and memory, from the loads (in tokens) that this bias produced at step t = 1, 2, ..."""


@runtime_checkable
class ScoreRule(Rule, Protocol):
    """A rule that sees the scores: it may replace the bias of a batch before the batch is routed.

    Rules without this method see loads only: E numbers a step, which is all that leaves a device in training.
    """

    def route_with(
        self, scores_TE: FloatArray, bias_E: NDArray[np.float64], target_E: NDArray[np.float64], top_k: int
    ) -> NDArray[np.float64]:
        """The bias to route this batch with, given the one it would have been routed with."""


RULES: Registry[Rule] = Registry("rule")


@dataclass(frozen=True)
class DirectionRule(ABC):
    """A memoryless rule: bias + step_size(t) * direction(load, target).

    Parameters
    ----------
    schedule : float or Schedule
        Step size in score units per step; a number means constant.
    """

    schedule: Schedule | float = 1e-3

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", as_schedule(self.schedule))

    @abstractmethod
    def direction(self, load_E: NDArray[np.int64], target_E: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where each bias wants to go, without units: positive for an underloaded expert."""

    def init(self, num_experts: int) -> State:
        """No memory."""
        return ()

    def update(
        self,
        bias_E: NDArray[np.float64],
        load_E: NDArray[np.int64],
        target_E: NDArray[np.float64],
        t: int,
        state: State,
    ) -> tuple[NDArray[np.float64], State]:
        """One step of the schedule along the direction."""
        step_size = self.schedule(t)  # type: ignore[operator]  # a schedule since __post_init__
        return bias_E + step_size * self.direction(load_E, target_E), state
