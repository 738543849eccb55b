"""A rule kept inside a ball: the domain on which the regret theorem (claim C9) is stated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alflb.duality import center
from alflb.problem import check_number
from alflb.rules.base import Observation, Rule, Sight, State


@dataclass(frozen=True)
class Projected(Rule):
    r"""Another rule, each of whose steps is projected onto :math:`\{p : \sum p = 0, \lVert p\rVert \le R\}`.

    The population dual f is strongly convex on such a ball, not on all of R^E: bounded scores stop competing once
    biases differ by more than their range. With `proportional` and eta_n = 1 / (mu n) this is the online gradient
    descent of claim C9.

    Parameters
    ----------
    rule : Rule
        Any rule that sees loads only.
    radius : float
        R > 0, score units.

    Examples
    --------
    >>> import numpy as np
    >>> from alflb import make_rule
    >>> rule = Projected(make_rule("sign", 3.0), radius=2.0**0.5)
    >>> bias_E, _ = rule.step(np.zeros(2), Observation(1, np.array([2.0, 2.0]), load_E=np.array([3, 1])), ())
    >>> bias_E.round(12).tolist()
    [-1.0, 1.0]
    """

    rule: Rule
    radius: float

    def __post_init__(self) -> None:
        check_number(self.radius, "radius", positive=True)
        if self.rule.sees is not Sight.LOADS:
            raise ValueError(f"rule is {self.rule}, which sees scores; pass a rule that sees loads only")

    def init(self, num_experts: int) -> State:
        """The memory of the rule inside."""
        return self.rule.init(num_experts)

    def step(self, bias_E: NDArray[np.float64], seen: Observation, state: State) -> tuple[NDArray[np.float64], State]:
        """A step of the rule inside, centered and pulled back into the ball."""
        moved_E, state = self.rule.step(bias_E, seen, state)
        moved_E = center(moved_E)
        return moved_E * min(1.0, self.radius / max(float(np.linalg.norm(moved_E)), 1e-300)), state
