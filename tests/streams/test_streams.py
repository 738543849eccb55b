"""What each stream claims to be: topic runs, Zipf loads, shifts on time, a collapsed start, planted tokens, ties."""

import itertools
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from alflb import make_observers, make_rule, make_stream, max_vio, simulate, stream_names
from alflb.bounds import crossing_multiplicity
from alflb.precision import round_to
from alflb.schedules import LinearDecay
from alflb.streams.base import STREAMS
from alflb.streams.trace import TraceReplay
from alflb.traces import RouterTrace
from alflb.traces.convert import convert_scores

PAGE = Path(__file__).parents[2] / "docs" / "streams.md"


def take(stream, count, seed=0):
    return list(itertools.islice(stream.batches(seed), count))


def test_the_page_lists_every_stream_with_its_own_parameters():
    common = {"num_tokens", "num_experts", "offsets", "population_seed"}
    rows = [re.split(r"(?<!\\)\|", line) for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    listed = {row[1].strip().strip("`"): set(re.findall(r"`(\w+)`", row[3])) for row in rows}
    expected = {name: {field.name for field in fields(STREAMS.get(name))} - common for name in stream_names()}
    expected["trace"].add("num_tokens")  # it has a default of its own
    assert listed == expected


@pytest.mark.parametrize("document_tokens", [1, 50])
def test_tokens_share_their_topic_as_often_as_the_formula_says(document_tokens):
    stream = make_stream("documents", num_tokens=50_000, num_topics=8, document_tokens=document_tokens)
    topics = np.concatenate(list(itertools.islice(stream.topics(seed=1), 20)))
    chance = (stream.topic_shares() ** 2).sum()
    for distance in (1, 25, 100):
        held = (1 - 1 / document_tokens) ** distance
        measured = np.mean(topics[distance:] == topics[:-distance])
        assert measured == pytest.approx(held + (1 - held) * chance, abs=4 * np.sqrt(2 * document_tokens / 1e6))


def test_topics_have_zipf_frequencies():
    stream = make_stream("documents", num_tokens=100_000, num_topics=5, document_tokens=1, topic_exponent=1.0)
    counts = np.bincount(next(stream.topics(seed=2)), minlength=5)
    expected = 1 / np.arange(1, 6)
    assert stats.chisquare(counts, 100_000 * expected / expected.sum()).pvalue > 1e-3


def test_documents_run_on_over_the_end_of_a_batch():
    stream = make_stream("documents", num_tokens=10, document_tokens=100)
    ends = [(topics[0], topics[-1]) for topics in itertools.islice(stream.topics(seed=0), 5000)]
    same = [last == first for (_, last), (first, _) in itertools.pairwise(ends)]
    assert 0.985 < np.mean(same) < 0.995


def test_scores_of_neighbors_are_correlated_and_loads_scatter_more():
    def first_score_and_loads(name, **parameters):
        stream = make_stream(name, num_tokens=1024, num_experts=16, population_seed=3, num_topics=64, **parameters)
        run = simulate(stream, make_rule("sign", 0.0), top_k=2, num_steps=80)
        return stream, run.load_NE.var(axis=0).mean()

    correlated, scatter = first_score_and_loads("documents", document_tokens=256, topic_exponent=0.0)
    independent, noise = first_score_and_loads("linear_router")
    lag_1 = [
        np.mean([np.corrcoef(score[1:], score[:-1])[0, 1] for score in np.concatenate(take(stream, 8)).T])
        for stream in (correlated, independent)
    ]
    assert lag_1[0] > 0.3
    assert abs(lag_1[1]) < 0.02
    assert scatter > 10 * noise


@pytest.mark.parametrize("exponent", [0.5, 1.2])
def test_top_1_loads_follow_zipfs_law(exponent):
    stream = make_stream("zipf", num_tokens=200_000, num_experts=12, exponent=exponent)
    load_E = simulate(stream, make_rule("sign", 0.0), top_k=1, num_steps=1).load_NE[0]
    expected = np.arange(1, 13.0) ** -exponent
    assert stats.chisquare(np.sort(load_E)[::-1], 200_000 * expected / expected.sum()).pvalue > 1e-3
    slope = np.polyfit(np.log(np.arange(1, 13)), np.log(np.sort(load_E)[::-1]), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.03)


def test_a_bias_of_exponent_times_log_rank_balances_zipf():
    stream = make_stream("zipf", num_tokens=50_000, num_experts=8)
    run = simulate(stream, make_rule("sign", 0.0), top_k=1, num_steps=1, bias_init=-stream.offset_E())
    assert max_vio(run)[0] < 0.05
    assert np.ptp(stream.offset_E()) == pytest.approx(np.log(8))


def test_shift_happens_at_the_step_it_says_and_permutes_the_optimum():
    stream = make_stream("shift", num_tokens=8000, num_experts=6, offsets=2.0, shift_every=7)
    means = [batch.mean(axis=0) for batch in take(stream, 15)]
    jumps = [np.abs(after - before).max() for before, after in itertools.pairwise(means)]
    assert [step for step, jump in enumerate(jumps, 2) if jump > 0.5] == [8, 15]
    np.testing.assert_allclose(np.sort(stream.offset_at(1)), np.sort(stream.offset_at(8)))
    assert (stream.offset_at(1) != stream.offset_at(8)).all()
    np.testing.assert_array_equal(stream.offset_at(1), stream.offset_at(1 + 7 * 6))


def test_a_rule_that_had_settled_must_settle_again_after_a_shift():
    stream = make_stream("shift", num_tokens=4096, num_experts=8, offsets=1.0, shift_every=150)
    violation = max_vio(simulate(stream, make_rule("sign", 0.03), top_k=2, num_steps=300))
    assert violation[140:150].max() < 0.25 < 0.5 < violation[150]
    assert violation[290:].max() < 0.25


def test_collapse_starts_with_one_expert_on_almost_every_token_and_costs_dominance_over_u_steps():
    stream = make_stream("collapse", num_tokens=2048, num_experts=8, offsets=0.0, dominance=4.0)
    run = simulate(stream, make_rule("sign", 0.02), top_k=2, num_steps=250)
    assert run.load_NE[0].argmax() == stream.dominant_expert
    assert run.load_NE[0].max() > 0.9 * 2048
    gap_N = np.delete(run.bias_NE, stream.dominant_expert, axis=1).mean(axis=1) - run.bias_NE[:, stream.dominant_expert]
    arrived = np.flatnonzero(gap_N > 3.9)[0]
    assert 4.0 / (2 * 0.02) <= arrived + 3 < 4.0 / 0.02
    assert max_vio(run)[-50:].mean() < 0.2


def test_a_fading_collapse_ends_as_the_plain_population():
    stream = make_stream("collapse", num_experts=4, dominance=8.0, half_life=5)
    plain = stream.offset_E()
    lifts = [stream.offset_at(t) - plain for t in (1, 6, 11, 200)]
    assert [lift[stream.dominant_expert] for lift in lifts] == pytest.approx([8.0, 4.0, 2.0, 0.0], abs=1e-9)
    assert all(np.count_nonzero(lift) == 1 for lift in lifts[:3])


WIDTH = 0.01


def planted_run(rule, bias_init):
    stream = make_stream("adversarial", num_tokens=1024, num_experts=16, width=WIDTH)
    start = -stream.offset_E() if bias_init == "optimum" else None
    return simulate(
        stream, rule, top_k=4, num_steps=800, bias_init=start, observers=make_observers("monotonicity_slack")
    )


def test_sign_oscillates_on_the_adversarial_stream_even_from_the_optimum():
    run = planted_run(make_rule("sign", WIDTH), "optimum")
    last, excess_NE = max_vio(run)[-200:], run.load_NE[-200:] - run.target_E
    assert last.mean() > 0.6
    assert last.max() > 0.9 * 0.5 * (16 / 4 - 1)
    assert np.mean(run.series["monotonicity_slack"][-200:] < 0) > 0.4  # D rises every other step: C2's condition fails
    assert (excess_NE[1:] * excess_NE[:-1]).sum() < -0.4 * (excess_NE**2).sum()  # loads overshoot to the other side


@pytest.mark.parametrize(
    ("rule", "start", "last"),
    [
        (make_rule("sign", WIDTH / 100), "optimum", 200),
        (make_rule("proportional", WIDTH / 10), "optimum", 200),
        (make_rule("sign", LinearDecay(2 * WIDTH, 800)), "zero", 10),
    ],
    ids=["small step", "small proportional step", "annealed"],
)
def test_a_smaller_or_annealed_step_does_not(rule, start, last):
    assert max_vio(planted_run(rule, start))[-last:].mean() < 0.2


def test_planted_tokens_cross_within_a_step_of_their_width():
    scores_TE = take(make_stream("adversarial", num_tokens=400, num_experts=6, planted=0.3, width=WIDTH), 1)[0]
    assert crossing_multiplicity(scores_TE, 2 * WIDTH) >= 120
    assert crossing_multiplicity(scores_TE, 2 * WIDTH / 100) < 15


def boundary_ties(scores_TE, top_k):
    ordered = np.sort(scores_TE, axis=1)[:, ::-1]
    return np.count_nonzero(ordered[:, top_k - 1] == ordered[:, top_k])


def test_low_precision_scores_tie_at_the_boundary_eight_times_as_often_in_bf16_as_in_fp16():
    ties = {}
    for precision in ("bf16", "fp16"):
        scores_TE = take(make_stream("low_precision", num_tokens=40_000, num_experts=64, precision=precision), 1)[0]
        assert scores_TE.dtype == np.float32
        np.testing.assert_array_equal(scores_TE, round_to(scores_TE, precision))
        ties[precision] = boundary_ties(scores_TE, 6)
    assert ties["bf16"] > 0.02 * 40_000
    assert 6 < ties["bf16"] / ties["fp16"] < 10
    unrounded = take(make_stream("normal", num_tokens=40_000, num_experts=64), 1)[0]
    assert boundary_ties(unrounded, 6) < 0.001 * 40_000


def test_crossing_multiplicity_of_bf16_scores_grows_with_the_batch_however_small_the_step():
    few, many = (
        crossing_multiplicity(take(make_stream("low_precision", num_tokens=count, num_experts=8), 1)[0], 2e-9)
        for count in (500, 4000)
    )
    assert few > 3
    assert many > 4 * few


def bf16_numbers():
    """All finite bf16 numbers, from their bit patterns."""
    with np.errstate(invalid="ignore"):
        every = (np.arange(2**16, dtype=np.uint32) << np.uint32(16)).view(np.float32)
    return np.unique(every[np.isfinite(every)])


def test_bf16_rounding_picks_the_nearest_number_ties_to_even():
    grid = bf16_numbers().astype(np.float64)
    rng = np.random.default_rng(0)
    values = (rng.choice([-1, 1], 3000) * 10.0 ** rng.uniform(-30, 30, 3000)).astype(np.float32)
    place = np.searchsorted(grid, values)
    below, above = grid[place - 1], grid[place]
    nearest = np.where(values - below < above - values, below, above)
    np.testing.assert_array_equal(round_to(values, "bf16"), nearest)
    np.testing.assert_array_equal(round_to(grid, "bf16"), grid)
    np.testing.assert_array_equal(round_to([257, 259, -257, 1e39, -0.0], "bf16"), [256, 260, -256, np.inf, -0.0])
    assert np.isnan(round_to([np.nan], "bf16")[0])
    assert round_to(3, "fp16").shape == ()
    with pytest.raises(ValueError, match="did you mean 'bf16'"):
        round_to([1.0], "bf61")


def test_trace_batches_order_shuffles_whole_batches():
    scores = np.arange(24.0).reshape(12, 2)
    stream = TraceReplay(RouterTrace(scores, 1), num_tokens=4, order="batches")
    passes = [np.stack(take(stream, 3 * count, seed=5)[-3:]) for count in range(1, 8)]
    for batches in passes:
        np.testing.assert_array_equal(batches[np.argsort(batches[:, 0, 0])].reshape(12, 2), scores)
    assert len({batches.tobytes() for batches in passes}) > 1


def test_a_trace_with_batches_of_its_own_is_replayed_in_them(tmp_path):
    recorded = np.random.default_rng(0).random((5, 7, 3)).astype(np.float32)
    np.save(tmp_path / "run.npy", recorded)
    stream = TraceReplay(convert_scores(tmp_path / "run.npy", array=None, top_k=1))
    assert stream.num_tokens == 7
    np.testing.assert_array_equal(np.stack(take(stream, 5)), recorded)
    assert TraceReplay().num_tokens == 2048


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("documents", {"document_tokens": 0.5}, "document_tokens is 0.5"),
        ("documents", {"topic_exponent": -1.0}, "topic_exponent is -1.0"),
        ("zipf", {"exponent": float("nan")}, "exponent is nan"),
        ("shift", {"shift_every": 0}, "shift_every is 0"),
        ("collapse", {"dominance": -2.0}, "dominance is -2.0"),
        ("collapse", {"half_life": 0.0}, "half_life is 0.0"),
        ("adversarial", {"planted": 1.5}, "planted is 1.5"),
        ("adversarial", {"width": 0.0}, "width is 0.0"),
        ("low_precision", {"precision": "fp8"}, "unknown precision 'fp8'"),
    ],
)
def test_bad_parameters_are_refused_by_name(name, parameters, words):
    with pytest.raises(ValueError, match=words):
        make_stream(name, **parameters)
