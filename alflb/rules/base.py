"""What a rule is, what it is shown of a batch, and the shapes most rules share."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from alflb.problem import FloatArray, check_number
from alflb.registry import Registry
from alflb.schedules import Schedule, as_schedule, step_size_at

State = Any
"""A rule's memory between steps; () for rules without one. Rules never keep memory on themselves."""

T = TypeVar("T")


class Sight(StrEnum):
    """What a rule is shown of a batch, and when."""

    LOADS = "loads"
    """The loads only: O(E) per step, and one all-reduce of E integers."""
    SCORES_AFTER_ROUTING = "scores after routing"
    """The T x E scores of all devices, or statistics of them, once the batch has been routed."""
    SCORES_BEFORE_ROUTING = "scores before routing"
    """The same scores before the batch is routed, to set the bias it is routed with."""


class Observation:
    """What a rule is shown of one batch. Whatever the loop does not show is an error to read.

    Parameters
    ----------
    t : int
        Step number, 1 for the first.
    target_E : array, shape (E,)
        Target loads, tokens.
    load_E : array of int, shape (E,), optional
        Loads that the bias of this step produced, tokens; not there before the batch is routed.
    scores_TE : array, shape (T, E), or callable that returns it, optional
        The scores that were, or will be, routed. A callable is called when a rule asks, so a loop pays for scores only
        where they are used.
    top_k : int, optional
        Experts per token; shown together with the scores.

    Examples
    --------
    >>> seen = Observation(1, np.array([1.0, 1.0]), load_E=np.array([2, 0]))
    >>> seen.load_E.tolist()
    [2, 0]
    >>> seen.scores_TE
    Traceback (most recent call last):
    ...
    ValueError: the rule reads scores_TE, which this loop does not show it; choose a rule that sees less
    """

    __slots__ = ("_load_E", "_scores_TE", "_top_k", "t", "target_E")

    def __init__(
        self,
        t: int,
        target_E: NDArray[np.float64],
        *,
        load_E: NDArray[np.int64] | None = None,
        scores_TE: FloatArray | Callable[[], FloatArray] | None = None,
        top_k: int | None = None,
    ) -> None:
        self.t = t
        self.target_E = target_E
        self._load_E = load_E
        self._scores_TE = scores_TE
        self._top_k = top_k

    @property
    def load_E(self) -> NDArray[np.int64]:
        """Loads that the bias of this step produced, tokens."""
        return _shown(self._load_E, "load_E")

    @property
    def scores_TE(self) -> FloatArray:
        """Scores of the batch."""
        shown: Any = _shown(self._scores_TE, "scores_TE")
        scores_TE: FloatArray = shown() if callable(shown) else shown
        return scores_TE

    @property
    def top_k(self) -> int:
        """Experts per token."""
        return _shown(self._top_k, "top_k")


def _shown(value: T | None, name: str) -> T:
    if value is None:
        raise ValueError(f"the rule reads {name}, which this loop does not show it; choose a rule that sees less")
    return value


class Tuned(NamedTuple):
    """The one number of a rule that has to fit the scores, and a grid on which to look for it."""

    name: str
    """The argument of the rule: "schedule" for a constant step size."""
    values: tuple[float, ...]


class Rule(ABC):
    """A dual update: a frozen value whose methods are pure functions. A subclass writes `step`.

    A loop that routes a batch calls `before_routing`, routes with the bias it gets, then calls `after_routing`. Exactly
    one of the two takes the step; which one follows from `sees`. A loop that cannot show scores before it routes calls
    `step` itself, once per batch.
    """

    sees: ClassVar[Sight] = Sight.LOADS
    """What `step` reads of an `Observation`."""
    takes_schedule: ClassVar[bool] = False
    """Whether the rule has a step size, so that `make_rule` accepts a schedule."""
    tuned: ClassVar[Tuned | None] = None
    """The number to tune, None for a rule without one."""
    works_on_logarithms: ClassVar[bool] = False
    """Whether the rule is meant for logarithms of scores (`alflb.streams.logarithm.LogScores`)."""
    routes_as: ClassVar[str | None] = None
    """Name of the rule that gives the same loads, for a rule that differs from it in the mean of the bias only."""

    on_tensors: ClassVar[bool] = False
    """Whether `step` takes float64 torch tensors as well as arrays, with the same bits, and reads no number of theirs.

    A balancer can then leave bias and memory on the device; the memory is a vector or a tuple of vectors."""
    is_reference: ClassVar[bool] = False
    """Whether it is what rules are measured against, and not a rival of theirs."""
    exchanged: ClassVar[str | None] = None
    """Numbers that devices exchange per step, where they are not those that `sees` implies."""

    def init(self, num_experts: int) -> State:
        """Memory before the first step: none unless a subclass says otherwise."""
        return ()

    @abstractmethod
    def step(self, bias_E: NDArray[np.float64], seen: Observation, state: State) -> tuple[NDArray[np.float64], State]:
        """The bias and the memory after this batch, from those before it; arguments are not changed.

        Parameters
        ----------
        bias_E : array, shape (E,)
            The bias in force, score units.
        seen : Observation
            What this rule is shown of the batch.
        state : State
            What `init` or the last step returned.
        """

    def before_routing(
        self, bias_E: NDArray[np.float64], seen: Observation, state: State
    ) -> tuple[NDArray[np.float64], State]:
        """The bias to route a batch with: the step of a rule that sees scores before routing, else no change."""
        return self.step(bias_E, seen, state) if self.sees is Sight.SCORES_BEFORE_ROUTING else (bias_E, state)

    def after_routing(
        self, bias_E: NDArray[np.float64], seen: Observation, state: State
    ) -> tuple[NDArray[np.float64], State]:
        """The bias of the next batch: the step of every rule that has not taken it before routing."""
        return (bias_E, state) if self.sees is Sight.SCORES_BEFORE_ROUTING else self.step(bias_E, seen, state)


RULES: Registry[Rule] = Registry("rule")


def relative_shortfall(load_E: NDArray[np.int64], target_E: NDArray[np.float64]) -> NDArray[np.float64]:
    """(target - load) / mean target: how many mean loads each expert lacks; the e of the rules' formulas.

    Where loads add up to the targets the mean is taken from the loads: whole numbers have one sum in any order, so that
    arrays and tensors agree to the last bit.

    Examples
    --------
    >>> relative_shortfall(np.array([3, 1, 2]), np.array([2.0, 2.0, 2.0])).tolist()
    [-0.5, 0.5, 0.0]
    """
    mean_load, mean_target = load_E.sum() / len(load_E), target_E.sum() / len(target_E)
    agree = abs(mean_load - mean_target) <= 1e-9 * mean_target
    return (target_E - load_E) / library_of(load_E).where(agree, mean_load, mean_target)


def library_of(values: Any) -> Any:
    """The module whose functions take these values: numpy for an array, torch for a tensor.

    Examples
    --------
    >>> library_of(np.zeros(2)).__name__
    'numpy'
    """
    return sys.modules[type(values).__module__.partition(".")[0]]


def check_fraction(value: Any, name: str) -> float:
    """Return `value` as a float with 0 <= value < 1, or raise ValueError naming the argument."""
    number = check_number(value, name)
    if number >= 1:
        raise ValueError(f"{name} is {value!r}; pass a number with 0 <= {name} < 1")
    return number


STEP_SIZES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""The grid of constant step sizes, score units for scores of order 1."""
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The grid of numbers that are a share of something."""


@dataclass(frozen=True)
class ScheduledRule(Rule):
    """A rule with a step size.

    Parameters
    ----------
    schedule : float or Schedule
        Step size in score units per step; a number means constant.
    """

    takes_schedule: ClassVar[bool] = True
    tuned: ClassVar[Tuned | None] = Tuned("schedule", STEP_SIZES)

    schedule: Schedule | float = 1e-3

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", as_schedule(self.schedule))

    def step_size(self, t: int) -> float:
        """The schedule at step t = 1, 2, ...; ValueError unless it is a finite number >= 0."""
        return step_size_at(self.schedule, t)  # type: ignore[arg-type]  # a schedule since __post_init__


@dataclass(frozen=True)
class DirectionRule(ScheduledRule):
    """A rule without memory: bias + step_size(t) * direction(load, target)."""

    @abstractmethod
    def direction(self, load_E: NDArray[np.int64], target_E: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where each bias wants to go, without units: positive for an underloaded expert."""

    def step(self, bias_E: NDArray[np.float64], seen: Observation, state: State) -> tuple[NDArray[np.float64], State]:
        """One step of the schedule along the direction."""
        return bias_E + self.step_size(seen.t) * self.direction(seen.load_E, seen.target_E), state
