"""Duality on dyadic scores and biases: sums are exact up to fractional targets, so tolerances only cover those."""

import numpy as np
import pytest
from _dyadic import dyadic_bias, dyadic_problems
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alflb import bounds, duality
from alflb.exact import solve_exact
from alflb.problem import AssignmentProblem

SEEDS = st.integers(0, 2**32 - 1)


@given(dyadic_problems(), SEEDS, st.integers(-20, 20))
def test_gauge_invariance(problem, seed, shift):
    bias = dyadic_bias(problem.num_experts, seed)
    shifted = bias + shift / 8
    assert duality.dual_value(problem, shifted) == pytest.approx(duality.dual_value(problem, bias), abs=1e-9)
    np.testing.assert_array_equal(
        duality.allocate(problem, shifted).experts_TK, duality.allocate(problem, bias).experts_TK
    )


@given(dyadic_problems(integral=True), SEEDS)
def test_permuting_experts_permutes_prices_and_keeps_the_dual(problem, seed):
    order = np.random.default_rng(seed).permutation(problem.num_experts)
    bias = dyadic_bias(problem.num_experts, seed)
    permuted = AssignmentProblem(problem.scores_TE[:, order], problem.top_k)
    assert duality.dual_value(permuted, bias[order]) == duality.dual_value(problem, bias)


@given(dyadic_problems(max_tokens=6, max_experts=4), SEEDS)
def test_weak_duality_for_every_bias(problem, seed):
    value = solve_exact(problem, method="highs").value
    assert duality.dual_value(problem, dyadic_bias(problem.num_experts, seed)) >= value - 1e-9


@given(dyadic_problems(), SEEDS)
def test_lagrangian_at_top_k_is_the_dual_value_whatever_the_row_prices(problem, seed):
    bias = dyadic_bias(problem.num_experts, seed)
    plan = np.zeros(problem.scores_TE.shape)
    np.put_along_axis(plan, duality.allocate(problem, bias).experts_TK, 1.0, axis=1)
    row_prices = np.random.default_rng(seed).integers(-8, 8, problem.num_tokens) / 8
    assert duality.lagrangian(problem, plan, row_prices, bias) == pytest.approx(
        duality.dual_value(problem, bias), abs=1e-9
    )


@given(dyadic_problems(), SEEDS, SEEDS)
def test_dual_is_convex_and_load_is_a_subgradient(problem, seed, other_seed):
    bias, other = dyadic_bias(problem.num_experts, seed), dyadic_bias(problem.num_experts, other_seed)
    slope = duality.allocate(problem, bias).load_E - problem.target_E
    rise = duality.dual_value(problem, other) - duality.dual_value(problem, bias)
    assert rise >= slope @ (other - bias) - 1e-9


@given(dyadic_problems(), SEEDS, SEEDS)
def test_step_certificate_identity_and_sandwich(problem, seed, other_seed):
    step = duality.step_certificate(
        problem, dyadic_bias(problem.num_experts, seed), dyadic_bias(problem.num_experts, other_seed)
    )
    assert step.identity_residual == pytest.approx(0.0, abs=1e-9)
    assert step.benefit >= 0
    assert step.lower - 1e-9 <= step.change <= step.upper + 1e-9
    assert step.improves == (step.change <= 1e-9) or abs(step.change) < 1e-9
    if step.surely_improves:
        assert step.change <= 1e-9


def test_step_certificate_catches_a_wrong_dual_value():
    """The identity residual is not zero by construction: with a wrong D it shows."""
    problem = AssignmentProblem([[0.5, 0.0], [0.25, 0.0]], 1)
    step = duality.step_certificate(problem, [0.0, 0.0], [-0.5, 0.5])
    broken = duality.StepCertificate(**{**vars(step), "dual_after": step.dual_after + 0.125})
    assert step.identity_residual == 0.0
    assert broken.identity_residual == 0.125


def test_unconditional_monotonicity_is_false():
    """The counterexample of the theory page: the sign rule with u = 0.5 raises D."""
    problem = AssignmentProblem([[0.3, 0.0], [0.5, 0.0]], 1)
    step = duality.step_certificate(problem, [0.0, 0.0], [-0.5, 0.5])
    assert step.change == pytest.approx(0.2)
    assert not step.improves
    assert not step.surely_improves


@given(dyadic_problems(max_tokens=8, max_experts=4), SEEDS)
def test_gap_certificate_brackets_the_optimum(problem, seed):
    value = solve_exact(problem, method="highs").value
    certificate = duality.gap_certificate(problem, dyadic_bias(problem.num_experts, seed))
    low, high = certificate.lower_bound, certificate.upper_bound
    assert low - 1e-9 <= value <= high + 1e-9
    assert certificate.dual_value - value <= certificate.gap_bound + 1e-9
    assert certificate.affinity - value <= certificate.affinity_excess_bound + 1e-9
    assert value - certificate.affinity <= certificate.affinity_loss_bound + 1e-9


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_gap_certificate_of_unequal_targets_holds_the_optimum(data):
    tokens, experts = data.draw(st.integers(1, 6)), data.draw(st.integers(2, 4))
    top_k = data.draw(st.integers(1, experts))
    scores = data.draw(arrays(np.float64, (tokens, experts), elements=st.integers(-8, 8).map(float)))
    bias = data.draw(arrays(np.float64, experts, elements=st.integers(-8, 8).map(lambda n: n / 2)))
    order = data.draw(arrays(np.float64, (tokens, experts), elements=st.integers(0, 3).map(float)))
    target = duality.allocate(AssignmentProblem(order, top_k), np.zeros(experts)).load_E  # some assignment's loads
    problem = AssignmentProblem(scores, top_k, target)
    certificate, value = duality.gap_certificate(problem, bias), solve_exact(problem).value
    low, high = certificate.lower_bound, certificate.upper_bound
    assert low - 1e-9 <= value <= high + 1e-9
    assert certificate.affinity - value <= certificate.affinity_excess_bound + 1e-9


def test_the_interval_is_the_tightest_the_bounds_give_on_either_side():
    strict = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        problem = AssignmentProblem(rng.integers(0, 9, (6, 3)).astype(float), 1)
        one = duality.gap_certificate(problem, rng.integers(-9, 9, 3) / 2)
        looser = one.dual_value - one.gap_bound, one.affinity + one.affinity_loss_bound
        assert (one.lower_bound, one.upper_bound) == (one.affinity - one.affinity_excess_bound, one.dual_value)
        assert looser[0] <= one.lower_bound
        assert one.upper_bound <= looser[1]
        strict += looser[0] < one.lower_bound and one.upper_bound < looser[1]
    assert strict > 20


def test_balance_bound_of_equal_targets_is_false_for_unequal_ones():
    """Why the certificate then allows 2 rho. Here the gap is 8, which is attained, where claim C6 would allow 4."""
    problem = AssignmentProblem([[3.0, 0.0, 4.0, 4.0], [4.0, 2.0, 0.0, 0.0]], 2, [0.0, 2.0, 1.0, 1.0])
    load_E = duality.allocate(problem, np.zeros(4)).load_E
    gap = duality.dual_value(problem, np.zeros(4)) - solve_exact(problem, method="highs").value
    allowed = bounds.gap_bound(duality.violation(load_E, problem.target_E).l1, 0.0, problem.score_range)
    assert (gap, allowed) == (8.0, 4.0)
    assert duality.gap_certificate(problem, np.zeros(4)).gap_bound == 8.0


def test_balance_bound_is_attained():
    """Claim C6 is tight: two equal tokens, two experts, and the dual gap is the bound."""
    problem = AssignmentProblem([[0.0, 0.0], [0.0, 0.0]], 1)
    certificate = duality.gap_certificate(problem, [0.25, 0.0])
    assert certificate.dual_value == certificate.gap_bound == 0.25  # LP* = 0


def test_affinity_and_lagrangian_check_their_shapes(tiny_problem):
    with pytest.raises(ValueError, match="experts_TK has shape"):
        duality.affinity(tiny_problem, [[0, 1]] * 4)
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        duality.affinity(tiny_problem, [[2]] * 4)
    with pytest.raises(ValueError, match="plan_TE has shape"):
        duality.lagrangian(tiny_problem, np.zeros((2, 2)), np.zeros(4), np.zeros(2))
    with pytest.raises(ValueError, match="row_prices_T has shape"):
        duality.lagrangian(tiny_problem, np.zeros((4, 2)), np.zeros(2), np.zeros(2))


def test_forbidden_pairs_do_not_turn_the_lagrangian_into_nan():
    problem = AssignmentProblem([[0.5, -np.inf], [0.25, 0.0]], 1)
    assert duality.lagrangian(problem, [[1, 0], [0, 1]], [0.0, 0.0], [0.0, 0.0]) == 0.5
    assert duality.gap_certificate(problem, [0.0, 1.0]).gap_bound == 0.0  # balanced, though rho is inf


def test_center_removes_the_mean_of_every_row():
    np.testing.assert_array_equal(duality.center([[1.0, 3.0], [0.0, 4.0]]), [[-1.0, 1.0], [-2.0, 2.0]])
