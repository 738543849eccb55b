"""`solve_exact`: one door to all solvers."""

from __future__ import annotations

import importlib

from numpy.typing import ArrayLike

from alflb.exact.batched import BatchedProblem
from alflb.exact.results import AssignmentSolution, certify
from alflb.problem import AssignmentProblem, check_problem
from alflb.registry import unknown_name

_MODULES = {
    "cvxpy": "alflb.exact.reference.cvxpy_",
    "highs": "alflb.exact.reference.highs",
    "mincostflow": "alflb.exact.reference.mincostflow",
    "screen": "alflb.exact.screening",
}


def method_names() -> list[str]:
    """Names accepted as `method`."""
    return ["auto", *sorted(_MODULES)]


def solve_exact(
    problem: AssignmentProblem | BatchedProblem, *, method: str = "auto", bias_init: ArrayLike | None = None
) -> AssignmentSolution:
    r"""Solve the assignment LP to optimality and certify the answer independently of the solver.

    .. math:: \max_x \sum_{ik} \gamma_{ik} x_{ik} \;\text{s.t.}\; \sum_k x_{ik} = K,\; \sum_i x_{ik} = L_k,\;
              0 \le x \le 1 \quad = \quad \min_p D(p).

    Parameters
    ----------
    problem : AssignmentProblem or BatchedProblem
        Scores in memory, or batches of them that can be read again; these need method "screen".
    method : {"auto", "screen", "cvxpy", "highs", "mincostflow"}
        "screen", which "auto" means, is our own solver (`alflb.exact.screening`): a few passes over the scores,
        exact in integers, by far the fastest. The others are references: "cvxpy" states the LP as the paper does;
        "highs" poses the same LP to HiGHS directly; "mincostflow" scales scores to integers for OR-Tools (needs
        the extra ``flow``).
    bias_init : array_like, shape (E,), optional
        A bias near the optimal one, from which "screen" starts; it affects time only.

    Returns
    -------
    AssignmentSolution
        Value, optimal assignment, optimal centred bias, and the residuals of the certificate.

    Raises
    ------
    SolverError
        If no balanced assignment exists, or the answer of an outside solver does not pass `certify`.
    ValueError
        For an unknown method, or one that cannot pose this problem or use `bias_init`.

    References
    ----------
    Han & Zhong, arXiv 2512.03915: the primal and dual problems.

    Examples
    --------
    >>> solution = solve_exact(AssignmentProblem([[0.75, 0.25], [0.75, 0.5]], top_k=1))
    >>> solution.value, solution.experts_TK.ravel().tolist()
    (1.25, [0, 1])
    """
    if method not in method_names():
        raise unknown_name("method", method, method_names())
    if not isinstance(problem, BatchedProblem):
        check_problem(problem)
    if method in ("auto", "screen"):
        from alflb.exact import screening

        return screening.solve(problem, bias_init)
    if isinstance(problem, BatchedProblem) or bias_init is not None:
        raise ValueError(f"method {method!r} takes scores in memory and no bias_init; use method 'screen'")
    plan, bias_E = importlib.import_module(_MODULES[method]).solve(problem)
    return certify(problem, plan, bias_E, method=method)
