"""Advice from a log of biases and loads: truth known, and logs that cannot answer."""

import numpy as np
import pytest
from scipy import stats

from alflb import advise_from_log, make_rule, make_stream, simulate
from alflb.advice_log import _kalman_gain
from alflb.population import IndependentScores

OFFSETS = tuple(np.linspace(-0.5, 0.5, 8))
NUM_TOKENS, TOP_K = 1024, 2


def linear_log(seed, *, curvature=3.0, noise=2.0, walk=0.02, gain=0.1, num_steps=400, num_experts=16, target=200.0):
    """A log drawn from the model itself: overdispersed noise, an optimum that walks, a proportional rule."""
    rng = np.random.default_rng(seed)

    def normal():
        drawn = rng.normal(size=num_experts) * np.sqrt(num_experts / (num_experts - 1))
        return drawn - drawn.mean()

    optimum = normal()
    bias, biases, loads = np.zeros(num_experts), [], []
    for _ in range(num_steps):
        shortfall = curvature * (optimum - bias) + np.sqrt(noise / target) * normal()
        biases.append(bias)
        loads.append(target * (1 - shortfall))
        bias = bias + gain / curvature * shortfall
        optimum = optimum + walk * normal()
    return np.array(biases), np.array(loads)


def test_intervals_cover_the_truth():
    """95% intervals, 40 logs: each kind covers at least 35 times (of fewer the chance is 1.4%, if they are exact)."""
    best = _kalman_gain(9.0 * 0.02**2 / (2.0 / 200.0))
    truth = {"curvature": 3.0, "overdispersion": 2.0, "walk": 0.02, "best_gain": best}
    covered = dict.fromkeys(truth, 0)
    for seed in range(40):
        advice = advise_from_log(*linear_log(seed, num_steps=150), target=np.full(16, 200.0))
        for name, value in truth.items():
            interval = getattr(advice, name)
            covered[name] += interval.low <= value <= interval.high
    assert min(covered.values()) >= 35, covered


@pytest.mark.parametrize(("gain", "verdict"), [(0.02, "too small"), (0.9, "too large")])
def test_it_says_which_way_the_step_was_off_and_by_how_much(gain, verdict):
    advice = advise_from_log(*linear_log(0, gain=gain), target=np.full(16, 200.0))
    best = _kalman_gain(9.0 * 0.02**2 / (2.0 / 200.0))
    assert advice.gain == pytest.approx(gain, rel=0.25)
    assert advice.step_factor.value == pytest.approx(best / gain, rel=0.3)
    assert (advice.step_factor.low > 1) if verdict == "too small" else (advice.step_factor.high < 1)
    assert advice.max_vio_possible < advice.max_vio


@pytest.mark.parametrize(("rule", "step_size"), [("sign", 0.1), ("proportional", 0.3)])
def test_curvature_and_noise_of_a_simulated_run(rule, step_size):
    """Feedback of the noise into the bias does not fool it: both rules, the same truth from the population."""
    population = IndependentScores(stats.logistic(), TOP_K, offsets=OFFSETS)
    curvature = np.mean(population.curvatures(population.optimum())) * 8 / TOP_K
    stream = make_stream("logistic", num_tokens=NUM_TOKENS, num_experts=8, offsets=OFFSETS)
    run = simulate(stream, make_rule(rule, step_size), top_k=TOP_K, num_steps=400)
    advice = advise_from_log(run.bias_NE, run.load_NE)
    assert advice.curvature.value == pytest.approx(curvature, rel=0.08)
    assert advice.overdispersion.value == pytest.approx(1 - TOP_K / 8, rel=0.08)
    assert advice.walk.low == 0.0
    assert advice.lagging == ()


def test_an_expert_that_lags_is_named():
    bias, load = linear_log(1, walk=0.0)
    load[:, 5] -= 30.0
    load[:, 6] += 30.0
    assert {5, 6} <= set(advise_from_log(bias, load, target=np.full(16, 200.0)).lagging)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda bias, load: (bias[:10], load[:10]), "pass at least 30 steps"),
        (lambda bias, load: (bias[:50], load), "bias has shape"),
        (lambda bias, load: (0 * bias, load), "bias does not move"),
        (lambda bias, load: (bias * np.nan, load), "not finite"),
        (lambda bias, load: (np.random.default_rng(0).normal(size=bias.shape), load), "does not tell the curvature"),
    ],
)
def test_a_log_that_cannot_answer_is_told_so(change, words):
    bias, load = linear_log(2)
    with pytest.raises(ValueError, match=words):
        advise_from_log(*change(bias, load))


def test_bad_targets_are_refused():
    with pytest.raises(ValueError, match="pass 16 positive numbers"):
        advise_from_log(*linear_log(2), target=np.zeros(16))
