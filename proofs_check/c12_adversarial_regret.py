"""C12, adversarial regret of the proportional rule, without projection (equal targets, p_1 = 0, any N batches).

With g_n = A_n / T - K / E, the step p_(n+1) = p_n - eta g_n and eta = (rho / 2) sqrt(E / (N K (1 - K / E))),

    sum_n D_n(p_n) / T - min_p sum_n D_n(p) / T <= (rho / 2) sqrt(N K (E - K)),

for every sequence of batches whose tokens' scores span at most rho. No distribution, no domain, no curvature.

Our own claim, with proof in docs/theory/regret.md: C10 holds pathwise against the optimum of the pooled problem, which
can be chosen with spread <= rho (C6), hence with norm <= rho sqrt(E) / 2; and |g|^2 <= K - K^2 / E. It is attained at
N = 1, E = 2, K = 1.

BROKEN charges half the distance of the pooled optimum.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import numpy as np

from alflb import bounds, duality
from alflb.exact import solve_exact
from alflb.problem import AssignmentProblem
from alflb.rules import make_rule
from alflb.simulation import simulate
from proofs_check._instances import Instance, draw
from proofs_check._verdict import Verdict, worst_of
from proofs_check.c11_bounded_bias import Batches

CLAIM = "C12"
TITLE = "adversarial regret"
LENGTHS = (1, 3, 12)
RegretBound = Callable[[float, int, int, int], float]
ROUNDING = 1e-9
"""Relative to the sum of |D_n|: steps and dual values are rounded here, unlike in C1 to C6."""


def check(seed: int = 0, instances: int = 120) -> Verdict:
    """Regret against the best fixed bias of all batches together, over its bound, for runs of three lengths."""
    return worst_of(CLAIM, "tight", usable(seed, instances), lambda one: worst_regret(one, bounds.adversarial_regret))


def BROKEN(seed: int = 0, instances: int = 120) -> Verdict:
    """The control: half the bound must be exceeded."""
    return worst_of(
        CLAIM,
        "tight",
        usable(seed, instances),
        lambda one: worst_regret(one, lambda *given: bounds.adversarial_regret(*given) / 2),
    )


def worst_regret(one: Instance, bound_of: RegretBound) -> tuple[float, float]:
    """Regret per token and its bound at the length where their ratio is largest; rounding is granted to the bound."""
    pairs = [_regret(one, num_steps, bound_of) for num_steps in LENGTHS]
    return max(pairs, key=lambda pair: pair[0] / pair[1] if pair[1] else 0.0)


def _regret(one: Instance, num_steps: int, bound_of: RegretBound) -> tuple[float, float]:
    share = one.top_k / one.num_experts
    eta = bounds.adversarial_step(one.score_range, num_steps, one.num_experts, one.top_k)
    stream = Batches(one)
    run = simulate(
        stream,
        make_rule("proportional", eta * share),  # p moves by u times the shortfall relative to L, so eta = u E / K
        top_k=one.top_k,
        num_steps=num_steps,
        backend="reference",
    )
    measured, slip = regret(list(islice(stream.batches(0), num_steps)), run.bias_NE, one.top_k)
    return measured, slip + bound_of(one.score_range, num_steps, one.num_experts, one.top_k)


def regret(batches: list[np.ndarray], bias_NE: np.ndarray, top_k: int) -> tuple[float, float]:
    """Regret per token against the best fixed bias of all batches, and what rounding may add to it."""
    charged = sum(
        duality.dual_value(AssignmentProblem(batch, top_k), bias_E) for batch, bias_E in zip(batches, bias_NE)
    )
    best = solve_exact(AssignmentProblem(np.concatenate(batches), top_k)).value
    slip = ROUNDING * (abs(charged) + abs(best))
    return (charged - best) / len(batches[0]), slip / len(batches[0])


def usable(seed: int, count: int) -> list[Instance]:
    """Two equal experts first, where the bound is attained; then instances with a choice to make (K < E, rho > 0)."""
    attained = Instance.of([[2, 0], [2, 0]], 1)
    drawn = draw(seed, 4 * count, integral=True)
    return [attained, *[one for one in drawn if one.top_k < one.num_experts and one.score_range > 0][:count]]
