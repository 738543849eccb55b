"""The exact optimum: brute force, scipy, and the solvers against each other; and what `certify` refuses."""

import dataclasses
import itertools
import sys

import numpy as np
import pytest
from _dyadic import dyadic_problems
from hypothesis import given, settings
from scipy.optimize import linprog
from scipy.sparse import csr_array

from alflb import duality
from alflb.exact import SolverError, certify, method_names, recertify, solve_exact
from alflb.exact.reference._duals import bias_from_plan
from alflb.problem import AssignmentProblem

METHODS = [name for name in method_names() if name != "auto"]


def best_by_enumeration(problem):
    """The largest value over all balanced assignments, one by one."""
    choices = list(itertools.combinations(range(problem.num_experts), problem.top_k))
    values = [problem.scores_TE[:, list(choice)].sum(axis=1) for choice in choices]
    best = -np.inf
    for picks in itertools.product(range(len(choices)), repeat=problem.num_tokens):
        loads = np.bincount(np.ravel([choices[pick] for pick in picks]), minlength=problem.num_experts)
        if np.array_equal(loads, problem.target_E):
            best = max(best, sum(values[pick][token] for token, pick in enumerate(picks)))
    return best


def value_by_scipy(problem):
    """The LP written out densely for scipy."""
    num_tokens, num_experts = problem.scores_TE.shape
    rows = np.kron(np.eye(num_tokens), np.ones(num_experts))
    columns = np.kron(np.ones(num_tokens), np.eye(num_experts))
    answer = linprog(
        -problem.scores_TE.ravel(),
        A_eq=np.vstack([rows, columns]),
        b_eq=np.concatenate([np.full(num_tokens, problem.top_k), problem.target_E]),
        bounds=(0, 1),
    )
    assert answer.status == 0
    return -answer.fun


def random_problem(shape, seed, **parameters):
    num_tokens, num_experts, top_k = shape
    scores = np.random.default_rng(seed).random((num_tokens, num_experts))
    return AssignmentProblem(scores, top_k, **parameters)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "shape", [(4, 2, 1), (6, 3, 1), (3, 3, 2), (4, 4, 2), (2, 4, 2), (5, 1, 1), (3, 3, 3), (1, 1, 1)]
)
@pytest.mark.parametrize("levels", [2, 9])
def test_equals_enumeration(shape, levels, method):
    num_tokens, num_experts, top_k = shape
    scores = np.random.default_rng(levels).integers(0, levels, (num_tokens, num_experts)) / 8
    problem = AssignmentProblem(scores, top_k)
    solution = solve_exact(problem, method=method)
    assert solution.value == best_by_enumeration(problem)
    assert solution.load_E.tolist() == problem.target_E.tolist()


@settings(max_examples=40)
@given(dyadic_problems(max_tokens=7, max_experts=5))
def test_methods_and_scipy_agree_with_fractional_targets_too(problem):
    expected = value_by_scipy(problem)
    for method in METHODS:
        solution = solve_exact(problem, method=method)
        assert solution.value == pytest.approx(expected, abs=1e-8), method
        assert solution.gap == pytest.approx(0.0, abs=1e-9), method


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(64, 8, 2), (50, 7, 3), (1, 6, 4), (33, 16, 5)])
def test_solution_is_what_it_says(shape, method):
    problem = random_problem(shape, 3)
    solution = solve_exact(problem, method=method)
    assert solution.method == method
    assert solution.value == pytest.approx(value_by_scipy(problem), abs=1e-8)
    assert solution.bias_E.mean() == pytest.approx(0.0, abs=1e-12)
    assert duality.dual_value(problem, solution.bias_E) == pytest.approx(solution.value, abs=1e-9)
    np.testing.assert_allclose(solution.load_E, problem.target_E, atol=1e-6)
    if problem.is_integral:
        assert solution.experts_TK.shape == (problem.num_tokens, problem.top_k)
        assert duality.affinity(problem, solution.experts_TK) == pytest.approx(solution.value, abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_sign_of_the_bias(method):
    """Everyone prefers expert 0, so its bias must be the lower one: 0.3 apart, between the 2nd and 3rd preference."""
    problem = AssignmentProblem([[0.9, 0.0], [0.4, 0.0], [0.2, 0.0], [0.1, 0.0]], 1)
    bias = solve_exact(problem, method=method).bias_E
    assert bias[0] < bias[1]
    assert 0.2 <= bias[1] - bias[0] <= 0.4


@pytest.mark.parametrize("method", METHODS)
def test_unequal_targets(method):
    problem = random_problem((30, 4, 2), 5, target_E=[30.0, 15.0, 15.0, 0.0])
    solution = solve_exact(problem, method=method)
    assert solution.load_E.tolist() == [30.0, 15.0, 15.0, 0.0]
    assert solution.value == pytest.approx(value_by_scipy(problem), abs=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_forbidden_pairs_are_never_used(method):
    rng = np.random.default_rng(0)
    scores = rng.random((64, 8))
    scores[rng.random(scores.shape) < 0.3] = -np.inf
    problem = AssignmentProblem(scores, 2)
    solution = solve_exact(problem, method=method)
    assert np.isfinite(solution.value)
    assert np.isfinite(np.take_along_axis(scores, solution.experts_TK, axis=1)).all()
    assert solution.value == pytest.approx(solve_exact(problem, method="highs").value, abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_infeasible_is_said_so(method):
    scores = np.random.default_rng(0).random((8, 4))
    scores[:, 0] = -np.inf
    with pytest.raises(SolverError, match="balanced assignment"):
        solve_exact(AssignmentProblem(scores, 1), method=method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("scale", "shift"), [(1e-9, 0.0), (1e6, 0.0), (1.0, 1e4), (1e-30, 0.0)])
def test_units_of_the_scores_do_not_matter(scale, shift, method):
    base = random_problem((48, 6, 2), 9)
    problem = AssignmentProblem(base.scores_TE * scale + shift, 2)
    plan = solve_exact(problem, method=method).experts_TK
    np.testing.assert_array_equal(plan, solve_exact(base, method="highs").experts_TK)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_auto_on_a_larger_batch_agrees_with_highs(dtype):
    scores = np.random.default_rng(1).random((1024, 32)).astype(dtype)
    problem = AssignmentProblem(scores, 4)
    assert solve_exact(problem).value == pytest.approx(solve_exact(problem, method="highs").value, rel=1e-12)


def test_all_scores_equal():
    problem = AssignmentProblem(np.full((12, 4), 0.3), 2)
    for method in METHODS:
        solution = solve_exact(problem, method=method)
        assert solution.value == pytest.approx(12 * 2 * 0.3)
        assert solution.load_E.tolist() == [6.0] * 4


def solved(seed=0):
    problem = random_problem((16, 4, 2), seed)
    return problem, solve_exact(problem, method="highs")


def test_certify_refuses_a_bias_that_is_not_optimal():
    problem, solution = solved()
    with pytest.raises(SolverError, match=r"D\(p\) - value"):
        certify(problem, solution.plan, solution.bias_E + np.array([0.5, 0, 0, 0]), method="test")


@pytest.mark.parametrize("method", METHODS)
def test_recertify_measures_what_a_solver_only_says(method):
    problem = random_problem((64, 8, 2), 3)
    solution = solve_exact(problem, method=method)
    measured = recertify(problem, solution)
    assert measured.lower_bound == pytest.approx(solution.value, rel=1e-15)
    assert measured.upper_bound == pytest.approx(duality.dual_value(problem, solution.bias_E), rel=1e-14)
    boasting = dataclasses.replace(solution, bias_E=solution.bias_E + np.arange(8.0))
    with pytest.raises(SolverError, match="certified optimum"):
        recertify(problem, boasting)
    with pytest.raises(ValueError, match="no plan"):
        recertify(problem, dataclasses.replace(solution, plan=None))


def test_certify_refuses_an_unbalanced_plan():
    problem, _ = solved()
    greedy = duality.allocate(problem, np.zeros(4)).experts_TK
    plan = csr_array((np.ones(32), (np.repeat(np.arange(16), 2), greedy.ravel())), shape=(16, 4))
    with pytest.raises(SolverError, match="infeasible"):
        certify(problem, plan, np.zeros(4), method="test")


def test_certify_refuses_a_balanced_but_worse_plan():
    problem, solution = solved()
    worse = csr_array(solution.plan[np.arange(16) - 1])
    with pytest.raises(SolverError, match="certified optimum"):
        certify(problem, worse, solution.bias_E, method="test")


def test_certify_refuses_a_token_with_a_pick_too_many():
    problem, solution = solved()
    plan = solution.plan.toarray()
    plan[0], plan[1] = np.maximum(plan[0], plan[1]), np.minimum(plan[0], plan[1])
    if np.array_equal(plan, solution.plan.toarray()):
        pytest.fail("rows 0 and 1 are equal; choose another seed")
    with pytest.raises(SolverError, match="infeasible"):
        certify(problem, csr_array(plan), solution.bias_E, method="test")


def test_bias_from_plan_proves_the_plan_it_came_from():
    problem, solution = solved(seed=4)
    bias = bias_from_plan(problem, solution.plan)
    assert duality.dual_value(problem, bias) == pytest.approx(solution.value, abs=1e-12)


def test_unknown_method_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'cvxpy'"):
        solve_exact(random_problem((4, 2, 1), 0), method="cvxpi")


def test_min_cost_flow_without_ortools_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ortools.graph.python.min_cost_flow", None)
    problem = random_problem((4, 2, 1), 0)
    with pytest.raises(ValueError, match="pip install"):
        solve_exact(problem, method="mincostflow")
    assert solve_exact(problem).method == "screen"


def test_min_cost_flow_refuses_targets_it_cannot_count():
    problem = random_problem((4, 2, 1), 0, target_E=[np.pi, 4 - np.pi])
    with pytest.raises(ValueError, match="use method 'highs'"):
        solve_exact(problem, method="mincostflow")
    assert solve_exact(problem).value == pytest.approx(solve_exact(problem, method="highs").value)
