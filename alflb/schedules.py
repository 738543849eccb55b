"""Step-size schedules: callables from the step number t = 1, 2, ... to a step size in score units.

Each is a frozen dataclass, so it prints as what it is, compares by value and travels between processes.
Where a horizon is needed it is called `num_steps` and counts updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

from alflb.problem import check_count, check_number
from alflb.registry import unknown_name

Schedule = Callable[[int], float]
"""Maps the step number t = 1, 2, ... to a step size >= 0 (score units per step)."""


@dataclass(frozen=True)
class _StepSize:
    """Base of the built-in schedules: every float field is checked to be a finite step size >= 0."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "num_steps":
                check_count(value, "num_steps")
            elif not callable(value):
                check_number(value, field.name)


@dataclass(frozen=True)
class Constant(_StepSize):
    """u for ever: the rule of Wang et al. (arXiv 2408.15664) with u = 1e-3.

    Examples
    --------
    >>> Constant(1e-3)(500)
    0.001
    """

    step_size: float

    def __call__(self, t: int) -> float:
        return self.step_size


@dataclass(frozen=True)
class Inverse(_StepSize):
    """c / t: logarithmic regret when c is above 1 / (2 mu) (claim C9).

    Examples
    --------
    >>> Inverse(1.0)(4)
    0.25
    """

    step_size: float

    def __call__(self, t: int) -> float:
        return self.step_size / t


@dataclass(frozen=True)
class InverseSqrt(_StepSize):
    """c / sqrt(t): order sqrt(N) regret without strong convexity (claim C9).

    Examples
    --------
    >>> InverseSqrt(1.0)(4)
    0.5
    """

    step_size: float

    def __call__(self, t: int) -> float:
        return self.step_size / math.sqrt(t)


@dataclass(frozen=True)
class LinearDecay(_StepSize):
    """From `step_size` at t = 1 straight down to `final` at t = num_steps, and `final` from then on.

    Examples
    --------
    >>> decay = LinearDecay(1.0, num_steps=5)
    >>> [decay(t) for t in (1, 3, 5, 9)]
    [1.0, 0.5, 0.0, 0.0]
    """

    step_size: float
    num_steps: int
    final: float = 0.0

    def __call__(self, t: int) -> float:
        return self.final + (self.step_size - self.final) * (1.0 - _progress(t, self.num_steps))


@dataclass(frozen=True)
class Cosine(_StepSize):
    """Half a cosine from `step_size` at t = 1 down to `final` at t = num_steps, and `final` from then on.

    Examples
    --------
    >>> round(Cosine(1.0, num_steps=5)(3), 12)
    0.5
    """

    step_size: float
    num_steps: int
    final: float = 0.0

    def __call__(self, t: int) -> float:
        fraction = 0.5 * (1.0 + math.cos(math.pi * _progress(t, self.num_steps)))
        return self.final + (self.step_size - self.final) * fraction


@dataclass(frozen=True)
class WarmUp(_StepSize):
    """Any schedule, scaled by t / num_steps during the first `num_steps` steps.

    Examples
    --------
    >>> warm = WarmUp(Constant(1.0), num_steps=4)
    >>> [warm(t) for t in (1, 2, 4, 8)]
    [0.25, 0.5, 1.0, 1.0]
    """

    schedule: Schedule
    num_steps: int

    def __call__(self, t: int) -> float:
        return self.schedule(t) * min(1.0, t / self.num_steps)


@dataclass(frozen=True)
class Piecewise(_StepSize):
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
        boundaries = tuple(check_count(b, "boundaries") for b in self.boundaries)
        if list(boundaries) != sorted(set(boundaries)):
            raise ValueError(f"boundaries are {self.boundaries}; give strictly increasing step numbers")
        if len(self.step_sizes) != len(boundaries) + 1:
            raise ValueError(
                f"{len(self.step_sizes)} step_sizes for {len(boundaries)} boundaries; give one more than boundaries"
            )
        for value in self.step_sizes:
            check_number(value, "step_sizes")

    def __call__(self, t: int) -> float:
        return next((u for end, u in zip(self.boundaries, self.step_sizes) if t <= end), self.step_sizes[-1])


def deepseek_v3(num_steps: int, step_size: float = 1e-3) -> Piecewise:
    """DeepSeek-V3's schedule on a run of `num_steps`: u for the first 14.3T of its 14.8T tokens, then 0.

    Examples
    --------
    >>> schedule = deepseek_v3(1480)
    >>> schedule(1430), schedule(1431)
    (0.001, 0.0)
    """
    switch = max(1, math.floor(check_count(num_steps, "num_steps") * 14.3 / 14.8 + 1e-9))
    return Piecewise(boundaries=(switch,), step_sizes=(step_size, 0.0))


_BY_NAME: dict[str, Callable[[float, int], Schedule]] = {
    "constant": lambda u, n: Constant(u),
    "inverse": lambda u, n: Inverse(u),
    "inverse_sqrt": lambda u, n: InverseSqrt(u),
    "linear": lambda u, n: LinearDecay(u, n),
    "cosine": lambda u, n: Cosine(u, n),
    "deepseek_v3": lambda u, n: deepseek_v3(n, u),
}


def schedule_names() -> list[str]:
    """The names `make_schedule` knows."""
    return sorted(_BY_NAME)


def make_schedule(name: str, step_size: float, num_steps: int, warm_up: int = 0) -> Schedule:
    """A schedule by name, as the command line and the study build it.

    Parameters
    ----------
    name : str
        One of `schedule_names()`.
    step_size : float
        Initial step size, score units per step.
    num_steps : int
        Horizon of the decaying schedules, in steps.
    warm_up : int
        Steps of linear warm-up in front; 0 for none.

    Examples
    --------
    >>> make_schedule("inverse_sqrt", 0.01, num_steps=100)
    InverseSqrt(step_size=0.01)
    """
    if name not in _BY_NAME:
        raise unknown_name("schedule", name, _BY_NAME)
    schedule = _BY_NAME[name](check_number(step_size, "step_size"), check_count(num_steps, "num_steps"))
    return WarmUp(schedule, warm_up) if check_count(warm_up, "warm_up", minimum=0) else schedule


def as_schedule(schedule: Schedule | float) -> Schedule:
    """A number becomes a constant schedule; a callable is returned as it is.

    Examples
    --------
    >>> as_schedule(1e-3)
    Constant(step_size=0.001)
    """
    if callable(schedule):
        return schedule
    return Constant(check_number(schedule, "schedule"))


def _progress(t: int, num_steps: int) -> float:
    """0 at t = 1, 1 at t = num_steps and after; a horizon of one step is all end."""
    return 1.0 if num_steps == 1 else min(1.0, (t - 1) / (num_steps - 1))
