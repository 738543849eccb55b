"""C18, dynamic regret of the proportional rule (equal targets, p_0 = 0, any N batches of range at most rho).

With p_(n+1) = p_n - eta (A_n / T - K / E), for all comparators q_n of mean zero, the last of spread at most rho, and
V = sum_n ||q_n - q_(n-1)||_1,

    sum_n (D_n(p_n) - D_n(q_n)) / T  <=  (E rho^2 / 4 + (rho + eta) V) / (2 eta) + (eta / 2) N (K - K^2 / E),

which the best eta makes sqrt(N K (1 - K/E) (E rho^2 / 4 + rho V)) + V / 2. Among the comparators are optimal biases of
each batch by itself. No projection, no distribution, no curvature; V = 0 is C12.

*One mode of curvature h, exactly* (`sharper`): for x -> (1 - eta h) x - eta noise + motion, with motion of mean v and
variance q, the mean tends to v / (eta h) and the variance to (q + eta^2 sigma^2) / (eta h (2 - eta h)): these are the
lag and the noise of `alflb.bounds.proportional_tracking_cost`.

Our own claim, with proof in docs/theory/regret.md: Zinkevich's argument for moving comparators, with the bound on
p_n that makes a projection unnecessary: spread(p_n) <= rho + eta.

BROKEN leaves the path out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from alflb import bounds, duality
from alflb.exact import solve_exact
from alflb.problem import AssignmentProblem
from alflb.rules import make_rule
from proofs_check._instances import Instance
from proofs_check._loop import run_rule
from proofs_check._verdict import Verdict, worst_of
from proofs_check.c11_bounded_bias import Batches
from proofs_check.c12_adversarial_regret import ROUNDING, usable

CLAIM = "C18"
TITLE = "dynamic regret"
LENGTHS = (1, 3, 12)
TOLERANCE = 1e-9
RegretBound = Callable[[float, int, int, int, float], float]


def check(seed: int = 0, instances: int = 100) -> Verdict:
    """Regret against each batch's own optimal bias, over its bound, for runs of three lengths."""
    return worst_of(CLAIM, "tight", usable(seed, instances), lambda one: worst_regret(one, bounds.dynamic_regret))


def BROKEN(seed: int = 0, instances: int = 100) -> Verdict:
    """The control: the bound for comparators that stand still must be exceeded."""

    def still(score_range: float, num_steps: int, num_experts: int, top_k: int, _path: float) -> float:
        return bounds.dynamic_regret(score_range, num_steps, num_experts, top_k, 0.0)

    return worst_of(CLAIM, "tight", usable(seed, instances), lambda one: worst_regret(one, still))


def sharper(seed: int = 0, instances: int = 200) -> Verdict:
    """Largest relative error of lag and noise in the library's formula, against the recursion run to its limit."""
    rng = np.random.default_rng(seed)
    worst = max(_formula_error(rng) for _ in range(instances))
    return Verdict(CLAIM, "numeric", instances, worst, TOLERANCE, worst <= TOLERANCE, {"seed": seed})


def worst_regret(one: Instance, bound_of: RegretBound) -> tuple[float, float]:
    """Regret per token and its bound at the length where their ratio is largest; rounding is granted to the bound."""
    pairs = [_regret(one, num_steps, bound_of) for num_steps in LENGTHS]
    return max(pairs, key=lambda pair: pair[0] / pair[1])


def _regret(one: Instance, num_steps: int, bound_of: RegretBound) -> tuple[float, float]:
    batches = [AssignmentProblem(batch, one.top_k) for batch in islice(_stream(one), num_steps)]
    moving_NE = np.array([narrow_optimum(batch) for batch in batches])
    path = float(np.abs(np.diff(moving_NE, axis=0)).sum())
    eta = bounds.dynamic_step(one.score_range, num_steps, one.num_experts, one.top_k, path)
    bias_NE, _ = run_rule(
        [batch.scores_TE for batch in batches],
        make_rule("proportional", eta * one.top_k / one.num_experts),
        one.problem.target_E,
        top_k=one.top_k,
        num_steps=num_steps,
    )
    charged = [duality.dual_value(batch, bias_E) for batch, bias_E in zip(batches, bias_NE)]
    best = [duality.dual_value(batch, bias_E) for batch, bias_E in zip(batches, moving_NE)]
    slip = ROUNDING * float(np.abs([*charged, *best]).sum())
    allowed = bound_of(one.score_range, num_steps, one.num_experts, one.top_k, path)
    return (sum(charged) - sum(best)) / one.num_tokens, allowed + slip / one.num_tokens


def narrow_optimum(problem: AssignmentProblem) -> NDArray[np.float64]:
    """An optimal bias of mean zero and spread at most rho: cut at rho above its lowest entry (C6)."""
    bias_E = solve_exact(problem).bias_E
    return duality.center(np.minimum(bias_E, bias_E.min() + problem.score_range))


def _stream(one: Instance) -> Iterator[NDArray[np.float64]]:
    """Batches of one instance; a batch of equal rows alternates with its mirror image, so that p* jumps.

    The first of `usable` is of that kind, and attains the bound at one step.
    """
    if not np.ptp(one.scores, axis=0).any():
        while True:
            yield one.scores.astype(np.float64)
            yield one.scores[:, ::-1].astype(np.float64)
    yield from Batches(one).batches(0)


def _formula_error(rng: np.random.Generator) -> float:
    """Two experts, one mode: the recursion of mean and variance, against the library's cost."""
    curvature, share = float(rng.uniform(0.05, 0.5)), float(rng.uniform(0.05, 1.95))
    gain = share / curvature
    motion = bounds.TargetMotion(speed=float(rng.uniform(0, 0.1)), diffusion=float(rng.uniform(0, 0.01)))
    num_tokens = int(rng.integers(10, 1000))
    noise = 0.25 / num_tokens
    mean, variance = 0.0, 0.0
    for _ in range(int(60 / min(share, 2 - share))):
        mean = (1 - share) * mean + motion.speed
        variance = (1 - share) ** 2 * variance + motion.diffusion + gain**2 * noise
    said = bounds.proportional_tracking_cost(gain / 2, motion, num_tokens, 1, [curvature])
    return abs(said.bias_sd**2 / (mean**2 + variance) - 1)
