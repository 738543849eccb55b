"""C6, balance implies near-optimality (equal targets, any K, any bias).

    D(p) - LP* <= 1/2 ||A - L||_1 (spread(p) + rho),
    -1/2 ||A - L||_1 spread(p) <= affinity - LP* <= 1/2 ||A - L||_1 rho.

LP* comes from `alflb.exact`, on integer instances where it is a multiple of 1 / SCALE and is rounded to it, so that the
comparison is exact. BROKEN halves the bound on the dual gap.
"""

from __future__ import annotations

from alflb import duality
from alflb.exact import solve_exact
from proofs_check._verdict import SCALE, Verdict, random_bias, random_problems, witness

CLAIM = "C6"


def check(seed: int = 0, instances: int = 300) -> Verdict:
    """All three inequalities; `measured / bound` of the dual gap tells how tight the first can be."""
    return _check(seed, instances, factor=1.0)


def BROKEN(seed: int = 0, instances: int = 300) -> Verdict:
    """The control: half the bound must be exceeded somewhere."""
    return _check(seed, instances, factor=0.5)


def _check(seed: int, instances: int, *, factor: float) -> Verdict:
    holds, tightest, best = True, {}, (0.0, 1.0)
    for problem, rng in random_problems(seed, instances):
        bias = random_bias(problem.num_experts, rng)
        value = round(solve_exact(problem, method="highs").value * SCALE) / SCALE
        certificate = duality.gap_certificate(problem, bias)
        gap, bound = certificate.dual_value - value, factor * certificate.gap_bound
        excess = certificate.affinity - value
        inside = -certificate.affinity_loss_bound <= excess <= certificate.affinity_excess_bound
        holds &= gap <= bound and inside
        if gap * best[1] > best[0] * bound:
            best, tightest = (gap, bound), witness(problem, bias=bias)
    return Verdict(CLAIM, "upper", instances, best[0], best[1], holds, tightest)
