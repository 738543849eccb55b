"""Properties of every registered stream; a new stream file is covered without an edit here."""

import itertools

import numpy as np
import pytest
from scipy import stats

from alflb.streams import STREAMS as REGISTRY
from alflb.streams import Static, make_stream, stream_names
from alflb.streams.trace import TraceReplay
from alflb.traces import RouterTrace

STREAMS = [make_stream(name, num_tokens=64) for name in stream_names()]


def take(stream, count, seed=0):
    return list(itertools.islice(stream.batches(seed), count))


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: type(stream).__name__)
def test_restarts_bit_identically(stream):
    for first, second in zip(take(stream, 3), take(stream, 3)):
        assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: type(stream).__name__)
def test_shape_dtype_and_finiteness(stream):
    for batch in take(stream, 2):
        assert batch.shape == (stream.num_tokens, stream.num_experts)
        assert batch.dtype in (np.float32, np.float64)
        assert np.isfinite(batch).all()


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: type(stream).__name__)
def test_batches_differ_from_step_to_step(stream):
    first, second = take(stream, 2)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("stream", [*STREAMS, make_stream("trace", order="batches")], ids=repr)
def test_the_seed_matters_where_a_stream_says_so(stream):
    one, other = take(stream, 1, seed=0)[0], take(stream, 1, seed=1)[0]
    assert stream.is_random is not np.array_equal(one, other)


@pytest.mark.parametrize("name", [name for name in stream_names() if not REGISTRY.get(name).replays_a_trace])
def test_seed_chooses_tokens_and_population_seed_the_population(name):
    stream = make_stream(name, num_tokens=4000, num_experts=4)
    other_tokens = take(stream, 1, seed=1)[0]
    other_population = take(make_stream(name, num_tokens=4000, num_experts=4, population_seed=1), 1)[0]
    batch = take(stream, 1)[0]
    assert not np.array_equal(batch, other_tokens)
    np.testing.assert_allclose(batch.mean(axis=0), other_tokens.mean(axis=0), atol=0.2)
    assert (
        np.abs(batch.mean(axis=0) - other_population.mean(axis=0)).max()
        > np.abs(batch.mean(axis=0) - other_tokens.mean(axis=0)).max()
    )


@pytest.mark.parametrize(
    ("name", "distribution"), [("uniform", stats.uniform), ("logistic", stats.logistic), ("gumbel", stats.gumbel_r)]
)
def test_noise_has_the_named_distribution(name, distribution):
    stream = make_stream(name, num_tokens=5000, num_experts=2, offsets=(0.0, 3.0))
    batch = take(stream, 1, seed=3)[0] - np.array([0.0, 3.0])
    assert stats.kstest(batch.ravel(), distribution.cdf).pvalue > 1e-3


def test_gumbel_top_1_load_is_softmax_of_offsets():
    offsets = (0.0, 1.0, -1.0)
    batch = take(make_stream("gumbel", num_tokens=20_000, num_experts=3, offsets=offsets), 1)[0]
    counts = np.bincount(batch.argmax(axis=1), minlength=3)
    expected = 20_000 * np.exp(offsets) / np.exp(offsets).sum()
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_linear_router_logits_have_unit_variance_and_topics_add_to_it():
    def logits(**parameters):
        stream = make_stream("linear_router", num_tokens=4000, num_experts=8, offsets=0.0, hidden_dim=256, **parameters)
        scores = take(stream, 1)[0]
        return np.log(scores / (1 - scores))

    assert logits().std() == pytest.approx(1.0, abs=0.05)
    assert logits(num_topics=64, topic_scale=2.0).std() == pytest.approx(np.sqrt(5.0), rel=0.15)


def test_linear_router_makes_the_named_scores_of_the_same_logits():
    def scores(function):
        return take(make_stream("linear_router", num_tokens=64, num_experts=4, score_function=function), 1)[0]

    sigmoid = scores("sigmoid")
    logits = np.log(sigmoid / (1 - sigmoid))
    powers = np.exp(logits)
    np.testing.assert_allclose(scores("softmax"), powers / powers.sum(axis=1, keepdims=True), rtol=1e-10)
    np.testing.assert_allclose(scores("sqrtsoftplus"), np.sqrt(np.log(1 + powers)), rtol=1e-10)
    assert scores("sqrtsoftplus").max() > 1  # no upper end, as in DeepSeek-V4


def test_drift_turns_its_offsets_with_the_stated_period():
    stream = make_stream("drift", num_tokens=4000, num_experts=4, offsets=2.0, period=8)
    means = [batch.mean(axis=0) for batch in take(stream, 8)]
    np.testing.assert_allclose(means[1], -means[5], atol=0.2)  # half a turn apart
    for t in range(1, 9):
        np.testing.assert_allclose(means[t - 1], stream.offset_at(t), atol=0.15)


def test_trace_replay_in_text_order_and_round_again():
    scores = np.arange(20.0).reshape(10, 2)
    batches = take(TraceReplay(RouterTrace(scores, 1), num_tokens=4), 3)
    np.testing.assert_array_equal(batches[0], scores[:4])
    np.testing.assert_array_equal(batches[1], scores[4:8])
    np.testing.assert_array_equal(batches[2], scores[:4])  # the last two tokens do not fill a batch


def test_trace_replay_shuffled_is_a_permutation_that_changes_every_pass():
    scores = np.arange(20.0).reshape(10, 2)
    batches = take(TraceReplay(RouterTrace(scores, 1), num_tokens=5, order="shuffled"), 4)
    first, second = np.concatenate(batches[:2]), np.concatenate(batches[2:])
    np.testing.assert_array_equal(np.sort(first, axis=0), scores)
    np.testing.assert_array_equal(np.sort(second, axis=0), scores)
    assert not np.array_equal(first, second)


def test_static_repeats_one_read_only_array():
    first, second = take(Static(np.eye(3)), 2)
    assert first is second
    assert not first.flags.writeable


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("uniform", {"num_tokens": 0}, "num_tokens is 0"),
        ("uniform", {"num_experts": 2.5}, "num_experts is 2.5"),
        ("uniform", {"offsets": (1.0,)}, "offsets has shape"),
        ("uniform", {"offsets": -1.0}, "offsets is -1.0"),
        ("uniform", {"ofsets": 1.0}, "no parameter 'ofsets'"),
        ("drift", {"period": 0.0}, "period is 0.0"),
        ("linear_router", {"score_function": "sigmod"}, "did you mean 'sigmoid'"),
        ("trace", {"order": "random"}, "unknown order"),
        ("trace", {"num_tokens": 10**6}, "has 16384 tokens"),
        ("unifrom", {}, "did you mean 'uniform'"),
    ],
)
def test_bad_parameters_are_refused_by_name(name, parameters, words):
    with pytest.raises(ValueError, match=words):
        make_stream(name, **parameters)
