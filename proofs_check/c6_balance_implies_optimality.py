"""C6, balance implies near-optimality (equal targets L, any L, any K, any bias, finite scores).

    D(p) - LP* <= 1/2 ||A - L||_1 (spread(p) + rho),
    -1/2 ||A - L||_1 spread(p) <= affinity - LP* <= 1/2 ||A - L||_1 rho.

Our own claim; it rests on an optimal bias of spread at most rho. LP* comes from `alflb.exact`, on instances where E
LP* is a whole number and L a multiple of 1/8: it is rounded to that grid, and the comparison is exact. All three are
attained (two tokens with equal scores, `witnesses.json`), so none can be improved by a factor.

BROKEN halves the first bound.
"""

from __future__ import annotations

import itertools

import numpy as np

from alflb import duality
from alflb.exact import solve_exact
from proofs_check._instances import Instance, draw
from proofs_check._search import climb
from proofs_check._smt import Model, Proof
from proofs_check._verdict import Verdict, worst_of

CLAIM = "C6"
TITLE = "balance implies near-optimality"


def check(seed: int = 0, instances: int = 250) -> Verdict:
    """All three inequalities; the one with the largest measured / bound is reported."""
    return worst_of(CLAIM, "tight", draw(seed, instances, dyadic=True), lambda one: worst_gap(one, factor=1.0))


def BROKEN(seed: int = 0, instances: int = 250) -> Verdict:
    """The control: half the bound must be exceeded somewhere."""
    return worst_of(CLAIM, "upper", draw(seed, instances, dyadic=True), lambda one: worst_gap(one, factor=0.5))


def worst_gap(one: Instance, *, factor: float) -> tuple[float, float]:
    """(measured, bound) of the dual gap, the affinity's excess or its loss: whichever is worst."""
    certificate = duality.gap_certificate(one.problem, one.bias)
    value = lp_value(one)
    excess = certificate.affinity - value
    pairs = [
        (certificate.dual_value - value, factor * certificate.gap_bound),
        (excess, certificate.affinity_excess_bound),
        (-excess, certificate.affinity_loss_bound),
    ]
    return max(pairs, key=lambda pair: (pair[0] > pair[1], pair[0] / pair[1] if pair[1] else 0.0))


def lp_value(one: Instance) -> float:
    """LP*, on the grid 1/E where it lives."""
    return round(solve_exact(one.problem, method="highs").value * one.num_experts) / one.num_experts


def tightest(seed: int, seconds: float) -> Verdict:
    """Largest dual gap / bound among instances with spread(p) > 0, where the bound's two terms are both at work."""

    def gap(one: Instance) -> tuple[float, float]:
        certificate = duality.gap_certificate(one.problem, one.bias)
        if duality.spread(one.bias) == 0:
            return 0, 1
        return certificate.dual_value - lp_value(one), certificate.gap_bound

    return climb(CLAIM, gap, seed=seed, seconds=seconds, dyadic=True)


def negation(model: Model, *, broken: bool) -> object:
    """Some scores and bias have a dual gap above the bound against *every* balanced assignment (whole L).

    The model's scores are gamma + p here; p is a further unknown, and s and r stand for spread(p) and rho: any
    numbers at least as large as the differences they bound.
    """
    z3, tokens, experts = model.z3, range(model.num_tokens), range(model.num_experts)
    held = model.choose("x", after=False)
    bias = [z3.Real(f"p_{k}") for k in experts]
    spread, rho = z3.Reals("s r")
    score = [[model.gamma[i][k] - bias[k] for k in experts] for i in tokens]
    differences = [spread >= bias[k] - bias[j] for k in experts for j in experts]
    differences += [rho >= score[i][k] - score[i][j] for i in tokens for k in experts for j in experts]
    dual = z3.Sum(*(model.top_sum(i, after=False) for i in tokens)) - model.target * z3.Sum(*bias)
    gap_at_least = [dual - z3.Sum(*(score[i][k] for i in tokens for k in row[i])) for row in _balanced(model)]
    target = model.top_k * model.num_tokens // model.num_experts
    cases = []
    for load in itertools.product(range(model.num_tokens + 1), repeat=model.num_experts):
        if sum(load) == model.top_k * model.num_tokens:
            half = sum(abs(tokens_k - target) for tokens_k in load) / (4 if broken else 2)
            is_load = [model.load_is(held, k, load[k].__eq__) for k in experts]
            cases.append(z3.And(*is_load, *(gap > half * (spread + rho) for gap in gap_at_least)))
    return z3.And(*differences, z3.Or(*cases))


def _balanced(model: Model) -> list[tuple[tuple[int, ...], ...]]:
    """Every assignment in which each expert has exactly L tokens."""
    rows = list(itertools.combinations(range(model.num_experts), model.top_k))
    target = model.top_k * model.num_tokens // model.num_experts
    return [
        plan
        for plan in itertools.product(rows, repeat=model.num_tokens)
        if np.all(np.bincount([k for row in plan for k in row], minlength=model.num_experts) == target)
    ]


PROOF = Proof(
    negation,
    sizes=lambda size: [(t, e, k) for t, e in size.shapes() for k in range(1, e + 1) if t * k % e == 0],
    control=(2, 2, 1),
)
