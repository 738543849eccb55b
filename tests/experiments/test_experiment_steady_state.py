"""The steady-state experiment's own parts: what it predicts before a run, its streams, and how it judges."""

import itertools

import numpy as np
import pytest
from scipy import stats

from alflb import bounds
from alflb.population import IndependentScores, SampledScores
from experiments import steady_state


def rows_like(cell, errors, **hazards):
    """Saved rows of one cell whose three quantities are off by `errors`, one row for each seed."""
    small = dict.fromkeys(steady_state.Hazards._fields, 0.01)
    extra = {"expected_load": 32.0, "relaxation": 10.0, "steps": 100, "stiffest_mode": 1.0, "softest_mode": 0.5}
    return [
        cell
        | extra
        | small
        | hazards
        | {"seed": seed}
        | {f"predicted_{name}": 2.0 for name in steady_state.QUANTITIES}
        | {f"measured_{name}": 2.0 * (1 + error) for name in steady_state.QUANTITIES}
        for seed, error in enumerate(errors)
    ]


@pytest.mark.parametrize("num_tokens", [4, 7, 16])
def test_discreteness_against_an_exact_chain(num_tokens):
    """Two experts: the bias is a birth-death chain, whose stationary law is known exactly."""
    step, hessian = 1e-3, 0.3
    bias = step * np.arange(-1500, 1501)  # of the first expert; the second has minus that
    load = stats.binom(num_tokens, 0.5 + hessian * bias)
    rises, falls = load.cdf(np.ceil(num_tokens / 2) - 1), load.sf(np.floor(num_tokens / 2))
    log_weight = np.concatenate([[0.0], np.cumsum(np.log(rises[:-1] / falls[1:]))])
    exact = np.sqrt(np.average(bias**2, weights=np.exp(log_weight - log_weight.max())))
    law = bounds.sign_rule_law(step, num_tokens, 1, [hessian])
    assert exact / law.bias_sd - 1 == pytest.approx(steady_state._discreteness(num_tokens, 2, 1), abs=4e-3)


def test_hazards_by_hand():
    """Equal logistic experts with small fluctuations: no loss of gain, and the binomial skewness."""
    cell = steady_state._cell("logistic", (100, 16, 2), 1e-4, skew=0.0)
    facts = steady_state._facts("logistic", 16, 2, 0.0)
    law = bounds.sign_rule_law(1e-4, 100, 2, facts.mode_M)
    hazards = steady_state._hazards(cell, facts, law, 0, 10**9)
    sigma = np.sqrt(0.125 * 0.875 / 100)
    assert hazards.pull == pytest.approx(1e-4 * np.sqrt(2 / np.pi) * facts.mode_M[0] / sigma)
    assert abs(hazards.gain_loss) < 1e-3
    assert hazards.deficit == pytest.approx(0, abs=1e-4)
    highest = bounds.mean_normal_maximum(16)
    skewness = (1 - 2 * 0.125) / np.sqrt(100 * 0.125 * 0.875)
    assert hazards.max_skew == pytest.approx(skewness * (highest**2 - 1) / (6 * highest), rel=0.02)


def test_a_short_run_cannot_build_the_variance_up():
    cell = steady_state._cell("logistic", (100, 16, 2), 1e-4)
    facts = steady_state._facts("logistic", 16, 2, 0.5)
    law = bounds.sign_rule_law(1e-4, 100, 2, facts.mode_M)
    deficits = [steady_state._hazards(cell, facts, law, steps // 2, steps).deficit for steps in (100, 1000, 100_000)]
    assert deficits[0] > 0.5 > deficits[1] > 0.05 > deficits[2] >= 0


def test_criterion_looks_at_skewness_for_max_vio_only():
    (row,) = rows_like(steady_state.GRID[0], [0.0], max_skew=0.5)
    assert steady_state.criterion(row, "bias_sd") == pytest.approx(0.4)
    assert steady_state.criterion(row, "max_vio") == pytest.approx(12.5)


def test_findings_count_cells_not_seeds():
    inside, outside = steady_state.GRID[40], steady_state.GRID[41]
    rows = rows_like(inside, [0.04, 0.05]) + rows_like(outside, [0.3, 0.1], pull=5.0)
    rows += rows_like(steady_state.GRID[0], [0.2, 0.2])
    chosen, _, tested, _, *_ = steady_state.findings(rows)
    assert tested.measured == "2 of 2, 0 surely not, worst 4.5%; above 1: 2 of 2 are off by more"
    assert tested.holds
    assert chosen.measured.startswith("0 of 2, 2 surely not, worst 20.0%")
    assert not chosen.holds


def test_scaled_experts_are_what_the_oracle_thinks():
    facts = steady_state._facts("scaled", 4, 1, 1.0)
    stream = steady_state._stream(steady_state._cell("scaled", (100_000, 4, 1), 0.1, skew=1.0))
    batch, again = (next(stream.batches(7)) for _ in range(2))
    np.testing.assert_array_equal(batch, again)
    picked = SampledScores(batch, 1).pick_probability(facts.optimum_E)
    assert picked == pytest.approx(np.full(4, 0.25), abs=0.006)
    assert facts.mode_M[0] < facts.mode_M[-1]


def test_resampled_batches_restart_and_repeat_tokens():
    scores_TE = np.arange(12.0).reshape(6, 2)
    stream = steady_state.Resampled(scores_TE, num_tokens=50)
    first, second = itertools.islice(stream.batches(3), 2)
    np.testing.assert_array_equal(next(stream.batches(3)), first)
    assert first.shape == (50, 2)
    assert (first != second).any()
    assert set(first[:, 0]) <= set(scores_TE[:, 0])


def test_sampled_population_agrees_with_quadrature():
    scores = stats.logistic().rvs((200_000, 6), random_state=1) + np.linspace(-1, 1, 6)
    exact = IndependentScores(stats.logistic(), 2, offsets=np.linspace(-1, 1, 6))
    sampled = SampledScores(scores, 2, window=0.05)
    bias_E = np.array([0.3, 0.0, -0.2, 0.1, 0.0, -0.2])
    assert sampled.value(bias_E) == pytest.approx(exact.value(bias_E), abs=0.02)
    np.testing.assert_allclose(sampled.pick_probability(bias_E), exact.pick_probability(bias_E), atol=0.005)
    np.testing.assert_allclose(sampled.tie_density(bias_E), exact.tie_density(bias_E), atol=0.004)
    np.testing.assert_allclose(sampled.hessian(bias_E).sum(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(sampled.optimum(tolerance=2e-3), exact.optimum(), atol=0.05)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: SampledScores([[0.0, -np.inf], [1.0, 2.0]], 1), "finite"),
        (lambda: SampledScores([[0.0, 1.0]] * 2, 2), "top_k"),
        (lambda: SampledScores([[0.0, 1.0]] * 2, 1, window=0.0), "window"),
        (lambda: SampledScores(np.zeros((5, 3)), 1).hessian(np.zeros(3)), "tie"),
        (lambda: SampledScores([[0.0, np.nan]], 1), "scores"),
        (lambda: SampledScores([[0.0, 1.0]], 1), "fewer tokens than experts"),
    ],
)
def test_sampled_population_refuses(call, word):
    with pytest.raises(ValueError, match=word):
        call()


def test_a_criterion_without_cells_says_so_and_claims_nothing():
    empty = steady_state._verdict([], "test", steady_state.QUANTITIES[:2])
    assert (empty.measured, empty.holds) == ("no such cell in this run", None)
