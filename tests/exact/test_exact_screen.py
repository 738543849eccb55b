"""Our own exact solver against the reference solvers, on the shapes and degeneracies that break such codes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alflb.duality import dual_value
from alflb.exact import BatchedProblem, SolverError, certify, solve_exact
from alflb.exact.units import Grid, target_units
from alflb.problem import AssignmentProblem

FAMILIES = (
    "uniform",
    "dyadic",
    "decimals",
    "near_ties",
    "identical_rows",
    "few_rows",
    "constant",
    "dominant",
    "skewed",
    "clustered",
    "forbidden",
    "tiny",
    "huge",
    "offset",
)
SHAPES = [(1, 1, 1), (1, 5, 2), (2, 3, 3), (7, 3, 2), (16, 4, 1), (33, 8, 3), (64, 16, 16), (100, 17, 5), (257, 24, 20)]


def make_scores(family, num_tokens, num_experts, top_k, rng):
    scores = rng.random((num_tokens, num_experts))
    match family:
        case "dyadic":
            scores = np.floor(4 * scores) / 4
        case "decimals":
            scores = np.round(scores, 1)
        case "near_ties":
            scores = np.round(scores, 1) + 1e-7 * rng.random(scores.shape)
        case "identical_rows":
            scores = np.repeat(scores[:1], num_tokens, axis=0)
        case "few_rows":
            scores = scores[rng.integers(0, min(3, num_tokens), num_tokens)]
        case "constant":
            scores = np.zeros_like(scores)
        case "dominant":
            scores[:, 0] += 3
        case "skewed":
            scores = rng.standard_normal(scores.shape) + 10 * rng.standard_normal(num_experts)
        case "clustered":
            scores = scores[rng.integers(0, min(5, num_tokens), num_tokens)] + 1e-3 * rng.random(scores.shape)
        case "forbidden":
            scores[rng.random(scores.shape) < 0.3] = -np.inf
            starved = np.count_nonzero(scores > -np.inf, axis=1) < top_k
            scores[starved] = rng.random((int(starved.sum()), num_experts))
        case "tiny":
            scores *= 1e-25
        case "huge":
            scores *= 1e25
        case "offset":
            scores += 1000
    return scores


def uneven_targets(num_tokens, num_experts, top_k, rng, *, whole):
    """Random targets in [0, T] with sum K T."""
    weights = rng.random(num_experts) + 0.05
    target = np.zeros(num_experts)
    while (left := top_k * num_tokens - target.sum()) > 1e-9 * num_tokens:
        open_weight = np.where(target < num_tokens, weights, 0.0)
        target = np.minimum(target + left * open_weight / open_weight.sum(), num_tokens)
    if whole:
        floor = np.floor(target + 1e-9)
        order = np.argsort(floor - target)
        floor[order[: round(top_k * num_tokens - floor.sum())]] += 1
        target = floor
    return target


def reference_value(problem):
    """Optimal value by HiGHS, or None when there is no balanced assignment."""
    try:
        return solve_exact(problem, method="highs").value
    except SolverError:
        return None


def assert_optimal(problem, solution, value):
    assert solution.value == pytest.approx(value, rel=1e-9, abs=1e-12 * np.abs(value) + 1e-300)
    recertified = certify(problem, solution.plan, solution.bias_E, method="again")
    assert recertified.value == pytest.approx(solution.value, rel=1e-12)
    assert solution.load_E == pytest.approx(problem.target_E, abs=1e-7)
    if problem.is_integral:
        assert np.array_equal(np.bincount(solution.experts_TK.ravel(), minlength=problem.num_experts), problem.target_E)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_highs(family, dtype):
    rng = np.random.default_rng(FAMILIES.index(family))
    solved = 0
    for num_tokens, num_experts, top_k in SHAPES:
        scores = make_scores(family, num_tokens, num_experts, top_k, rng).astype(dtype)
        problem = AssignmentProblem(scores, top_k)
        value = reference_value(problem)
        if value is None:
            with pytest.raises(SolverError, match="no balanced assignment"):
                solve_exact(problem, method="screen")
            continue
        assert_optimal(problem, solve_exact(problem, method="screen"), value)
        solved += 1
    assert solved >= 3


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("family", ["uniform", "decimals", "few_rows", "forbidden"])
def test_uneven_targets_equal_highs(family, whole):
    rng = np.random.default_rng(7)
    for num_tokens, num_experts, top_k in SHAPES[1:]:
        target = uneven_targets(num_tokens, num_experts, top_k, rng, whole=whole)
        scores = make_scores(family, num_tokens, num_experts, top_k, rng)
        problem = AssignmentProblem(scores, top_k, target)
        value = reference_value(problem)
        if value is None:
            with pytest.raises(SolverError):
                solve_exact(problem, method="screen")
        else:
            assert_optimal(problem, solve_exact(problem, method="screen"), value)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_small_integer_problem(data):
    num_tokens, num_experts = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 6))
    top_k = data.draw(st.integers(1, num_experts))
    entries = st.lists(st.integers(0, 3), min_size=num_tokens * num_experts, max_size=num_tokens * num_experts)
    scores = np.array(data.draw(entries), dtype=np.float64).reshape(num_tokens, num_experts)
    problem = AssignmentProblem(scores, top_k)
    solution = solve_exact(problem, method="screen")
    assert solution.gap == 0.0
    assert dual_value(problem, solution.bias_E) == pytest.approx(solution.value, abs=1e-9)
    assert solution.load_E == pytest.approx(problem.target_E, abs=1e-12)


@pytest.mark.parametrize(
    ("family", "num_tokens", "num_experts", "top_k"),
    [
        ("uniform", 5003, 64, 8),
        ("skewed", 4096, 32, 6),
        ("decimals", 4001, 32, 4),
        ("few_rows", 4096, 32, 8),
        ("identical_rows", 2048, 16, 4),
        ("dominant", 3000, 100, 32),
        ("clustered", 3000, 20, 1),
    ],
)
def test_mid_size_equals_min_cost_flow(family, num_tokens, num_experts, top_k):
    pytest.importorskip("ortools")
    rng = np.random.default_rng(3)
    scores = np.round(2**14 * make_scores(family, num_tokens, num_experts, top_k, rng)) / 2**14
    problem = AssignmentProblem(scores.astype(np.float32), top_k)
    reference = solve_exact(problem, method="mincostflow")
    solution = solve_exact(problem, method="screen")
    assert solution.value == reference.value  # scores and shares are dyadic: both sums are exact


def test_large_sampled_problem_is_certified_by_the_reference():
    rng = np.random.default_rng(0)
    scores = (rng.random((70_001, 16)) + 0.2 * rng.standard_normal(16)).astype(np.float32)
    problem = AssignmentProblem(scores, 2, uneven_targets(70_001, 16, 2, rng, whole=True))
    solution = solve_exact(problem)
    assert solution.method == "screen"
    assert certify(problem, solution.plan, solution.bias_E, method="again").value == pytest.approx(solution.value)


def test_batches_give_the_same_optimum_as_one_array():
    rng = np.random.default_rng(1)
    scores = np.floor(256 * rng.random((40_000, 12))).astype(np.float32) / 256
    edges = [0, 1, 9_000, 9_001, 33_000, 40_000]
    for target in (None, uneven_targets(40_000, 12, 3, rng, whole=True)):
        whole = solve_exact(AssignmentProblem(scores, 3, target))
        batched = solve_exact(BatchedProblem(lambda: np.split(scores, edges[1:-1]), 3, target))
        assert batched.value == whole.value
        assert np.array_equal(batched.load_E, whole.load_E)
        assert batched.plan is None
        assert batched.experts_TK is None
        assert dual_value(AssignmentProblem(scores, 3, target), batched.bias_E) == pytest.approx(whole.value)


def test_batches_must_repeat_and_agree():
    scores = np.eye(4)
    shrinking = iter([[scores, scores], [scores], [scores]])
    with pytest.raises(ValueError, match="must repeat"):
        solve_exact(BatchedProblem(lambda: next(shrinking), 1))
    with pytest.raises(ValueError, match="batch 2 has shape"):
        solve_exact(BatchedProblem(lambda: [scores, np.eye(5)], 1))
    with pytest.raises(ValueError, match="no batch"):
        solve_exact(BatchedProblem(list, 1))
    with pytest.raises(ValueError, match="batch 1: scores holds nan"):
        solve_exact(BatchedProblem(lambda: [np.full((2, 2), np.nan)], 1))
    with pytest.raises(ValueError, match="in memory"):
        solve_exact(BatchedProblem(lambda: [scores], 1), method="highs")


def test_any_start_gives_the_same_value():
    rng = np.random.default_rng(2)
    problem = AssignmentProblem(np.floor(64 * rng.random((999, 9))) / 64, 3)
    cold = solve_exact(problem)
    for start in (cold.bias_E, rng.standard_normal(9), np.full(9, 1e6), 1e300 * rng.standard_normal(9)):
        assert solve_exact(problem, bias_init=start).value == cold.value
    with pytest.raises(ValueError, match="bias_init"):
        solve_exact(problem, bias_init=np.zeros(3))
    with pytest.raises(ValueError, match="bias_init"):
        solve_exact(problem, method="highs", bias_init=cold.bias_E)


def test_infeasible_is_refused():
    scores = np.zeros((6, 3))
    scores[1:, 0] = -np.inf
    with pytest.raises(SolverError, match="no balanced assignment"):
        solve_exact(AssignmentProblem(scores, 1))


@pytest.mark.parametrize(
    ("dtype", "scale"), [(np.float32, 3e38), (np.float32, 1e-44), (np.float64, 1e306), (np.float64, 1e-290)]
)
def test_ends_of_the_floating_point_range(dtype, scale):
    ranks = np.random.default_rng(8).integers(0, 5, (60, 6)) / 4
    solution = solve_exact(AssignmentProblem((ranks * scale).astype(dtype), 2))
    reference = solve_exact(AssignmentProblem(ranks, 2), method="highs")
    picked = np.take_along_axis(ranks, solution.experts_TK, axis=1).sum()
    assert picked == pytest.approx(reference.value)
    assert np.array_equal(np.bincount(solution.experts_TK.ravel()), np.full(6, 20))


def test_input_is_not_changed():
    rng = np.random.default_rng(6)
    scores, start = rng.random((50, 5)), rng.random(5)
    before = scores.copy(), start.copy()
    solve_exact(AssignmentProblem(scores, 2), bias_init=start)
    assert np.array_equal(scores, before[0])
    assert np.array_equal(start, before[1])


@given(st.integers(1, 40), st.integers(1, 12), st.data())
def test_target_units_are_exact(num_tokens, num_experts, data):
    top_k = data.draw(st.integers(1, num_experts))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    for target in (
        np.full(num_experts, num_tokens * top_k / num_experts),
        uneven_targets(num_tokens, num_experts, top_k, rng, whole=False),
    ):
        units, unit = target_units(target, num_tokens, top_k)
        assert int(units.sum()) == num_tokens * top_k * unit
        assert units.min() >= 0
        assert units.max() <= num_tokens * unit
        assert units / unit == pytest.approx(target, abs=1e-8 * num_tokens)


def test_grid_keeps_sums_inside_int64():
    for largest in (0.0, 1e-300, 1e-30, 0.999, 1.0, 3.0, 1e30, 1e300):
        for num_experts in (1, 2, 64, 1000):
            grid = Grid.finest(largest, num_experts)
            assert abs(largest) * grid.per_unit * num_experts * 2 < 2**60
