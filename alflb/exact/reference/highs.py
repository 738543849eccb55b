"""The same LP posed to HiGHS directly: one column for each allowed pair, expert by expert, presolve off."""

from __future__ import annotations

import highspy
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from alflb.exact.reference._scaling import normalised_scores
from alflb.exact.results import SolverError
from alflb.problem import AssignmentProblem

_OPTIONS = {
    "output_flag": False,
    "presolve": "off",  # its search for dependent equations costs more than the simplex
    "primal_feasibility_tolerance": 1e-9,
    "dual_feasibility_tolerance": 1e-9,
}


def solve(problem: AssignmentProblem) -> tuple[csr_array, NDArray[np.float64]]:
    """Optimal plan and bias from HiGHS's dual simplex."""
    gamma, allowed, scale = normalised_scores(problem)
    experts, tokens = np.nonzero(allowed.T)  # expert-major: several times faster than token-major
    solver = highspy.Highs()
    for option, value in _OPTIONS.items():
        solver.setOptionValue(option, value)
    solver.passModel(_model(problem, gamma[tokens, experts], tokens, experts))
    solver.run()
    status = solver.getModelStatus()
    if status != highspy.HighsModelStatus.kOptimal:
        words = solver.modelStatusToString(status)
        raise SolverError(f"HiGHS ended with status {words}; with -inf scores a balanced assignment may not exist")
    answer = solver.getSolution()
    plan = csr_array((np.asarray(answer.col_value), (tokens, experts)), shape=gamma.shape)
    # The model minimises -gamma, so the row duals of the loads are the biases in units of `scale`.
    return plan, scale * np.asarray(answer.row_dual)[problem.num_tokens :]


def _model(
    problem: AssignmentProblem, gain: NDArray[np.float64], tokens: NDArray[np.intp], experts: NDArray[np.intp]
) -> highspy.HighsLp:
    """Rows: one for each token (K picks), then one for each expert (its target load). Two entries a column."""
    num_rows = problem.num_tokens + problem.num_experts
    row_values = np.concatenate([np.full(problem.num_tokens, float(problem.top_k)), problem.target_E])
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(gain), num_rows
    lp.col_cost_, lp.sense_ = -gain, highspy.ObjSense.kMinimize
    lp.col_lower_, lp.col_upper_ = np.zeros(len(gain)), np.ones(len(gain))
    lp.row_lower_ = lp.row_upper_ = row_values
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.arange(0, 2 * len(gain) + 1, 2)
    lp.a_matrix_.index_ = np.stack([tokens, problem.num_tokens + experts], axis=1).ravel()
    lp.a_matrix_.value_ = np.ones(2 * len(gain))
    return lp
