r"""The dual function, the Lagrangian and the certificates, in plain numpy, as the theory page writes them.

With :math:`S_K(v)` the sum of the K largest entries of v and L the target loads,

.. math:: D(p) = \sum_i S_K(\gamma_i + p) - \langle L, p \rangle \;\ge\; LP^*,\qquad D(p + c\mathbf 1) = D(p).

Everything here is evaluated in float64 whatever the dtype of the scores, and never changes its input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alflb import bounds
from alflb.kernels import Allocation, reference
from alflb.problem import AssignmentProblem, check_bias, check_problem


class Violation(NamedTuple):
    """Norms of load - target, in tokens."""

    l1: float
    l2: float
    linf: float


def dual_value(problem: AssignmentProblem, bias: ArrayLike) -> float:
    """D(p), an upper bound on LP* for every bias p, in score units summed over tokens.

    Examples
    --------
    >>> problem = AssignmentProblem([[0.75, 0.25], [0.75, 0.5]], top_k=1)
    >>> dual_value(problem, [0.0, 0.0]), dual_value(problem, [0.0, 0.25])
    (1.5, 1.25)
    """
    check_problem(problem)
    biased_TE = _biased(problem, bias)
    cut = problem.num_experts - problem.top_k
    top_TK = np.partition(biased_TE, cut, axis=1)[:, cut:] if cut else biased_TE
    return float(top_TK.sum() - problem.target_E @ np.asarray(bias, dtype=np.float64))


def allocate(problem: AssignmentProblem, bias: ArrayLike) -> Allocation:
    """x(p) and A(p): top-K of scores + bias in float64, ties to the lowest expert index."""
    check_problem(problem)
    bias_E = check_bias(bias, problem.num_experts)
    return reference.allocate(problem.scores_TE.astype(np.float64), bias_E, problem.top_k)


def lagrangian(problem: AssignmentProblem, plan_TE: ArrayLike, row_prices_T: ArrayLike, bias: ArrayLike) -> float:
    r"""L(x, y, p) = sum_ik (gamma_ik + p_k - y_i) x_ik + K sum_i y_i - sum_k L_k p_k.

    Parameters
    ----------
    problem : AssignmentProblem
    plan_TE : array_like, shape (T, E)
        Any primal point x; entries at -inf scores must be 0.
    row_prices_T : array_like, shape (T,)
        Dual variables y of the rows sum_k x_ik = K.
    bias : array_like, shape (E,)
        Dual variables p of the columns.

    Notes
    -----
    At x = topK(gamma + p) the value is D(p) whatever y is.
    """
    check_problem(problem)
    plan_TE = np.asarray(plan_TE, dtype=np.float64)
    row_prices_T = np.asarray(row_prices_T, dtype=np.float64)
    for array, name, shape in (
        (plan_TE, "plan_TE", problem.scores_TE.shape),
        (row_prices_T, "row_prices_T", (problem.num_tokens,)),
    ):
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; this problem needs {shape}")
    reduced_TE = _biased(problem, bias) - row_prices_T[:, None]
    used = plan_TE != 0
    linear = float(np.sum(reduced_TE[used] * plan_TE[used]))
    return linear + problem.top_k * float(row_prices_T.sum()) - float(problem.target_E @ np.asarray(bias, np.float64))


def affinity(problem: AssignmentProblem, experts_TK: ArrayLike) -> float:
    """<gamma, x>: the summed scores of the chosen experts; may exceed LP* when loads are unbalanced."""
    check_problem(problem)
    experts = np.asarray(experts_TK)
    if experts.shape != (problem.num_tokens, problem.top_k) or experts.dtype.kind not in "iu":
        raise ValueError(
            f"experts_TK has shape {experts.shape} and dtype {experts.dtype}; "
            f"pass expert indices of shape ({problem.num_tokens}, {problem.top_k})"
        )
    if experts.min() < 0 or experts.max() >= problem.num_experts:
        raise ValueError(f"experts_TK holds indices outside 0..{problem.num_experts - 1}")
    return float(np.take_along_axis(problem.scores_TE, experts, axis=1).sum(dtype=np.float64))


def violation(load_E: ArrayLike, target_E: ArrayLike) -> Violation:
    """l1, l2 and linf norms of load - target, in tokens.

    Examples
    --------
    >>> violation([3, 1], [2.0, 2.0])
    Violation(l1=2.0, l2=1.4142135623730951, linf=1.0)
    """
    excess_E = np.asarray(load_E, dtype=np.float64) - np.asarray(target_E, dtype=np.float64)
    return Violation(float(np.abs(excess_E).sum()), float(np.sqrt(excess_E @ excess_E)), float(np.abs(excess_E).max()))


def center(bias: ArrayLike) -> NDArray[np.float64]:
    """Subtract the mean over experts (the last axis): D does not see it, so compare biases only after this."""
    array = np.asarray(bias, dtype=np.float64)
    return array - array.mean(axis=-1, keepdims=True)


def spread(bias: ArrayLike) -> float:
    """max(p) - min(p), in score units."""
    return float(np.ptp(np.asarray(bias, dtype=np.float64)))


@dataclass(frozen=True)
class StepCertificate:
    """What one dual step did, with the terms of claims C1 and C2 (score units, summed over tokens)."""

    dual_before: float
    """D(p)."""
    dual_after: float
    """D(p_next) on the same scores."""
    benefit: float
    """Total switching benefit, sum_i b_i >= 0."""
    lower: float
    """<A(p) - L, delta>, the linear term; -sum eps_k (A_k - L_k)^2 for an ALF-LB step."""
    upper: float
    """<A(p_next) - L, delta>."""
    switched_tokens: int
    """Tokens whose set of experts changed."""

    @property
    def change(self) -> float:
        """D(p_next) - D(p)."""
        return self.dual_after - self.dual_before

    @property
    def identity_residual(self) -> float:
        """C1 in floating point: change - (benefit + lower), zero up to rounding."""
        return self.change - (self.benefit + self.lower)

    @property
    def improves(self) -> bool:
        """C2's condition, benefit <= sum eps_k (A_k - L_k)^2: D does not rise if and only if it holds."""
        return self.benefit <= -self.lower

    @property
    def surely_improves(self) -> bool:
        """C2's sufficient condition, <A(p_next) - L, delta> <= 0."""
        return self.upper <= 0


def step_certificate(problem: AssignmentProblem, bias: ArrayLike, next_bias: ArrayLike) -> StepCertificate:
    """Certify one step p -> p_next on fixed scores: Lagrangian identity (C1), sandwich and condition (C2).

    Parameters
    ----------
    problem : AssignmentProblem
    bias, next_bias : array_like, shape (E,)
        p and p_next, any two biases; nothing is assumed about the rule.

    References
    ----------
    Han & Zhong, arXiv 2512.03915, Theorem 1, here for every K and every step. "Monotone improvement" is a
    condition to be checked, not a fact: see `StepCertificate.improves`.

    Examples
    --------
    The sign rule with u = 0.5 on two tokens raises D:

    >>> problem = AssignmentProblem([[0.3, 0.0], [0.5, 0.0]], top_k=1)
    >>> step = step_certificate(problem, [0.0, 0.0], [-0.5, 0.5])
    >>> step.improves, round(step.change, 12), step.switched_tokens
    (False, 0.2, 2)
    """
    before, after = allocate(problem, bias), allocate(problem, next_bias)
    delta_E = np.asarray(next_bias, np.float64) - np.asarray(bias, np.float64)
    next_biased_TE = _biased(problem, next_bias)
    kept_value_T = np.take_along_axis(next_biased_TE, before.experts_TK, axis=1).sum(axis=1)
    best_value_T = np.take_along_axis(next_biased_TE, after.experts_TK, axis=1).sum(axis=1)
    return StepCertificate(
        dual_before=dual_value(problem, bias),
        dual_after=dual_value(problem, next_bias),
        benefit=float(np.sum(best_value_T - kept_value_T)),
        lower=float((before.load_E - problem.target_E) @ delta_E),
        upper=float((after.load_E - problem.target_E) @ delta_E),
        switched_tokens=int(np.any(before.experts_TK != after.experts_TK, axis=1).sum()),
    )


@dataclass(frozen=True)
class GapCertificate:
    """An a-posteriori guarantee on LP* from one bias alone, no solver needed (claim C6)."""

    dual_value: float
    """D(p), at least LP*."""
    affinity: float
    """<gamma, x(p)>."""
    load_E: NDArray[np.int64]
    """A(p)."""
    violation_l1: float
    """||A(p) - L||_1, tokens."""
    gap_bound: float
    """D(p) - LP* is at most this."""
    affinity_excess_bound: float
    """affinity - LP* is at most this."""
    affinity_loss_bound: float
    """LP* - affinity is at most this."""

    @property
    def lower_bound(self) -> float:
        """The affinity less affinity_excess_bound, at most LP*.

        D(p) - gap_bound is never tighter, since D(p) - affinity = <A(p) - L, p> is at most `affinity_loss_bound`,
        which is what `gap_bound` exceeds `affinity_excess_bound` by.
        """
        return self.affinity - self.affinity_excess_bound

    @property
    def upper_bound(self) -> float:
        """D(p), at least LP*; affinity + affinity_loss_bound is never tighter."""
        return self.dual_value

    @property
    def gap(self) -> float:
        """upper_bound - lower_bound, the most by which either is off."""
        return self.upper_bound - self.lower_bound


def gap_certificate(problem: AssignmentProblem, bias: ArrayLike) -> GapCertificate:
    r"""Bound LP* from one bias by claim C6: near balance implies near-optimality, exact balance is optimal.

    Both bounds of C6 hold with rho replaced by the spread of some optimal bias: rho for equal targets, up to 2 rho for
    unequal ones (claim C16, `alflb.bounds.optimal_spread`).

    Examples
    --------
    >>> problem = AssignmentProblem([[0.75, 0.25], [0.75, 0.5]], top_k=1)
    >>> certificate = gap_certificate(problem, [0.0, 0.375])
    >>> certificate.lower_bound, certificate.upper_bound, certificate.gap
    (1.25, 1.25, 0.0)
    """
    check_problem(problem)
    equal_targets = bool(np.ptp(problem.target_E) == 0)
    optimal_spread = bounds.optimal_spread(
        problem.score_range, problem.num_experts, problem.top_k, equal_targets=equal_targets
    )
    experts_TK, load_E, _ = allocate(problem, bias)
    violation_l1 = violation(load_E, problem.target_E).l1
    return GapCertificate(
        dual_value=dual_value(problem, bias),
        affinity=affinity(problem, experts_TK),
        load_E=load_E,
        violation_l1=violation_l1,
        gap_bound=bounds.gap_bound(violation_l1, spread(bias), optimal_spread),
        affinity_excess_bound=bounds.affinity_excess_bound(violation_l1, optimal_spread),
        affinity_loss_bound=bounds.affinity_loss_bound(violation_l1, spread(bias)),
    )


def _biased(problem: AssignmentProblem, bias: ArrayLike) -> NDArray[np.float64]:
    return problem.scores_TE.astype(np.float64) + check_bias(bias, problem.num_experts)
