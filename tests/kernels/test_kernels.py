"""Fast kernels against the reference, and the reference against three nested loops, integer by integer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alflb.kernels import backend_names, get_kernels

reference = get_kernels("reference")
numba = get_kernels("numba")

SHAPES = [
    (1, 1, 1),
    (1, 5, 2),
    (7, 1, 1),
    (7, 4, 4),
    (64, 8, 1),
    (100, 64, 6),
    (2048, 16, 4),
    (2049, 16, 4),
    (5000, 33, 9),
]


def top_k_by_hand(biased_E, top_k):
    """Pick the best remaining expert K times, scanning from index 0, replacing only by strictly better ones."""
    chosen = []
    for _ in range(top_k):
        best = None
        for expert, value in enumerate(biased_E):
            if expert not in chosen and (best is None or value > biased_E[best]):
                best = expert
        chosen.append(best)
    return sorted(chosen)


def random_batch(shape, seed, dtype, *, levels=None, forbidden=0.0):
    num_tokens, num_experts, _ = shape
    rng = np.random.default_rng(seed)
    if levels is None:
        scores = rng.standard_normal((num_tokens, num_experts))
        bias = rng.standard_normal(num_experts)
    else:
        scores = rng.integers(0, levels, (num_tokens, num_experts)) / 1024
        bias = rng.integers(-levels, levels, num_experts) / 1024
    scores[rng.random(scores.shape) < forbidden] = -np.inf
    return scores.astype(dtype), bias


def assert_same_allocation(scores, bias, top_k):
    expected = reference.allocate(scores, bias, top_k)
    actual = numba.allocate(scores, bias, top_k)
    np.testing.assert_array_equal(actual.experts_TK, expected.experts_TK)
    np.testing.assert_array_equal(actual.load_E, expected.load_E)
    assert actual.load_E.dtype == expected.load_E.dtype == np.int64
    load_E, dual_sum = numba.loads(scores, bias, top_k)
    np.testing.assert_array_equal(load_E, expected.load_E)
    assert dual_sum == actual.dual_sum
    return expected, actual


@given(st.integers(1, 6), st.data())
def test_reference_is_top_k_with_ties_to_the_lowest_index(num_experts, data):
    top_k = data.draw(st.integers(1, num_experts))
    values = st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 0.25, 0.5])
    scores = np.array(data.draw(st.lists(st.lists(values, min_size=num_experts, max_size=num_experts), min_size=1)))
    bias = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.25, -0.5]), min_size=num_experts, max_size=num_experts)))
    allocation = reference.allocate(scores, bias, top_k)
    assert allocation.experts_TK.tolist() == [top_k_by_hand(row + bias, top_k) for row in scores]
    assert allocation.load_E.sum() == len(scores) * top_k


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_numba_equals_reference_on_random_scores(shape, dtype):
    scores, bias = random_batch(shape, 1, dtype)
    expected, actual = assert_same_allocation(scores, bias, shape[2])
    assert actual.dual_sum == pytest.approx(expected.dual_sum, rel=1e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("levels", [1, 2, 8, 1024])
@pytest.mark.parametrize("shape", SHAPES)
def test_numba_equals_reference_exactly_on_planted_ties(shape, levels, dtype):
    scores, bias = random_batch(shape, levels, dtype, levels=levels)
    expected, actual = assert_same_allocation(scores, bias, shape[2])
    assert actual.dual_sum == expected.dual_sum  # dyadic: every sum is exact


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("forbidden", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_numba_equals_reference_with_forbidden_pairs(shape, forbidden, dtype):
    scores, bias = random_batch(shape, 3, dtype, levels=16, forbidden=forbidden)
    assert_same_allocation(scores, bias, shape[2])


def test_bias_is_added_in_the_dtype_of_the_scores():
    scores = np.array([[1.0, 1.0]], dtype=np.float32)
    bias = np.array([0.0, 1e-9])  # below float32's resolution at 1, so this is a tie
    for kernels in (reference, numba):
        assert kernels.allocate(scores, bias, 1).experts_TK.tolist() == [[0]]
        assert kernels.allocate(scores.astype(np.float64), bias, 1).experts_TK.tolist() == [[1]]


@pytest.mark.jit
def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    scores, bias = random_batch((10_000, 32, 5), 7, np.float64)
    results = []
    for threads in ("1", "2", "3", "7"):
        monkeypatch.setenv("ALFLB_NUM_THREADS", threads)
        results.append(numba.allocate(scores, bias, 5))
    for result in results[1:]:
        np.testing.assert_array_equal(result.experts_TK, results[0].experts_TK)
        np.testing.assert_array_equal(result.load_E, results[0].load_E)
        assert result.dual_sum == results[0].dual_sum


@pytest.mark.parametrize("threads", ["0", "two", "-1"])
def test_a_bad_thread_count_is_refused_by_name(monkeypatch, threads):
    monkeypatch.setenv("ALFLB_NUM_THREADS", threads)
    with pytest.raises(ValueError, match="ALFLB_NUM_THREADS"):
        numba.loads(np.zeros((2, 2)), np.zeros(2), 1)


@pytest.mark.parametrize("backend", [name for name in backend_names() if name != "torch"])  # it has a file of its own
def test_inputs_are_not_changed(backend):
    scores, bias = random_batch((50, 8, 3), 5, np.float64)
    before = scores.copy(), bias.copy()
    get_kernels(backend).allocate(scores, bias, 3)
    np.testing.assert_array_equal(scores, before[0])
    np.testing.assert_array_equal(bias, before[1])


def test_unknown_backend_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'numba'"):
        get_kernels("nubma")
