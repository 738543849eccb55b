"""Step-size schedules: callables from the step number t = 1, 2, ... to a step size in score units.

Each is a frozen dataclass, so it prints as what it is, compares by value and travels between processes. The catalogue
is docs/schedules.md. Any other callable serves as well; `step_size_at` checks what it returns.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields

from alflb.problem import check_count, check_number
from alflb.registry import Registry

Schedule = Callable[[int], float]
"""Maps the step number t = 1, 2, ... to a step size >= 0 (score units per step)."""


@dataclass(frozen=True)
class NamedSchedule(ABC):
    """Base of the schedules that `make_schedule` knows: `step_size`, and `num_steps` where it has a horizon.

    Every field is checked when the schedule is made: `num_steps` must be a count, each other one a step size.
    """

    step_size: float

    def __post_init__(self) -> None:
        for field in fields(self):
            check = check_count if field.name == "num_steps" else check_number
            check(getattr(self, field.name), field.name)

    @abstractmethod
    def __call__(self, t: int) -> float:
        """The step size at step t = 1, 2, ..."""

    @classmethod
    def has_horizon(cls) -> bool:
        """Whether it depends on the length of the run."""
        return any(field.name == "num_steps" for field in fields(cls))


SCHEDULES: Registry[NamedSchedule] = Registry("schedule")


@SCHEDULES.register("constant")
@dataclass(frozen=True)
class Constant(NamedSchedule):
    """The same u at every step: the rule of Wang et al. (arXiv 2408.15664) with u = 1e-3.

    Examples
    --------
    >>> Constant(1e-3)(500)
    0.001
    """

    def __call__(self, t: int) -> float:
        return self.step_size


@SCHEDULES.register("inverse")
@dataclass(frozen=True)
class Inverse(NamedSchedule):
    """c / t: logarithmic regret when c is above 1 / (2 mu) (claim C9).

    Examples
    --------
    >>> Inverse(1.0)(4)
    0.25
    """

    def __call__(self, t: int) -> float:
        return self.step_size / t


@SCHEDULES.register("inverse_sqrt")
@dataclass(frozen=True)
class InverseSqrt(NamedSchedule):
    """c / sqrt(t): order sqrt(N) regret without strong convexity (claim C9).

    Examples
    --------
    >>> InverseSqrt(1.0)(4)
    0.5
    """

    def __call__(self, t: int) -> float:
        return self.step_size / math.sqrt(t)


@SCHEDULES.register("linear")
@dataclass(frozen=True)
class LinearDecay(NamedSchedule):
    """From `step_size` at t = 1 straight down to `final` at t = num_steps, and `final` from then on.

    Examples
    --------
    >>> decay = LinearDecay(1.0, num_steps=5)
    >>> [decay(t) for t in (1, 3, 5, 9)]
    [1.0, 0.5, 0.0, 0.0]
    """

    num_steps: int
    final: float = 0.0

    def __call__(self, t: int) -> float:
        return self.final + (self.step_size - self.final) * (1.0 - _progress(t, self.num_steps))


@SCHEDULES.register("cosine")
@dataclass(frozen=True)
class Cosine(NamedSchedule):
    """Half a cosine from `step_size` at t = 1 down to `final` at t = num_steps, and `final` from then on.

    Examples
    --------
    >>> round(Cosine(1.0, num_steps=5)(3), 12)
    0.5
    """

    num_steps: int
    final: float = 0.0

    def __call__(self, t: int) -> float:
        fraction = 0.5 * (1.0 + math.cos(math.pi * _progress(t, self.num_steps)))
        return self.final + (self.step_size - self.final) * fraction


@SCHEDULES.register("deepseek_v3")
@dataclass(frozen=True)
class DeepSeekV3(NamedSchedule):
    """u for the first 14.3/14.8 of `num_steps`, then 0: DeepSeek-V3 froze the bias for the last 0.5T of 14.8T tokens.

    Source: DeepSeek-AI, arXiv 2412.19437, section 4.2, u = 1e-3.

    Examples
    --------
    >>> schedule = DeepSeekV3(1e-3, num_steps=1480)
    >>> schedule(1430), schedule(1431)
    (0.001, 0.0)
    """

    num_steps: int

    def __call__(self, t: int) -> float:
        last = max(1, math.floor(self.num_steps * 14.3 / 14.8 + 1e-9))
        return self.step_size if t <= last else 0.0


@dataclass(frozen=True)
class WarmUp:
    """Any schedule, scaled by t / num_steps during the first `num_steps` steps.

    Examples
    --------
    >>> warm = WarmUp(Constant(1.0), num_steps=4)
    >>> [warm(t) for t in (1, 2, 4, 8)]
    [0.25, 0.5, 1.0, 1.0]
    """

    schedule: Schedule
    num_steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", as_schedule(self.schedule))
        check_count(self.num_steps, "num_steps")

    def __call__(self, t: int) -> float:
        return step_size_at(self.schedule, t) * min(1.0, t / self.num_steps)


@dataclass(frozen=True)
class Piecewise:
    """step_sizes[0] up to and including step boundaries[0], then step_sizes[1] up to boundaries[1], and so on.

    Raises
    ------
    ValueError
        If the boundaries do not increase, or there is not exactly one more step size than boundaries.

    Examples
    --------
    >>> freeze = Piecewise(boundaries=(100,), step_sizes=(1e-3, 0.0))
    >>> freeze(100), freeze(101)
    (0.001, 0.0)
    """

    boundaries: tuple[int, ...]
    step_sizes: tuple[float, ...]

    def __post_init__(self) -> None:
        boundaries = tuple(check_count(boundary, "boundaries") for boundary in self.boundaries)
        step_sizes = tuple(check_number(value, "step_sizes") for value in self.step_sizes)
        if list(boundaries) != sorted(set(boundaries)):
            raise ValueError(f"boundaries are {boundaries}; give strictly increasing step numbers")
        if len(step_sizes) != len(boundaries) + 1:
            raise ValueError(
                f"{len(step_sizes)} step_sizes for {len(boundaries)} boundaries; give one more than boundaries"
            )
        object.__setattr__(self, "boundaries", boundaries)
        object.__setattr__(self, "step_sizes", step_sizes)

    def __call__(self, t: int) -> float:
        return next((u for end, u in zip(self.boundaries, self.step_sizes) if t <= end), self.step_sizes[-1])


def schedule_names() -> list[str]:
    """The names `make_schedule` knows."""
    return SCHEDULES.names()


def make_schedule(name: str, step_size: float, num_steps: int | None = None, *, warm_up: int = 0) -> Schedule:
    """A schedule by name, as the command line and the study build it.

    Parameters
    ----------
    name : str
        One of `schedule_names()`.
    step_size : float
        Initial step size, score units per step.
    num_steps : int, optional
        Length of the run in steps. The decaying schedules need it; the others are the same for every length.
    warm_up : int
        Steps of linear warm-up in front; 0 for none.

    Raises
    ------
    ValueError
        For an unknown name, a bad number, or a decaying schedule without `num_steps`.

    Examples
    --------
    >>> make_schedule("inverse_sqrt", 0.01)
    InverseSqrt(step_size=0.01)
    >>> make_schedule("linear", 0.01, num_steps=100)
    LinearDecay(step_size=0.01, num_steps=100, final=0.0)
    """
    cls = SCHEDULES.get(name)
    horizon = {}
    if num_steps is not None:
        check_count(num_steps, "num_steps")
    if cls.has_horizon():
        if num_steps is None:
            raise ValueError(
                f"num_steps is None, but the schedule {name!r} ends with the run; pass its length in steps"
            )
        horizon = {"num_steps": num_steps}
    schedule = cls(step_size, **horizon)
    return WarmUp(schedule, warm_up) if check_count(warm_up, "warm_up", minimum=0) else schedule


def as_schedule(schedule: Schedule | float | str) -> Schedule:
    """A number becomes a constant schedule; a callable is returned as it is.

    Raises
    ------
    ValueError
        For the name of a schedule, or a number that is no step size.

    Examples
    --------
    >>> as_schedule(1e-3)
    Constant(step_size=0.001)
    """
    if callable(schedule):
        return schedule
    if isinstance(schedule, str):
        raise ValueError(f"schedule is {schedule!r}; pass a number, a callable, or make_schedule(name, step_size)")
    return Constant(check_number(schedule, "schedule"))


def step_size_at(schedule: Schedule, t: int) -> float:
    """The step size at step t = 1, 2, ..., checked: whoever uses a schedule asks it through this function.

    Raises
    ------
    ValueError
        If the schedule fails at t, or returns anything but a finite number >= 0.

    Examples
    --------
    >>> step_size_at(lambda t: 1 - t, 2)
    Traceback (most recent call last):
    ...
    ValueError: schedule at step 2 is -1; pass a finite number >= 0
    """
    try:
        value = schedule(t)
    except Exception as error:
        raise ValueError(
            f"schedule fails at step {t} with {type(error).__name__}: {error}; it is called with t = 1, 2, ... and "
            "must return a step size"
        ) from error
    return check_number(value, f"schedule at step {t}")


def _progress(t: int, num_steps: int) -> float:
    """0 at t = 1, 1 at t = num_steps and after; a horizon of one step is all end."""
    return 1.0 if num_steps == 1 else min(1.0, (t - 1) / (num_steps - 1))
