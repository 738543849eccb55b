"""The compiled allocator against the reference, integer by integer, where its shortcuts could go wrong."""

import os
import subprocess
import sys

import numpy as np
import pytest
from _score_families import constant, denormal, distinct, forbidden, signed_zeros, tied
from hypothesis import given
from hypothesis import strategies as st

from alflb.kernels import _chunks, get_kernels, numba_
from alflb.kernels._network import sorting_network

reference = get_kernels("reference")

SHAPES = [
    (1, 1, 1),
    (1, 5, 2),
    (17, 8, 8),
    (33, 16, 1),
    (31, 3, 2),
    (100, 64, 8),
    (16, 64, 64),
    (2049, 64, 6),
    (4100, 256, 8),
    (300, 512, 8),
    (300, 257, 9),
    (5000, 33, 9),
    (129, 130, 2),
    (65, 320, 20),
    (40, 20, 17),
    (70, 100, 32),
    (70, 100, 33),
    (70, 140, 65),
    (50, 64, 63),
    (20, 300, 299),
]
DTYPES = [np.float32, np.float64]


def best_in_one_group(rng, shape):
    """The largest scores are 64 and 128 experts apart, where group maxima hide all but one of them."""
    return rng.random(shape) + 4.0 * (np.arange(shape[1]) % 64 == 3)


SCORES = [distinct, tied, constant, forbidden, signed_zeros, denormal, best_in_one_group]


def assert_equals_reference(scores_TE, bias_E, top_k):
    expected = reference.allocate(scores_TE, bias_E, top_k)
    actual = numba_.allocate(scores_TE, bias_E, top_k)
    np.testing.assert_array_equal(actual.experts_TK, expected.experts_TK)
    np.testing.assert_array_equal(actual.load_E, expected.load_E)
    assert (actual.experts_TK.dtype, actual.load_E.dtype) == (expected.experts_TK.dtype, expected.load_E.dtype)
    load_E, dual_sum = numba_.loads(scores_TE, bias_E, top_k)
    np.testing.assert_array_equal(load_E, expected.load_E)
    assert dual_sum == actual.dual_sum
    assert dual_sum == pytest.approx(expected.dual_sum, rel=1e-12, abs=1e-9)
    return dual_sum, expected.dual_sum


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make_scores", SCORES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(shape, make_scores, dtype):
    num_tokens, num_experts, top_k = shape
    rng = np.random.default_rng(num_tokens + num_experts)
    scores_TE = make_scores(rng, (num_tokens, num_experts)).astype(dtype)
    assert_equals_reference(scores_TE, np.zeros(num_experts), top_k)
    assert_equals_reference(scores_TE, rng.integers(-4, 5, num_experts) / 1024, top_k)
    assert_equals_reference(scores_TE, rng.standard_normal(num_experts), top_k)


@given(st.data())
def test_equals_reference_on_small_tied_batches(data):
    num_experts = data.draw(st.integers(1, 70))
    top_k = data.draw(st.integers(1, num_experts))
    num_tokens = data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    levels = data.draw(st.integers(1, 2000))
    dtype = data.draw(st.sampled_from(DTYPES))
    scores_TE = (rng.integers(0, levels, (num_tokens, num_experts)) / 1024).astype(dtype)
    bias_E = rng.integers(-levels, levels, num_experts) / 1024
    dual_sum, expected_sum = assert_equals_reference(scores_TE, bias_E, top_k)
    assert dual_sum == expected_sum  # dyadic: every sum is exact


@given(st.data())
def test_many_picks_equal_reference_however_the_scores_are_spread(data):
    """Beyond 32 picks a bar is searched for; ties, infinities and sizes far apart leave it little to go by."""
    num_experts = data.draw(st.integers(34, 140))
    top_k = data.draw(st.integers(33, num_experts))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    dtype = data.draw(st.sampled_from(DTYPES))
    scores_TE = rng.standard_normal((20, num_experts))
    spread = data.draw(st.sampled_from([0, 1, 100, 280]))
    scores_TE *= 2.0 ** rng.integers(-spread, spread // 2 + 1, scores_TE.shape).clip(-140, 120)
    if data.draw(st.booleans()):
        scores_TE = np.round(scores_TE, data.draw(st.integers(0, 2)))
    scores_TE[rng.random(scores_TE.shape) < data.draw(st.sampled_from([0.0, 0.2, 0.7]))] = -np.inf
    scores_TE, bias_E = scores_TE.astype(dtype), np.zeros(num_experts)
    expected = reference.allocate_with_margins(scores_TE, bias_E, top_k)
    actual = numba_.allocate_with_margins(scores_TE, bias_E, top_k)
    np.testing.assert_array_equal(actual[0].experts_TK, expected[0].experts_TK)
    np.testing.assert_array_equal(actual[1], expected[1])
    assert actual[0].dual_sum == pytest.approx(expected[0].dual_sum, rel=1e-9)
    np.testing.assert_array_equal(numba_.loads(scores_TE, bias_E, top_k)[0], expected[0].load_E)


@pytest.mark.jit
@pytest.mark.parametrize("groups", [(), (8, 4)], ids=["all experts", "in groups"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_the_number_of_threads(monkeypatch, dtype, groups):
    rng = np.random.default_rng(5)
    scores_TE, bias_E = rng.random((9001, 96)).astype(dtype), rng.standard_normal(96)
    allocate = numba_.allocate_in_groups if groups else numba_.allocate
    monkeypatch.setenv("ALFLB_NUM_THREADS", "1")
    alone = allocate(scores_TE, bias_E, 7, *groups)
    for threads in ("2", "3", "8"):
        monkeypatch.setenv("ALFLB_NUM_THREADS", threads)
        together = allocate(scores_TE, bias_E, 7, *groups)
        assert together.experts_TK.tobytes() == alone.experts_TK.tobytes()
        assert together.load_E.tobytes() == alone.load_E.tobytes()
        assert together.dual_sum == alone.dual_sum


@pytest.mark.jit
@pytest.mark.parametrize("num_tokens", [2048, 70_000])
def test_one_expert_can_take_every_token(num_tokens):
    """Loads are counted in int64, of a single chunk too."""
    scores_TE = np.zeros((num_tokens, 20), np.float32)
    for load_E in (numba_.allocate(scores_TE, np.zeros(20), 1).load_E, numba_.loads(scores_TE, np.zeros(20), 1)[0]):
        assert load_E.dtype == np.int64
        assert load_E.tolist() == [num_tokens] + [0] * 19


def test_read_only_scores_are_accepted_by_the_same_code():
    scores_TE = np.random.default_rng(6).random((40, 64))
    assert_equals_reference(scores_TE, np.zeros(64), 8)
    compiled = getattr(_chunks.route_chunks, "signatures", [])
    scores_TE.flags.writeable = False
    assert_equals_reference(scores_TE, np.zeros(64), 8)
    assert getattr(_chunks.route_chunks, "signatures", []) == compiled


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32, 64])
def test_sorting_network_sorts_every_sequence_of_zeros_and_ones(width):
    """By the zero-one principle it then sorts everything; beyond 16 inputs, a sample."""
    rng = np.random.default_rng(0)
    if width <= 16:
        inputs = (np.arange(2**width)[:, None] >> np.arange(width)) & 1
    else:
        inputs = rng.integers(0, 2, (20_000, width))
    for i, j in sorting_network(width):
        low, high = np.minimum(inputs[:, i], inputs[:, j]), np.maximum(inputs[:, i], inputs[:, j])
        inputs[:, i], inputs[:, j] = low, high
    assert (np.diff(inputs, axis=1) >= 0).all()


COUNT_CACHE_MISSES = """
import numpy as np
from alflb.kernels import _chunks, numba_
numba_.loads(np.zeros((3, 4), np.float32), np.zeros(4), 1)
print(sum(_chunks.route_chunks.stats.cache_misses.values()))
"""


@pytest.mark.jit
def test_a_second_process_compiles_nothing(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    misses = [
        int(
            subprocess.run(
                [sys.executable, "-c", COUNT_CACHE_MISSES], check=True, env=environment, capture_output=True
            ).stdout
        )
        for _ in range(2)
    ]
    assert misses == [1, 0]
