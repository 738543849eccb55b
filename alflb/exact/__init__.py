"""The exact optimum of the assignment problem, by interchangeable solvers, always certified."""

from __future__ import annotations

import importlib

import numpy as np
from numpy.typing import ArrayLike

from alflb.exact.batched import BatchedProblem
from alflb.exact.certificate import certify, recertify
from alflb.exact.results import AssignmentSolution, Residuals, SolverError
from alflb.exact.streaming import StreamingSolution, solve_streaming
from alflb.exact.units import NeededScores
from alflb.problem import AssignmentProblem, check_problem
from alflb.registry import unknown_name

__all__ = [
    "AssignmentSolution",
    "BatchedProblem",
    "Residuals",
    "SolverError",
    "StreamingSolution",
    "certify",
    "method_names",
    "recertify",
    "solve_exact",
    "solve_streaming",
]

_REFERENCES = {
    "cvxpy": "alflb.exact.reference.cvxpy_",
    "highs": "alflb.exact.reference.scipy_",
    "mincostflow": "alflb.exact.reference.mincostflow",
}


def method_names() -> list[str]:
    """Names accepted as `method`."""
    return ["auto", *sorted([*_REFERENCES, "screen"])]


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
        "highs" poses the same LP to HiGHS through scipy; "mincostflow" scales scores to integers for OR-Tools
        (needs the extra ``flow``).
    bias_init : array_like, shape (E,), optional
        A bias near the optimal one, from which "screen" starts; it affects time only.

    Returns
    -------
    AssignmentSolution
        Both bounds of LP*, which coincide; an optimal assignment, an optimal centered bias, and residuals.

    Raises
    ------
    SolverError
        If no balanced assignment exists, or the answer of an outside solver does not pass `certify`.
    ValueError
        For an unknown method, or one that cannot pose this problem or use `bias_init`.

    Notes
    -----
    "screen" is exact for the scores as given, whatever their size: integers hold some 50 bits of them, and digits
    below that are settled level by level (`alflb.exact.screening.refine`). `value` is a compensated sum of the chosen
    scores, `bias_E` an optimal bias rounded to float64. Huge negative scores (masks of -1e9, say) are used only where
    no assignment exists without them; -inf forbids a pair.

    The references compute in floating point with absolute tolerances. Their answers pass if both bounds agree to
    1e-9 of what is at stake (`alflb.exact.certificate.GAP_TOLERANCE`).

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
    solve = importlib.import_module(_REFERENCES[method]).solve
    usual = _without_huge_scores(problem)
    if usual is not None:
        try:
            return certify(problem, *solve(usual), method=method)
        except SolverError:
            pass  # some token may need them
    return certify(problem, *solve(problem), method=method)


def _without_huge_scores(problem: AssignmentProblem) -> AssignmentProblem | None:
    """The problem with huge negative scores forbidden, which leave floating point no digits for the others."""
    limit = NeededScores.of(problem.scores_TE, problem.top_k).limit
    is_huge_TE = problem.scores_TE < np.float64(-limit)  # not rounded to float32
    if not np.any(is_huge_TE & np.isfinite(problem.scores_TE)):
        return None
    return AssignmentProblem(np.where(is_huge_TE, -np.inf, problem.scores_TE), problem.top_k, problem.target_E)
