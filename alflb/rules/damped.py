"""Damped dual ascent: the proportional rule with a bias that leaks away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from alflb.rules.base import RULES, Observation, ScheduledRule, State, check_fraction, relative_shortfall


@RULES.register("damped")
@dataclass(frozen=True)
class Damped(ScheduledRule):
    """b = (1 - d) b + u e, with e = (target - load) / mean target.

    Parameters
    ----------
    schedule : float or Schedule
        u, score units per step.
    damping : float
        d, 0 <= d < 1. No value is known to us; 1e-3 is ours. With d = 0 it is the proportional rule.

    Notes
    -----
    **It does not rest at exact balance**: there the bias shrinks by a factor 1 - d. It rests where e = d b / u, so
    an expert that needs the bias b* keeps a load about d b* / u mean loads off target. What it buys is that the bias
    cannot run away and that an old mistake fades: it is the gradient step on D(p) + d |p|^2 / (2 eps), eps as in C1.

    Source: Thaman, "One Must Imagine Experts Happy", workshop SLLM at ICLR 2025 (OpenReview gsAkhArtfT): dual ascent,
    steps "proportional to each expert's load error with a damping term". That is its abstract; the form of the damping
    here, a leak, is from a secondary source and could not be confirmed.

    Examples
    --------
    >>> import numpy as np
    >>> rule = Damped(0.5, damping=0.25)
    >>> seen = Observation(1, np.full(2, 2.0), load_E=np.array([3, 1]))
    >>> rule.step(np.array([1.0, -1.0]), seen, ())[0].tolist()
    [0.5, -0.5]
    """

    on_tensors: ClassVar[bool] = True

    damping: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.damping, "damping")

    def step(self, bias_E: NDArray[np.float64], seen: Observation, state: State) -> tuple[NDArray[np.float64], State]:
        """A proportional step from the shrunken bias."""
        return (1.0 - self.damping) * bias_E + self.step_size(seen.t) * relative_shortfall(
            seen.load_E, seen.target_E
        ), state
