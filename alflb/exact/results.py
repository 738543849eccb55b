"""What a solver returns, and the certificate that makes it true whoever computed it.

A solver hands over a plan x and a bias p. `certify` recomputes everything from the scores alone: x is feasible,
x is integral when the targets are, D(p) equals <gamma, x>, and complementary slackness holds. By weak duality
that proves both optimal; nothing the solver says about itself is used.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from alflb import duality
from alflb.problem import AssignmentProblem

GAP_TOLERANCE = 1e-9
"""Largest accepted (D(p) - value), relative to the size of the problem's objective."""
FEASIBILITY_TOLERANCE = 1e-7
"""Largest accepted row, load or bound residual of a fractional plan, in tokens; integral plans must be exact."""

_ROWS_AT_ONCE = 8192


class SolverError(RuntimeError):
    """No certified optimum: the problem is infeasible, or a solver's answer did not pass `certify`."""


@dataclass(frozen=True)
class Residuals:
    """How far a plan and a bias are from satisfying the optimality conditions; all zero at best."""

    picks: float
    """max_i |sum_k x_ik - K|."""
    load: float
    """max_k |sum_i x_ik - L_k|, tokens."""
    bounds: float
    """max(0, -x, x - 1)."""
    integrality: float
    """max |x - round(x)|; 0 by definition when a target is fractional."""
    slackness: float
    """Largest score advantage an entry with x < 1 has over its row price, or lacks with x > 0 (score units)."""


@dataclass(frozen=True)
class Quantisation:
    """The grid on which a solver that computes in integers took the scores to be."""

    quantum: float
    """Scores and bias were integer multiples of it, a power of two, score units."""
    is_lossless: bool
    """Whether the scores given were such multiples already; then nothing was rounded."""
    value_bound: float
    """How far the optimum of the rounded scores may be from LP*: 0 if lossless, else T K quantum / 2."""


@dataclass(frozen=True, eq=False)
class AssignmentSolution:
    """A certified optimum of the assignment problem."""

    method: str
    """Solver that found it."""
    value: float
    """LP* = <gamma, x>, score units summed over tokens."""
    bias_E: NDArray[np.float64]
    """An optimal dual variable p*, centred (mean zero); add it to the scores."""
    load_E: NDArray[np.float64]
    """Loads of the plan, tokens."""
    plan: csr_array | None
    """Optimal x, shape (T, E); 0/1 when the targets are whole numbers (in bytes, to save memory, if nothing else is
    needed); None for problems read in batches."""
    dual_value: float
    """D(p*), or for a solver that rounds scores the proven upper bound of LP* next to it."""
    residuals: Residuals
    """What `certify` measured, or the solver's own certificate proved."""
    quantisation: Quantisation | None = None
    """How scores became integers, for a solver that certifies in integers."""

    @property
    def dual_gap(self) -> float:
        """D(p*) - value, zero up to rounding; the proof of optimality."""
        return self.dual_value - self.value

    @property
    def experts_TK(self) -> NDArray[np.int32] | None:
        """The K experts of each token, ascending; None when the plan is fractional or absent."""
        if self.plan is None:
            return None
        num_tokens = self.plan.shape[0]
        top_k = round(self.plan.sum() / num_tokens)
        if self.plan.nnz != num_tokens * top_k:
            return None
        return self.plan.indices.reshape(num_tokens, top_k).astype(np.int32, copy=False)


def certify(
    problem: AssignmentProblem, plan: csr_array, bias_E: NDArray[np.float64], *, method: str
) -> AssignmentSolution:
    """Re-derive value, dual value and residuals from the scores; raise SolverError unless they prove optimality."""
    plan = _tidy(plan, integral=problem.is_integral)
    centred_E = duality.center(bias_E).astype(np.float64)
    solution = AssignmentSolution(
        method=method,
        value=_plan_value(problem, plan),
        bias_E=centred_E,
        load_E=np.asarray(plan.sum(axis=0), dtype=np.float64),
        plan=plan,
        dual_value=duality.dual_value(problem, centred_E),
        residuals=_residuals(problem, plan, centred_E),
    )
    _refuse_unless_optimal(problem, solution)
    return solution


def recertify(problem: AssignmentProblem, solution: AssignmentSolution) -> AssignmentSolution:
    """Measure an in-memory solution anew by `certify`, in float64 and without anything its solver said.

    Our own solver's numbers follow from its integer certificate; these are measured, by other code, on the scores.

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
    return dataclasses.replace(measured, quantisation=solution.quantisation)


def _tidy(plan: csr_array, *, integral: bool) -> csr_array:
    """Snap entries within tolerance of 0 and 1 (all entries, when the targets are whole) and drop the zeros."""
    plan = csr_array(plan, dtype=np.float64, copy=True)
    near = np.rint(plan.data)
    plan.data = np.where(integral | (np.abs(plan.data - near) < FEASIBILITY_TOLERANCE), near, plan.data)
    plan.eliminate_zeros()
    plan.sort_indices()
    return plan


def _plan_value(problem: AssignmentProblem, plan: csr_array) -> float:
    rows = np.repeat(np.arange(problem.num_tokens), np.diff(plan.indptr))
    return float(np.sum(problem.scores_TE[rows, plan.indices].astype(np.float64) * plan.data))


def _residuals(problem: AssignmentProblem, plan: csr_array, bias_E: NDArray[np.float64]) -> Residuals:
    integrality = float(np.abs(plan.data - np.rint(plan.data)).max(initial=0.0)) if problem.is_integral else 0.0
    return Residuals(
        picks=float(np.abs(plan.sum(axis=1) - problem.top_k).max()),
        load=float(np.abs(plan.sum(axis=0) - problem.target_E).max()),
        bounds=float(np.maximum(-plan.data, plan.data - 1.0).max(initial=0.0)),
        integrality=integrality,
        slackness=_slackness(problem, plan, bias_E),
    )


def _slackness(problem: AssignmentProblem, plan: csr_array, bias_E: NDArray[np.float64]) -> float:
    """With row prices y = K-th largest biased score, x > 0 needs a score >= y and x < 1 needs one <= y."""
    worst = 0.0
    cut = problem.num_experts - problem.top_k
    for start in range(0, problem.num_tokens, _ROWS_AT_ONCE):
        block = slice(start, start + _ROWS_AT_ONCE)
        biased_TE = problem.scores_TE[block].astype(np.float64) + bias_E
        price_T1 = np.partition(biased_TE, cut, axis=1)[:, [cut]]
        used_TE = plan[block].toarray()
        lacking = np.where(used_TE > 0, price_T1 - biased_TE, 0.0).max()
        excess = np.where(used_TE < 1, biased_TE - price_T1, 0.0).max()
        worst = max(worst, float(lacking), float(excess))
    return worst


def _refuse_unless_optimal(problem: AssignmentProblem, solution: AssignmentSolution) -> None:
    residuals = solution.residuals
    scale = _objective_scale(problem)
    rounding = 8 * np.finfo(np.float64).eps * problem.num_tokens * problem.top_k * _largest_score(problem)
    feasibility = 0.0 if problem.is_integral else FEASIBILITY_TOLERANCE * max(1.0, problem.num_tokens / 1024)
    failures = []
    if max(residuals.picks, residuals.load, residuals.bounds, residuals.integrality) > feasibility:
        failures.append(f"the plan is infeasible ({residuals})")
    if abs(solution.dual_gap) > GAP_TOLERANCE * scale + rounding:
        failures.append(f"D(p) - value is {solution.dual_gap:.3e} against an objective scale of {scale:.3e}")
    if residuals.slackness > 1e-6 * scale / (problem.num_tokens * problem.top_k) + rounding:
        failures.append(f"complementary slackness is violated by {residuals.slackness:.3e}")
    if failures:
        raise SolverError(f"{solution.method} did not return a certified optimum: {'; '.join(failures)}")


def _objective_scale(problem: AssignmentProblem) -> float:
    """T K times the widest row: what is at stake in the assignment, whatever constant the scores carry."""
    return problem.num_tokens * problem.top_k * finite_range(problem)


def finite_range(problem: AssignmentProblem) -> float:
    """Largest over tokens of highest - lowest finite score."""
    finite = np.isfinite(problem.scores_TE)
    lowest_T = np.min(problem.scores_TE, axis=1, where=finite, initial=np.inf)
    highest_T = np.max(problem.scores_TE, axis=1)
    return float(np.max(highest_T.astype(np.float64) - lowest_T))


def _largest_score(problem: AssignmentProblem) -> float:
    return float(np.max(np.abs(problem.scores_TE), where=np.isfinite(problem.scores_TE), initial=0.0))
