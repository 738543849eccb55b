"""C15, weights in hindsight (any sequence of sightings y_n and of regressors X_n, even chosen by an adversary).

Let A_n = rho I + sum_(m <= n) X_m' X_m, a_n = A_n^-1 sum_(m <= n) X_m' y_m, and let y_n be predicted by X_n a_(n-1).
Then, with r_n = y_n - X_n a_(n-1),
sum_n r_n' (I + X_n A_(n-1)^-1 X_n')^-1 r_n = min_a sum_n |y_n - X_n a|^2 + rho |a|^2.
So the squared errors of the weights learned on the way add up to at most 1 + (the largest leverage) times those of the
best fixed weights in hindsight, plus their prior. (Online ridge regression: Zhdanov & Kalnishkan 2010, for kernels.)

Among the weights of `self_tuning` are those of every constant step size 1/2^j and of the step 1/n, so this is the sense
in which it needs no step size: proof and what it does not say in docs/theory/self_tuning.md.

Checked exactly, in fractions. *Sharper*: the library's rule follows these weights on its own sightings.

BROKEN leaves the leverage out.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np

from alflb.rules import Observation, make_rule
from alflb.rules import self_tuning as rule
from proofs_check._verdict import Verdict

CLAIM = "C15"
TITLE = "weights in hindsight"
Matrix = tuple[tuple[Fraction, Fraction], tuple[Fraction, Fraction]]
Pair = tuple[Fraction, Fraction]
NUM_STEPS = 8
TOLERANCE = 1e-9


def check(seed: int = 0, instances: int = 100) -> Verdict:
    """Largest difference between the two sides, over random sequences of two regressors and two experts."""
    return _compare(seed, instances, leverage=True)


def BROKEN(seed: int = 0, instances: int = 100) -> Verdict:
    """The control: plain squared errors."""
    return _compare(seed, instances, leverage=False)


def sharper(seed: int = 0, instances: int = 20) -> Verdict:
    """The weights of the library's rule, against least squares on the averages and sightings that it went through."""
    worst = max(_difference(np.random.default_rng([seed, instance])) for instance in range(instances))
    return Verdict(CLAIM, "equality", instances, worst, TOLERANCE, worst <= TOLERANCE, {"seed": seed})


def _difference(rng: np.random.Generator) -> float:
    """Largest difference of a weight after 30 batches of independent tokens, from a calibrated start."""
    balancer, target_E, bias_E = make_rule("self_tuning"), np.full(6, 50.0), np.zeros(6)
    state = dataclasses.replace(balancer.init(6), curvature=2.0, step_size=0.5, noise=1.0, usual_tokens=300.0)
    prior_DD = rule.PRIOR_PRECISION * np.eye(rule.NUM_AVERAGES - 1)
    information_DD, evidence_D = np.zeros_like(prior_DD), np.zeros(len(prior_DD))
    for t in range(1, 31):
        load_E = rng.multinomial(300, np.full(6, 1 / 6))
        before = state
        bias_E, state = balancer.step(bias_E, Observation(t, target_E, load_E=load_E), state)
        regressors_ED = -np.diff(before.offset_ME, axis=0).T / state.step_size
        sighting_E = 1.0 - load_E / target_E - before.offset_ME[-1] / state.step_size
        if not np.array_equal(before.evidence_D, state.evidence_D):  # not a jump
            precision = 50.0 / before.noise
            information_DD = rule.LEARNING_MEMORY * information_DD + precision * regressors_ED.T @ regressors_ED
            evidence_D = rule.LEARNING_MEMORY * evidence_D + precision * regressors_ED.T @ sighting_E
    learned_D = np.linalg.solve(state.information_DD + prior_DD, state.evidence_D)
    return float(np.abs(np.linalg.solve(information_DD + prior_DD, evidence_D) - learned_D).max())


def _compare(seed: int, instances: int, *, leverage: bool) -> Verdict:
    for count in range(1, instances + 1):
        rng = np.random.default_rng([seed, count])
        prior = Fraction(int(rng.integers(1, 9)))
        steps = [(_matrix(rng), _pair(rng)) for _ in range(NUM_STEPS)]
        information: Matrix = ((prior, Fraction(0)), (Fraction(0), prior))
        evidence: Pair = (Fraction(0), Fraction(0))
        on_the_way = Fraction(0)
        for regressors, sighting in steps:
            error = _minus(sighting, _times(regressors, _solve(information, evidence)))
            spread = _plus_identity(_sandwich(regressors, information))
            on_the_way += _dot(error, _solve(spread, error)) if leverage else _dot(error, error)
            information, evidence = _learned(information, evidence, regressors, sighting)
        best = _solve(information, evidence)
        hindsight = prior * _dot(best, best)
        for regressors, sighting in steps:
            left = _minus(sighting, _times(regressors, best))
            hindsight += _dot(left, left)
        if on_the_way != hindsight:
            words = {"seed": seed, "instance": count}
            return Verdict(CLAIM, "equality", count, on_the_way, hindsight, False, words)
    return Verdict(CLAIM, "equality", instances, 0, 0, True, {"seed": seed})


def _matrix(rng: np.random.Generator) -> Matrix:
    (a, b), (c, d) = (tuple(Fraction(int(one), 2) for one in row) for row in rng.integers(-9, 10, (2, 2)))
    return ((a, b), (c, d))


def _pair(rng: np.random.Generator) -> Pair:
    first, second = (Fraction(int(one)) for one in rng.integers(-9, 10, 2))
    return first, second


def _dot(one: Pair, other: Pair) -> Fraction:
    return one[0] * other[0] + one[1] * other[1]


def _minus(one: Pair, other: Pair) -> Pair:
    return one[0] - other[0], one[1] - other[1]


def _times(matrix: Matrix, vector: Pair) -> Pair:
    return _dot(matrix[0], vector), _dot(matrix[1], vector)


def _solve(matrix: Matrix, vector: Pair) -> Pair:
    (a, b), (c, d) = matrix
    return (d * vector[0] - b * vector[1]) / (a * d - b * c), (a * vector[1] - c * vector[0]) / (a * d - b * c)


def _sandwich(regressors: Matrix, information: Matrix) -> Matrix:
    """X A^-1 X'."""
    first, second = (_solve(information, row) for row in regressors)
    return (
        (_dot(regressors[0], first), _dot(regressors[0], second)),
        (_dot(regressors[1], first), _dot(regressors[1], second)),
    )


def _plus_identity(matrix: Matrix) -> Matrix:
    (a, b), (c, d) = matrix
    return ((a + 1, b), (c, d + 1))


def _learned(information: Matrix, evidence: Pair, regressors: Matrix, sighting: Pair) -> tuple[Matrix, Pair]:
    """A + X'X and its right-hand side."""
    columns: Matrix = ((regressors[0][0], regressors[1][0]), (regressors[0][1], regressors[1][1]))
    (a, b), (c, d) = information
    grown: Matrix = (
        (a + _dot(columns[0], columns[0]), b + _dot(columns[0], columns[1])),
        (c + _dot(columns[1], columns[0]), d + _dot(columns[1], columns[1])),
    )
    gained = _times(columns, sighting)
    return grown, (evidence[0] + gained[0], evidence[1] + gained[1])
