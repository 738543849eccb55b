"""The population oracle: closed forms, finite differences, symmetry, speed and honest refusals."""

import time

import numpy as np
import pytest
from scipy import stats

import alflb
from alflb.population import GumbelTopOne, IndependentScores, gumbel_pick_range

SHAPES = {
    "logistic": stats.logistic(),
    "normal": stats.norm(scale=2.0),
    "uniform": stats.uniform(),
    "exponential": stats.expon(),
    "beta": stats.beta(2, 5),
    "t(4)": stats.t(4),
}


def population(shape, num_experts=6, top_k=2, seed=0):
    return IndependentScores(
        SHAPES[shape], top_k, offsets=0.3 * np.random.default_rng(seed).standard_normal(num_experts)
    )


def bias(num_experts=6, seed=1):
    return 0.2 * np.random.default_rng(seed).standard_normal(num_experts)


def differences(function, at, step=1e-5):
    return np.array([(function(at + step * e) - function(at - step * e)) / (2 * step) for e in np.eye(len(at))])


@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives_are_derivatives(shape):
    one, at = population(shape), bias()
    assert np.abs(differences(one.value, at) - one.gradient(at)).max() < 5e-9
    assert np.abs(differences(one.pick_probability, at) - one.hessian(at)).max() < 5e-9


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("top_k", [1, 3, 5, 6])
def test_picks_sum_to_k_and_optimum_balances(shape, top_k):
    one = population(shape, top_k=top_k)
    assert one.pick_probability(bias()).sum() == pytest.approx(top_k, abs=1e-8)
    if top_k < 6:
        optimum = one.optimum()
        assert np.abs(one.pick_probability(optimum) - top_k / 6).max() < 1e-10
        assert abs(optimum.mean()) < 1e-12


def test_nodes_are_dense_where_the_top_k_is_decided():
    """Many unlike experts: quantiles of each alone leave the few scores around the K-th best too coarse a grid."""
    offsets = 3.0 * np.random.default_rng(0).standard_normal(256)
    coarse, fine = (IndependentScores(stats.logistic(), 128, offsets=offsets, order=order) for order in (12, 20))
    assert np.abs(coarse.pick_probability(np.zeros(256)) - fine.pick_probability(np.zeros(256))).max() < 1e-13


def test_more_nodes_change_nothing():
    coarse = IndependentScores(stats.logistic(), 3, offsets=np.linspace(-1, 1, 9))
    fine = IndependentScores(stats.logistic(), 3, offsets=np.linspace(-1, 1, 9), order=40)
    at = bias(9)
    assert coarse.value(at) == pytest.approx(fine.value(at), abs=1e-12)
    assert np.abs(coarse.tie_density(at) - fine.tie_density(at)).max() < 1e-13


def test_gumbel_closed_form_equals_quadrature():
    offsets, at = bias(7, seed=3), bias(7, seed=4)
    closed, general = GumbelTopOne(offsets), IndependentScores(stats.gumbel_r(), 1, offsets=offsets)
    assert closed.value(at) == pytest.approx(general.value(at), abs=1e-12)
    assert np.abs(closed.hessian(at) - general.hessian(at)).max() < 1e-13
    assert np.abs(closed.optimum() - general.optimum()).max() < 1e-10


def test_two_experts_by_hand():
    """Uniform scores, E = 2, K = 1: P(x + d > y) = 1/2 + d - d^2/2 for 0 <= d <= 1, f(0) = E max = 2/3."""
    one = IndependentScores(stats.uniform(), 1, offsets=[0.0, 0.0])
    assert one.value([0, 0]) == pytest.approx(2 / 3, abs=1e-14)
    assert one.pick_probability([0.3, 0.0])[0] == pytest.approx(0.5 + 0.3 - 0.045, abs=1e-13)
    assert np.abs(one.hessian([0, 0]) - [[1.0, -1.0], [-1.0, 1.0]]).max() < 1e-13
    assert one.curvatures([2.0, 0.0])[0] == pytest.approx(0.0, abs=1e-13)  # beyond the range nothing curves


def test_mixed_distributions_and_all_experts_used():
    kinds = [stats.norm(), stats.uniform(-1, 2), stats.expon(), stats.logistic()]
    one = IndependentScores(kinds, 2)
    rng = np.random.default_rng(0)
    draws = np.stack([kind.rvs(200_000, random_state=rng) for kind in kinds], axis=1)
    top = np.argsort(-draws, axis=1)[:, :2]
    picked = np.bincount(top.ravel(), minlength=4) / len(draws)
    assert np.abs(picked - one.pick_probability(np.zeros(4))).max() < 5 * np.sqrt(0.25 / len(draws))
    assert abs(np.sort(draws, axis=1)[:, 2:].sum(axis=1).mean() - one.value(np.zeros(4))) < 0.02
    full = IndependentScores(kinds, 4)
    assert full.pick_probability(np.zeros(4)) == pytest.approx(np.ones(4))
    assert np.abs(full.hessian(np.zeros(4))).max() < 1e-12


@pytest.mark.parametrize("radius", [0.0, 0.5, 2.0])
def test_the_pick_range_of_gumbel_scores_is_attained_and_certifies_the_curvature(radius):
    """Two biases of norm R that sum to zero differ by sqrt(2) R: no more, and all of it for one pair of experts."""
    pair = GumbelTopOne([0.3, -0.3])
    lowest, highest = gumbel_pick_range(pair.offset_E, radius)
    extremes = [pair.pick_probability(side * radius / np.sqrt(2) * np.array([1.0, -1.0])) for side in (1, -1)]
    assert lowest == pytest.approx(np.min(extremes), rel=1e-12)
    assert highest == pytest.approx(np.max(extremes), rel=1e-12)
    one = GumbelTopOne([0.2, 0.0, -0.2])
    lowest, highest = gumbel_pick_range(one.offset_E, radius)
    for seed in range(50):
        at = bias(3, seed)
        at = radius * (at - at.mean()) / np.linalg.norm(at - at.mean())
        assert lowest <= one.pick_probability(at).min() <= one.pick_probability(at).max() <= highest
        assert lowest <= one.curvatures(at)[0]


@pytest.mark.parametrize(("num_experts", "top_k", "seconds"), [(64, 6, 4.0), (256, 8, 40.0)])
def test_large_populations_are_quick(num_experts, top_k, seconds):
    """Measured alone: 0.1 s and 3 s; the limits leave room for a busy machine."""
    one = IndependentScores(stats.logistic(), top_k, offsets=bias(num_experts))
    start = time.perf_counter()
    hessian = one.hessian(one.optimum())
    assert time.perf_counter() - start < seconds
    assert np.abs(hessian.sum(axis=1)).max() < 1e-12


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: IndependentScores(stats.norm(), 1), "offsets"),
        (lambda: IndependentScores([stats.poisson(3)], 1), "distributions"),
        (lambda: IndependentScores(stats.norm(), 3, offsets=[0.0, 0.0]), "top_k"),
        (lambda: IndependentScores(stats.norm(), 1, offsets=[0.0, np.nan]), "offsets"),
        (lambda: IndependentScores(stats.gamma(0.5), 1, offsets=[0.0, 0.0]).value([0, 0]), "bounded"),
        (lambda: IndependentScores(stats.norm(), 1, offsets=[0.0, 0.0]).value([0, 0, 0]), "bias"),
    ],
)
def test_bad_input_is_named(call, word):
    with pytest.raises(ValueError, match=word):
        call()


def test_unreachable_balance_raises():
    """An expert that is picked with certainty by construction cannot be balanced to a tolerance below rounding."""
    one = IndependentScores(stats.norm(), 1, offsets=[0.0, 0.0, 1.0])
    with pytest.raises(RuntimeError, match="pi - K/E"):
        one.optimum(tolerance=0.0, max_iterations=2)


def test_exported():
    assert alflb.GumbelTopOne is GumbelTopOne
    assert alflb.IndependentScores is IndependentScores
