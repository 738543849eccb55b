"""The streaming solver: both bounds certified, the gap as promised, and nothing that grows with the batches."""

from __future__ import annotations

import math
import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from _exactly import plan_value
from hypothesis import given, settings
from hypothesis import strategies as st

from alflb import duality
from alflb.exact import BatchedProblem, SolverError, solve_exact, solve_streaming
from alflb.exact.streaming.passes import NUM_BINS, RoutingTask, SurveyTask, reduce_pass
from alflb.exact.streaming.repair import SwapModel, balance_by_swaps, bin_edges, reassign_closest
from alflb.problem import AssignmentProblem
from alflb.studies.executors import ordered_map
from alflb.traces import load_router_trace

TOLERANCE = 1e-6


def batched(scores, top_k, target=None, size=1000):
    return BatchedProblem(lambda: np.split(scores, range(size, len(scores), size)), top_k, target)


def make_scores(family, num_tokens, num_experts, rng):
    scores = rng.random((num_tokens, num_experts))
    match family:
        case "decimals":
            scores = np.round(1 / (1 + np.exp(-rng.standard_normal(scores.shape) - np.arange(num_experts) / 4)), 2)
        case "skewed":
            scores = rng.standard_normal(scores.shape) + 5 * rng.standard_normal(num_experts)
        case "identical_rows":
            scores = np.repeat(scores[:1], num_tokens, axis=0)
        case "few_rows":
            scores = scores[rng.integers(0, 3, num_tokens)]
        case "near_ties":
            scores = np.round(scores, 1) + 1e-7 * rng.random(scores.shape)
        case "forbidden":
            scores[rng.random(scores.shape) < 0.2] = -np.inf
            scores[np.count_nonzero(scores > -np.inf, axis=1) < 3] = 0.5
        case "constant":
            scores = np.zeros_like(scores)
        case "offset":
            scores = scores.astype(np.float32) - 3
    return scores


def uneven_target(num_tokens, num_experts, top_k):
    weights = 1 + 0.3 * np.sin(np.arange(num_experts))
    return weights / weights.sum() * num_tokens * top_k


def assert_bounds(solution, problem, reference, *, slack=1e-12):
    """Lower bound, LP*, upper bound, up to the rounding of LP*; D of the bias, by other code, is the upper one."""
    rounding = slack * abs(reference)
    assert solution.lower_bound <= reference + rounding
    assert reference <= solution.upper_bound + rounding
    assert duality.dual_value(problem, solution.bias_E) == pytest.approx(solution.upper_bound, rel=1e-12, abs=1e-12)


FAMILIES = ["uniform", "decimals", "skewed", "identical_rows", "few_rows", "near_ties", "forbidden", "offset"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("uneven", [False, True])
def test_bounds_meet_around_the_optimum(family, uneven):
    """The sample is a small part of the tokens, and the targets are fractional."""
    num_tokens, num_experts, top_k = 6007, 8, 2
    scores = make_scores(family, num_tokens, num_experts, np.random.default_rng(3))
    target = uneven_target(num_tokens, num_experts, top_k) if uneven else None
    problem = AssignmentProblem(scores, top_k, target)
    solution = solve_streaming(batched(scores, top_k, target), tolerance=TOLERANCE, sample_rows=400, close_rows=64)
    assert solution.converged
    assert solution.relative_gap <= TOLERANCE
    assert_bounds(solution, problem, solve_exact(problem).value, slack=1e-11)
    assert len(solution.history) < solution.passes
    assert solution.load_E.sum() == top_k * num_tokens


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_small_problems_against_highs(data):
    """Any small problem: bounds on the right sides of HiGHS's optimum; the gap as promised, or no answer."""
    num_tokens, num_experts = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 5))
    top_k = data.draw(st.integers(1, num_experts))
    steps = data.draw(st.sampled_from([2, 100, 2**20]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    scores = rng.integers(1, steps + 1, (num_tokens, num_experts)) / steps
    problem = AssignmentProblem(scores, top_k)
    reference = solve_exact(problem, method="highs").value
    rows = data.draw(st.sampled_from([(None, None), (4, 4), (1, 1)]))
    solution = solve_streaming(
        batched(scores, top_k, size=5), max_passes=12, sample_rows=rows[0], close_rows=rows[1], must_converge=False
    )
    assert_bounds(solution, problem, reference, slack=1e-9)
    if rows == (None, None):
        assert solution.converged
        assert solution.passes == 2


def test_shipped_trace_pooled():
    trace = load_router_trace()
    exact = solve_exact(AssignmentProblem(trace.scores_TE, trace.top_k)).value
    solution = solve_streaming(batched(trace.scores_TE, trace.top_k, size=2048), sample_rows=4096)
    assert solution.relative_gap <= TOLERANCE
    assert solution.lower_bound <= exact * (1 + 1e-12)
    assert exact <= solution.upper_bound * (1 + 1e-12)


def test_all_scores_zero():
    solution = solve_streaming(batched(make_scores("constant", 3000, 6, np.random.default_rng(0)), 2), sample_rows=50)
    assert solution.upper_bound == solution.lower_bound == 0.0


def test_negative_scores_beside_zeros_are_not_taken_for_masks():
    """Rows less their maximum, as of logarithms: the best of every row is 0, and the others are what they are."""
    scores = make_scores("uniform", 3000, 6, np.random.default_rng(1))
    solution = solve_streaming(batched(scores - scores.max(axis=1, keepdims=True), 1), sample_rows=500)
    assert solution.converged
    assert solve_exact(AssignmentProblem(scores - scores.max(axis=1, keepdims=True), 1)).forbidden_below == -np.inf


def test_tolerance_is_met_to_rounding():
    scores = make_scores("uniform", 5000, 6, np.random.default_rng(5))
    solution = solve_streaming(batched(scores, 2), tolerance=1e-10, sample_rows=500)
    assert 0 <= solution.relative_gap <= 1e-10


def test_one_expert_and_all_experts():
    scores = np.random.default_rng(0).random((50, 3))
    for columns, top_k in ((scores[:, :1], 1), (scores, 3)):
        solution = solve_streaming(batched(columns, top_k, size=20))
        assert solution.upper_bound == pytest.approx(columns.sum(), rel=1e-12)
        assert solution.lower_bound == pytest.approx(columns.sum(), rel=1e-12)


def route(scores, top_k, bias_E, *, dither=0.0, close_rows=10**6, size=1000):
    task = RoutingTask(bias_E, top_k, dither, 1, float(np.abs(scores[np.isfinite(scores)]).max()), 0, close_rows)
    return reduce_pass(task, np.split(scores, range(size, len(scores), size)), map)


def test_routing_against_plain_numpy():
    rng = np.random.default_rng(1)
    for dtype in (np.float32, np.float64):
        scores, bias_E, top_k = rng.random((2500, 20)).astype(dtype), 0.1 * rng.standard_normal(20), 3
        problem = AssignmentProblem(scores, top_k)
        routing = route(scores, top_k, bias_E)
        reference = duality.allocate(problem, bias_E)
        assert np.array_equal(routing.load_E, reference.load_E)
        assert np.array_equal(np.sort(routing.experts_MK, axis=1), np.sort(reference.experts_TK, axis=1))
        assert routing.best - problem.target_E @ bias_E == pytest.approx(duality.dual_value(problem, bias_E), rel=1e-13)
        assert routing.chosen == routing.best
        biased = np.sort(scores.astype(np.float64) + bias_E, axis=1)
        order = np.argsort(scores.astype(np.float64) + bias_E, axis=1)
        margin = biased[:, -top_k] - biased[:, -top_k - 1]
        assert routing.gap_M == pytest.approx(margin)
        loss = np.zeros((20, 20))
        np.add.at(loss, (order[:, -top_k], order[:, -top_k - 1]), margin)
        assert routing.loss_EEB.sum(axis=2) == pytest.approx(loss)
        b = np.searchsorted(bin_edges(1), margin, side="right") - 1
        assert np.array_equal(routing.count_EEB.sum(axis=(0, 1)), np.bincount(b, minlength=NUM_BINS))


def test_ties_are_shared_out_and_priced_without_dither():
    scores = np.zeros((20_000, 10))
    routing = route(scores, 3, np.zeros(10), dither=1e-6)
    assert np.abs(routing.load_E - 6000).max() < 6 * math.sqrt(6000)
    assert routing.loss_EEB.sum() == routing.best == routing.chosen == 0.0
    assert routing.count_EEB.sum() == 20_000


def test_swap_model_touches_d_and_stays_below():
    rng = np.random.default_rng(2)
    scores, bias_E, top_k = rng.random((4000, 6)), 0.2 * rng.standard_normal(6), 2
    problem = AssignmentProblem(scores, top_k)
    routing = route(scores, top_k, bias_E)
    edges = bin_edges(1)
    model = SwapModel(routing.load_E - problem.target_E, routing.count_EEB, edges)
    base = duality.dual_value(problem, bias_E)
    for scale in (1e-3, 1e-2, 1e-1):
        shift_E = scale * rng.standard_normal(6)
        value, gradient_E, _ = model(shift_E)
        risen = duality.dual_value(problem, bias_E + shift_E) - base
        second_order = risen - (routing.load_E - problem.target_E) @ shift_E
        assert value <= risen + 0.05 * second_order  # margins are spread over their bins, so "below" holds on average
        if scale < 1e-2:
            assert value == pytest.approx(risen, abs=0.3 * second_order)
        nudge_E = np.zeros(6)
        nudge_E[2] = 1e-7
        assert (model(shift_E + nudge_E)[0] - value) / 1e-7 == pytest.approx(gradient_E[2], abs=0.5)


@pytest.mark.parametrize("num_tokens", [2000, 2001])
def test_repairs_are_feasible_assignments_below_the_optimum(num_tokens):
    """Also at a poor bias, and with targets that are not whole."""
    rng = np.random.default_rng(4)
    scores, top_k = rng.random((num_tokens, 6)), 2
    problem = AssignmentProblem(scores, top_k)
    exact = solve_exact(problem).value
    unit = 1 if problem.is_integral else 3
    units_E = np.rint(problem.target_E * unit).astype(np.int64)
    bias_E = 0.02 * rng.standard_normal(6)
    routing = route(scores, top_k, bias_E, close_rows=700)
    value = routing.chosen - problem.target_E @ bias_E
    swaps = balance_by_swaps(routing, units_E, unit, bias_E, bin_edges(1), 2.0)
    closest = reassign_closest(routing, problem.target_E, top_k, bias_E, 2.0)
    for repair in (swaps, closest):
        assert value - repair.loss <= exact + 1e-9
        assert value - repair.loss >= exact - 0.05 * (value - exact) - 1.0
    whole = reassign_closest(route(scores, top_k, bias_E), problem.target_E, top_k, bias_E, 2.0)
    assert value - whole.loss == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("repair", ["swaps", "closest"])
def test_what_a_repair_loses_is_not_understated_by_rounding(repair):
    """In fractions: the value of the repaired plan, D's chosen scores less the loss, is never above LP*."""
    tight = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        scores, bias_E = rng.standard_normal((20, 2)), 0.3 * rng.standard_normal(2)
        problem = AssignmentProblem(scores, 1)
        routing = route(scores, 1, bias_E)
        units_E = np.array([10, 10])
        if repair == "swaps":
            found = balance_by_swaps(routing, units_E, 1, bias_E, bin_edges(3), 4.0)
        else:
            found = reassign_closest(routing, problem.target_E, 1, bias_E, 4.0)
        exact_E = [Fraction(float(bias)) for bias in bias_E]
        picked = routing.experts_MK.ravel()
        chosen = sum(Fraction(float(scores[i, k])) + exact_E[k] for i, k in enumerate(picked))
        optimum = plan_value(problem, solve_exact(problem).plan)
        excess = chosen - 10 * sum(exact_E) - Fraction(found.loss) - optimum
        assert excess <= 0
        tight += excess > -Fraction(1, 10**12)
    assert tight > 50


def test_swaps_that_cannot_balance_say_so():
    scores = np.tile([[1.0, 0.0, -np.inf]], (30, 1))
    routing = route(scores, 1, np.zeros(3))
    repair = balance_by_swaps(routing, np.full(3, 10), 1, np.zeros(3), bin_edges(1), 1.0)
    assert repair.loss == math.inf


def test_summaries_do_not_grow_and_tasks_travel():
    rng = np.random.default_rng(0)
    bias_E = np.zeros(6)
    tasks = [RoutingTask(bias_E, 2, 1e-9, 1, 1.0, 0, 50), SurveyTask(0, 50)]
    for task in tasks:
        task = pickle.loads(pickle.dumps(task))
        small, large = (len(pickle.dumps(task((0, rng.random((size, 6)))))) for size in (200, 20_000))
        assert large == pytest.approx(small, abs=64)


def test_memory_does_not_grow_with_the_number_of_batches():
    def peak(num_batches):
        def batches():
            return (np.random.default_rng(t).random((2000, 8)) for t in range(num_batches))

        tracemalloc.start()
        solve_streaming(BatchedProblem(batches, 2), sample_rows=500, close_rows=64)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(5)
    assert peak(60) < 1.1 * peak(10)


def test_any_way_to_map_gives_the_same_bits():
    scores = make_scores("decimals", 5000, 8, np.random.default_rng(6))
    problem = batched(scores, 2, size=700)
    alone = solve_streaming(problem, sample_rows=300)
    with ThreadPoolExecutor(3) as pool:
        together = solve_streaming(problem, sample_rows=300, evaluate_batches=pool.map)
    assert (alone.upper_bound, alone.lower_bound, alone.history) == (
        together.upper_bound,
        together.lower_bound,
        together.history,
    )
    assert np.array_equal(alone.bias_E, together.bias_E)
    assert np.array_equal(alone.load_E, together.load_E)


def test_source_that_changes_is_refused():
    calls = iter(range(100))

    def batches():
        scores = np.random.default_rng(0).random((500, 4))
        scores[17, 2] += 1e-15 * next(calls)
        return [scores]

    with pytest.raises(ValueError, match="must repeat"):
        solve_streaming(BatchedProblem(batches, 2))


def test_bad_arguments_are_refused():
    problem = batched(np.random.default_rng(0).random((100, 4)), 2)
    for argument, value in (
        ("tolerance", 0.0),
        ("tolerance", math.nan),
        ("max_passes", 1),
        ("seed", -1),
        ("sample_rows", 0),
        ("close_rows", 1.5),
    ):
        with pytest.raises(ValueError, match=argument):
            solve_streaming(problem, **{argument: value})
    with pytest.raises(ValueError, match="top_k"):
        solve_streaming(BatchedProblem(problem.batches, 5))
    with pytest.raises(ValueError, match="no batch"):
        solve_streaming(BatchedProblem(list, 1))
    with pytest.raises(ValueError, match="use -inf to forbid a pair"):
        solve_streaming(BatchedProblem(lambda: [np.full((4, 2), 1e38, np.float32)], 1))


def test_no_convergence_raises_unless_asked_for_a_status():
    scores = np.random.default_rng(0).random((3000, 8))
    problem = batched(scores, 2)
    with pytest.raises(SolverError, match="relative gap"):
        solve_streaming(problem, max_passes=2, sample_rows=50)
    status = solve_streaming(problem, max_passes=2, sample_rows=50, must_converge=False)
    assert not status.converged
    assert_bounds(status, AssignmentProblem(scores, 2), solve_exact(AssignmentProblem(scores, 2)).value)


def test_infeasible_is_not_solved():
    scores = np.zeros((600, 3))
    scores[1:, 0] = -np.inf
    with pytest.raises(SolverError):
        solve_streaming(batched(scores, 1), max_passes=5, sample_rows=50, close_rows=20)


class Counted:
    """A handle that says how often it was made into scores."""

    made = 0

    def __init__(self, seed):
        self.seed = seed

    def scores(self):
        Counted.made += 1
        return np.random.default_rng(self.seed).random((400, 5))


def test_handles_are_made_into_scores_where_they_are_used():
    arrays = solve_streaming(BatchedProblem(lambda: (Counted(s).scores() for s in range(6)), top_k=2))
    Counted.made = 0
    with ThreadPoolExecutor(2) as pool:
        handles = BatchedProblem(lambda: (Counted(s) for s in range(6)), top_k=2)
        sent = solve_streaming(handles, evaluate_batches=ordered_map(pool, in_flight=3))
    assert (sent.upper_bound, sent.lower_bound) == (arrays.upper_bound, arrays.lower_bound)
    np.testing.assert_array_equal(sent.bias_E, arrays.bias_E)
    assert Counted.made == 6 * sent.passes
    exact = solve_exact(BatchedProblem(lambda: (Counted(s) for s in range(6)), top_k=2))
    assert sent.lower_bound <= exact.value <= sent.upper_bound


def test_at_most_so_many_batches_are_under_way():
    drawn, done = [], []

    def batches():
        for seed in range(12):
            drawn.append(seed)
            assert len(drawn) - len(done) <= 3
            yield seed

    with ThreadPoolExecutor(2) as pool:
        for result in ordered_map(pool, in_flight=3)(lambda item: item, batches()):
            done.append(result)
    assert done == list(range(12))


def test_batches_of_another_number_of_experts_are_refused():
    with pytest.raises(ValueError, match="batch 2 has 3 experts"):
        solve_streaming(BatchedProblem(lambda: [np.eye(2), np.eye(3)], top_k=1))
    with pytest.raises(ValueError, match="batch 2: "):
        solve_streaming(BatchedProblem(lambda: [np.eye(2), np.full((2, 2), np.nan)], top_k=1))
