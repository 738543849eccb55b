"""What a rule is, which rules see scores, and the shapes most rules share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from alflb.problem import FloatArray, check_number
from alflb.registry import Registry
from alflb.schedules import Schedule, as_schedule

State = Any
"""A rule's memory between steps; () for rules without one. Rules never keep memory on themselves."""

Sight = Literal["loads", "scores after routing", "scores before routing"]
"""What a rule is shown of a batch, and when."""


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
    """A rule that sees the scores of a batch before it is routed, and may replace the bias it is routed with."""

    def route_with(
        self, scores_TE: FloatArray, bias_E: NDArray[np.float64], target_E: NDArray[np.float64], top_k: int
    ) -> NDArray[np.float64]:
        """The bias to route this batch with, given the one it would have been routed with."""


@runtime_checkable
class HindsightRule(Rule, Protocol):
    """A rule that sees the scores of a batch after it was routed, and sets the bias of the *next* batch by them."""

    def learn_from(
        self, scores_TE: FloatArray, bias_E: NDArray[np.float64], target_E: NDArray[np.float64], top_k: int
    ) -> NDArray[np.float64]:
        """The next bias, from the scores of the batch that was routed with this one."""


RULES: Registry[Rule] = Registry("rule")


def sees(rule: object) -> Sight:
    """What a rule is shown: loads only, or the scores of the batch, after or before it is routed.

    Rules that see loads only are O(E) a step and need one all-reduce of E integers; the others need the T x E scores of
    all devices, or statistics of them. It is read off the methods, so it cannot be declared wrongly.

    Parameters
    ----------
    rule : Rule or type
        A rule or its class.

    Examples
    --------
    >>> from alflb.rules import make_rule
    >>> [sees(make_rule(name)) for name in ("sign", "qb", "bip")]
    ['loads', 'scores after routing', 'scores before routing']
    """
    if hasattr(rule, "route_with"):
        return "scores before routing"
    return "scores after routing" if hasattr(rule, "learn_from") else "loads"


def sees_scores(rule: object) -> bool:
    """Whether a rule (or its class) is shown scores at all, and not only E loads a step; see `sees`.

    Examples
    --------
    >>> from alflb.rules import make_rule
    >>> sees_scores(make_rule("sign")), sees_scores(make_rule("qb"))
    (False, True)
    """
    return sees(rule) != "loads"


def relative_shortfall(load_E: NDArray[np.int64], target_E: NDArray[np.float64]) -> NDArray[np.float64]:
    """(target - load) / mean target: how many mean loads each expert lacks; the e of the rules' formulas.

    Examples
    --------
    >>> relative_shortfall(np.array([3, 1, 2]), np.array([2.0, 2.0, 2.0])).tolist()
    [-0.5, 0.5, 0.0]
    """
    return np.asarray((target_E - load_E) / target_E.mean())


def check_fraction(value: Any, name: str) -> float:
    """Return `value` as a float with 0 <= value < 1, or raise ValueError naming the argument."""
    number = check_number(value, name)
    if number >= 1:
        raise ValueError(f"{name} is {value!r}; pass a number with 0 <= {name} < 1")
    return number


@dataclass(frozen=True)
class ScheduledRule(ABC):
    """A rule with a step size.

    Parameters
    ----------
    schedule : float or Schedule
        Step size in score units per step; a number means constant.
    """

    schedule: Schedule | float = 1e-3

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", as_schedule(self.schedule))

    def step_size(self, t: int) -> float:
        """The schedule at step t = 1, 2, ..."""
        return self.schedule(t)  # type: ignore[operator]  # a schedule since __post_init__

    def init(self, num_experts: int) -> State:
        """No memory."""
        return ()

    @abstractmethod
    def update(
        self,
        bias_E: NDArray[np.float64],
        load_E: NDArray[np.int64],
        target_E: NDArray[np.float64],
        t: int,
        state: State,
    ) -> tuple[NDArray[np.float64], State]:
        """The next bias and memory."""


@dataclass(frozen=True)
class DirectionRule(ScheduledRule):
    """A memoryless rule: bias + step_size(t) * direction(load, target)."""

    @abstractmethod
    def direction(self, load_E: NDArray[np.int64], target_E: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where each bias wants to go, without units: positive for an underloaded expert."""

    def update(
        self,
        bias_E: NDArray[np.float64],
        load_E: NDArray[np.int64],
        target_E: NDArray[np.float64],
        t: int,
        state: State,
    ) -> tuple[NDArray[np.float64], State]:
        """One step of the schedule along the direction."""
        return bias_E + self.step_size(t) * self.direction(load_E, target_E), state


@dataclass(frozen=True)
class MemoryRule(ScheduledRule):
    """A direction that remembers: bias + step_size(t) * direction, the direction a function of loads and memory."""

    @abstractmethod
    def init(self, num_experts: int) -> State:
        """Memory before the first step."""

    @abstractmethod
    def direction(
        self, load_E: NDArray[np.int64], target_E: NDArray[np.float64], state: State
    ) -> tuple[NDArray[np.float64], State]:
        """Where each bias wants to go, without units, and the next memory."""

    def update(
        self,
        bias_E: NDArray[np.float64],
        load_E: NDArray[np.int64],
        target_E: NDArray[np.float64],
        t: int,
        state: State,
    ) -> tuple[NDArray[np.float64], State]:
        """One step of the schedule along the direction."""
        direction_E, state = self.direction(load_E, target_E, state)
        return bias_E + self.step_size(t) * direction_E, state


class PerBatchRule(ABC):
    """A `ScoreRule` whose only memory is the bias: each batch's search starts from the bias of the batch before."""

    def init(self, num_experts: int) -> State:
        """No memory but the bias."""
        return ()

    @abstractmethod
    def route_with(
        self, scores_TE: FloatArray, bias_E: NDArray[np.float64], target_E: NDArray[np.float64], top_k: int
    ) -> NDArray[np.float64]:
        """The bias to route this batch with."""

    def update(
        self,
        bias_E: NDArray[np.float64],
        load_E: NDArray[np.int64],
        target_E: NDArray[np.float64],
        t: int,
        state: State,
    ) -> tuple[NDArray[np.float64], State]:
        """Keep the bias: it is where the next batch starts from."""
        return bias_E, state


class AfterBatchRule(ABC):
    """A `HindsightRule` whose only memory is the bias."""

    def init(self, num_experts: int) -> State:
        """No memory but the bias."""
        return ()

    @abstractmethod
    def learn_from(
        self, scores_TE: FloatArray, bias_E: NDArray[np.float64], target_E: NDArray[np.float64], top_k: int
    ) -> NDArray[np.float64]:
        """The next bias, from the scores of the batch that was routed with this one."""

    def update(
        self,
        bias_E: NDArray[np.float64],
        load_E: NDArray[np.int64],
        target_E: NDArray[np.float64],
        t: int,
        state: State,
    ) -> tuple[NDArray[np.float64], State]:
        """Refused: loads do not determine the next bias of this rule.

        Raises
        ------
        ValueError
            Always; call `learn_from`.
        """
        raise ValueError(f"{self} sees scores: loads are not enough to update it; call learn_from(scores_TE, ...)")
