r"""An optimal bias from an optimal plan, by shortest paths between experts.

A bias p makes the plan x a top-K assignment exactly when no token would gain by trading an expert k it uses
for an expert j it does not fill:

.. math:: p_j - p_k \le G_{kj} := \min \{\gamma_{ik} - \gamma_{ij} : x_{ik} > 0,\; x_{ij} < 1\}.

These are the inequalities of shortest-path potentials on E nodes with arc lengths G, solvable exactly when G has
no negative cycle, that is, when x is optimal.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from alflb.problem import AssignmentProblem


def bias_from_plan(problem: AssignmentProblem, plan: csr_array) -> NDArray[np.float64]:
    """The optimal bias midway between the highest and the lowest potentials, shape (E,)."""
    lengths = exchange_costs(problem, plan)
    highest = _potentials(lengths)
    lowest = -_potentials(lengths.T)
    return 0.5 * (highest + lowest)


def exchange_costs(problem: AssignmentProblem, plan: csr_array) -> NDArray[np.float64]:
    """G[k, j]: the least score a token using k gives up by moving to j; inf where none can move."""
    costs = np.full((problem.num_experts, problem.num_experts), np.inf)
    by_expert = plan.tocsc()
    for k in range(problem.num_experts):
        users = by_expert.indices[by_expert.indptr[k] : by_expert.indptr[k + 1]]
        if users.size == 0:
            continue
        scores = problem.scores_TE[users].astype(np.float64)
        loss = scores[:, [k]] - scores
        loss[plan[users].toarray() >= 1.0] = np.inf
        costs[k] = loss.min(axis=0)
    np.fill_diagonal(costs, 0.0)
    return costs


def _potentials(lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bellman-Ford from a virtual source at distance 0 of every node; E rounds suffice without negative cycles."""
    distance = np.zeros(len(lengths))
    for _ in range(len(lengths)):
        shorter = np.minimum(distance, (distance[:, None] + lengths).min(axis=0))
        if np.array_equal(shorter, distance):
            break
        distance = shorter
    return distance
