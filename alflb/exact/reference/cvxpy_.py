"""The reference: the LP as the theory page writes it, stated in cvxpy and handed to scipy's HiGHS.

``0 <= x <= 1`` is given as bounds of the variable and presolve is off: as constraints, and with HiGHS's search
for dependent equations, the same problem takes twenty times as long. (The wheel of highspy prints a banner to the
standard output of whoever uses it, which must stay JSON where JSON was asked for; scipy's HiGHS does not.)
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from alflb.exact.reference._scaling import normalized_scores
from alflb.exact.reference.scipy_ import HIGHS_OPTIONS
from alflb.exact.results import SolverError
from alflb.problem import AssignmentProblem


def solve(problem: AssignmentProblem) -> tuple[csr_array, NDArray[np.float64]]:
    """Optimal plan and bias of the LP, as cvxpy returns them."""
    gamma, allowed, scale = normalized_scores(problem)
    x = cp.Variable(gamma.shape, bounds=[0, allowed.astype(np.float64)])
    one_token = cp.sum(x, axis=1) == problem.top_k
    balance = cp.sum(x, axis=0) == problem.target_E
    lp = cp.Problem(cp.Maximize(cp.sum(cp.multiply(gamma, x))), [one_token, balance])
    try:
        lp.solve(solver=cp.SCIPY, scipy_options={"method": "highs-ds", **HIGHS_OPTIONS})
    except cp.SolverError as error:
        raise SolverError(f"cvxpy: {error}") from None
    if lp.status != cp.OPTIMAL:
        raise SolverError(f"cvxpy ended with status {lp.status}; with -inf scores a balanced assignment may not exist")
    # cvxpy's Lagrangian of a maximization adds dual * (lhs - rhs) to -objective: the price of expert k is the dual,
    # and a bias is minus a price.
    return csr_array(x.value), -scale * np.asarray(balance.dual_value)
