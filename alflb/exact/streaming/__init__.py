r"""The pooled problem of many batches, between two certified bounds, in memory that does not grow with the batches.

N batches of T tokens make one assignment problem of N T tokens, but its dual

.. math:: D(p) = \sum_{\text{batches}} \sum_i S_K(\gamma_i + p) - \langle L, p \rangle

has only E unknowns, and value, loads and everything else the solver wants are sums over batches. So the batches are
read a few times, and each time leave a summary of E^2 numbers (times a constant) behind:

1. **Survey** (`passes.SurveyTask`): sizes, and a uniform sample of 1024 E rows, at most 2^16. The exact optimum of the
   sample (`solve_exact`) is the first bias.
2. **Route** (`passes.RoutingTask`): loads and D at the bias, for each ordered pair of experts a histogram of the
   margins at which tokens would swap one for the other, and the 64 E rows closest to a tie.
3. **Repair** (`repair`): the cheapest swaps that balance the loads, a convex flow on the graph of experts, give a
   feasible assignment, hence a lower bound, and its dual potentials a better bias. The closest rows, assigned anew
   by `solve_exact`, give another of both. If the bounds are not within the tolerance, 2 is done again (`search`).

Where margins have a density step 3 is a Newton step whose Hessian is the graph Laplacian of claim C7, as in the damped
Newton method for semi-discrete optimal transport (Kitagawa, Mérigot and Thibert, arXiv 1603.05579). On rounded or
repeated scores D has kinks at every scale and such steps stall. Then the sample takes over: its exact optimum for
targets corrected to the gradient at the best bias (a DANE step; Shamir, Srebro and Zhang, arXiv 1312.7853). Steps
that raise D are taken back and shortened, and after several of them a new sample is drawn. Ties are broken by hashed
dither far below the tolerance; both bounds are priced with the scores as given.
"""

from __future__ import annotations

from alflb.exact.batched import BatchedProblem
from alflb.exact.results import SolverError
from alflb.exact.streaming.results import MapBatches, StreamingSolution
from alflb.exact.streaming.search import find_bounds
from alflb.problem import check_count, check_number

__all__ = ["StreamingSolution", "solve_streaming"]


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
        For bad arguments, a batch that is not one, or batches that differ from pass to pass.

    Notes
    -----
    Both bounds hold in exact arithmetic for the scores as given: D and the value of x' are summed in float64 with
    compensated sums, bounds on what rounding is left are added to the one and deducted from the other, and x' meets
    the targets in whole units (`alflb.exact.units.target_units`; targets without a common denominator are rounded to
    2^-50 or so of a token first, which is not accounted for).

    x' may split tokens between experts, as the LP allows.

    References
    ----------
    Han & Zhong, arXiv 2512.03915: primal and dual. Theory page, section 5: the comparator of hindsight regret.

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
