"""What a solver returns: bounds of LP*, a bias, loads, and a plan where it fits in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array


class SolverError(RuntimeError):
    """No certified optimum: the problem is infeasible, or an answer did not pass the certificate."""


@dataclass(frozen=True)
class Residuals:
    """How far a plan and a bias are from satisfying the optimality conditions; all zero at best."""

    picks: float
    """max_i |sum_k x_ik - K|."""
    load: float
    """max_k |sum_i x_ik - L_k|, tokens."""
    bounds: float
    """max(0, -x, x - 1)."""
    integrality: float
    """max |x - round(x)|; 0 by definition when a target is fractional."""
    slackness: float
    """Largest score advantage an entry with x < 1 has over its row price, or lacks with x > 0 (score units)."""


@dataclass(frozen=True, eq=False)
class AssignmentSolution:
    """A certified optimum of the assignment problem.

    The two bounds of LP* agree to within what `alflb.exact.certificate.certify` allows. Our own solver proves its plan
    optimal in integers for the scores as given, so its bounds are equal.
    """

    method: str
    """Solver that found it."""
    lower_bound: float
    """<gamma, x> of the plan, score units summed over tokens; at most LP*."""
    upper_bound: float
    """D(p), at least LP*."""
    bias_E: NDArray[np.float64]
    """An optimal dual variable p*, centered (mean zero) and rounded to float64; add it to the scores."""
    load_E: NDArray[np.float64]
    """Loads of the plan, tokens."""
    plan: csr_array | None
    """Optimal x, shape (T, E); 0/1 when the targets are whole numbers (in bytes, to save memory, if nothing else is
    needed); None for problems read in batches."""
    residuals: Residuals
    """What `certify` measured, or the solver's own certificate proved."""
    forbidden_below: float = -math.inf
    """Scores below this (masks such as -1e9, far larger in size than the others) were left out like -inf; the bounds
    prove that the optimum uses none of them. -inf if nothing was left out."""

    @property
    def value(self) -> float:
        """LP*: the value of the plan, which the certificate proves optimal."""
        return self.lower_bound

    @property
    def gap(self) -> float:
        """upper_bound - lower_bound, the most by which the plan can fall short of LP*."""
        return self.upper_bound - self.lower_bound

    @property
    def experts_TK(self) -> NDArray[np.int32] | None:
        """The K experts of each token, ascending; None when the plan is fractional or absent."""
        if self.plan is None:
            return None
        num_tokens = self.plan.shape[0]
        top_k = round(self.plan.sum() / num_tokens)
        if self.plan.nnz != num_tokens * top_k:
            return None
        return self.plan.indices.reshape(num_tokens, top_k).astype(np.int32, copy=False)
