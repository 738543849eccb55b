"""The door: what is refused, and whether the message names the argument and how to fix it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alflb import duality, route, simulate, solve_exact
from alflb.problem import AssignmentProblem, check_bias, check_count, check_scores, check_target, target_load_E

GOOD = np.array([[0.5, 0.25], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([[1.0, np.nan]], "nan at token 0, expert 1"),
        ([[1.0, np.inf]], "inf at token 0, expert 1"),
        (np.zeros((0, 3)), "at least one token"),
        (np.zeros((3, 0)), "at least one token"),
        (np.zeros(3), "2-D"),
        (np.zeros((2, 2, 2)), "2-D"),
        ([[1.0, 2.0], [3.0]], "ragged"),
        (np.ones((2, 2), dtype=np.int64), "float32 or float64"),
        (np.ones((2, 2), dtype=np.float16), "float32 or float64"),
        (np.ones((2, 2), dtype=complex), "float32 or float64"),
        ([["a", "b"]], "float32 or float64"),
        (None, "float32 or float64"),
        (np.ma.masked_array(np.ones((2, 2)), [[True, False], [False, False]]), r"a masked array; drop padding"),
        (np.ma.masked_array(np.ones((2, 2))), "a masked array"),
        (
            [[1.0, 0.0], [-np.inf, -np.inf]],
            r"token 1 has no expert .* \(1 such tokens\); if they are padding",
        ),
    ],
)
def test_bad_scores_are_refused_by_name(scores, words):
    with pytest.raises(ValueError, match=words) as caught:
        check_scores(scores)
    assert str(caught.value).startswith("scores")


@pytest.mark.parametrize("top_k", [0, -1, 3, 1.0, True, "1", None, 10**30])
def test_bad_top_k_is_refused_by_name(top_k):
    with pytest.raises(ValueError, match="top_k is"):
        AssignmentProblem(GOOD, top_k)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ([1.0], "shape"),
        ([3.0, -1.0], "outside"),
        ([2.5, -0.5], "outside"),
        ([1.0, 0.5], "sum"),
        ([np.nan, 1.0], "NaN"),
    ],
)
def test_bad_targets_are_refused_by_name(target, words):
    with pytest.raises(ValueError, match=words) as caught:
        AssignmentProblem(GOOD, 1, target)
    assert str(caught.value).startswith("target_E")


def test_a_token_without_enough_allowed_experts_is_refused():
    with pytest.raises(ValueError, match="token 1 has 1 experts"):
        AssignmentProblem([[0.0, 0.0], [0.0, -np.inf]], 2)


def test_minus_infinity_is_accepted_where_enough_experts_remain():
    problem = AssignmentProblem([[0.0, -np.inf], [0.5, 0.25]], 1)
    assert problem.score_range == np.inf


def test_scores_are_neither_copied_nor_changed_nor_writable():
    scores = GOOD.copy()
    problem = AssignmentProblem(scores, 1)
    assert np.shares_memory(problem.scores_TE, scores)
    with pytest.raises(ValueError, match="read-only"):
        problem.scores_TE[0, 0] = 9.0
    scores[0, 0] = 0.5  # the caller's own array stays writable


def test_target_load_may_be_fractional():
    problem = AssignmentProblem(np.zeros((3, 2)), 1)
    assert problem.target_load == 1.5
    assert not problem.is_integral
    assert problem.target_E.tolist() == [1.5, 1.5]


def test_loads_beyond_int64_are_refused():
    with pytest.raises(ValueError, match="int64"):
        target_load_E(2**62, 4, 3)


@pytest.mark.parametrize("bias", [[1.0], [[0.0, 0.0]], [np.inf, 0.0], ["a", "b"], [True, False]])
def test_bad_biases_are_refused_by_name(bias):
    with pytest.raises(ValueError, match="bias"):
        check_bias(bias, 2)


@pytest.mark.parametrize("value", [0, 1.5, "3", False, np.float64(2)])
def test_counts_must_be_positive_integers(value):
    with pytest.raises(ValueError, match="rounds is"):
        check_count(value, "rounds")


def test_numpy_integers_count():
    assert check_count(np.int32(3), "rounds") == 3


@given(
    loads=arrays(np.int64, st.integers(2, 12), elements=st.integers(0, 1000)),
    top_k=st.integers(1, 4),
    dtype=st.sampled_from([np.float32, np.float64]),
)
@settings(deadline=None)
def test_targets_rounded_to_float32_are_accepted_and_sum_exactly(loads, top_k, dtype):
    """Shares of K T, computed in float32: whatever their rounding, the sum is right afterwards."""
    top_k, loads = min(top_k, len(loads)), loads + 1
    num_tokens = int(loads.max()) + 7
    given_E = (loads / loads.sum() * top_k * num_tokens).astype(dtype)
    if given_E.max() > num_tokens:
        return
    target_E = check_target(given_E, num_tokens, len(loads), top_k)
    assert target_E.sum() == pytest.approx(top_k * num_tokens, rel=1e-9)
    assert np.abs(target_E - given_E).max() <= 1e-6 * num_tokens * top_k
    assert target_E.min() >= 0
    assert target_E.max() <= num_tokens


def test_the_sum_of_bad_targets_is_printed_so_that_it_differs():
    with pytest.raises(ValueError, match=r"target_E sums to 24\.0001; it must sum to top_k \* num_tokens = 24"):
        check_target([12.0, 12.0001], 24, 2, 1)


@pytest.mark.parametrize("row", [[-np.inf] * 3, [-np.inf, -np.inf, 0.0]])
def test_a_token_without_enough_experts_is_refused_wherever_scores_enter(row):
    scores = np.array([[0.5, 0.25, 0.0]] * 4 + [row])
    for enter in (
        lambda: AssignmentProblem(scores, 2),
        lambda: simulate(scores, "sign", top_k=2, num_steps=2),
        lambda: simulate(OneBatch(scores), "sign", top_k=2, num_steps=2),
        lambda: route(scores, np.zeros(3), 2),
    ):
        with pytest.raises(ValueError, match="token 4"):
            enter()


class OneBatch:
    """A user's own stream."""

    def __init__(self, scores):
        self.scores = scores
        self.num_tokens, self.num_experts = scores.shape

    def batches(self, seed):
        while True:
            yield self.scores


def test_a_masked_array_is_never_taken_for_what_lies_under_the_mask():
    masked = np.ma.masked_array(np.ones((4, 2)), np.arange(8).reshape(4, 2) < 2)
    for enter in (
        lambda: AssignmentProblem(masked, 1),
        lambda: simulate(masked, "sign", top_k=1, num_steps=1),
        lambda: simulate(OneBatch(masked), "sign", top_k=1, num_steps=1),
        lambda: route(masked, np.zeros(2), 1),
        lambda: route(np.ones((4, 2)), np.ma.masked_array([0.0, 0.0], [True, False]), 1),
    ):
        with pytest.raises(ValueError, match="masked array"):
            enter()


def test_an_array_in_the_place_of_a_problem_is_one_clear_line():
    for call in (
        lambda: solve_exact(GOOD),
        lambda: duality.dual_value(GOOD, [0.0, 0.0]),
        lambda: duality.allocate(GOOD, [0.0, 0.0]),
        lambda: duality.gap_certificate(GOOD, [0.0, 0.0]),
        lambda: duality.step_certificate(GOOD, [0.0, 0.0], [0.0, 1.0]),
        lambda: duality.affinity(GOOD, [[0], [1]]),
        lambda: duality.lagrangian(GOOD, GOOD, [0.0, 0.0], [0.0, 0.0]),
    ):
        with pytest.raises(ValueError, match=r"problem is of type ndarray, of shape \(2, 2\); pass Assig"):
            call()
    with pytest.raises(ValueError, match=r"problem is of type dict, {}; pass AssignmentProblem"):
        solve_exact({})


def test_scores_of_a_torch_tensor():
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(GOOD, dtype=torch.bfloat16, requires_grad=True)
    taken = check_scores(tensor)
    assert taken.dtype == np.float32
    np.testing.assert_array_equal(taken, GOOD)
