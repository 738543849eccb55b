"""C7, the population's gradient and Hessian (independent scores with bounded densities, any K < E).

The gradient of f is pi - K/E. The Hessian is a weighted graph Laplacian with weights c_kj, the density of experts k
and j tying at the top-K boundary, and lambda_2 >= E min_kj c_kj. *Corrected here*: the theory page asks that all
pairs can tie for strong convexity; it is enough that the graph of pairs that can tie is connected, since a weighted
Laplacian has lambda_2 > 0 exactly then (`chain`: uniform scores, two of which never tie).

Checked: finite differences of f and of pi against the quadrature; lambda_2 against E min c; and the picks of sampled
tokens, by the library's own simulation, against pi, with exact binomial (Clopper-Pearson) intervals at a stated
false-alarm rate.

BROKEN takes the density of a tie at the boundary of top-(K+1).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from alflb.population import IndependentScores, Population
from alflb.rules import make_rule
from alflb.simulation import simulate
from alflb.streams import make_stream
from proofs_check._random import FALSE_ALARM, SHAPES, first_failure_or_worst, populations
from proofs_check._verdict import Verdict

CLAIM = "C7"
TITLE = "Hessian of the population"
TOLERANCE = 2e-7
"""What finite differences may err by: rounding / h and higher derivatives, and h times a kink where densities jump."""

FloatArray = NDArray[np.float64]


def check(seed: int = 0, instances: int = 14) -> Verdict:
    """Worst finite-difference error, worst E min c - lambda_2, and sampled picks outside their intervals."""
    return first_failure_or_worst([_derivatives(seed, instances, shift=0), _connected(), _sampled(seed)])


def BROKEN(seed: int = 0, instances: int = 14) -> Verdict:
    """The control: ties at the boundary of top-(K+1) are not the Hessian."""
    return _derivatives(seed, instances, shift=1)


def chain() -> IndependentScores:
    """Uniform experts on [0, 1], [2, 3] and twice [0, 3], K = 2: the first two never tie, yet f is strongly convex."""
    wide = stats.uniform(0, 3)
    return IndependentScores([stats.uniform(), stats.uniform(2, 1), wide, wide], top_k=2)


def difference(function: Callable[[FloatArray], FloatArray], at: FloatArray, step: float) -> FloatArray:
    """Fourth-order central differences along every coordinate, stacked."""
    rows = [
        (
            8 * (function(at + step * e) - function(at - step * e))
            - function(at + 2 * step * e)
            + function(at - 2 * step * e)
        )
        / (12 * step)
        for e in np.eye(len(at))
    ]
    return np.array(rows)


def _derivatives(seed: int, count: int, *, shift: int) -> Verdict:
    worst = Verdict(CLAIM, "numeric", 0, 0.0, TOLERANCE, True)
    for tried, (words, population, bias) in enumerate(populations(seed, count), start=1):
        pi = population.pick_probability
        top_k = min(population.top_k + shift, population.num_experts)
        weighed = IndependentScores(population.distributions, top_k, offsets=population.offset_E)
        hessian = weighed.hessian(bias)
        error = max(
            np.abs(difference(lambda p: np.array(population.value(p)), bias, 1e-3) - population.gradient(bias)).max(),  # noqa: B023
            np.abs(difference(pi, bias, 1e-3) - hessian).max(),
            np.abs(hessian.sum(axis=1)).max(),
            _least_weight(weighed, bias) - population.curvatures(bias)[0],
        )
        error = float(error) if _is_smooth(words["distributions"]) else _coarse(population, bias, hessian, error)
        if error > worst.measured:
            worst = Verdict(CLAIM, "numeric", tried, error, TOLERANCE, error <= TOLERANCE, words)
        if not worst.holds:
            return worst
    return Verdict(CLAIM, "numeric", count, worst.measured, TOLERANCE, worst.holds, worst.witness)


def _is_smooth(kinds: list[str]) -> bool:
    return not {"uniform", "exponential", "beta(2, 5)"} & set(kinds)


def _coarse(population: Population, bias: FloatArray, hessian: FloatArray, error: float) -> float:
    """Where densities jump, pi is only piecewise smooth: differences over shorter and shorter steps, best of three."""
    if error <= TOLERANCE:
        return float(error)
    errors = []
    for step in (1e-4, 3e-5, 1e-5):
        gradient = difference(lambda p: np.array(population.value(p)), bias, step) - population.gradient(bias)
        errors.append(
            max(np.abs(gradient).max(), np.abs(difference(population.pick_probability, bias, step) - hessian).max())
        )
    return float(min(errors))


def _least_weight(population: Population, bias: FloatArray) -> float:
    """E min over pairs of c_kj."""
    weight = population.tie_density(bias)
    return population.num_experts * float(weight[~np.eye(len(weight), dtype=bool)].min())


def _connected() -> Verdict:
    """lambda_2 of `chain` must be positive although the least weight is 0."""
    population, zero = chain(), np.zeros(4)
    lowest, least = float(population.curvatures(zero)[0]), _least_weight(population, zero)
    return Verdict(CLAIM, "numeric", 1, least, lowest, least < 1e-12 and lowest > 0.1, {"chain": "lambda_2"})


def _sampled(seed: int, num_tokens: int = 1000, num_steps: int = 20) -> Verdict:
    """Counts of picks over 20,000 tokens of three streams: -log10 of the least p-value, Bonferroni-corrected."""
    cases = [("logistic", "logistic", 2), ("uniform", "uniform", 3), ("gumbel", "Gumbel", 1)]
    offsets, bias = (0.0, 0.3, -0.2, 0.5, -0.6), np.array([0.1, -0.2, 0.3, -0.1, -0.1])
    least = 1.0
    for name, shape, top_k in cases:
        stream = make_stream(name, num_tokens=num_tokens, num_experts=5, offsets=offsets)
        run = simulate(
            stream,
            make_rule("sign", 0.0),
            top_k=top_k,
            num_steps=num_steps,
            seed=seed,
            bias_init=bias,
            backend="reference",
        )
        pi = IndependentScores(SHAPES[shape], top_k, offsets=offsets).pick_probability(bias)
        for picked, chance in zip(run.load_NE.sum(axis=0).tolist(), pi.tolist()):
            least = min(least, float(stats.binomtest(picked, num_tokens * num_steps, chance).pvalue))
    evidence, allowed = -np.log10(max(least, 1e-300)), -np.log10(FALSE_ALARM / 15)
    return Verdict(CLAIM, "statistical", 15, float(evidence), float(allowed), bool(evidence <= allowed), {"seed": seed})
