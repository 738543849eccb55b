"""C1, the Lagrangian identity.

For any scores, any biases p and p_next, any K and any tie-break, with delta = p_next - p,

    D(p_next) - D(p) = sum_i b_i + <A(p) - L, delta>,   b_i >= 0,

where b_i is what token i gains by choosing afresh at p_next. Han & Zhong, arXiv 2512.03915, Theorem 1, state it for
their K and step; here it is for every K and every step. With delta_k = eps_k (L - A_k) the last term is -sum eps_k
(A_k - L)^2.

BROKEN takes the load after the step instead of the load before it.
"""

from __future__ import annotations

from alflb import duality
from proofs_check._instances import Instance, draw
from proofs_check._smt import Model, Proof
from proofs_check._verdict import Verdict, worst_of

CLAIM = "C1"
TITLE = "Lagrangian identity"


def check(seed: int = 0, instances: int = 2000) -> Verdict:
    """|change - benefit - linear term|, and benefit >= 0."""
    return worst_of(CLAIM, "equality", draw(seed, instances, dyadic=True), lambda one: residual(one, load_after=False))


def BROKEN(seed: int = 0, instances: int = 2000) -> Verdict:
    """The control: with the load after the step the identity must fail."""
    return worst_of(CLAIM, "equality", draw(seed, instances, dyadic=True), lambda one: residual(one, load_after=True))


def residual(one: Instance, *, load_after: bool) -> tuple[float, int]:
    """How far the identity is off, plus any negative benefit; the claim allows 0."""
    step = duality.step_certificate(one.problem, one.bias, one.next_bias)
    linear = step.upper if load_after else step.lower
    return abs(step.change - step.benefit - linear) + max(0.0, -step.benefit), 0


def negation(model: Model, *, broken: bool) -> object:
    """Some scores and step break the identity or have a negative benefit."""
    before, after = model.step()
    linear = model.linear(after if broken else before)
    return model.any(
        model.change(before, after) != model.benefit(before, after) + linear, model.benefit(before, after) < 0
    )


PROOF = Proof(
    negation, sizes=lambda size: [(t, e, k) for t, e in size.shapes() for k in range(1, e + 1)], control=(1, 2, 1)
)
