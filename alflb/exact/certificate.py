r"""The certificate: bounds of LP* from a plan and a bias, whoever found them, and the verdict on bounds.

For a plan x that meets its targets, any bias p and any row prices y,

.. math:: D(p) - \langle\gamma, x\rangle \le \sum_{ik} \big( r_{ik}^+ (1 - x_{ik}) + r_{ik}^- x_{ik} \big),
          \qquad r_{ik} = \gamma_{ik} + p_k - y_i,

with equality when y_i is the K-th largest of gamma_i + p. All terms are at least 0, so nothing cancels in the sum, and
r is evaluated with the rounding error of gamma + p: exact ties count as ties. By weak duality the plan is optimal if
the sum is 0, and at most that far from optimal otherwise. Nothing a solver says about itself is used.

Scores enter only where they are chosen or could be, so a huge number that no plan would use (-1e9 in the place of -inf)
neither adds to the sum nor widens what is allowed of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from alflb import duality
from alflb.exact.results import AssignmentSolution, Residuals, SolverError
from alflb.exact.units import target_units
from alflb.problem import AssignmentProblem, FloatArray

GAP_TOLERANCE = 1e-12
"""Largest gap of an optimum, as a part of what is at stake: K times the sum over tokens of the best score less the
lowest score the plan or the bias picks."""
FEASIBILITY_TOLERANCE = 1e-7
"""Largest accepted residual, in tokens, for targets of no common denominator; all others are met exactly."""

_USUAL = 0.1
"""Quantile of the scores used and of the best ones (zeros apart) that says what size is usual ..."""
_OUTLIER = 16.0
"""... and no row has more at stake than this many usual scores."""
_ENTRIES_AT_ONCE = 2**18
_EPS = float(np.finfo(np.float64).eps)


def proves_optimum(gap: float, tolerance: float) -> bool:
    """The verdict on every pair of bounds: the gap between them is a number, not negative, and within the tolerance.

    Examples
    --------
    >>> proves_optimum(0.0, 0.0), proves_optimum(0.5, 0.1), proves_optimum(float("nan"), 0.1)
    (True, False, False)
    """
    return math.isfinite(gap) and 0.0 <= gap <= tolerance


def certify(
    problem: AssignmentProblem, plan: csr_array, bias_E: NDArray[np.float64], *, method: str
) -> AssignmentSolution:
    """Measure both bounds and all residuals from the scores alone.

    Memory beyond the plan does not grow with the number of tokens.

    Raises
    ------
    SolverError
        Unless the plan meets the targets and the gap is at most `GAP_TOLERANCE` of what is at stake.
    """
    target_units_E, unit = target_units(problem.target_E, problem.num_tokens, problem.top_k)
    is_countable = unit <= problem.num_experts
    units = _in_units(plan, unit)
    off_E = units.sum(axis=0) - (target_units_E if is_countable else problem.target_E * unit)
    with np.errstate(over="ignore", invalid="ignore"):  # numbers too large end as inf or NaN, which prove nothing
        bias_E = duality.center(bias_E).astype(np.float64)
        measured = _measure(problem, units, unit, bias_E)
        misplaced = measured.misplaced + float(np.abs(off_E).sum()) / unit
        doubt = misplaced * (duality.spread(bias_E) + measured.widest) if misplaced else 0.0
        gap = measured.gap + 2.0 * doubt + 0.0 * measured.value  # NaN if the value is
    plan = units / unit
    solution = AssignmentSolution(
        method=method,
        lower_bound=measured.value - doubt,
        upper_bound=measured.value + (measured.gap + doubt),
        bias_E=bias_E,
        load_E=np.asarray(units.sum(axis=0) / unit, dtype=np.float64),
        plan=plan,
        residuals=Residuals(
            picks=measured.picks,
            load=float(np.abs(off_E).max()) / unit,
            bounds=float(np.maximum(-plan.data, plan.data - 1.0).max(initial=0.0)),
            integrality=float(np.abs(plan.data - np.rint(plan.data)).max(initial=0.0)) if unit == 1 else 0.0,
            slackness=measured.slackness,
        ),
    )
    failures = []
    feasibility, residuals = 0.0 if is_countable else FEASIBILITY_TOLERANCE, solution.residuals
    if not max(residuals.picks, residuals.load, residuals.bounds, residuals.integrality) <= feasibility:
        failures.append(f"the plan is infeasible ({residuals})")
    # Judged by the gap as measured: the bounds may be too large for their difference to show.
    if not proves_optimum(gap, GAP_TOLERANCE * measured.stake + measured.ulps):
        failures.append(
            f"D(p) - value is {gap:.3e} where {measured.stake:.3e} is at stake ({value_range(problem.scores_TE)})"
        )
    if failures:
        raise SolverError(f"{method} did not return a certified optimum: {'; '.join(failures)}")
    return solution


def recertify(problem: AssignmentProblem, solution: AssignmentSolution) -> AssignmentSolution:
    """Measure an in-memory solution anew by `certify`, in float64 and without anything its solver said.

    Our own solver proves its answers in integers; here they are measured, by other code, on the scores, with the bias
    rounded to float64. That rounding can leave a gap, of some 1e-16 of the largest bias for each tied token.

    Raises
    ------
    SolverError
        If the plan and the bias do not prove each other optimal.
    ValueError
        If the solution has no plan, as those of problems read in batches.
    """
    if solution.plan is None:
        raise ValueError("solution has no plan to certify; problems read in batches carry their own certificate only")
    measured = certify(problem, solution.plan, solution.bias_E, method=solution.method)
    return dataclasses.replace(measured, forbidden_below=solution.forbidden_below)


def value_range(scores_TE: FloatArray) -> str:
    """The range of the finite scores, for messages, with the advice that a wide one calls for.

    Examples
    --------
    >>> value_range(np.array([[0.5, -1e9]]))
    'values from -1e+09 to 0.5: use -inf to forbid a pair'
    """
    finite = np.isfinite(scores_TE)
    lowest = np.min(scores_TE, where=finite, initial=np.inf)
    highest = np.max(scores_TE, where=finite, initial=-np.inf)
    return f"values from {lowest:g} to {highest:g}: use -inf to forbid a pair"


class _Measured(NamedTuple):
    """Sums over all tokens."""

    value: float
    """<gamma, x>."""
    gap: float
    """D(p) - <gamma, x>, bounded from above."""
    picks: float
    """max_i |sum_k x_ik - K|."""
    misplaced: float
    """sum_i |sum_k x_ik - K|."""
    slackness: float
    stake: float
    """What is at stake (see `GAP_TOLERANCE`), outliers cut off."""
    ulps: float
    """A rounding of each score used and each best one, outliers cut off."""
    widest: float
    """Largest difference of scores in a row that the plan or the bias picks."""


def _in_units(plan: csr_array, unit: int) -> csr_array:
    """The plan in whole units (kept as floats), without zeros, in order."""
    plan = csr_array(plan, dtype=np.float64, copy=True)
    plan.data = np.rint(plan.data * unit)
    plan.sum_duplicates()
    plan.eliminate_zeros()
    return plan


def _measure(problem: AssignmentProblem, units: csr_array, unit: int, bias_E: NDArray[np.float64]) -> _Measured:
    values, gaps, stakes, sizes = [], [], [], []
    picks = misplaced = slackness = 0.0
    for scores_CE, units_CE in _blocks(problem, units):
        reduced_CE = _reduced_scores(scores_CE, units_CE > 0, bias_E, problem.top_k)
        excess_CE = np.where(units_CE < unit, np.maximum(reduced_CE, 0.0), 0.0)
        lack_CE = np.where(units_CE > 0, np.maximum(-reduced_CE, 0.0), 0.0)
        slackness = float(np.maximum(excess_CE, lack_CE).max(initial=slackness))
        gaps.append((excess_CE * ((unit - units_CE) / unit) + lack_CE * (units_CE / unit)).sum(axis=1))
        values.append(scores_CE[units_CE > 0] * (units_CE[units_CE > 0] / unit))
        off_C = np.abs(units_CE.sum(axis=1) - problem.top_k * unit) / unit
        picks, misplaced = max(picks, float(off_C.max())), misplaced + float(off_C.sum())
        best_C = scores_CE.max(axis=1)
        worst_C = np.min(scores_CE, axis=1, where=(units_CE > 0) | (reduced_CE >= 0), initial=np.inf)
        stakes.append(best_C - worst_C)
        sizes += [np.abs(scores_CE[units_CE > 0]), np.abs(best_C)]
    stake_T, size_N = np.concatenate(stakes), np.concatenate(sizes)
    usual = float(np.quantile(size_N[size_N > 0], _USUAL, method="lower")) if size_N.any() else math.inf
    return _Measured(
        value=_total(np.concatenate(values)),
        gap=_total(np.concatenate(gaps)),
        picks=picks,
        misplaced=misplaced,
        slackness=slackness,
        stake=problem.top_k * _total(np.minimum(stake_T, _OUTLIER * usual)),
        ulps=_EPS * _total(np.minimum(size_N, _OUTLIER * usual)),
        widest=float(stake_T.max()),
    )


def _blocks(problem: AssignmentProblem, units: csr_array) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Scores in float64 beside the plan's units as an array, some rows at a time."""
    size = max(1, _ENTRIES_AT_ONCE // problem.num_experts)
    for start in range(0, problem.num_tokens, size):
        block = slice(start, start + size)
        yield problem.scores_TE[block].astype(np.float64), units[block].toarray()


def _reduced_scores(
    scores_CE: NDArray[np.float64], is_used_CE: NDArray[np.bool_], bias_E: NDArray[np.float64], top_k: int
) -> NDArray[np.float64]:
    """R = gamma + p - y, each row's y being its K-th largest gamma + p, with the error of every gamma + p."""
    biased_CE = scores_CE + bias_E
    shift_CE = biased_CE - scores_CE
    error_CE = np.where(np.isfinite(scores_CE), (scores_CE - (biased_CE - shift_CE)) + (bias_E - shift_CE), 0.0)
    cut = scores_CE.shape[1] - top_k
    price_C1 = np.partition(biased_CE, cut, axis=1)[:, [cut]]
    is_tied_CE = biased_CE == price_C1
    # Any y will do; among those that round alike, the least one used leaves no loss where the plan is right.
    least_C1 = np.min(error_CE, axis=1, where=is_tied_CE & is_used_CE, initial=np.inf, keepdims=True)
    most_C1 = np.max(error_CE, axis=1, where=is_tied_CE, initial=-np.inf, keepdims=True)
    error_C1 = np.where(np.isfinite(least_C1), least_C1, most_C1)
    return (biased_CE - price_C1) + (error_CE - error_C1)


def _total(terms_N: NDArray[np.float64]) -> float:
    """The correctly rounded sum; NaN where a term or the sum is not finite."""
    try:
        total = math.fsum(terms_N)
    except (OverflowError, ValueError):
        return math.nan
    return total if math.isfinite(total) else math.nan
