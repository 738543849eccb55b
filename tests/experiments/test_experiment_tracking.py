"""The tracking experiment's own parts: regret without sampling, the bottom of a U, and the motion of a text."""

import math

import numpy as np
import pytest

from alflb import load_router_trace, make_stream
from alflb.bounds import TargetMotion, best_tracking_step, proportional_tracking_cost, sign_tracking_cost
from alflb.population import GumbelTopOne
from experiments import tracking


def rows_like(steps, costs, **extra):
    """Saved rows of one cell and seed."""
    cell = {"family": "gumbel", "num_tokens": 256, "rule": "sign", "period": 400, "seed": 0} | extra
    return [cell | {"step_size": u, "measured_regret": c, "measured_max_vio": c} for u, c in zip(steps, costs)]


def test_regret_is_that_of_the_moving_population():
    """f_t with its offsets, evaluated by the library, against the one population without offsets."""
    offset_E = np.array([0.4, -0.1, -0.3])
    bias_E = np.array([0.2, 0.1, -0.3])
    moving = GumbelTopOne(offset_E)
    expected = moving.value(bias_E) - moving.value(moving.optimum())
    assert tracking._regret_N("gumbel", (bias_E + offset_E)[None], 1)[0] == pytest.approx(expected)
    assert tracking._regret_N("logistic", np.zeros((2, 4)), 2) == pytest.approx([0, 0], abs=1e-12)


def test_gumbel_circles_move_like_the_drift_stream():
    ours = tracking.GumbelDrift(16, 4, offsets=0.5, period=100)
    assert not np.array_equal(ours.offset_at(1), ours.offset_at(26))
    np.testing.assert_allclose(ours.offset_at(1), ours.offset_at(101))
    assert next(ours.batches(0)).shape == (16, 4)


def test_bottom_of_a_parabola_is_exact():
    steps = np.geomspace(0.01, 1, 7)
    costs = np.exp(2 + 0.7 * np.log(steps / 0.08) ** 2)
    (curve,) = tracking.curves(rows_like(steps, costs), "regret")["gumbel", 256, "sign", 400]
    best, least = curve.bottom()
    assert best == pytest.approx(0.08)
    assert least == pytest.approx(math.exp(2))
    assert curve.at(steps[2]) == pytest.approx(costs[2])


def test_a_curve_that_only_falls_ends_at_its_edge():
    steps = np.geomspace(0.01, 1, 5)
    (curve,) = tracking.curves(rows_like(steps, 1 / (1 + steps)), "regret")["gumbel", 256, "sign", 400]
    with pytest.raises(ValueError, match="no bottom"):
        curve.bottom()


def test_findings_see_a_wrong_prediction():
    steps = np.geomspace(0.01, 1, 9)
    costs = 1 + np.log(steps / 0.1) ** 2
    rows = rows_like(steps, costs, best_regret=0.3, best_max_vio=0.1, speed=0.001)
    assert tracking._best_steps(rows, "sign", "regret").holds is False
    assert tracking._best_steps(rows, "sign", "max_vio").holds is True
    assert tracking._price(rows, "sign").holds is False


def test_text_moves_as_a_walk_with_jitter():
    """Shipped text: the change of p* keeps growing with the distance; batches are far noisier than their size says."""
    facts = tracking._text_facts(1024)
    assert facts.walking.diffusion > 0
    assert facts.walking.overdispersion > 5
    assert facts.steady.speed > math.sqrt(facts.walking.diffusion)  # one step of the walk is a part of it
    assert len(facts.mode_M) == 63


def test_text_there_and_back_has_no_jump():
    stream, lp_value_N = tracking._there_and_back(1024, seed=1)
    batches = stream.batches(0)
    forth = [next(batches) for _ in range(len(lp_value_N) // 2)]
    back = [next(batches) for _ in range(len(lp_value_N) // 2)]
    np.testing.assert_array_equal(forth[-1], back[0][::-1])
    np.testing.assert_array_equal(next(batches), forth[0])
    np.testing.assert_array_equal(lp_value_N, lp_value_N[::-1])
    np.testing.assert_array_equal(forth[0], load_router_trace().scores_TE[341 : 341 + 1024])


def test_prediction_of_the_drift_stream_is_where_the_runs_bottom_out():
    """One small run of the claim itself, sign rule: within a factor 1.4 of the predicted best u."""
    cell = {"family": "logistic", "num_tokens": 256, "rule": "sign", "period": 200, "num_steps": 500}
    rows = [cell | {"seed": 0} | row for row in tracking.run(cell, 0)]
    (curve,) = tracking.curves(rows, "regret")["logistic", 256, "sign", 200]
    best, least = curve.bottom()
    assert 1 / 1.4 < best / rows[0]["best_regret"] < 1.4
    assert least < 0.5 * curve.cost_U[0]
    assert least < 0.5 * curve.cost_U[-1]


MODES = np.array([0.05, 0.1, 0.2])


@pytest.mark.parametrize("cost_of", [sign_tracking_cost, proportional_tracking_cost])
@pytest.mark.parametrize("measure", ["regret", "load_sd", "max_vio", "bias_sd"])
@pytest.mark.parametrize("motion", [TargetMotion(speed=1e-4), TargetMotion(diffusion=1e-6, overdispersion=4.0)])
def test_best_step_is_a_minimum(cost_of, measure, motion):
    best = best_tracking_step(cost_of, motion, 1001, 1, MODES, measure=measure)
    at = [getattr(cost_of(best * f, motion, 1001, 1, MODES), measure) for f in (0.9, 1.0, 1.1)]
    assert at[1] == min(at)


def test_best_steps_agree_with_the_closed_forms_for_slow_motion():
    speed, tokens = 1e-7, 1001
    sigma = math.sqrt(3 / 16 / tokens)
    harmonic = 3 / np.sum(1 / MODES)
    moving = 1 + 2 / math.pi * math.asin(1 / 3)
    sign = (math.sqrt(8 * math.pi) * sigma * speed**2 / (moving * harmonic) * 4 / 3) ** (1 / 3)
    proportional = (4 * speed**2 / (sigma**2 * harmonic)) ** (1 / 3) / 4
    still = (tokens, 1, MODES)
    assert best_tracking_step(sign_tracking_cost, TargetMotion(speed=speed), *still) == pytest.approx(sign, rel=0.01)
    assert best_tracking_step(proportional_tracking_cost, TargetMotion(speed=speed), *still) == pytest.approx(
        proportional, rel=0.01
    )
    walk = TargetMotion(diffusion=1e-14)
    assert best_tracking_step(sign_tracking_cost, walk, *still) == pytest.approx(
        math.sqrt(1e-14 * 4 / 3 / moving), rel=0.01
    )
    assert best_tracking_step(proportional_tracking_cost, walk, *still) == pytest.approx(1e-7 / sigma / 4, rel=0.01)


def test_proportional_noise_is_that_of_a_linear_recursion():
    """x <- x - eta (h x + n) - w, two experts, in closed form and by running it."""
    gain, curvature, walk_sd = 0.8, 0.5, 0.02
    motion = TargetMotion(diffusion=walk_sd**2)
    said = proportional_tracking_cost(gain / 2, motion, 101, 1, [curvature])
    rng = np.random.default_rng(0)
    noise, walk = rng.standard_normal((2, 200_000)) * np.array([[0.5 / math.sqrt(101)], [walk_sd]])
    x, total = 0.0, 0.0
    for n, w in zip(noise.tolist(), walk.tolist()):
        x += w - gain * (curvature * x + n)
        total += x * x
    assert said.bias_sd == pytest.approx(math.sqrt(total / len(noise)), rel=0.02)


def test_a_rule_that_cannot_follow_costs_without_end():
    fast = TargetMotion(speed=0.1)
    assert sign_tracking_cost(0.1, fast, 100, 1, MODES).regret == math.inf
    assert sign_tracking_cost(0.11, fast, 100, 1, MODES).regret < math.inf
    assert proportional_tracking_cost(0.25 * 2 / 0.2, fast, 100, 1, MODES).load_sd == math.inf
    assert proportional_tracking_cost(0.0, fast, 100, 1, MODES).max_vio == math.inf
    assert proportional_tracking_cost(0.0, TargetMotion(), 100, 1, MODES).regret == 0


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: sign_tracking_cost(-0.1, TargetMotion(), 10, 1, MODES), "step_size"),
        (lambda: sign_tracking_cost(0.1, TargetMotion(speed=-1.0), 10, 1, MODES), "speed"),
        (lambda: sign_tracking_cost(0.1, TargetMotion(overdispersion=0.0), 10, 1, MODES), "overdispersion"),
        (lambda: sign_tracking_cost(0.1, TargetMotion(), 10, 4, MODES), "top_k"),
        (lambda: best_tracking_step(sign_tracking_cost, TargetMotion(), 10, 1, MODES), "motion"),
        (
            lambda: best_tracking_step(sign_tracking_cost, TargetMotion(speed=0.1), 10, 1, MODES, measure="max"),
            "measure",
        ),
        (lambda: make_stream("drift", period=0.0), "period"),
    ],
)
def test_bad_input_is_named(call, word):
    with pytest.raises(ValueError, match=word):
        call()
