"""`solve_streaming`: the door to the solver for pooled problems, and what comes out of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alflb.exact.batched import Batch, BatchedProblem
from alflb.exact.results import SolverError
from alflb.problem import check_count, check_number

MapBatches = Callable[[Callable[[tuple[int, Batch]], Any], Iterable[tuple[int, Batch]]], Iterable[Any]]
"""Like the builtin `map`: results in the order of the batches."""


def relative_gap(value: float, lower_bound: float) -> float:
    """The distance of the bounds over the larger size of the two; inf if there is no lower bound."""
    if value == lower_bound:
        return 0.0
    return (value - lower_bound) / max(abs(value), abs(lower_bound)) if math.isfinite(lower_bound) else math.inf


@dataclass(frozen=True)
class Pass:
    """What one pass with a bias found."""

    value: float
    """D(p), rounding added."""
    lower_bound: float
    """Value of the better of the two repaired assignments, rounding deducted; -inf if neither met the targets."""
    violation: float
    """||A(p) - L||_1, tokens."""
    repair: str
    """Which repair gave the bound: "swaps", "closest" or "none"."""


@dataclass(frozen=True, eq=False)
class StreamingSolution:
    """Bounds of LP* that meet within the tolerance, and the bias that proves the upper one."""

    value: float
    """D(p) of `bias_E`, at least LP* (score units summed over tokens; float64 rounding is included)."""
    lower_bound: float
    """Value of a feasible assignment, at most LP* (rounding is deducted)."""
    bias_E: NDArray[np.float64]
    """The best bias found, centred (mean zero)."""
    load_E: NDArray[np.int64]
    """Loads of its top-K assignment, tokens; ties within the dither are broken at random."""
    num_tokens: int
    num_batches: int
    passes: int
    """How often the batches were read, the survey included."""
    history: tuple[Pass, ...]
    """The passes after the survey, in order."""
    tolerance: float
    """The relative gap asked for."""

    @property
    def gap(self) -> float:
        """Value - lower_bound, an upper bound on the error of each."""
        return self.value - self.lower_bound

    @property
    def relative_gap(self) -> float:
        """The gap over the larger size of the two bounds."""
        return relative_gap(self.value, self.lower_bound)

    @property
    def converged(self) -> bool:
        """Whether the relative gap is within the tolerance."""
        return self.relative_gap <= self.tolerance


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

    .. math:: \text{lower\_bound} = \langle\gamma, x'\rangle \;\le\; LP^* \;\le\; D(p) = \text{value},\qquad
              x' \text{ feasible.}

    Parameters
    ----------
    problem : BatchedProblem
        Batches that can be read again. Each pass costs one reading; batches of E^2 tokens or more keep the cost of
        adding up summaries small.
    tolerance : float
        Relative gap, (value - lower_bound) / max(abs(value), abs(lower_bound)), at which to stop.
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
    the targets in whole units (`units.target_units`; targets without a common denominator are rounded to 2^-50 or so
    of a token first, which is not accounted for).

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
    >>> solution.lower_bound <= solution.value <= solution.lower_bound * (1 + 2e-6)
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
    from alflb.exact.streaming.solver import find_bounds

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
