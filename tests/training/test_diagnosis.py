"""The checks of a log: each fires on its fault, says what it saw, and stays quiet on healthy runs."""

import numpy as np
import pytest

from alflb import make_rule, make_stream, simulate
from alflb.precision import round_to
from alflb.rules import Observation, Rule
from alflb.schedules import Piecewise
from alflb.training.diagnosis import diagnose, rank_disagreement, representable_share, unmoved_share, update_delay

RULES = {
    "sign": make_rule("sign", 3e-3),
    "recentred_sign": make_rule("recentred_sign", 3e-3),
    "proportional": make_rule("proportional", 0.05),
    "qb": make_rule("qb"),
}
PICKS = 2 * 1024


def healthy(rule="sign", seed=0, stream="drift", num_steps=120):
    source = make_stream(stream, num_tokens=1024, num_experts=8, population_seed=seed)
    return simulate(source, RULES[rule], top_k=2, num_steps=num_steps, seed=seed)


def checks(run, counts=None, bias=None, **rest):
    counts, bias = (run.load_NE if counts is None else counts), (run.bias_NE if bias is None else bias)
    return [suspicion.check for suspicion in diagnose(counts, bias, num_picks=PICKS, **rest)]


@pytest.mark.parametrize("stream", ["drift", "zipf", "linear_router", "shift"])
@pytest.mark.parametrize("rule", RULES)
def test_no_false_alarm_on_healthy_runs(rule, stream):
    for seed in range(6):
        run = healthy(rule, seed, stream)
        assert checks(run, rank_bias=[run.bias_NE[-1]] * 3) == []


@pytest.mark.parametrize(
    ("factor", "words"), [(2.0, "2 times K T in 120 of 120"), (0.125, "0.125 times K T"), (1.5, "1.5 times K T")]
)
def test_wrong_totals(factor, words):
    run = healthy()
    [found] = diagnose(factor * run.load_NE, run.bias_NE, num_picks=PICKS)
    assert found.check == "totals"
    assert words in found.evidence


def test_one_wrong_total_in_many_is_seen():
    run = healthy()
    counts = run.load_NE.copy()
    counts[70] += counts[71]
    [found] = diagnose(counts, run.bias_NE, num_picks=PICKS)
    assert found.evidence == "counts sum to 2 times K T in 1 of 120 batches"


@pytest.mark.parametrize(("precision", "scale"), [("bf16", 40), ("fp16", 40)])
def test_rounded_counts(precision, scale):
    run = healthy()
    counts = round_to(scale * run.load_NE + np.arange(8), precision)  # loads of a batch 40 times as large
    found = diagnose(counts, run.bias_NE, num_picks=scale * PICKS)
    assert [precision in suspicion.evidence for suspicion in found if suspicion.check == "rounded counts"].count(True)


def test_counts_small_enough_to_be_exact_are_not_called_rounded():
    run = healthy()
    counts = np.minimum(run.load_NE, 256)
    assert "rounded counts" not in checks(run, counts)


def test_a_bias_near_5_collapses_in_bf16():
    """238 distinct biases leave 8."""
    bias_E = 4.9 + 1e-3 * np.arange(238)
    assert len(np.unique(bias_E)) == 238
    assert len(np.unique(round_to(bias_E, "bf16"))) == 8
    rng = np.random.default_rng(0)
    bias_NE = bias_E + 1e-3 * np.cumsum(rng.choice([-1, 1], (11, 238)), axis=0)
    counts_NE = rng.multinomial(238 * 300, np.full(238, 1 / 238), size=10)
    assert diagnose(counts_NE, bias_NE, num_picks=238 * 300) == []
    found = {s.check: s for s in diagnose(counts_NE, round_to(bias_NE, "bf16"), num_picks=238 * 300)}
    assert set(found) == {"rounded bias", "unmoved bias"}
    assert "distinct" in found["rounded bias"].evidence


def test_a_dyadic_step_looks_rounded_until_the_bias_is_256_steps_away():
    """The false alarm that the docstring admits."""
    source = make_stream("drift", num_tokens=1024, num_experts=8)
    run = simulate(source, make_rule("sign", 2.0**-10), top_k=2, num_steps=60)
    assert checks(run) == ["rounded bias"]


def test_a_frozen_bias_is_seen_even_if_it_moved_in_the_first_half():
    source = make_stream("drift", num_tokens=1024, num_experts=8)
    rule = make_rule("sign", Piecewise(boundaries=(40,), step_sizes=(1e-3, 0.0)))
    run = simulate(source, rule, top_k=2, num_steps=120)
    [found] = diagnose(run.load_NE, run.bias_NE, num_picks=PICKS)
    assert (found.check, found.evidence[:4]) == ("unmoved bias", "100%")


def test_unmoved_share_ignores_experts_in_balance():
    counts = np.array([[3, 2, 1], [2, 2, 2]])
    bias = np.array([[0.0, 0.0, 0.0], [-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]])
    assert unmoved_share(bias, counts) == 0.0


class StaleSign(Rule):
    """The sign rule on the loads of `delay` steps before."""

    def __init__(self, delay):
        self.rule, self.delay = make_rule("sign", 3e-3), delay

    def step(self, bias_E, seen, state):
        waiting = (*state, seen.load_E)
        stale_E = waiting[-1 - self.delay] if len(waiting) > self.delay else seen.target_E
        stale = Observation(seen.t, seen.target_E, load_E=stale_E)
        return self.rule.step(bias_E, stale, ())[0], waiting[-self.delay - 1 :]


@pytest.mark.parametrize("delay", [1, 5, 20])
def test_a_delay_is_measured(delay):
    source = make_stream("drift", num_tokens=1024, num_experts=8)
    for seed in range(4):
        run = simulate(source, StaleSign(delay), top_k=2, num_steps=150, seed=seed)
        assert update_delay(run.bias_NE, run.load_NE) == delay
        assert "delay" in checks(run, loads=run.load_NE)


def test_a_bias_that_follows_other_loads_has_no_delay():
    run, other = healthy(seed=0), healthy(seed=1)
    assert update_delay(run.bias_NE, other.load_NE, max_delay=5) is None


def test_ranks_that_disagree():
    run = healthy()
    ranks = np.stack([run.bias_NE[-1], run.bias_NE[-1]])
    assert checks(run, rank_bias=ranks) == []
    ranks[1, 3] += 0.25
    assert checks(run, rank_bias=ranks) == ["ranks"]
    assert rank_disagreement(ranks) == 0.25


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: diagnose(np.zeros((0, 3)), np.zeros((1, 3)), num_picks=1), "pass \\(steps, experts\\)"),
        (lambda: diagnose(np.ones((4, 3)), np.zeros((4, 3)), num_picks=1), "one bias more than counts"),
        (lambda: diagnose(np.full((4, 3), np.nan), np.zeros((5, 3)), num_picks=1), "counts holds NaN"),
        (lambda: diagnose(np.ones((4, 3)), np.full((5, 3), np.inf), num_picks=1), "bias holds NaN or inf"),
        (lambda: diagnose(np.ones((4, 3)), np.zeros((5, 3)), num_picks=0), "num_picks is 0"),
        (lambda: representable_share([], "bf16"), "values are empty"),
        (lambda: representable_share([1.0], "bf8"), "unknown precision"),
        (lambda: rank_disagreement([1.0, 2.0]), "pass \\(ranks, experts\\)"),
    ],
)
def test_bad_records_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
