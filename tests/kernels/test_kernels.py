"""The reference against three nested loops, integer by integer, and what every backend does with its arguments."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alflb.kernels import backend_names, get_kernels

reference = get_kernels("reference")
numba = get_kernels("numba")


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


@given(st.integers(1, 6), st.data())
def test_reference_is_top_k_with_ties_to_the_lowest_index(num_experts, data):
    top_k = data.draw(st.integers(1, num_experts))
    values = st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 0.25, 0.5])
    scores = np.array(data.draw(st.lists(st.lists(values, min_size=num_experts, max_size=num_experts), min_size=1)))
    bias = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.25, -0.5]), min_size=num_experts, max_size=num_experts)))
    allocation = reference.allocate(scores, bias, top_k)
    assert allocation.experts_TK.tolist() == [top_k_by_hand(row + bias, top_k) for row in scores]
    assert allocation.load_E.sum() == len(scores) * top_k


def test_bias_is_added_in_the_dtype_of_the_scores():
    scores = np.array([[1.0, 1.0]], dtype=np.float32)
    bias = np.array([0.0, 1e-9])  # below float32's resolution at 1, so this is a tie
    for kernels in (reference, numba):
        assert kernels.allocate(scores, bias, 1).experts_TK.tolist() == [[0]]
        assert kernels.allocate(scores.astype(np.float64), bias, 1).experts_TK.tolist() == [[1]]


@pytest.mark.parametrize("threads", ["0", "two", "-1"])
def test_a_bad_thread_count_is_refused_by_name(monkeypatch, threads):
    monkeypatch.setenv("ALFLB_NUM_THREADS", threads)
    with pytest.raises(ValueError, match="ALFLB_NUM_THREADS"):
        numba.loads(np.zeros((2, 2)), np.zeros(2), 1)


@pytest.mark.parametrize("backend", [name for name in backend_names() if name != "torch"])  # it has a file of its own
def test_inputs_are_not_changed(backend):
    rng = np.random.default_rng(5)
    scores, bias = rng.standard_normal((50, 8)), rng.standard_normal(8)
    before = scores.copy(), bias.copy()
    get_kernels(backend).allocate(scores, bias, 3)
    np.testing.assert_array_equal(scores, before[0])
    np.testing.assert_array_equal(bias, before[1])


def test_unknown_backend_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'numba'"):
        get_kernels("nubma")
