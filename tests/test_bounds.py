"""The formulas of alflb.bounds: by hand, by brute force, and at the edges of what they accept."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alflb import bounds
from proofs_check import _integers


@pytest.mark.parametrize("seed", range(30))
def test_multiplicity_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 12, (rng.integers(1, 9), rng.integers(1, 5)))
    for width in (0, 1, 2, 5):
        expected = _integers.multiplicity(scores.tolist(), width)
        assert bounds.crossing_multiplicity(scores.astype(float), width) == expected


def test_multiplicity_is_exact_where_differences_round():
    """In exact rationals of these floats the crossing values lie within .8; .3 - .9 rounds so that one falls out."""
    assert bounds.crossing_multiplicity([[0.4, 0.5], [0.3, 0.9], [0.4, 0.2]], 0.8) == 3


FLOATS = st.one_of(
    st.integers(-20, 20).map(lambda n: n / 10),
    st.floats(-2, 2),
    st.sampled_from([0.0, 5e-324, 1e-300, 1e300, -1.7e308, 1.7e308, -np.inf]),
)


@given(
    scores=arrays(np.float64, st.tuples(st.integers(1, 7), st.integers(2, 4)), elements=FLOATS),
    width=st.one_of(st.integers(0, 20).map(lambda n: n / 10), st.floats(0, 3), st.sampled_from([1e-300, 1.5e308])),
)
@settings(max_examples=300, deadline=None)
def test_multiplicity_equals_that_of_exact_rationals(scores, width):
    scores[(scores == -np.inf).all(axis=1)] = 0.0  # such a token is refused
    expected = 1
    for k, j in itertools.combinations(range(scores.shape[1]), 2):
        pairs = [pair for pair in scores[:, [k, j]].tolist() if np.isfinite(pair).all()]
        crossing = [Fraction(a) - Fraction(b) for a, b in pairs]
        counts = [sum(low <= value <= low + Fraction(width) for value in crossing) for low in crossing]
        expected = max(expected, *counts, 1)
    assert bounds.crossing_multiplicity(scores, width) == expected


def test_multiplicity_counts_closed_windows():
    scores = [[0.0, 0.0], [2.0, 0.0], [4.5, 0.0]]
    assert bounds.crossing_multiplicity(scores, 1.999) == 1
    assert bounds.crossing_multiplicity(scores, 2.0) == 2
    assert bounds.crossing_multiplicity(scores, 4.5) == 3


def test_forbidden_pairs_never_cross():
    scores = [[0.0, -np.inf, 1.0], [0.0, -np.inf, 1.0], [0.0, 0.0, 9.0]]
    assert bounds.crossing_multiplicity(scores, 0.5) == 2


def test_bands_by_hand():
    assert [bounds.absorbing_band(m, 4) for m in (1, 2)] == [3, 6]
    assert bounds.sharp_band(2, 4) == Fraction(21, 4)
    assert bounds.sharp_band(1, 1) == 0
    assert bounds.absorbing_band(3, 5) - bounds.sharp_band(3, 5) == 1 - Fraction(1, 5)


def test_entry_times_by_hand():
    assert bounds.entry_time(4, score_range=10.0, step_size=1.0) == 18
    assert bounds.sharp_entry_time(4, score_range=10.0, step_size=1.0) == 12
    assert bounds.sharp_entry_time(3, score_range=10.0, step_size=1.0) == 6
    assert bounds.sharp_entry_time(2, score_range=0.3, step_size=0.1) == 2  # 0.3 / 0.2 in exact rationals


@pytest.mark.parametrize("num_experts", [2, 3, 4, 7])
@pytest.mark.parametrize("score_range", [0.0, 1.0, 2.5, 64.0])
def test_the_sharper_times_are_never_longer(num_experts, score_range):
    sharp = bounds.sharp_entry_time(num_experts, score_range, 0.25)
    assert sharp <= bounds.entry_time(num_experts, score_range, 0.25) + 1


def test_odd_entry_times_are_rounded_down():
    assert bounds.sharp_entry_time(5, score_range=1.0, step_size=0.25) == 7  # R = 3, 15 / 2


def test_overdispersion_multiplies_the_variance_of_loads():
    plain, texts = (
        bounds.sign_tracking_cost(0.0, bounds.TargetMotion(overdispersion=o), 101, 1, [0.5]) for o in (1.0, 9.0)
    )
    assert plain.load_sd == pytest.approx(np.sqrt(0.25 / 101))
    assert texts.load_sd == pytest.approx(3 * plain.load_sd)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9])
def test_the_noise_of_a_sign_rule_that_lags_is_that_of_the_recursion(share):
    """Two experts, one mode: e <- e - u sign(h e + noise) + v, run 2,000 times side by side."""
    step_size, curvature, num_tokens = 0.004, 0.2, 1001
    noise_sd, speed = np.sqrt(0.25 / num_tokens), share * step_size
    rng, bias_R, square = np.random.default_rng(0), np.zeros(2000), []
    for t in range(2000):
        surplus_R = curvature * bias_R + noise_sd * rng.standard_normal(2000)
        bias_R = bias_R - step_size * np.sign(surplus_R) + speed
        if t >= 1000:
            square.append(np.mean(bias_R**2))
    cost = bounds.sign_tracking_cost(step_size, bounds.TargetMotion(speed=speed), num_tokens, 1, [curvature])
    assert cost.bias_sd == pytest.approx(np.sqrt(np.mean(square)), rel=0.01)


def test_gradient_moments_agree_at_balance():
    assert bounds.gradient_second_moment([0.25] * 4, 8) == pytest.approx((1 - 1 / 4) / 8)
    assert bounds.gradient_second_moment_bound(0.25, 4, 1, 8) == pytest.approx(
        bounds.gradient_second_moment([0.25] * 4, 8)
    )


def test_regret_bounds_by_hand():
    assert bounds.logarithmic_regret(100, curvature=0.5, second_moment=2.0) == pytest.approx(2.0 * (1 + np.log(100)))
    assert bounds.constant_step_gap(4.0, num_steps=10, step_size=0.5, second_moment=3.0) == pytest.approx(0.4 + 0.75)


def test_gap_bounds_by_hand():
    assert bounds.gap_bound(4.0, 1.0, 2.0) == 6.0
    assert bounds.affinity_excess_bound(4.0, 2.0) == 4.0
    assert bounds.affinity_loss_bound(4.0, 1.0) == 2.0


def test_law_by_hand():
    """E = 2, K = 1, odd T: c = 2, s = b/2 + sqrt(b^2/4 + sigma^2) with b = 2 u sqrt(pi/8) h/2."""
    law = bounds.sign_rule_law(0.1, 101, 1, [0.5])
    b, sigma_squared = 0.1 * np.sqrt(np.pi / 8) * 0.5, 0.25 / 101
    assert law.load_sd == pytest.approx(b / 2 + np.sqrt(b**2 / 4 + sigma_squared))
    assert law.load_sd**2 == pytest.approx(sigma_squared + 0.5**2 * law.bias_sd**2)


def test_law_without_steps_is_sampling_noise():
    law = bounds.sign_rule_law(0.0, 1000, 1, [0.1])
    assert law.bias_sd == 0
    assert law.load_sd == pytest.approx(np.sqrt(0.25 / 1000))
    assert law.max_vio == pytest.approx(2 * law.load_sd * np.sqrt(2) / np.sqrt(np.pi))  # E max of two normals


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: bounds.crossing_multiplicity([[1.0, 2.0]], -1.0), "width"),
        (lambda: bounds.absorbing_band(0, 3), "multiplicity"),
        (lambda: bounds.entry_time(3, 1.0, 0.0), "step_size"),
        (lambda: bounds.entry_time(3, np.inf, 0.1), "score_range"),
        (lambda: bounds.logarithmic_regret(5, 0.0, 1.0), "curvature"),
        (lambda: bounds.sign_rule_law(0.1, 10, 1, [0.0, 0.1]), "eigenvalues"),
        (lambda: bounds.sign_rule_law(0.1, 10, 3, [0.1, 0.1]), "top_k"),
    ],
)
def test_bad_input_is_named(call, word):
    with pytest.raises(ValueError, match=word):
        call()
