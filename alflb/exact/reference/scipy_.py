"""The same LP posed to HiGHS through scipy: one column for each allowed pair, expert by expert, presolve off."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csc_array, csr_array

from alflb.exact.reference._scaling import normalized_scores
from alflb.exact.results import SolverError
from alflb.problem import AssignmentProblem

HIGHS_OPTIONS = {
    "presolve": False,  # its search for dependent equations costs more than the simplex
    "primal_feasibility_tolerance": 1e-9,
    "dual_feasibility_tolerance": 1e-9,
}


def solve(problem: AssignmentProblem) -> tuple[csr_array, NDArray[np.float64]]:
    """Optimal plan and bias from HiGHS's dual simplex."""
    gamma_TE, allowed_TE, scale = normalized_scores(problem)
    expert_N, token_N = np.nonzero(allowed_TE.T)  # expert-major: several times faster than token-major
    num_pairs = len(expert_N)
    rows_2N = np.stack([token_N, problem.num_tokens + expert_N], axis=1).ravel()
    ends = csc_array(
        (np.ones(2 * num_pairs), rows_2N, np.arange(0, 2 * num_pairs + 1, 2)),
        shape=(problem.num_tokens + problem.num_experts, num_pairs),
    )
    answer = linprog(
        -gamma_TE[token_N, expert_N],
        A_eq=ends,
        b_eq=np.concatenate([np.full(problem.num_tokens, float(problem.top_k)), problem.target_E]),
        bounds=(0.0, 1.0),
        method="highs-ds",
        options=HIGHS_OPTIONS,
    )
    if answer.status != 0:
        raise SolverError(f"HiGHS: {answer.message}; with -inf scores a balanced assignment may not exist")
    plan = csr_array((answer.x, (token_N, expert_N)), shape=gamma_TE.shape)
    # The model minimizes -gamma, so the row duals of the loads are the biases in units of `scale`.
    return plan, scale * np.asarray(answer.eqlin.marginals)[problem.num_tokens :]
