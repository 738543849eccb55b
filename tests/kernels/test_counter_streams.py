"""Streams whose scores are functions of (seed, step, token, expert): their law, and routing them unseen."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from alflb import make_rule, make_stream, simulate
from alflb.kernels import get_kernels, numba_, reference
from alflb.kernels.draws import DISTRIBUTIONS, Draw, draw_key
from alflb.streams import DrawnStream, stream_names

LAWS = {"uniform": stats.uniform, "logistic": stats.logistic, "gumbel": stats.gumbel_r, "normal": stats.norm}
DRAWN = [name for name in stream_names() if isinstance(make_stream(name), DrawnStream)]


class Materialized:
    """A stream's batches as arrays only, so that `simulate` cannot draw them itself."""

    def __init__(self, stream):
        self.stream, self.num_tokens, self.num_experts = stream, stream.num_tokens, stream.num_experts

    def batches(self, seed):
        return self.stream.batches(seed)


def noise(distribution, num_tokens, num_experts, key=1):
    return Draw(distribution, key, num_tokens, np.zeros(num_experts, np.float32)).scores()


def test_every_distribution_has_a_stream():
    assert set(DISTRIBUTIONS) <= set(DRAWN)
    assert set(LAWS) == set(DISTRIBUTIONS)


@pytest.mark.jit
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_noise_follows_its_law(distribution):
    law, sample = LAWS[distribution], noise(distribution, 40_000, 25).ravel()
    assert sample.dtype == np.float32
    assert np.isfinite(sample).all()
    assert stats.kstest(sample[::5], law.cdf).pvalue > 1e-3
    bounds = {"lb": law.ppf(1e-13), "ub": law.isf(1e-13)}
    for moment in range(1, 5):
        expected = law.expect(lambda x, m=moment: x**m, **bounds)
        spread = np.sqrt((law.expect(lambda x, m=moment: x ** (2 * m), **bounds) - expected**2) / sample.size)
        assert abs((sample.astype(np.float64) ** moment).mean() - expected) < 4.5 * spread


@pytest.mark.jit
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_tails_are_as_heavy_as_they_should_be(distribution):
    sample = noise(distribution, 80_000, 50, key=7).ravel()
    for probability in (1e-5, 1e-4, 1e-3):
        for count in (
            (sample < LAWS[distribution].ppf(probability)).sum(),
            (sample > LAWS[distribution].isf(probability)).sum(),
        ):
            assert stats.binomtest(int(count), sample.size, probability).pvalue > 1e-4


@pytest.mark.jit
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_neighbors_in_token_expert_and_key_are_uncorrelated(distribution):
    here, there = (noise(distribution, 20_000, 20, key) for key in (5, 6))
    bound = 5 / np.sqrt(here.size)
    for left, right in ((here[1:], here[:-1]), (here[:, 1:], here[:, :-1]), (here, there)):
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < bound


@pytest.mark.jit
def test_uniform_noise_stays_below_one_and_uses_all_its_bits():
    sample = noise("uniform", 50_000, 20)
    assert 0 <= sample.min() < 1e-4
    assert 1 - 1e-4 < sample.max() < 1
    steps = (sample.astype(np.float64) * 2**24).ravel()
    assert np.array_equal(steps, np.rint(steps))
    assert {int(step) % 2 for step in steps[:100]} == {0, 1}


def test_a_score_does_not_depend_on_the_number_of_tokens():
    np.testing.assert_array_equal(noise("normal", 5000, 7)[:33], noise("normal", 33, 7))


def test_offsets_are_added_in_float32():
    offset_E = np.array([0.0, 3.0, -1.5], np.float32)
    scores_TE = Draw("logistic", 9, 100, offset_E).scores()
    np.testing.assert_array_equal(scores_TE, noise("logistic", 100, 3, key=9) + offset_E)


def test_keys_differ_between_streams_seeds_and_steps():
    names, numbers = ("uniform", "normal"), range(20)
    keys = {draw_key(name, seed, t) for name, seed, t in itertools.product(names, numbers, numbers)}
    assert len(keys) == 800
    assert all(0 <= key < 2**64 for key in keys)


@given(st.data())
def test_routing_unseen_equals_routing_the_array(data):
    num_tokens, num_experts = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 70))
    top_k = data.draw(st.integers(1, num_experts))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    draw = Draw(
        data.draw(st.sampled_from(DISTRIBUTIONS)),
        data.draw(st.integers(0, 2**64 - 1)),
        num_tokens,
        rng.standard_normal(num_experts).astype(np.float32),
    )
    bias_E = rng.standard_normal(num_experts)
    load_E, dual_sum = numba_.drawn_loads(draw, bias_E, top_k)
    expected_load_E, expected_dual_sum = numba_.loads(draw.scores(), bias_E, top_k)
    np.testing.assert_array_equal(load_E, expected_load_E)
    assert dual_sum == expected_dual_sum
    np.testing.assert_array_equal(load_E, reference.drawn_loads(draw, bias_E, top_k)[0])


@pytest.mark.jit
@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_draws_do_not_depend_on_the_number_of_threads(monkeypatch, threads):
    expected = noise("gumbel", 9001, 5)
    monkeypatch.setenv("ALFLB_NUM_THREADS", threads)
    np.testing.assert_array_equal(noise("gumbel", 9001, 5), expected)
    draw = Draw("gumbel", 1, 9001, np.zeros(5, np.float32))
    np.testing.assert_array_equal(
        numba_.drawn_loads(draw, np.zeros(5), 2)[0], get_kernels("reference").loads(expected, np.zeros(5), 2)[0]
    )


@pytest.mark.jit
@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("name", DRAWN)
def test_trajectory_is_the_same_as_from_arrays(name, backend):
    stream = make_stream(name, num_tokens=3000, num_experts=20)
    unseen, seen = (
        simulate(source, make_rule("sign", 0.01), top_k=3, num_steps=15, seed=4, backend=backend)
        for source in (stream, Materialized(stream))
    )
    assert unseen.bias_NE.tobytes() == seen.bias_NE.tobytes()
    assert unseen.load_NE.tobytes() == seen.load_NE.tobytes()
    assert unseen.meta["static"] is False


def test_bad_draws_are_refused_by_name():
    with pytest.raises(ValueError, match="did you mean 'gumbel'"):
        Draw("gumble", 0, 1, np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="offset_E"):
        next(make_stream("uniform", num_experts=2, offsets=(0.0, 1e300)).batches(0))
