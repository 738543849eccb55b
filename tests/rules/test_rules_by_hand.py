"""Every rule's first steps, worked out by hand: three experts with target load 4, or two with given scores."""

import math

import numpy as np
import pytest

from alflb import simulate
from alflb.rules import Observation, Projected, Sight, make_rule, relative_shortfall
from alflb.rules.quantiles import ranks
from alflb.schedules import InverseSqrt
from alflb.streams import Static
from alflb.streams.logarithm import LogScores

TARGET = np.array([4.0, 4.0, 4.0])
LOADS = [[8, 4, 0], [6, 3, 3], [4, 4, 4]]  # e = (target - load) / 4: (-1, 0, 1), (-1/2, 1/4, 1/4), 0


def path(rule, loads=LOADS, bias=(0.0, 0.0, 0.0)):
    bias, state, biases = np.array(bias), rule.init(3), []
    for t, load in enumerate(loads, 1):
        bias, state = rule.step(bias, Observation(t, TARGET, load_E=np.array(load)), state)
        biases.append(bias.tolist())
    return biases


def test_none():
    assert path(make_rule("none"), bias=(0.5, 0.0, -0.5)) == [[0.5, 0.0, -0.5]] * 3


def test_sign():
    assert path(make_rule("sign", 0.5)) == [[-0.5, 0.0, 0.5], [-1.0, 0.5, 1.0], [-1.0, 0.5, 1.0]]


def test_sign_with_a_schedule():
    expected = [[-1.0, 0.0, 1.0], [-1.0 - 0.5**0.5, 0.5**0.5, 1.0 + 0.5**0.5]]
    np.testing.assert_allclose(path(make_rule("sign", InverseSqrt(1.0)))[:2], expected)


def test_recentred_sign():
    # step 2: signs (-1, 1, 1) have mean 1/3
    expected = [[-0.75, 0.0, 0.75], [-0.75 - 1.0, 0.5, 0.75 + 0.5], [-1.75, 0.5, 1.25]]
    np.testing.assert_allclose(path(make_rule("recentred_sign", 0.75)), expected, atol=1e-15)


def test_proportional():
    # (target - load) / 4: (-1, 0, 1), then (-1/2, 1/4, 1/4)
    assert path(make_rule("proportional", 0.5)) == [[-0.5, 0.0, 0.5], [-0.75, 0.125, 0.625], [-0.75, 0.125, 0.625]]


def test_shortfalls_are_relative_to_the_mean_target():
    assert relative_shortfall(np.array([2, 2, 8]), np.array([1.0, 4.0, 7.0])).tolist() == [-0.25, 0.5, -0.25]


def test_a_target_that_is_whole_up_to_rounding_is_whole():
    almost = np.array([3.0, np.nextafter(3.0, 0.0), 3.0 - 1e-10, 2.9])
    assert ranks(almost, 10).tolist() == [4, 4, 4, 3]
    assert ranks(almost, 3).tolist() == [3, 3, 3, 3]


def test_projected_takes_rules_that_see_loads():
    with pytest.raises(ValueError, match="loads only"):
        Projected(make_rule("qb"), 1.0)


def test_projected():
    # step 1: (-4, 0, 4) has norm 4 sqrt(2), pulled back to norm sqrt(2). Step 2: (-1, 0, 1) + 4 (-1, 1, 1) =
    # (-5, 4, 5) has mean 4/3: (-19, 8, 11)/3, norm sqrt(546)/3. Step 3: nothing moves.
    end = [-19 * (2 / 546) ** 0.5, 8 * (2 / 546) ** 0.5, 11 * (2 / 546) ** 0.5]
    np.testing.assert_allclose(path(Projected(make_rule("sign", 4.0), 2**0.5)), [[-1, 0, 1], end, end], atol=1e-14)


def test_multiplicative():
    # factors 1 -> 3/4, 1, 5/4 -> 1/2, 5/4, 3/2
    expected = np.log([[0.75, 1.0, 1.25], [0.5, 1.25, 1.5], [0.5, 1.25, 1.5]])
    np.testing.assert_allclose(path(make_rule("multiplicative", 0.25)), expected, atol=1e-15)


def test_multiplicative_at_most_halves_a_factor():
    # a step of 3 would take the factor 1 to -2; it becomes 1/2, while 1 + 3 = 4 is let through
    np.testing.assert_allclose(path(make_rule("multiplicative", 3.0))[:1], [np.log([0.5, 1.0, 4.0])], atol=1e-15)


def test_multiplicative_selects_on_the_product_of_score_and_factor():
    scores = np.random.default_rng(0).random((30, 4))
    run = simulate(LogScores(Static(scores)), make_rule("multiplicative", 0.1), top_k=2, num_steps=5)
    for bias, load in zip(run.bias_NE, run.load_NE):
        best = np.argsort(-(scores * np.exp(bias)), axis=1)[:, :2]
        np.testing.assert_array_equal(np.bincount(best.ravel(), minlength=4), load)
    with pytest.raises(ValueError, match="scores are negative"):
        simulate(LogScores(Static(-scores)), make_rule("multiplicative", 0.1), top_k=2, num_steps=1)


def test_ema():
    # averages with beta = 1/2: (-1/2, 0, 1/2), (-1/2, 1/8, 3/8), (-1/4, 1/16, 3/16)
    expected = [[-0.5, 0.0, 0.5], [-1.0, 0.125, 0.875], [-1.25, 0.1875, 1.0625]]
    assert path(make_rule("ema", 1.0, beta=0.5)) == expected


def test_ema_overshoots_balance_by_what_is_left_of_its_average():
    # the average of step 2 is (-1/2, 1/8, 3/8); halved forever it adds up to itself once more
    final = path(make_rule("ema", 1.0, beta=0.5), LOADS + [[4, 4, 4]] * 60)[-1]
    np.testing.assert_allclose(final, [-1.5, 0.25, 1.25], atol=1e-15)


def test_variance_ema():
    # v = 2/12. mean e^2 = 2/3, 1/8, 0: X = 1/2, 0, 0, so beta = 1/2 - 1/4, 1/2, 1/2
    # averages (-3/4, 0, 3/4), (-5/8, 1/8, 1/2), and half of that
    expected = [[-0.75, 0.0, 0.75], [-1.375, 0.125, 1.25], [-1.6875, 0.1875, 1.5]]
    rule = make_rule("variance_ema", 1.0, beta_min=0.0, beta_max=0.5, reference=0.5)
    np.testing.assert_allclose(path(rule), expected, atol=1e-15)


def test_oscillation_ema():
    # v = 1/6. P = 7/12, then 1/2 of it + 1/2 of 31/96 - 1/12, then half; O = 0. beta = 2/9, 32/111, 64/143
    first = np.array([-7.0, 0.0, 7.0]) / 9
    second = 32 / 111 * first + 79 / 111 * np.array([-0.5, 0.25, 0.25])
    third = 64 / 143 * second
    rule = make_rule("oscillation_ema", 1.0, beta_min=0.0, energy_decay=0.5)
    np.testing.assert_allclose(path(rule), np.cumsum([first, second, third], axis=0), rtol=1e-13, atol=1e-15)


def test_oscillation_ema_remembers_longest_where_loads_alternate():
    # the second batch has P = 0 and O = 7/12: beta = 1, above the bound 3/4
    first = np.array([-7.0, 0.0, 7.0]) / 9
    second = 0.75 * first + 0.25 * np.array([1.0, 0.0, -1.0])
    rule = make_rule("oscillation_ema", 1.0, beta_min=0.0, beta_max=0.75, energy_decay=0.0)
    np.testing.assert_allclose(path(rule, [[8, 4, 0], [0, 4, 8]]), np.cumsum([first, second], axis=0), atol=1e-15)


def test_phi_balancing():
    # c / L = (2, 1, 0), (3/2, 3/4, 3/4), 1; averages (3/2, 1, 1/2), (3/2, 7/8, 5/8), (5/4, 15/16, 13/16)
    average_NE = np.array([[1.5, 1.0, 0.5], [1.5, 0.875, 0.625], [1.25, 0.9375, 0.8125]])
    np.testing.assert_allclose(path(make_rule("phi_balancing", 0.5, gain=0.5)), -0.5 * np.log(average_NE), atol=1e-15)


def test_phi_balancing_rests_off_balance_and_draws_back_at_balance():
    start = np.array([1.0, 0.0, -1.0])
    rule = make_rule("phi_balancing", 0.5, gain=0.5)
    rests = path(rule, [[6, 4, 2]] * 60, bias=start)[-1]
    np.testing.assert_allclose(rests, start - 0.5 * np.log([1.5, 1.0, 0.5]), atol=1e-12)
    np.testing.assert_allclose(path(rule, [[6, 4, 2]] + [[4, 4, 4]] * 60, bias=start)[-1], start, atol=1e-12)


def test_phi_balancing_prices_an_expert_without_tokens():
    assert path(make_rule("phi_balancing", 1.0, gain=1.0), [[12, 0, 0]])[0][1] == -np.log(1e-8)


def test_longcat():
    # the last expert is an identity expert, and its bias stays
    rule = make_rule("longcat", 0.5, num_zero=1)
    assert path(rule) == [[-0.5, 0.0, 0.0], [-0.75, 0.125, 0.0], [-0.75, 0.125, 0.0]]
    assert path(make_rule("longcat", 0.5)) == path(make_rule("proportional", 0.5))
    with pytest.raises(ValueError, match="num_zero is 3, of 3 experts"):
        path(make_rule("longcat", num_zero=3))


def test_longcat_fixes_the_mean_number_of_computing_experts():
    # 4 experts compute and 2 do not; of K = 2 picks 1.5 are to compute: targets 3/8 T and, for both others, T/2
    scores_TE = np.random.default_rng(0).random((800, 6))
    target_E = np.array([300.0] * 4 + [200.0] * 2)
    rule, bias_E, loads = make_rule("longcat", 0.02, num_zero=2), np.zeros(6), []
    for t in range(1, 400):
        load_E = np.bincount(np.argsort(-(scores_TE + bias_E), axis=1)[:, :2].ravel(), minlength=6)
        bias_E, _ = rule.step(bias_E, Observation(t, target_E, load_E=load_E), ())
        loads.append(load_E)
    assert abs(loads[0][:4] - 300).max() > 20
    assert abs(loads[-1][:4] - 300).max() <= 2
    assert bias_E[4:].tolist() == [0.0, 0.0]
    assert abs(loads[-1][4:].sum() - 400) <= 8


def test_accumulated_sign():
    # shortfalls (-4, 0, 4) + (-2, 1, 1) = (-6, 1, 5) at the end of the first interval of two
    expected = [[0.0, 0.0, 0.0], [-0.5, 0.5, 0.5], [-0.5, 0.5, 0.5]]
    assert path(make_rule("accumulated_sign", 0.5, interval=2)) == expected


def test_accumulated_sign_rests_where_the_shortfalls_of_an_interval_cancel():
    assert path(make_rule("accumulated_sign", 0.5, interval=2), [[8, 4, 0], [0, 4, 8]])[-1] == [0.0, 0.0, 0.0]


def test_top_j_sign():
    # j = 1: the largest of step 2, (-2, 1, 1), is shared by two experts, and both rise
    expected = [[-0.5, 0.0, 0.5], [-1.0, 0.5, 1.0], [-1.0, 0.5, 1.0]]
    assert path(make_rule("top_j_sign", 0.5, count=1)) == expected
    load, target = np.array([9, 5, 3, 2, 1]), np.full(5, 4.0)  # shortfalls -5, -1, 1, 2, 3
    assert make_rule("top_j_sign", count=1).direction(load, target).tolist() == [-1.0, 0.0, 0.0, 0.0, 1.0]
    assert make_rule("top_j_sign", count=2).direction(load, target).tolist() == [-1.0, -1.0, 0.0, 1.0, 1.0]


def test_rms():
    # v with b2 = 3/4: (1/4, 0, 1/4), then (3/16 + 1/16, 1/64, 12/64 + 1/64) = (1/4, 1/64, 13/64)
    # e / sqrt(v): (-2, 0, 2), then (-1, 2, 2 / sqrt 13)
    rule = make_rule("rms", 0.5, beta2=0.75, epsilon=1e-300)
    expected = [[-1.0, 0.0, 1.0], [-1.5, 1.0, 1.0 + 13**-0.5], [-1.5, 1.0, 1.0 + 13**-0.5]]
    np.testing.assert_allclose(path(rule), expected, rtol=1e-14)


def test_adam():
    # m with b1 = 0.6: (-0.4, 0, 0.4), (-0.44, 0.1, 0.34), (-0.264, 0.06, 0.204)
    # sqrt v with b2 = 3/4: (1/2, 0, 1/2), (1/2, 1/8, sqrt 13 / 8), (sqrt 3 / 4, sqrt 3 / 16, sqrt 39 / 16)
    rule = make_rule("adam", 1.0, beta2=0.75, epsilon=1e-300)
    steps = [
        [-0.8, 0.0, 0.8],
        [-0.88, 0.8, 2.72 / math.sqrt(13)],
        [-1.056 / math.sqrt(3), 0.96 / math.sqrt(3), 3.264 / math.sqrt(39)],
    ]
    np.testing.assert_allclose(path(rule), np.cumsum(steps, axis=0), rtol=1e-14)


def test_smebu():
    # tanh(v ln 3) = (9^v - 1) / (9^v + 1): 8/10 for 1, 1/2 for 1/2, r = 2 - sqrt 3 for 1/4
    # step 2: d = (-1/2, r, r) has mean (2r - 1/2) / 3; centered it is (-(1 + 2r), r + 1/2, r + 1/2) / 3
    r = 2.0 - math.sqrt(3.0)
    first = np.array([-0.4, 0.0, 0.4])
    second = np.array([-0.2, 0.0, 0.2]) + np.array([-(1 + 2 * r), r + 0.5, r + 0.5]) / 6
    third = second / 2  # balanced: half of the momentum is left
    rule = make_rule("smebu", 1.0, beta=0.5, kappa=math.log(3.0))
    np.testing.assert_allclose(path(rule), np.cumsum([first, second, third], axis=0), rtol=1e-14, atol=1e-15)


def test_damped():
    # 3/4 b + e / 2
    expected = [[-0.5, 0.0, 0.5], [-0.375 - 0.25, 0.125, 0.375 + 0.125], [-0.46875, 0.09375, 0.375]]
    assert path(make_rule("damped", 0.5, damping=0.25)) == expected


def test_damped_rests_off_balance():
    # at b = (-2, 0, 2) with d = 1/4, u = 1/2: e = d b / u = (-1, 0, 1), the loads (8, 4, 0)
    assert path(make_rule("damped", 0.5, damping=0.25), [[8, 4, 0]], bias=(-2.0, 0.0, 2.0)) == [[-2.0, 0.0, 2.0]]


def test_dual_averaging():
    # sums of e: (-1, 0, 1), (-3/2, 1/4, 5/4), the same
    total = np.array([-1.5, 0.25, 1.25])
    expected = [[-1.0, 0.0, 1.0], total / math.sqrt(2), total / math.sqrt(3)]
    np.testing.assert_allclose(path(make_rule("dual_averaging", 1.0)), expected, rtol=1e-15)


def test_dual_averaging_draws_back_to_where_it_started_at_exact_balance():
    start = np.array([1.0, 0.0, -1.0])
    first, second = path(make_rule("dual_averaging", 1.0), [[8, 4, 0], [4, 4, 4]], bias=start)
    assert first == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(second, start * (1 - 0.5**0.5))


def test_mirror_descent():
    # with scale 1 and u 1 the mirror coordinates sum e: (-1, 0, 1), (-3/2, 1/4, 5/4). The sinh of the first sum to 0.
    # With c added to the second they do when e^c P = e^-c N, P and N the sums of exp(+-coordinate).
    second = np.array([-1.5, 0.25, 1.25])
    second += 0.5 * math.log(np.exp(-second).sum() / np.exp(second).sum())
    expected = np.sinh([[-1.0, 0.0, 1.0], second, second])
    biases = path(make_rule("mirror_descent", 1.0, scale=1.0))
    np.testing.assert_allclose(biases, expected, rtol=1e-13, atol=1e-15)
    assert biases[2] == biases[1]


def test_mirror_descent_clips_a_step_to_one():
    # u / scale = 3: the step -3 counts as -1
    (first,) = path(make_rule("mirror_descent", 3.0, scale=1.0), LOADS[:1])
    np.testing.assert_allclose(first, [-math.sinh(1), 0.0, math.sinh(1)], atol=1e-14)


def test_mirror_descent_keeps_the_mean_of_the_bias():
    # many steps of one overloaded and two empty experts: without the projection the mean would grow as exp(t / 3)
    biases = np.array(path(make_rule("mirror_descent", 1.0, scale=0.1), [[12, 0, 0]] * 30, bias=(0.5, 0.25, 0.0)))
    np.testing.assert_allclose(
        biases.mean(axis=1) / np.abs(biases).max(axis=1), 0.25 / np.abs(biases).max(axis=1), atol=1e-9
    )


def test_pid():
    # kp = 1, kd = 1/2. changes of e: (-1, 0, 1), (1/2, 1/4, -3/4), (1/2, -1/4, -1/4), 0
    # second differences: (-1, 0, 1), (3/2, 1/4, -7/4), (0, -1/2, 1/2), (-1/2, 1/4, 1/4)
    # steps: (-5/2, 0, 5/2), (3/4, 5/8, -11/8), (1/2, -1/2, 0), (-1/4, 1/8, 1/8), and then none
    rule = make_rule("pid", 1.0, proportional=1.0, derivative=0.5)
    expected = [[-2.5, 0.0, 2.5], [-1.75, 0.625, 1.125], [-1.25, 0.125, 1.125], [-1.5, 0.25, 1.25], [-1.5, 0.25, 1.25]]
    assert path(rule, [*LOADS, [4, 4, 4], [4, 4, 4]]) == expected  # it ends at the sum of e, the integral part


SCORES = np.array([[0.75, 0.25], [0.75, 0.5], [0.5, 0.375], [0.25, 0.5]])
"""Expert 0 leads by 1/2, 1/4, 1/8 and -1/4; top-1 with two tokens each needs b_1 - b_0 between 1/8 and 1/4."""


def score_path(rule, steps=2):
    bias, biases = np.zeros(2), []
    for _ in range(steps):
        bias, _ = rule.step(bias, Observation(1, np.array([2.0, 2.0]), scores_TE=SCORES, top_k=1), ())
        biases.append((bias + 0.0).tolist())
    return biases


def test_qb():
    # alpha: second largest, (1/4, 1/2, 3/8, 1/4). s_0 - alpha = (1/2, 1/4, 1/8, 0), third largest 1/8;
    # s_1 - alpha = (0, 0, 0, 1/4), third largest 0. bhat = (-1/8, 0), centered (-1/16, 1/16).
    # Again, in sixteenths: biased (11, 5), (11, 9), (7, 7), (3, 9); alpha = (5, 9, 7, 3); s_0 - alpha = (7, 3, 1, 1),
    # third 1; s_1 - alpha = (-1, -1, -1, 5), third -1: the same bias.
    assert score_path(make_rule("qb")) == [[-0.0625, 0.0625]] * 2
    assert score_path(make_rule("qb", rounds=2), steps=1) == [[-0.0625, 0.0625]]


def test_damped_qb():
    # g = 1/2: half of (-1/16, 1/16). Then, in 32nds, biased (23, 9), (23, 17), (15, 13), (7, 17);
    # alpha = (9, 17, 13, 7); s_0 - alpha = (15, 7, 3, 1), third 3;
    # s_1 - alpha = (-1, -1, -1, 9), third -1: bhat = (-3, 1), centered (-2, 2); the mean with (-1, 1) is (-3/2, 3/2)
    assert score_path(make_rule("damped_qb", gain=0.5)) == [[-1 / 32, 1 / 32], [-1.5 / 32, 1.5 / 32]]


def test_histogram_qb():
    # r = alpha - s from -1/2 to 0 in eight bins of 1/16. Third smallest: -1/8 in [-1/8, -1/16), middle -3/32, and
    # 0 in the last bin, middle -1/32. Centered: (-1/32, 1/32).
    assert score_path(make_rule("histogram_qb", bins=8), steps=1) == [[-1 / 32, 1 / 32]]


def test_binned_qb():
    # 16 bins of 1/8 over [-1, 1]; q = 2 of 4 tokens
    rule = make_rule("binned_qb", bins=16)
    scores_TE, target_E = np.array([[6, 2], [4, 2], [4, 3], [1, 3]]) / 8, np.array([2.0, 2.0])
    # alpha = the smaller score: r_0 = (-4, -2, -1, 0), r_1 = (0, 0, 0, -2)
    counts_EB = rule.count(scores_TE, np.zeros(2), top_k=1)
    assert [np.flatnonzero(row).tolist() for row in counts_EB] == [[4, 6, 7, 8], [6, 8]]
    # b_0: the second value fills the bin [-2, -1), so b_0 = -1; b_1: one of the three in [0, 1), so b_1 = 1/3
    assert rule.bias_of_counts(counts_EB, np.zeros(2), target_E) == pytest.approx([-2 / 24, 2 / 24])
    assert rule.bias_of_counts(2 * counts_EB, np.zeros(2), 2 * target_E) == pytest.approx([-2 / 24, 2 / 24])
    slower = make_rule("binned_qb", bins=16, decay=0.75)
    assert slower.bias_of_counts(counts_EB, np.zeros(2), target_E) == pytest.approx([-2 / 96, 2 / 96])


def test_bip():
    # p = alpha = (1/4, 1/2, 3/8, 1/4); q_0 = 1/8, q_1 = 0. Again, in eighths: s - q = (5, 2), (5, 4), (3, 3), (1, 4);
    # p = (2, 4, 3, 1); s_0 - p = (4, 2, 1, 1), third 1; s_1 - p = (0, 0, 0, 3), third 0: the same prices.
    assert score_path(make_rule("bip", rounds=1)) == [[-0.125, 0.0]] * 2


def test_bip_clamps_prices_at_zero():
    # with scores below zero no expert is worth a price: p = q = 0, whatever the loads
    seen = Observation(1, np.array([2.0, 2.0]), scores_TE=SCORES - 2.0, top_k=1)
    shifted, _ = make_rule("bip").step(np.zeros(2), seen, ())
    np.testing.assert_array_equal(shifted, [0.0, 0.0])


@pytest.mark.parametrize("temperature", [0.25, 1.0])
def test_sinkhorn(temperature):
    # two tokens with scores (1, 0): the balanced plan is 1/2 everywhere, so d_1 / d_0 = exp(1 / temperature)
    seen = Observation(1, np.ones(2), scores_TE=np.array([[1.0, 0.0], [1.0, 0.0]]), top_k=1)
    bias, _ = make_rule("sinkhorn", temperature=temperature).step(np.zeros(2), seen, ())
    np.testing.assert_allclose(bias, [-0.5, 0.5], rtol=1e-12)


def test_exact():
    (bias,) = score_path(make_rule("exact"), steps=1)
    assert 1 / 8 <= bias[1] - bias[0] <= 1 / 4


def test_bip_and_sinkhorn_route_the_batch_they_saw_and_qb_the_next():
    for name, first in (("qb", 0.0), ("bip", -0.125)):
        run = simulate(Static(SCORES), make_rule(name), top_k=1, num_steps=2)
        assert run.bias_NE[0, 0] == first
        assert make_rule(name).sees is not Sight.LOADS
