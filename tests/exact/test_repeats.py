"""Repeated rows, tied scores and many problems at once: the same optimum, by fewer steps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_exact_screen import assert_optimal, reference_value, uneven_targets

from alflb import solve_many
from alflb.exact import SolverError, solve_exact
from alflb.exact.screening import flow_kernels
from alflb.exact.screening.groups import GroupedSource, grouped
from alflb.exact.screening.proof import Assignment
from alflb.exact.screening.sources import ArraySource
from alflb.problem import AssignmentProblem


@st.composite
def repeating_problems(draw):
    """Some distinct rows, each often, in any order; any targets."""
    num_experts = draw(st.integers(1, 7))
    top_k = draw(st.integers(1, num_experts))
    num_rows = draw(st.integers(1, 5))
    num_tokens = draw(st.integers(5 * num_rows, 70))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = rng.random((num_rows, num_experts))
    if draw(st.booleans()):
        rows = np.round(rows, draw(st.integers(0, 2)))
    if draw(st.booleans()):
        rows[:, rng.random(num_experts) < 0.3] = -np.inf
        rows = np.where((rows > -np.inf).sum(axis=1, keepdims=True) < top_k, 0.5, rows)
    scores = rows[rng.integers(num_rows, size=num_tokens)].astype(draw(st.sampled_from([np.float32, np.float64])))
    target = draw(st.sampled_from([None, True, False]))
    if target is not None:
        target = uneven_targets(num_tokens, num_experts, top_k, rng, whole=target)
    return AssignmentProblem(scores, top_k, target)


@settings(max_examples=200, deadline=None)
@given(repeating_problems())
def test_repeated_rows_equal_highs(problem):
    assert isinstance(grouped(ArraySource(problem)), GroupedSource)
    value = reference_value(problem)
    if value is None:
        with pytest.raises(SolverError, match="no balanced assignment"):
            solve_exact(problem)
        return
    assert_optimal(problem, solve_exact(problem), value)


@pytest.mark.parametrize("family", ["one row", "sixteen rows", "all equal", "two values", "one decimal", "float16"])
@pytest.mark.parametrize("num_tokens", [512, 500])
def test_ties_equal_min_cost_flow(family, num_tokens):
    pytest.importorskip("ortools")
    rng = np.random.default_rng(1)
    scores = rng.random((num_tokens, 24))
    scores = {
        "one row": np.tile(scores[:1], (num_tokens, 1)),
        "sixteen rows": scores[rng.integers(16, size=num_tokens)],
        "all equal": np.full_like(scores, 0.3),
        "two values": np.where(scores > rng.random(24), 1.0, 0.0),
        "one decimal": np.round(scores, 1),
        "float16": scores.astype(np.float16).astype(np.float64),
    }[family].astype(np.float32)
    problem = AssignmentProblem(scores, 5)
    assert_optimal(problem, solve_exact(problem), solve_exact(problem, method="mincostflow").value)


def test_rows_that_seldom_repeat_stay_apart():
    scores = np.random.default_rng(0).random((4096, 4))
    assert not isinstance(grouped(ArraySource(AssignmentProblem(scores, 1))), GroupedSource)
    few = scores.copy()
    few[:100] = few[0]
    assert not isinstance(grouped(ArraySource(AssignmentProblem(few, 1))), GroupedSource)
    many = scores[np.random.default_rng(1).integers(1000, size=4096)]
    assert isinstance(grouped(ArraySource(AssignmentProblem(many, 1))), GroupedSource)


@given(st.data())
def test_shares_are_dealt_out_whole(data):
    """Every token of a row gets K picks, no expert beyond a whole one, and the experts what was theirs."""
    num_tokens, num_experts = data.draw(st.integers(2, 9)), data.draw(st.integers(2, 6))
    top_k, unit = data.draw(st.integers(1, num_experts - 1)), data.draw(st.integers(1, 5))
    most, left = num_tokens * unit, num_tokens * unit * top_k
    units = []
    for later in range(num_experts - 1, -1, -1):
        units.append(data.draw(st.integers(max(0, left - later * most), min(most, left))))
        left -= units[-1]
    split_S3 = np.array([(0, k, share) for k, share in enumerate(units) if share], np.int64)
    problem = AssignmentProblem(np.zeros((num_tokens, num_experts)), top_k)
    source = GroupedSource(ArraySource(problem), np.zeros(1, np.int64), np.zeros(num_tokens, np.int64))
    load_E = np.array(units)
    found = Assignment(0.0, True, load_E, np.zeros((1, top_k), np.int32), split_S3)
    spread = source.spread(found, unit)
    shares_TE = np.zeros((num_tokens, num_experts), np.int64)
    if unit == 1:
        np.add.at(shares_TE, (np.arange(num_tokens)[:, None], spread.experts_TK), 1)
        assert np.all(np.diff(spread.experts_TK, axis=1) > 0)
    np.add.at(shares_TE, (spread.split_S3[:, 0], spread.split_S3[:, 1]), spread.split_S3[:, 2])
    assert shares_TE.sum(axis=1).tolist() == [top_k * unit] * num_tokens
    assert shares_TE.sum(axis=0).tolist() == units
    assert shares_TE.max() <= unit


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 4)), min_size=1, max_size=30), st.data())
def test_weighted_selection_is_that_of_repeated_values(pairs, data):
    values, weights = np.array(pairs, np.int64).T
    rank = data.draw(st.integers(0, int(weights.sum()) - 1))
    expected = np.sort(np.repeat(values, weights))[rank]
    assert flow_kernels._select(values.copy(), weights.copy(), rank) == expected


def test_many_problems_are_solved_as_one_by_one():
    rng = np.random.default_rng(0)
    shapes = [(256, 8, 2), (100, 5, 5), (512, 16, 3), (64, 3, 1)] * 3
    problems = [AssignmentProblem(rng.random((tokens, experts)), top_k) for tokens, experts, top_k in shapes]
    for many, one in zip(solve_many(problems), map(solve_exact, problems), strict=True):
        assert many.value == one.value
        assert many.bias_E.tobytes() == one.bias_E.tobytes()
        assert many.plan.indices.tobytes() == one.plan.indices.tobytes()
    assert solve_many([]) == []


def test_the_problem_at_fault_is_named():
    good = AssignmentProblem(np.eye(2), 1)
    bad = AssignmentProblem([[1.0, -np.inf], [1.0, -np.inf]], 1)
    with pytest.raises(SolverError, match="problem 1: no balanced assignment exists"):
        solve_many([good, bad, good])
    with pytest.raises(ValueError, match=r"problem 2: .*pass AssignmentProblem\(scores, top_k\)"):
        solve_many([good, good, np.eye(2)])
