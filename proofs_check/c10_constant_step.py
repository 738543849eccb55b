"""C10, a constant step with convexity only.

Mean over n of f(p_n) - f(p*) <= |p_0 - p*|^2/(2 eta N) + eta G^2/2 (the subgradient method; Zinkevich 2003). Checked
in its stronger pathwise form on fixed scores, exactly and for any comparator q: with p_(n+1) = p_n + eta (L - A_n),

    mean_n D(p_n) - D(q) <= |p_0 - q|^2/(2 eta N) + (eta/2) mean_n |A_n - L|^2,

q being an optimal dual of the LP and an arbitrary bias. Taking expectations gives the statement for fresh batches.
Instances have L and N powers of two, so that everything is exact in float64.

BROKEN leaves the distance |p_0 - q| out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import numpy as np

from alflb import bounds, duality
from alflb.exact import solve_exact
from alflb.rules import make_rule
from proofs_check._instances import Instance, draw
from proofs_check._verdict import Verdict, worst_of

CLAIM = "C10"
TITLE = "constant step"
NUM_STEPS = 16


def check(seed: int = 0, instances: int = 250) -> Verdict:
    """Mean gap against the bound, for the optimum and an arbitrary comparator."""
    return worst_of(CLAIM, "upper", _binary(seed, instances), lambda one: mean_gap(one, with_distance=True))


def BROKEN(seed: int = 0, instances: int = 250) -> Verdict:
    """The control: without the distance the bound must be exceeded."""
    return worst_of(CLAIM, "upper", _binary(seed, instances), lambda one: mean_gap(one, with_distance=False))


def mean_gap(one: Instance, *, with_distance: bool) -> tuple[float, float]:
    """Mean of D(p_n) - D(q) and its bound, for the worse of two comparators."""
    rule = make_rule("proportional", one.step_size * one.problem.target_load)  # delta = step_size (L - A)
    run = one.run(NUM_STEPS, rule=rule)
    mean = sum(duality.dual_value(one.problem, bias_E) for bias_E in run.bias_NE[:-1]) / NUM_STEPS
    second_moment = float(np.sum((run.load_NE - run.target_E) ** 2)) / NUM_STEPS
    pairs = []
    for other_E in (_optimum(one), one.next_bias.astype(np.float64)):
        distance = float(np.sum((one.bias - other_E) ** 2)) if with_distance else 0.0
        bound = bounds.constant_step_gap(distance, NUM_STEPS, one.step_size, second_moment)
        pairs.append((mean - duality.dual_value(one.problem, other_E), bound))
    return max(pairs, key=lambda pair: pair[0] - pair[1])


def _optimum(one: Instance) -> np.ndarray:
    """An optimal dual on the grid 1/2, where midpoints of integer potentials live; the gauge fixed at expert 0."""
    bias_E = solve_exact(one.problem, method="highs").bias_E
    return np.rint(2 * (bias_E - bias_E[0])) / 2


def _binary(seed: int, count: int) -> Iterator[Instance]:
    """Instances with L a power of two and a step that is one too."""
    wanted = (one for one in draw(seed, 20 * count, integral=True) if math.frexp(one.problem.target_load)[0] == 0.5)
    for one in islice(wanted, count):
        step = 2 ** int(math.log2(one.step_size))
        yield Instance(one.scores, one.top_k, one.bias, step, one.next_bias)
