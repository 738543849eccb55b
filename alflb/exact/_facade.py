"""`solve_exact`: one door to all solvers."""

from __future__ import annotations

import importlib
import importlib.util

from alflb.exact._solution import AssignmentSolution, certify
from alflb.problem import AssignmentProblem
from alflb.registry import unknown_name

_MODULES = {
    "cvxpy": "alflb.exact.cvxpy_",
    "highs": "alflb.exact.highs",
    "mincostflow": "alflb.exact.mincostflow",
}


def method_names() -> list[str]:
    """Names accepted as `method`."""
    return ["auto", *sorted(_MODULES)]


def solve_exact(problem: AssignmentProblem, *, method: str = "auto") -> AssignmentSolution:
    r"""Solve the assignment LP to optimality and certify the answer independently of the solver.

    .. math:: \max_x \sum_{ik} \gamma_{ik} x_{ik} \;\text{s.t.}\; \sum_k x_{ik} = K,\; \sum_i x_{ik} = L_k,\;
              0 \le x \le 1 \quad = \quad \min_p D(p).

    Parameters
    ----------
    problem : AssignmentProblem
    method : {"auto", "cvxpy", "highs", "mincostflow"}
        "cvxpy" states the LP as the paper does (reference; slow); "highs" poses the same LP to HiGHS directly;
        "mincostflow" scales scores to integers for OR-Tools (fastest; needs the extra ``flow``). "auto" takes
        min-cost flow where it is installed and applies, else HiGHS.

    Returns
    -------
    AssignmentSolution
        Value, optimal assignment, optimal centred bias, and the residuals found by `certify`.

    Raises
    ------
    SolverError
        If no balanced assignment exists, or the answer does not pass `certify`.
    ValueError
        For an unknown method, or one that cannot pose this problem.

    References
    ----------
    Han & Zhong, arXiv 2512.03915: the primal and dual problems.

    Examples
    --------
    >>> solution = solve_exact(AssignmentProblem([[0.75, 0.25], [0.75, 0.5]], top_k=1), method="highs")
    >>> solution.value, solution.experts_TK.ravel().tolist()
    (1.25, [0, 1])
    """
    if method not in method_names():
        raise unknown_name("method", method, method_names())
    chosen = _pick(problem) if method == "auto" else method
    plan, bias_E = importlib.import_module(_MODULES[chosen]).solve(problem)
    return certify(problem, plan, bias_E, method=chosen)


def _pick(problem: AssignmentProblem) -> str:
    from alflb.exact.mincostflow import flow_unit

    installed = importlib.util.find_spec("ortools") is not None
    return "mincostflow" if installed and flow_unit(problem) is not None else "highs"
