"""The rule without a step size: by hand, in every unit, on every kind of loads."""

import dataclasses
import math
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alflb import make_stream, metrics, simulate
from alflb.rules import Observation, make_rule, self_tuning
from alflb.streams import Static

RULE = make_rule("self_tuning")


def follow(loads, targets, bias=None, state=None):
    """Biases and memories after each of several given loads."""
    num_experts = len(loads[0])
    bias = np.zeros(num_experts) if bias is None else bias
    state = RULE.init(num_experts) if state is None else state
    biases, states = [], []
    for t, (load, target) in enumerate(zip(loads, targets), 1):
        bias, state = RULE.step(bias, Observation(t, np.asarray(target, float), load_E=np.asarray(load)), state)
        biases.append(bias)
        states.append(state)
    return np.array(biases), states


def calibrated(num_experts, tokens, **known):
    """A memory after the search: curvature 2, so that a shortfall of 1 is worth half a score unit."""
    known = {"curvature": 2.0, "step_size": 0.5, "noise": 1.0, "usual_tokens": tokens, **known}
    return dataclasses.replace(RULE.init(num_experts), **known)


class Drawn:
    """Logistic scores with offsets that may move, in any unit and with any number of tokens."""

    def __init__(self, num_experts=8, num_tokens=512, unit=1.0, spread=0.7, seed=0):
        self.num_experts, self.num_tokens, self.unit, self.seed = num_experts, num_tokens, unit, seed
        self.offset_E = spread * np.random.default_rng(seed).normal(size=num_experts)

    def batch(self, t, num_tokens=None):
        rng = np.random.default_rng([self.seed, t])
        return self.unit * (self.offset_E + rng.logistic(size=(num_tokens or self.num_tokens, self.num_experts)))

    def batches(self, seed):
        t = 0
        while True:
            t += 1
            yield self.batch(t)


def drive(stream, num_steps, top_k=2, *, show=lambda t, load: load, push=lambda t, bias: bias, tokens=None, dead=()):
    """The loop by hand: what the rule is shown, the bias, and the batch size may differ from what they should be."""
    bias, state, violation = np.zeros(stream.num_experts), RULE.init(stream.num_experts), []
    for t in range(1, num_steps + 1):
        scores = stream.batch(t, None if tokens is None else tokens(t))
        scores[:, list(dead)] = -np.inf
        load = np.zeros(stream.num_experts, dtype=np.int64)
        np.add.at(load, np.argsort(-(scores + bias), axis=1)[:, :top_k].ravel(), 1)
        target = np.full(stream.num_experts, len(scores) * top_k / stream.num_experts)
        alive = np.setdiff1d(np.arange(stream.num_experts), dead)
        violation.append(load.max() / (load.sum() / len(alive)) - 1)
        bias, state = RULE.step(push(t, bias), Observation(t, target, load_E=show(t, load)), state)
    return np.array(violation), bias, state


def test_three_steps_of_the_search_by_hand():
    # r = (-1, 0, 1), (-1/2, 1/4, 1/4) and 0 at the first step size, which waits for the noise to be known
    target = [np.full(3, 4.0)] * 3
    biases, states = follow([[8, 4, 0], [6, 3, 3], [4, 4, 4]], target)
    expected = np.array([[-1, 0, 1], [-1.5, 0.25, 1.25], [-1.5, 0.25, 1.25]]) * self_tuning.FIRST_STEP
    np.testing.assert_array_equal(biases, expected)
    assert {state.step_size for state in states} == {self_tuning.FIRST_STEP}


def test_steps_grow_once_the_noise_is_known():
    load, target = [[8, 4, 0]] * 12, [np.full(3, 4.0)] * 12
    _, states = follow(load, target)
    steps = [state.step_size / self_tuning.FIRST_STEP for state in states]
    assert steps == [1] * 4 + [4.0**n for n in range(1, 9)]


def test_three_steps_of_tracking_by_hand():
    """Two experts with target 4, one degree of freedom, so |r|^2 = 4 (r_1^2 + r_2^2); r_2 = -r_1 throughout."""
    biases, states = follow([[6, 2], [5, 3], [4, 4]], [np.full(2, 4.0)] * 3, state=calibrated(2, 8.0))
    # Step 1: r_1 = -1/2, sighting -1/4. Gains max(1/2^j, 1/2): averages -1/4, then five times -1/8. No weights yet.
    first = -1 / 8
    # Step 2: r_1 = -1/4, sighting -1/8 from here. Averages stand at -1/8, 0, ..., 0. In units of the step size the
    # first difference is -1/4 and so is the sighting; the noise is 0.9 + 0.1 * 2 = 1.1 and the prior 16.
    weight = 0.5 / 1.1 / (16 + 0.5 / 1.1)
    # Gains 1, 1/2, 1/3, ...: averages -1/8, -1/16, -1/24, ...
    second = -1 / 24 + weight * (-1 / 8 + 1 / 16)
    assert states[1].noise == pytest.approx(0.9 * 1.1 + 0.1 * 0.5)
    # Step 3: balance, sighting 0 from here.
    stands = np.array([-1 / 8, -1 / 16, -1 / 24, -1 / 24, -1 / 24, -1 / 24]) - second
    differences = -np.diff(stands)
    noise = states[1].noise
    information = 0.99 * np.diag([0.5 / 1.1, 0, 0, 0, 0]) + 8 / noise * np.outer(differences, differences) / 0.25
    evidence = 0.99 * np.array([0.5 / 1.1, 0, 0, 0, 0]) + 8 / noise * differences * (0 - stands[-1]) / 0.25
    weights = np.linalg.solve(information + 16 * np.eye(5), evidence)
    gains = np.maximum(0.5 ** np.arange(6), 1 / 4)
    averages = stands - gains * stands
    third = averages[-1] + weights @ -np.diff(averages)
    np.testing.assert_allclose(biases[:, 0], np.cumsum([first, second, third]), rtol=1e-12)
    np.testing.assert_array_equal(biases[:, 1], -biases[:, 0])


def test_a_jump_by_hand():
    # loads 9, 1, 1, 1 against 3: r = (-2, 2/3, 2/3, 2/3), |r|^2 = 3 (4 + 4/3) / 3 = 16/3
    (bias,), (state,) = follow([[9, 1, 1, 1]], [np.full(4, 3.0)], state=calibrated(4, 12.0, num_averaged=5.0))
    signal = 1 - 1 / (16 / 3)
    np.testing.assert_allclose(bias, signal * np.array([-0.5, 0.5, 0.5, 0.5]))  # 1/2 * 2 r / (2 - r)
    assert state.noise == pytest.approx(0.9 + 0.1 * 4)  # it counts as 4 times the noise, not as 16/3


loads_of = st.integers(2, 6).flatmap(
    lambda experts: st.lists(
        st.lists(st.integers(0, 300), min_size=experts, max_size=experts).map(np.array), min_size=1, max_size=40
    )
)


@settings(max_examples=60, deadline=None)
@given(loads_of, st.randoms(use_true_random=False))
def test_permuted_experts_get_permuted_biases_to_the_last_bit(loads, random):
    order = list(range(len(loads[0])))
    random.shuffle(order)
    targets = [np.full(len(order), load.sum() / len(order)) + np.arange(len(order)) for load in loads]
    plain, _ = follow(loads, targets)
    permuted, _ = follow([load[order] for load in loads], [target[order] for target in targets])
    np.testing.assert_array_equal(permuted, plain[:, order])


@settings(max_examples=60, deadline=None)
@given(loads_of, st.booleans(), st.integers(-40, 40))
def test_any_loads_give_bounded_steps_and_the_unit_is_a_factor(loads, search, exponent):
    """Finite numbers whatever is shown; no tracking step exceeds two Newton steps; powers of two scale exactly."""
    num_experts = len(loads[0])
    targets = [np.full(num_experts, max(load.sum(), 1) / num_experts) for load in loads]
    start = None if search else calibrated(num_experts, 100.0)
    biases, states = follow(loads, targets, state=start)
    assert np.isfinite(biases).all()
    for load, state in zip(loads, states):
        if load.any() and state.curvature > 0:
            largest = 2 * state.step_size * math.sqrt(max(state.noise, 4.0) * num_experts * 2 * (load.sum() + 2))
            assert np.abs(state.move_E).max() <= largest
    unit = 2.0**exponent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_tuning, "FIRST_STEP", unit * self_tuning.FIRST_STEP)
        if start is not None:
            start = dataclasses.replace(start, curvature=start.curvature / unit, step_size=start.step_size * unit)
        scaled, _ = follow(loads, targets, state=start)
    np.testing.assert_array_equal(scaled, unit * biases)


@pytest.mark.parametrize("exponent", [-30, 1, 17])
def test_scores_in_another_unit_give_the_same_loads(exponent, monkeypatch):
    plain = simulate(Drawn(), RULE, top_k=2, num_steps=80)
    monkeypatch.setattr(self_tuning, "FIRST_STEP", 2.0**exponent * self_tuning.FIRST_STEP)
    scaled = simulate(Drawn(unit=2.0**exponent), RULE, top_k=2, num_steps=80)
    np.testing.assert_array_equal(scaled.load_NE, plain.load_NE)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_it_balances_in_every_unit_as_well_as_the_best_step(unit):
    stream = Drawn(unit=unit)
    runs = [simulate(stream, make_rule("proportional", unit * u), top_k=2, num_steps=160) for u in (0.03, 0.1, 0.3)]
    best = min(metrics.max_vio(run.load_NE, run.target_E)[80:].mean() for run in runs)
    own = simulate(stream, RULE, top_k=2, num_steps=160)
    assert metrics.max_vio(own.load_NE, own.target_E)[80:].mean() <= 1.05 * best


def test_a_common_shift_of_the_bias_is_not_noticed():
    loads = np.random.default_rng(0).multinomial(300, np.full(5, 0.2), size=60)
    targets = [np.full(5, 60.0)] * 60
    _, plain = follow(loads, targets)
    _, shifted = follow(loads, targets, bias=np.full(5, 7.0))
    for one, other in zip(plain, shifted):
        np.testing.assert_array_equal(one.move_E, other.move_E)


def test_a_batch_without_tokens_changes_nothing():
    bias, state = np.arange(3.0), calibrated(3, 30.0)
    after = RULE.step(bias, Observation(1, np.zeros(3), load_E=np.zeros(3, dtype=np.int64)), state)
    assert after[0] is bias
    assert after[1] is state


def test_batches_of_very_different_size():
    sizes = np.random.default_rng(1).integers(64, 4096, size=161)
    violation, _, _ = drive(Drawn(), 160, tokens=lambda t: int(sizes[t]))
    floor, _, _ = drive(Drawn(spread=0.0), 160, tokens=lambda t: int(sizes[t]))
    assert violation[80:].mean() <= 1.1 * floor[80:].mean()


@pytest.mark.parametrize("frozen", [range(60, 100), range(60, 61)])
def test_loads_that_freeze_for_a_while(frozen):
    """The rule is shown one and the same count again and again, while the bias moves on."""
    held = {}

    def show(t, load):
        return held.setdefault("load", load) if t in frozen else load

    violation, _, _ = drive(Drawn(), 200, show=show)
    steady, _, _ = drive(Drawn(), 200)
    assert violation[150:].mean() <= 1.1 * steady[150:].mean()


def test_a_bias_changed_from_outside_is_found_again():
    change = np.random.default_rng(2).normal(size=8)
    violation, _, _ = drive(Drawn(), 160, push=lambda t, bias: bias + change * (t == 100))
    assert violation[100:102].max() > 1.0
    assert violation[120:].mean() <= 1.15 * violation[60:99].mean()


def test_a_dead_expert_is_left_out():
    violation, bias, _ = drive(Drawn(), 300, dead=[3])
    alive, _, _ = drive(Drawn(), 300)
    assert violation[150:].mean() <= 1.2 * alive[150:].mean()
    assert bias[3] > np.delete(bias, 3).max()


def test_loads_that_never_answer_leave_finite_numbers():
    loads = np.random.default_rng(3).multinomial(400, [0.4, 0.3, 0.2, 0.1], size=3000)
    biases, states = follow(loads, [np.full(4, 100.0)] * 3000)
    assert np.isfinite(biases).all()
    assert states[-1].step_size <= self_tuning.FIRST_STEP * self_tuning.STEP_RANGE


def test_a_fixed_batch_is_balanced_to_a_token():
    scores = next(islice(make_stream("linear_router", num_tokens=1024, num_experts=16).batches(0), 1))
    run = simulate(Static(scores), RULE, top_k=2, num_steps=300)
    assert np.abs(run.load_NE[200:] - 128).max() <= 2


def test_its_memory_survives_a_checkpoint():
    pytest.importorskip("torch")
    from alflb.training.memory import pack, unpack

    loads = np.random.default_rng(4).multinomial(300, [0.4, 0.3, 0.2, 0.1], size=40)
    targets = [np.full(4, 75.0)] * 40
    biases, states = follow(loads, targets)
    restored = unpack(pack(states[19]), like=RULE.init(4))
    again, _ = follow(loads[20:], targets[20:], bias=biases[19], state=restored)
    np.testing.assert_array_equal(again, biases[20:])


class Saturated(Drawn):
    """Gates driven into saturation: an expert's curvature says nothing about another's."""

    def batch(self, t, num_tokens=None):
        return 1 / (1 + np.exp(-super().batch(t, num_tokens)))


def test_it_loses_where_curvatures_differ_by_orders_of_magnitude():
    """The counterexample of docs/theory/self_tuning.md, found by search."""
    stream = Saturated(num_experts=32, num_tokens=1024, spread=6.0, seed=2)
    own, rival = (
        metrics.max_vio(run.load_NE, run.target_E)[80:].mean()
        for run in (simulate(stream, rule, top_k=4, num_steps=160) for rule in (RULE, make_rule("smebu", 1e-3)))
    )
    assert own >= 1.5 * rival


@pytest.mark.parametrize("num_tokens", [128, 1024])
def test_two_experts_are_balanced_whatever_the_tokens(num_tokens):
    """With one degree of freedom the falls of the shortfall spread so widely that steps could double without end."""
    stream = make_stream("logistic", num_tokens=num_tokens, num_experts=2)
    for seed in range(30):
        run = simulate(stream, make_rule("self_tuning"), top_k=1, num_steps=120, seed=seed)
        assert np.abs(run.bias_NE).max() < 1e4
        assert metrics.max_vio(run.load_NE[80:], run.target_E).mean() < 0.5
