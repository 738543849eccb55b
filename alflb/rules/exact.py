"""The exact rule: every batch is routed with the optimal bias of its own assignment problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from alflb.exact import solve_exact
from alflb.problem import AssignmentProblem
from alflb.rules.base import RULES, Observation, Rule, Sight, State


@RULES.register("exact")
@dataclass(frozen=True)
class Exact(Rule):
    """The upper reference for all rules: balance up to ties, at the affinity of the LP optimum, batch by batch.

    It sees the scores of a batch before routing it, which no rule in training can, and has no step size. Each
    batch's solution starts from the bias of the batch before. Tokens that tie at the top-K boundary under the
    optimal bias are routed by lowest index, where the optimal assignment splits them; so loads can be off by
    the number of such tokens.

    Examples
    --------
    >>> from alflb import Static, max_vio, simulate
    >>> run = simulate(Static([[0.75, 0.25], [0.75, 0.5]]), Exact(), top_k=1, num_steps=1)
    >>> run.load_NE.tolist()
    [[1, 1]]
    """

    sees: ClassVar[Sight] = Sight.SCORES_BEFORE_ROUTING
    is_reference: ClassVar[bool] = True

    def step(self, bias_E: NDArray[np.float64], seen: Observation, state: State) -> tuple[NDArray[np.float64], State]:
        """The optimal bias of this batch."""
        problem = AssignmentProblem(seen.scores_TE, seen.top_k, seen.target_E)
        return solve_exact(problem, bias_init=bias_E).bias_E, state
