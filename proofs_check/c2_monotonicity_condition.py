"""C2, the sandwich and the monotonicity condition.

For any scores, K, p and p_next, with delta = p_next - p,

    <A(p) - L, delta>  <=  D(p_next) - D(p)  <=  <A(p_next) - L, delta>,

so D does not rise if and only if the total benefit is at most -<A(p) - L, delta> (for ALF-LB: sum eps_k (A_k - L)^2),
and surely if <A(p_next) - L, delta> <= 0. (Convexity of D; Han & Zhong, arXiv 2512.03915, version 3, "a monotonic
improvement condition".)

BROKEN asserts what versions 1 and 2 of the same paper claim, "a monotonic improvement": D falls at every step. It is
false for the sign rule *and* for the proportional rule, at every step size: scaling scores, biases and step together
scales the rise, and one token with two equal scores already sees D rise under any step (docs/theory/one_step.md).
"""

from __future__ import annotations

import numpy as np

from alflb import duality
from alflb.rules import Observation, Rule, make_rule
from proofs_check._instances import Instance, draw, smallest
from proofs_check._smt import Model, Proof
from proofs_check._verdict import Verdict, worst_of

CLAIM = "C2"
TITLE = "monotonicity condition"


def check(seed: int = 0, instances: int = 2000) -> Verdict:
    """How far the change of D leaves the sandwich, and whether the condition decides its sign."""
    return worst_of(CLAIM, "condition", draw(seed, instances, dyadic=True), excess)


def BROKEN(seed: int = 0, instances: int = 2000) -> Verdict:
    """The control: unconditional monotonicity of the sign rule, which must be refuted."""
    return worst_of(CLAIM, "upper", draw(seed, instances, dyadic=True), lambda one: (rise(one, "sign"), 0))


def excess(one: Instance) -> tuple[float, int]:
    """How far outside the sandwich a free step and a sign step are; 1 more when the condition errs."""
    seen = Observation(1, one.problem.target_E, load_E=duality.allocate(one.problem, one.bias).load_E)
    sign_next, _ = make_rule("sign", one.step_size).step(one.bias.astype(np.float64), seen, ())
    worst = 0.0
    for following in (one.next_bias, sign_next):
        step = duality.step_certificate(one.problem, one.bias, following)
        worst = max(worst, step.lower - step.change, step.change - step.upper)
        worst += step.improves != (step.change <= 0) or (step.change > 0 and step.surely_improves)
    return worst, 0


def rise(one: Instance, rule: str) -> float:
    """D(p_next) - D(p) after one step; the proportional rule's step is chosen so that delta = step_size (L - A)."""
    chosen: Rule = make_rule(rule, one.step_size * (one.problem.target_load if rule == "proportional" else 1.0))
    bias_NE = one.run(1, rule=chosen).bias_NE
    return duality.step_certificate(one.problem, bias_NE[0], bias_NE[1]).change


def counterexamples() -> dict[str, Instance | None]:
    """The smallest instances (T E, then integers) on which a step raises D, by exhaustion."""
    return {
        "sign rule raises D": smallest(lambda one: rise(one, "sign") > 0),
        "proportional rule raises D": smallest(lambda one: rise(one, "proportional") > 0),
        "sign rule raises D, whole L": smallest(lambda one: one.problem.is_integral and rise(one, "sign") > 0),
        "proportional rule raises D, whole L": smallest(
            lambda one: one.problem.is_integral and rise(one, "proportional") > 0
        ),
        "sign rule raises D, no ties": smallest(lambda one: _no_ties(one) and rise(one, "sign") > 0),
        "proportional rule raises D, no ties": smallest(
            lambda one: _no_ties(one) and rise(one, "proportional") > 0, max_level=3
        ),
    }


def _no_ties(one: Instance) -> bool:
    return all(len(set(row)) == len(row) for row in one.scores.tolist())


def negation(model: Model, *, broken: bool) -> object:
    """Some step leaves the sandwich; broken: some sign step (u = 1) raises D."""
    before, after = model.step()
    change = model.change(before, after)
    if broken:
        return model.all(model.sign_step(before), change > 0)
    return model.any(change < model.linear(before), change > model.linear(after))


PROOF = Proof(
    negation, sizes=lambda size: [(t, e, k) for t, e in size.shapes() for k in range(1, e + 1)], control=(1, 2, 1)
)
