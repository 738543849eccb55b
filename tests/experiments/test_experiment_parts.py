"""What the experiments compute with: the vectorized oracle, growth fits, settling times, shared problems."""

import numpy as np
import pytest
from scipy import stats

from alflb import metrics
from alflb.population import GumbelTopOne, IndependentScores
from experiments import band, regret
from experiments._oracle import gumbel_values, logistic_values
from experiments._problems import STATIC_SOURCES, static_problem


@pytest.mark.parametrize(("num_experts", "top_k"), [(2, 1), (5, 3), (6, 2)])
def test_values_along_a_path_are_those_of_the_population(num_experts, top_k):
    rng = np.random.default_rng(num_experts)
    offset_E, bias_NE = rng.normal(size=num_experts), rng.normal(size=(12, num_experts))
    population = IndependentScores(stats.logistic(), top_k, offsets=offset_E)
    exact = [population.value(bias_E) for bias_E in bias_NE]
    np.testing.assert_allclose(logistic_values(bias_NE, offset_E, top_k), exact, atol=1e-11)
    gumbel = [GumbelTopOne(offset_E).value(bias_E) for bias_E in bias_NE]
    np.testing.assert_allclose(gumbel_values(bias_NE, offset_E), gumbel, atol=1e-13)


def growing(exponent, seeds=20):
    """Rows whose regret grows as N^exponent (0: log N), with independent noise of 5% on each increment."""
    step_C = regret.checkpoints(100_000)
    excess = np.arange(1, 100_001, dtype=float) ** (exponent - 1)
    rows = []
    for seed in range(seeds):
        noisy = excess * np.random.default_rng(seed).normal(1, 0.05, excess.size)
        rows.append({"step_C": step_C.tolist(), "regret_C": np.cumsum(noisy)[step_C - 1].tolist()})
    return rows


@pytest.mark.parametrize(("exponent", "name"), [(0.0, "log N"), (0.5, "sqrt N"), (1.0, "N "), (0.75, "N^0.75")])
def test_growth_is_recognized(exponent, name):
    rows = growing(exponent)
    low, middle, high = regret._exponent_interval(rows)
    assert low - 1e-3 <= exponent <= high + 1e-3
    assert middle == pytest.approx(exponent, abs=0.01)
    assert (regret._best_growth(rows) + " ").startswith(name)


@pytest.mark.parametrize("strength", [0.1, 0.25, 0.4])
def test_the_quadratic_model_has_the_exponent_of_the_theory_below_one_half(strength):
    assert regret._model_exponent(("gumbel", "", "", strength), 20_000) == pytest.approx(1 - 2 * strength, abs=0.06)


def test_the_quadratic_model_is_logarithmic_above_one_half():
    assert abs(regret._model_exponent(("gumbel", "", "", 2.0), 20_000)) < 0.02


def test_regret_of_the_optimum_is_zero_and_hindsight_is_better_than_any_fixed_bias():
    cell = {"population": "gumbel", "rule": "sign", "schedule": "constant", "strength": 1e-12, "num_steps": 200}
    row = regret.run(cell, 0)[0]
    here = regret.setting("gumbel")
    start_E = here.optimum_E + regret.START * np.where(np.arange(8) % 2, 1, -1) / 8**0.5
    stays = here.population.value(start_E) - here.population.value(here.optimum_E)
    np.testing.assert_allclose(row["regret_C"], stays * np.array(row["step_C"]), rtol=1e-6)
    assert row["hindsight_regret_early"] > 0


def test_settling():
    below = metrics.settled_from
    assert below(np.array([3.0, 1.0, 2.0, 1.0]), 1.0) == 4
    assert below(np.array([1.0, 1.0]), 1.0) == 1
    assert below(np.array([1.0, 2.0]), 1.0) is None
    assert band._settled(np.array([5.0, 3.0, 4.0, 2.0, 1.0, 2.0]), 2.0) == 3
    assert band._first(np.array([False, False, True])) == 2
    assert band._first(np.array([False])) is None


@pytest.mark.parametrize("source", STATIC_SOURCES)
def test_static_problems(source):
    problem = static_problem(source, 128, 64, 6, seed=1)
    assert problem.scores_TE.shape == (128, 64)
    assert problem.scores_TE.dtype == np.float64
    again = static_problem(source, 128, 64, 6, seed=1)
    np.testing.assert_array_equal(problem.scores_TE, again.scores_TE)
    assert not np.array_equal(problem.scores_TE, static_problem(source, 128, 64, 6, seed=2).scores_TE)
