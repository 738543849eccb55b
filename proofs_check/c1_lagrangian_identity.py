"""C1, the Lagrangian identity.

For any biases p and p_next, any K and any tie-break,

    D(p_next) - D(p) = sum_i b_i + <A(p) - L, p_next - p>,   b_i >= 0,

where b_i is what token i gains by choosing afresh at p_next. Han & Zhong, arXiv 2512.03915, Theorem 1, state it for
their K and step; here it is checked for every K and every step.

BROKEN takes the load after the step instead of the load before it.
"""

from __future__ import annotations

from alflb import duality
from proofs_check._verdict import Verdict, random_bias, random_problems, witness

CLAIM = "C1"


def check(seed: int = 0, instances: int = 2000) -> Verdict:
    """Exact equality on integer instances."""
    return _check(seed, instances, load_after=False)


def BROKEN(seed: int = 0, instances: int = 2000) -> Verdict:
    """The control: with the load after the step the identity must fail."""
    return _check(seed, instances, load_after=True)


def _check(seed: int, instances: int, *, load_after: bool) -> Verdict:
    worst, tightest, smallest_benefit = 0.0, {}, 0.0
    for problem, rng in random_problems(seed, instances):
        bias, following = random_bias(problem.num_experts, rng), random_bias(problem.num_experts, rng)
        step = duality.step_certificate(problem, bias, following)
        residual = abs(step.change - step.benefit - (step.upper if load_after else step.lower))
        smallest_benefit = min(smallest_benefit, step.benefit)
        if residual > worst:
            worst, tightest = residual, witness(problem, bias=bias, next_bias=following)
    return Verdict(CLAIM, "equality", instances, worst, 0.0, worst == 0.0 and smallest_benefit >= 0.0, tightest)
