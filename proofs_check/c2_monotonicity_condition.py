"""C2, the sandwich and the monotonicity condition.

    <A - L, delta>  <=  D(p_next) - D(p)  <=  <A_next - L, delta>,

so D falls if and only if the total benefit is at most -<A - L, delta> (for ALF-LB: sum eps_k (A_k - L)^2), and
surely if <A_next - L, delta> <= 0. That D *always* falls under the sign rule is false; BROKEN asserts it, and finds the
counterexample. (Versions 1 and 2 of Han & Zhong, arXiv 2512.03915, claim a monotonic improvement, version 3 a
monotonic improvement condition.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from alflb import duality
from alflb.problem import AssignmentProblem
from alflb.rules import make_rule
from proofs_check._verdict import SCALE, Verdict, random_bias, random_problems, witness

FloatVector = NDArray[np.float64]

CLAIM = "C2"


def check(seed: int = 0, instances: int = 2000) -> Verdict:
    """How far the change of D leaves the sandwich (it must not), and whether the condition decides its sign."""
    worst, tightest, decided = -np.inf, {}, True
    for problem, rng in random_problems(seed, instances):
        bias = random_bias(problem.num_experts, rng)
        following = _sign_step(problem, bias, rng) if rng.random() < 0.5 else random_bias(problem.num_experts, rng)
        step = duality.step_certificate(problem, bias, following)
        excess = max(step.lower - step.change, step.change - step.upper)
        decided &= step.improves == (step.change <= 0) and (step.change <= 0 or not step.surely_improves)
        if excess > worst:
            worst, tightest = excess, witness(problem, bias=bias, next_bias=following)
    return Verdict(CLAIM, "upper", instances, float(worst), 0.0, worst <= 0 and decided, tightest)


def BROKEN(seed: int = 0, instances: int = 2000) -> Verdict:
    """The control: unconditional monotonicity of the sign rule, which must be refuted."""
    worst = 0.0
    counterexample: dict[str, Any] = {}
    for problem, rng in random_problems(seed, instances):
        bias = random_bias(problem.num_experts, rng)
        following = _sign_step(problem, bias, rng)
        rise = duality.step_certificate(problem, bias, following).change
        if rise > 0 and (not counterexample or problem.scores_TE.size < np.size(counterexample["scores"])):
            worst, counterexample = rise, witness(problem, bias=bias, next_bias=following)
    return Verdict(CLAIM, "upper", instances, worst, 0.0, worst <= 0, counterexample)


def _sign_step(problem: AssignmentProblem, bias: FloatVector, rng: np.random.Generator) -> FloatVector:
    """One step of the library's sign rule with a random step size on the grid."""
    rule = make_rule("sign", int(rng.integers(1, SCALE + 1)) / SCALE)
    load_E = duality.allocate(problem, bias).load_E
    following, _ = rule.update(bias, load_E, problem.target_E, 1, rule.init(problem.num_experts))
    return following
