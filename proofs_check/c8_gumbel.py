"""C8, Gumbel scores with K = 1: everything in closed form.

gamma_k = a_k + Gumbel(0, 1): f(p) = logsumexp(a + p) + Euler - mean(p), pi = softmax(a + p), Hessian diag(pi) - pi pi',
p* = mean(a) - a. Standard (multinomial logit). Checked against the general quadrature, and at p* against sampled
loads of the library's Gumbel stream.

BROKEN uses the softmax for K = 2 as well (K softmax), where no closed form of this kind holds.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from alflb.population import GumbelTopOne, IndependentScores
from alflb.rules import make_rule
from alflb.simulation import simulate
from alflb.streams import make_stream
from proofs_check._random import FALSE_ALARM, first_failure_or_worst
from proofs_check._verdict import Verdict

CLAIM = "C8"
TITLE = "Gumbel closed form"
TOLERANCE = 1e-10


def check(seed: int = 0, instances: int = 40) -> Verdict:
    """Worst difference between closed form and quadrature, and balance at p* in a sample."""
    return first_failure_or_worst([_against_quadrature(seed, instances, top_k=1), _balanced_at_optimum(seed)])


def BROKEN(seed: int = 0, instances: int = 40) -> Verdict:
    """The control: K softmax is not pi for K = 2."""
    return _against_quadrature(seed, instances, top_k=2)


def _against_quadrature(seed: int, count: int, *, top_k: int) -> Verdict:
    rng = np.random.default_rng(seed)
    worst, words = 0.0, {}
    for _ in range(count):
        num_experts = int(rng.integers(3, 17))
        offsets, bias = rng.standard_normal((2, num_experts)).round(3)
        closed = GumbelTopOne(offsets)
        general = IndependentScores(stats.gumbel_r(), top_k, offsets=offsets)
        errors = [np.abs(top_k * closed.pick_probability(bias) - general.pick_probability(bias)).max()]
        if top_k == 1:
            errors += [
                abs(closed.value(bias) - general.value(bias)),
                np.abs(closed.tie_density(bias) - general.tie_density(bias)).max(),
                np.abs(general.optimum() - closed.optimum()).max(),
            ]
        if max(errors) > worst:
            worst, words = float(max(errors)), {"offsets": offsets.tolist(), "bias": bias.tolist(), "top_k": top_k}
    return Verdict(CLAIM, "numeric", count, worst, TOLERANCE, worst <= TOLERANCE, words)


def _balanced_at_optimum(seed: int, num_tokens: int = 1000, num_steps: int = 20) -> Verdict:
    """Loads at p* are balanced: exact binomial tests, Bonferroni over experts."""
    offsets = (0.7, -0.3, 0.1, -0.5)
    stream = make_stream("gumbel", num_tokens=num_tokens, num_experts=4, offsets=offsets)
    optimum = GumbelTopOne(offsets).optimum()
    run = simulate(
        stream, make_rule("sign", 0.0), top_k=1, num_steps=num_steps, seed=seed, bias_init=optimum, backend="reference"
    )
    least = min(stats.binomtest(n, num_tokens * num_steps, 0.25).pvalue for n in run.load_NE.sum(axis=0).tolist())
    evidence, allowed = float(-np.log10(max(least, 1e-300))), float(-np.log10(FALSE_ALARM / 4))
    return Verdict(CLAIM, "statistical", 4, evidence, allowed, evidence <= allowed, {"seed": seed})
