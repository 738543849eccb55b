"""The checks of a log: each fires on its fault, says what it saw, and stays quiet on healthy runs."""

import numpy as np
import pytest

from alflb import make_rule, make_stream, simulate
from alflb.precision import round_to
from alflb.rules import Observation, Rule
from alflb.schedules import Piecewise
from alflb.training.diagnosis import diagnose, rank_disagreement, representable_share, unmoved_share, update_delay
from tests._extras import require

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


class Faulty(Rule):
    """The sign rule with something done to its loads or to its bias."""

    def __init__(self, *, loads=lambda load_E: load_E, bias=lambda bias_E, before_E, t: bias_E):
        self.rule, self.loads, self.bias = make_rule("sign", 3e-3), loads, bias

    def step(self, bias_E, seen, state):
        shown = Observation(seen.t, seen.target_E, load_E=self.loads(seen.load_E))
        return self.bias(self.rule.step(bias_E, shown, state)[0], bias_E, seen.t), state


def partly_frozen(bias_E, before_E, t):
    return np.concatenate([before_E[:3], bias_E[3:]])


FAULTS = {
    "frozen experts": Faulty(bias=partly_frozen),
    "jump": Faulty(bias=lambda bias_E, before_E, t: np.zeros_like(bias_E) if t == 70 else bias_E),
    "sign": Faulty(loads=lambda load_E: 2 * load_E.mean() - load_E),
}


@pytest.mark.parametrize("stream", ["drift", "zipf", "linear_router", "logistic"])
@pytest.mark.parametrize("check", FAULTS)
def test_faults_of_the_update(check, stream):
    num_experts = 64 if check == "frozen experts" else 8
    for seed in range(3):
        source = make_stream(stream, num_tokens=1024, num_experts=num_experts, population_seed=seed)
        run = simulate(source, FAULTS[check], top_k=2, num_steps=120, seed=seed)
        found = {suspicion.check: suspicion for suspicion in diagnose(run.load_NE, run.bias_NE, num_picks=PICKS)}
        assert check in found
    if check == "frozen experts":
        assert "3 of 64 experts never moved in the last half (0, 1, 2)" in found[check].evidence
    if check == "jump":
        assert "at step 70" in found[check].evidence


@pytest.mark.parametrize("stream", ["drift", "zipf", "linear_router", "logistic"])
def test_experts_in_another_order(stream):
    """Counts that are not the loads in their order; counts of other experts than those whose bias they move."""
    source = make_stream(stream, num_tokens=1024, num_experts=8)
    run = simulate(source, Faulty(loads=lambda load_E: np.roll(load_E, 1)), top_k=2, num_steps=120)
    assert "permuted" in checks(run, np.roll(run.load_NE, 1, axis=1), loads=run.load_NE)
    assert {"sign", "unrelated", "permuted"} & set(checks(run)), "the record shows the true loads"
    healthy_run = simulate(source, RULES["sign"], top_k=2, num_steps=120)
    assert {"sign", "unrelated", "permuted"} & set(checks(healthy_run, np.roll(healthy_run.load_NE, 3, axis=1)))


def test_a_bias_that_moves_other_experts_runs_away():
    """The update is given, and the record shows, counts in the order of other experts: only their growth tells."""
    source = make_stream("linear_router", num_tokens=1024, num_experts=8)
    run = simulate(source, Faulty(loads=lambda load_E: np.roll(load_E, 1)), top_k=2, num_steps=120)
    assert checks(run, np.roll(run.load_NE, 1, axis=1)) == ["runaway"]


@pytest.mark.parametrize("count", [512, 1000])
@pytest.mark.parametrize("num_experts", [1, 8])
def test_exact_balance_is_no_fault(count, num_experts):
    counts_NE = np.full((60, num_experts), count)
    assert diagnose(counts_NE, np.zeros((61, num_experts)), num_picks=count * num_experts) == []


def test_tensors_of_16_bits_are_read():
    """Lists of them too: what a hook collects."""
    torch = require("torch")
    run = healthy()
    tensor = torch.tensor(run.bias_NE).bfloat16()
    for bias in (tensor, list(tensor)):
        assert "rounded bias" in [s.check for s in diagnose(torch.tensor(run.load_NE), bias, num_picks=PICKS)]


def test_biases_too_large_for_their_steps():
    """Near 12, float32 numbers are 1e-6 apart: scores of 1e-8 tie, and steps of 1e-8 are lost."""
    run = healthy()
    small = (12.0 + run.bias_NE * 1e-6).astype(np.float64)
    assert "resolution" in checks(run, bias=small)
    assert checks(run, bias=12.0 + run.bias_NE) == []


@pytest.mark.parametrize("step_size", [1e-3, 1e-6, 1e-8])
def test_scores_of_1e_8_under_biases_near_12_are_diagnosed(step_size):
    """The sum in float32 does not see the scores; steps of a usual size make every token choose alike."""
    rng, bias_E, biases, loads = np.random.default_rng(0), np.full(8, 12.0), [np.full(8, 12.0)], []
    for _ in range(60):
        scores_TE = (1e-8 * rng.logistic(size=(64, 8))).astype(np.float32)
        picks_TK = np.argsort(-(scores_TE + bias_E.astype(np.float32)), axis=1, kind="stable")[:, :2]
        loads.append(np.bincount(picks_TK.ravel(), minlength=8))
        bias_E = bias_E + step_size * np.sign(16 - loads[-1])
        biases.append(bias_E)
    found = {suspicion.check: suspicion for suspicion in diagnose(loads, biases, num_picks=128)}
    assert "take the mean off the bias" in found["one choice"].likely_causes
    assert ("resolution" in found) == (step_size < 1e-3)


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
        (lambda: diagnose(np.ones((4, 3)), np.zeros((5, 3)), num_picks=3, rank_bias=np.zeros((2, 4))), "4 experts and"),
        (lambda: diagnose(np.ones((4, 3)), np.zeros((5, 3)), num_picks=3, max_delay=-3), "max_delay is -3"),
        (lambda: diagnose(np.ones((4, 3)), np.zeros((5, 3)), num_picks=3, max_delay=2.5), "max_delay is 2.5"),
        (lambda: diagnose(-np.ones((4, 3)), np.zeros((5, 3)), num_picks=3), "counts hold -1; pass tokens"),
        (lambda: diagnose(np.ones((4, 3)), np.zeros((5, 3)), num_picks=3, loads=np.ones((3, 3))), "and loads"),
        (lambda: diagnose([["a", "b"]], np.zeros((2, 2)), num_picks=3), "counts cannot be read as numbers"),
    ],
)
def test_bad_records_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
