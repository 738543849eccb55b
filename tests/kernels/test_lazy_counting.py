"""Lazy re-evaluation of fixed scores: the same loads as routing every token at every step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alflb import Static, make_rule, simulate
from alflb.kernels import counting, get_kernels, numba_
from alflb.kernels.counting import FixedScores, LoadCounter

BACKENDS = [get_kernels("numba"), get_kernels("reference")]


@pytest.fixture
def always_lazy(monkeypatch):
    """Route expired tokens only, whatever it costs."""
    monkeypatch.setattr(counting, "_SMALLEST", 0)
    monkeypatch.setattr(counting, "_MOST_EXPIRED", 1.0)


def fixed(scores_TE):
    """Scores that cannot be written to, as a static stream has them."""
    scores_TE = scores_TE.copy()
    scores_TE.flags.writeable = False
    return scores_TE


def biases(rng, num_experts, num_steps, step):
    return np.cumsum(step * np.sign(rng.standard_normal((num_steps, num_experts))), axis=0)


def assert_loads_are_plain(kernels, scores_TE, bias_NE, top_k):
    counter = LoadCounter(kernels, top_k)
    for bias_E in bias_NE:
        expected, _ = kernels.loads(scores_TE, bias_E, top_k)
        np.testing.assert_array_equal(counter.loads(scores_TE, bias_E), expected)


@pytest.mark.jit
@pytest.mark.usefixtures("always_lazy")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernels", BACKENDS, ids=["numba", "reference"])
@pytest.mark.parametrize("step", [0.0, 1e-7, 1e-4, 1e-2, 1.0])
def test_loads_of_fixed_scores(kernels, step, dtype):
    rng = np.random.default_rng(1)
    scores_TE = fixed(rng.standard_normal((500, 24)).astype(dtype))
    assert_loads_are_plain(kernels, scores_TE, biases(rng, 24, 40, step), 5)


@pytest.mark.usefixtures("always_lazy")
@given(st.data())
def test_loads_of_tied_and_forbidden_scores(data):
    num_experts = data.draw(st.integers(1, 40))
    top_k = data.draw(st.integers(1, num_experts))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    scores_TE = rng.integers(0, data.draw(st.integers(1, 64)), (30, num_experts)) / 1024
    scores_TE[rng.random(scores_TE.shape) < data.draw(st.sampled_from([0.0, 0.3, 1.0]))] = -np.inf
    scores_TE = fixed(scores_TE.astype(data.draw(st.sampled_from([np.float32, np.float64]))))
    assert_loads_are_plain(numba_, scores_TE, biases(rng, num_experts, 12, 1 / 1024), top_k)


@pytest.mark.jit
@pytest.mark.usefixtures("always_lazy")
def test_rounding_of_large_biases_is_guarded_against():
    """In float32 a bias near 1000 moves scores by steps of 2^-14; margins of that order must not be trusted."""
    rng = np.random.default_rng(2)
    scores_TE = fixed((rng.random((400, 8)) * 1e-3).astype(np.float32))
    assert_loads_are_plain(numba_, scores_TE, 1000 + biases(rng, 8, 60, 1e-6), 2)


@pytest.mark.usefixtures("always_lazy")
@pytest.mark.parametrize("seed", range(12))
def test_margins_at_the_edge_of_rounding_are_not_trusted(seed):
    """Biases that come and go by amounts of the size of one rounding; the guard taken off fails for most seeds."""
    rng = np.random.default_rng(seed)
    scores_TE = fixed((rng.integers(0, 9, (300, 12)) / 8 + 1e-7 * rng.random((300, 12))).astype(np.float32))
    bias_NE = 1e-7 * rng.standard_normal((40, 12)).cumsum(axis=0)
    assert_loads_are_plain(numba_, scores_TE, bias_NE, 3)


@pytest.mark.usefixtures("always_lazy")
@given(st.data())
def test_loads_at_the_ends_of_the_floating_point_range(data):
    """Sums that overflow to -inf forbid an expert for one step only."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    largest = float(np.finfo(dtype).max)
    scores_TE = fixed((-largest * rng.choice([0.1, 0.4, 0.9, 1.0], (20, 4))).astype(dtype))
    bias_NE = largest * rng.choice([-0.9, -0.4, 0.0, 0.1], (8, 4)) * data.draw(st.sampled_from([1.0, 1e-3]))
    with np.errstate(over="ignore"):
        assert_loads_are_plain(numba_, scores_TE, bias_NE, 2)


@pytest.mark.usefixtures("always_lazy")
def test_tokens_without_a_choice_are_routed_once(monkeypatch):
    routed = []
    original = FixedScores._route_again
    monkeypatch.setattr(
        FixedScores,
        "_route_again",
        lambda self, expired, bias_E: routed.append(len(expired)) or original(self, expired, bias_E),
    )
    rng = np.random.default_rng(7)
    scores_TE = rng.standard_normal((200, 6))
    scores_TE[50:, 1:] = -np.inf  # one expert is left of two
    assert_loads_are_plain(numba_, fixed(scores_TE), biases(rng, 6, 20, 10.0), 2)
    assert routed
    assert max(routed) <= 50


@pytest.mark.parametrize("kernels", BACKENDS, ids=["numba", "reference"])
@pytest.mark.parametrize(
    ("num_experts", "top_k"), [(1, 1), (5, 5), (5, 2), (64, 8), (256, 8), (70, 31), (70, 45), (64, 64)]
)
def test_margins(kernels, num_experts, top_k):
    rng = np.random.default_rng(3)
    scores_TE, bias_E = rng.standard_normal((50, num_experts)), rng.standard_normal(num_experts)
    allocation, margin_T = kernels.allocate_with_margins(scores_TE, bias_E, top_k)
    np.testing.assert_array_equal(allocation.experts_TK, kernels.allocate(scores_TE, bias_E, top_k).experts_TK)
    ordered_TE = np.sort(np.column_stack([np.full(50, -np.inf), scores_TE + bias_E]), axis=1)
    np.testing.assert_array_equal(margin_T, ordered_TE[:, -top_k] - ordered_TE[:, -top_k - 1])


def count_calls(monkeypatch, name):
    calls = []
    original = getattr(FixedScores, name)
    monkeypatch.setattr(FixedScores, name, lambda *args: calls.append(name) or original(*args))
    return calls


@pytest.mark.jit
@pytest.mark.parametrize(("step", "lazy"), [(1e-6, True), (0.3, False)])
def test_lazy_where_few_tokens_expire_and_only_there(monkeypatch, step, lazy):
    calls = count_calls(monkeypatch, "_route_again")
    scores_TE = np.random.default_rng(4).random((5000, 64)).astype(np.float32)
    run = simulate(Static(scores_TE), make_rule("sign", step), top_k=8, num_steps=30)
    assert bool(calls) is lazy
    plain = simulate(Static(scores_TE), make_rule("sign", step), top_k=8, num_steps=30, backend="reference")
    np.testing.assert_array_equal(run.load_NE, plain.load_NE)
    assert run.bias_NE.tobytes() == plain.bias_NE.tobytes()


@pytest.mark.jit
def test_an_array_that_may_be_written_to_is_routed_afresh():
    scores_TE = np.random.default_rng(5).random((5000, 64))
    counter = LoadCounter(numba_, 8)
    for _ in range(3):
        expected, _ = numba_.loads(scores_TE, np.zeros(64), 8)
        np.testing.assert_array_equal(counter.loads(scores_TE, np.zeros(64)), expected)
        scores_TE[:] = scores_TE[::-1, ::-1].copy()


@pytest.mark.jit
def test_a_new_batch_starts_afresh():
    rng = np.random.default_rng(6)
    first, second = (fixed(rng.random((5000, 64))) for _ in range(2))
    counter = LoadCounter(numba_, 8)
    for scores_TE in (first, first, first, second, second, first):
        expected, _ = numba_.loads(scores_TE, np.zeros(64), 8)
        np.testing.assert_array_equal(counter.loads(scores_TE, np.zeros(64)), expected)
