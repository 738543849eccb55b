"""Minimising D(p) from loads alone, on any backend: E unknowns, one routing of the tokens an evaluation.

D is convex and piecewise linear, with about as many pieces as tokens that tie, so to a quasi-Newton method it looks
smooth until only a few tokens are left to move. The gradient A(p) - L comes with the value. All that depends on the
number of tokens is done by the kernels, on the GPU with ``backend="torch:cuda"``, where a drawn batch is made too; the
host sees E loads and one sum an evaluation. What is found is then evaluated anew in float64 on the host and bounded by
claim C6, so neither the kernels nor the search have to be believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from alflb import bounds, duality
from alflb.kernels import get_kernels
from alflb.kernels.draws import Draw
from alflb.problem import AssignmentProblem, FloatArray, check_count, check_scores, check_top_k, target_load_E

_MEMORY = 30
"""Steps from which L-BFGS learns the curvature."""


@dataclass(frozen=True, eq=False)
class DualMinimum:
    """A bias, and the bounds on LP* that follow from it."""

    value: float
    """D(p), at least LP*; float64, score units summed over tokens."""
    lower_bound: float
    """At most LP* by claim C6; equal to `value` if the loads are exactly balanced."""
    bias_E: NDArray[np.float64]
    """p, centred."""
    load_E: NDArray[np.int64]
    """A(p) in float64 arithmetic, tokens."""
    evaluations: int
    """How often all tokens were routed."""

    @property
    def gap_bound(self) -> float:
        """D(p) - LP* is at most this."""
        return self.value - self.lower_bound


def minimise_dual(
    batches: Sequence[FloatArray | Draw], top_k: int, *, backend: str = "torch", max_evaluations: int = 200
) -> DualMinimum:
    r"""Minimise :math:`D(p) = \sum_i S_K(\gamma_i + p) - L \sum_k p_k` over the tokens of all batches together.

    Parameters
    ----------
    batches : sequence of array of float32 or float64, shape (tokens, E), or of Draw
        Scores, or the draws of a `DrawnStream`, whose scores are made where they are routed.
    top_k : int
        K, 1 <= K <= E. The target is exact balance.
    backend : str
        Where tokens are routed (`alflb.kernels.get_kernels`).
    max_evaluations : int
        About how often the tokens may be routed.

    Returns
    -------
    DualMinimum

    Raises
    ------
    ValueError
        If there is no batch, or one is not as described.

    Notes
    -----
    The search ends where rounding of the sum, or the last few tokens, hide any further descent. It usually stops with a
    few tokens out of balance. `lower_bound` is honest about what C6 proves from that, which may be much less than what
    is true: for a proof that closes use `alflb.exact.solve_exact`.

    References
    ----------
    docs/claims.md, claim C6. Liu & Nocedal, "On the limited memory BFGS method", Math. Programming 45, 1989.

    Examples
    --------
    >>> import itertools
    >>> from alflb.streams import make_stream
    >>> draws = itertools.islice(make_stream("logistic", num_tokens=4096, num_experts=8).draws(seed=0), 2)
    >>> found = minimise_dual(list(draws), top_k=2, backend="numba")
    >>> int(abs(found.load_E - 2048).max()) < 10, found.gap_bound < 1e-2 * found.value
    (True, True)
    """
    batches = [batch if isinstance(batch, Draw) else check_scores(batch) for batch in batches]
    if not batches:
        raise ValueError("batches is empty; pass at least one batch of scores, or one draw")
    num_experts = _num_experts(batches[0])
    if any(_num_experts(batch) != num_experts for batch in batches):
        raise ValueError("batches differ in the number of experts; it must not change")
    top_k = check_top_k(top_k, num_experts)
    num_tokens = sum(batch.num_tokens if isinstance(batch, Draw) else len(batch) for batch in batches)
    target_E = target_load_E(num_tokens, num_experts, top_k)
    kernels = get_kernels(backend)

    def per_token(bias_E: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """D(p) and A(p) - L over the number of tokens."""
        load_E, dual_sum = np.zeros(num_experts, dtype=np.int64), 0.0
        for batch in batches:
            route = kernels.drawn_loads if isinstance(batch, Draw) else kernels.loads
            batch_load_E, batch_sum = route(batch, bias_E, top_k)  # type: ignore[arg-type]
            load_E += batch_load_E
            dual_sum += batch_sum
        return (dual_sum - float(target_E @ bias_E)) / num_tokens, (load_E - target_E) / num_tokens

    options = {
        "maxcor": _MEMORY,
        "maxfun": check_count(max_evaluations, "max_evaluations"),
        "maxiter": max_evaluations,
        "ftol": 0.0,
        "gtol": 0.0,
    }
    found = minimize(per_token, np.zeros(num_experts), jac=True, method="L-BFGS-B", options=options)
    return _certified(batches, top_k, duality.center(found.x).astype(np.float64), target_E, int(found.nfev))


def _num_experts(batch: FloatArray | Draw) -> int:
    return batch.offset_E.size if isinstance(batch, Draw) else batch.shape[1]


def _certified(
    batches: Sequence[FloatArray | Draw],
    top_k: int,
    bias_E: NDArray[np.float64],
    target_E: NDArray[np.float64],
    evaluations: int,
) -> DualMinimum:
    """Value, loads and the bounds of claim C6, in float64 on the host, one batch in memory at a time."""
    load_E, value, score_range = np.zeros(len(bias_E), dtype=np.int64), -float(target_E @ bias_E), 0.0
    for batch in batches:
        problem = AssignmentProblem(batch.scores() if isinstance(batch, Draw) else batch, top_k)
        _, batch_load_E, dual_sum = duality.allocate(problem, bias_E)
        load_E += batch_load_E
        value += dual_sum
        score_range = max(score_range, problem.score_range)
    violation = duality.violation(load_E, target_E).l1
    affinity = value - float((load_E - target_E) @ bias_E)
    lower_bound = max(
        value - bounds.gap_bound(violation, duality.spread(bias_E), score_range),
        affinity - bounds.affinity_excess_bound(violation, score_range),
    )
    return DualMinimum(value, lower_bound, bias_E, load_E, evaluations)
