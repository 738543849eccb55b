"""The exact optimum of the assignment problem, by interchangeable solvers, always certified."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike

from alflb.exact.batched import BatchedProblem
from alflb.exact.certificate import certify, recertify
from alflb.exact.results import AssignmentSolution, Residuals, SolverError
from alflb.exact.streaming.results import MapBatches, StreamingSolution
from alflb.exact.units import NeededScores
from alflb.problem import AssignmentProblem, check_count, check_number, check_problem
from alflb.registry import unknown_name
from alflb.threads import num_threads

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
    "solve_many",
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
    limit = NeededScores.of(problem.scores_TE, problem.top_k).limit
    is_huge_TE = (problem.scores_TE < np.float64(-limit)) & (problem.scores_TE > -np.inf)
    if is_huge_TE.any():  # they would leave floating point no digits for the others, and are seldom needed
        usual_TE = np.where(is_huge_TE, -np.inf, problem.scores_TE)
        with contextlib.suppress(SolverError):
            found = solve(AssignmentProblem(usual_TE, problem.top_k, problem.target_E))
            return dataclasses.replace(certify(problem, *found, method=method), forbidden_below=-limit)
    return certify(problem, *solve(problem), method=method)


def solve_many(problems: Iterable[AssignmentProblem]) -> list[AssignmentSolution]:
    """Solve many problems, such as the micro-batches of a training run, on all cores.

    Parameters
    ----------
    problems : iterable of AssignmentProblem
        Of any shapes; all are held in memory.

    Returns
    -------
    list of AssignmentSolution
        In the order of the problems; bit for bit what `solve_exact` returns for each.

    Raises
    ------
    SolverError
        If one of the problems has no balanced assignment; the message says which.
    ValueError
        If `problems` holds something else.

    Notes
    -----
    One thread per core (or ``ALFLB_NUM_THREADS``) takes one problem after the other. A single large problem gains
    nothing from this; many of some thousand tokens each do, since most of the time is spent in compiled loops.

    References
    ----------
    Han & Zhong, arXiv 2512.03915: the primal and dual problems.

    Examples
    --------
    >>> problems = [AssignmentProblem([[0.75, 0.25], [0.75, score]], top_k=1) for score in (0.5, 0.0)]
    >>> [solution.value for solution in solve_many(problems)]
    [1.25, 1.0]
    """
    problems = list(problems)
    with ThreadPoolExecutor(num_threads(), thread_name_prefix="alflb") as pool:
        return list(pool.map(_solve_numbered, range(len(problems)), problems))


def _solve_numbered(index: int, problem: AssignmentProblem) -> AssignmentSolution:
    """The optimum of one of many problems; errors say of which."""
    try:
        check_problem(problem)
        return solve_exact(problem)
    except (SolverError, ValueError) as error:
        raise type(error)(f"problem {index}: {error}") from None


def solve_streaming(
    problem: BatchedProblem,
    *,
    tolerance: float = 1e-6,
    max_passes: int = 50,
    evaluate_batches: MapBatches = map,
    seed: int = 0,
    sample_rows: int | None = None,
    close_rows: int | None = None,
    must_converge: bool = True,
) -> StreamingSolution:
    r"""Bounds of LP* of a pooled problem that agree to a relative `tolerance`, in memory independent of its size.

    .. math:: \text{lower\_bound} = \langle\gamma, x'\rangle \;\le\; LP^* \;\le\; D(p) = \text{upper\_bound},\qquad
              x' \text{ feasible.}

    Parameters
    ----------
    problem : BatchedProblem
        Batches that can be read again. Each pass costs one reading; batches of E^2 tokens or more keep the cost of
        adding up summaries small.
    tolerance : float
        Relative gap, (upper_bound - lower_bound) / max(abs(upper_bound), abs(lower_bound)), at which to stop.
    max_passes : int
        Most readings of the batches, the survey included; at least 2.
    evaluate_batches : callable
        Like the builtin `map`: called with a picklable function and an iterable of (index, batch), returns the results
        in that order. Results are at most O(E^2) numbers, so with batches given by handles (`BatchHandle`) next to
        nothing travels: `alflb.studies.executors.ordered_map` sends them to other processes or machines. The
        answer does not depend on it.
    seed : int
        Of the sample and of the dither; same seed, same bits.
    sample_rows, close_rows : int, optional
        Rows kept of the first and of every later pass; default min(1024 E, 2^16) and 64 E. Smaller ones save memory
        and cost passes; a problem of at most `close_rows` tokens is solved exactly.
    must_converge : bool
        False: return the bounds reached, whatever they are (`StreamingSolution.converged` tells).

    Returns
    -------
    StreamingSolution
        Both bounds, the bias and the loads behind the upper one, passes, and the history of both bounds.

    Raises
    ------
    SolverError
        If the passes are used up before the gap is within the tolerance (or no balanced assignment exists).
    ValueError
        For bad arguments, a batch that is not one, batches that differ from pass to pass, or scores (masks such as
        -1e9, say) beside which the others have no digits left in floating point.

    Notes
    -----
    Both bounds hold in exact arithmetic for the scores as given: D and the value of x' are summed in float64 with
    compensated sums, bounds on what rounding is left are added to the one and deducted from the other, and x' meets
    the targets in whole units (`alflb.exact.units.target_units`; targets without a common denominator are rounded to
    2^-50 or so of a token first, which is not accounted for).

    x' may split tokens between experts, as the LP allows.

    References
    ----------
    Han & Zhong, arXiv 2512.03915: primal and dual. docs/theory/regret.md: the comparator of hindsight regret.

    Examples
    --------
    >>> import numpy as np
    >>> def batches():
    ...     return (np.random.default_rng(t).random((500, 4)) for t in range(20))
    >>> solution = solve_streaming(BatchedProblem(batches, top_k=2))
    >>> solution.lower_bound <= solution.upper_bound <= solution.lower_bound * (1 + 2e-6)
    True
    >>> solution.num_tokens, solution.converged
    (10000, True)
    """
    tolerance = check_number(tolerance, "tolerance", positive=True)
    max_passes = check_count(max_passes, "max_passes", minimum=2)
    seed = check_count(seed, "seed", minimum=0)
    for rows, name in ((sample_rows, "sample_rows"), (close_rows, "close_rows")):
        if rows is not None:
            check_count(rows, name)
    from alflb.exact.streaming.search import find_bounds

    solution = find_bounds(
        problem,
        tolerance=tolerance,
        max_passes=max_passes,
        map_batches=evaluate_batches,
        seed=seed,
        sample_rows=sample_rows,
        close_rows=close_rows,
    )
    if must_converge and not solution.converged:
        raise SolverError(
            f"the relative gap is {solution.relative_gap:.3g} after {solution.passes} passes, not {tolerance:.3g}; "
            "raise max_passes, sample_rows or tolerance, or pass must_converge=False for the bounds reached "
            "(a lower bound of -inf may mean that no balanced assignment exists)"
        )
    return solution
