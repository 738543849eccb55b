"""The door: what is refused, and whether the message names the argument and the mend."""

import numpy as np
import pytest

from alflb.problem import AssignmentProblem, check_bias, check_count, check_scores, target_load_E

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
