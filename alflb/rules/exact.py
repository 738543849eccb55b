"""The exact rule: every batch is routed with the optimal bias of its own assignment problem."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alflb.exact import solve_exact
from alflb.problem import AssignmentProblem, FloatArray
from alflb.rules._base import RULES, PerBatchRule


@RULES.register("exact")
@dataclass(frozen=True)
class Exact(PerBatchRule):
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

    def route_with(
        self, scores_TE: FloatArray, bias_E: NDArray[np.float64], target_E: NDArray[np.float64], top_k: int
    ) -> NDArray[np.float64]:
        """The optimal bias of this batch."""
        return solve_exact(AssignmentProblem(scores_TE, top_k, target_E), bias_init=bias_E).bias_E
