"""Properties of every registered rule; a new rule file is covered without an edit here."""

import numpy as np
import pytest

from alflb import duality
from alflb.problem import AssignmentProblem
from alflb.rules import HindsightRule, ScoreRule, make_rule, rule_names, sees, sees_scores

TARGET = np.full(5, 12.0)
STEP_SIZE = 0.25
NAMES = rule_names()
LOAD_NAMES = [name for name in NAMES if not sees_scores(make_rule(name))]
SCORE_NAMES = [name for name in NAMES if sees_scores(make_rule(name))]

# The exceptions, by name. Each is asserted to be one, so that a rule cannot hide here.
NEVER_MOVES = {"none"}
MOVES_AT_BALANCE = {
    "damped": "the bias leaks away",
    "dual_averaging": "the bias draws back to where it started",
    "histogram_qb": "tokens within a bin of the boundary may move",
    "sinkhorn": "it balances the entropic plan, not its top-K",
}
STEPS = 8
"""Long enough for every default interval of accumulation to end."""


def run(rule, loads, bias=None):
    """Biases after each of several given loads."""
    bias = np.zeros(5) if bias is None else bias
    state, path = rule.init(5), [bias]
    for t, load in enumerate(loads, 1):
        bias, state = rule.update(bias, np.asarray(load), TARGET, t, state)
        path.append(bias)
    return np.array(path)


def next_bias(rule, scores, bias, target, top_k):
    """The bias a score-seeing rule makes of a batch: for that batch or for the next one."""
    return getattr(rule, "route_with" if isinstance(rule, ScoreRule) else "learn_from")(scores, bias, target, top_k)


def chosen(scores, bias, top_k):
    """The set of experts of each token, as a (T, E) array of zeros and ones."""
    return duality.allocate(AssignmentProblem(scores, top_k), bias).experts_TK


def random_loads(seed, steps=STEPS):
    return np.random.default_rng(seed).multinomial(60, np.full(5, 0.2), size=steps)


def balanced_batch(seed, unit, num_tokens=40, num_experts=5, top_k=2):
    """Scores and a bias <= 0 that balance exactly, every boundary at least `unit` wide, no runner-up below zero.

    Half of the tokens of expert 0 are far from their boundary, so that rules which look at more than it do see it.
    """
    rng = np.random.default_rng(seed)
    picks = (np.arange(num_tokens)[:, None] + np.arange(top_k)) % num_experts
    biased = 0.75 - unit * rng.integers(1, 256, (num_tokens, num_experts))
    np.put_along_axis(biased, picks, 0.75 + unit * rng.integers(0, 256, (num_tokens, top_k)), axis=1)
    biased[: num_tokens // 2, 0] += 0.25 * (picks[: num_tokens // 2] == 0).any(axis=1)
    bias = -rng.integers(0, 512, num_experts) / 1024
    return biased - bias, bias, np.full(num_experts, num_tokens * top_k / num_experts)


@pytest.mark.parametrize("name", LOAD_NAMES)
def test_expert_permutation_equivariance(name):
    rule = make_rule(name, STEP_SIZE)
    order = np.array([3, 0, 4, 1, 2])
    loads = random_loads(0)
    np.testing.assert_allclose(run(rule, loads[:, order]), run(rule, loads)[:, order], atol=1e-14)


@pytest.mark.parametrize("name", LOAD_NAMES)
def test_nothing_moves_at_exact_balance(name):
    bias = np.array([0.5, -0.25, 0.0, 1.0, 2.0])
    path = run(make_rule(name, STEP_SIZE), [TARGET.astype(np.int64)] * STEPS, bias)
    if name not in MOVES_AT_BALANCE:
        np.testing.assert_array_equal(path, np.tile(bias, (STEPS + 1, 1)))
    elif name == "dual_averaging":  # it rests where it started, and nowhere else: see test_rules_by_hand.py
        np.testing.assert_array_equal(path[-1], bias)
    else:
        assert not np.array_equal(path[-1], bias)


@pytest.mark.parametrize("name", LOAD_NAMES)
def test_no_input_is_changed_and_updates_repeat(name):
    rule = make_rule(name, STEP_SIZE)
    loads, bias = random_loads(1), np.arange(5.0)
    before = loads.copy(), bias.copy()
    first = run(rule, loads, bias)
    np.testing.assert_array_equal(loads, before[0])
    np.testing.assert_array_equal(bias, before[1])
    np.testing.assert_array_equal(run(rule, loads, bias), first)  # no memory hides on the rule


@pytest.mark.parametrize("name", LOAD_NAMES)
def test_a_memory_is_not_changed_in_place(name):
    rule, loads = make_rule(name, STEP_SIZE), random_loads(2)
    bias, state = np.zeros(5), rule.init(5)
    for t, load in enumerate(loads, 1):
        once = rule.update(bias, load, TARGET, t, state)[0]
        twice, next_state = rule.update(bias, load, TARGET, t, state)
        np.testing.assert_array_equal(once, twice)
        bias, state = twice, next_state


@pytest.mark.parametrize("name", LOAD_NAMES)
def test_an_overloaded_expert_falls_behind_an_underloaded_one(name):
    load = np.array([30, 12, 12, 6, 0])
    path = run(make_rule(name, STEP_SIZE), [load] * STEPS)
    moved = path[-1] - path[0]
    if name in NEVER_MOVES:
        np.testing.assert_array_equal(moved, 0.0)
    else:
        assert moved[0] < moved[1]
        assert moved[1] < moved[4]


@pytest.mark.parametrize("name", NAMES)
def test_rules_are_values(name):
    assert make_rule(name, STEP_SIZE) == make_rule(name, STEP_SIZE)
    with pytest.raises(AttributeError):
        make_rule(name).anything = None


@pytest.mark.parametrize("name", NAMES)
def test_what_a_rule_sees_is_what_it_has_methods_for(name):
    rule = make_rule(name)
    expected = {
        (False, False): "loads",
        (True, False): "scores before routing",
        (False, True): "scores after routing",
    }[isinstance(rule, ScoreRule), isinstance(rule, HindsightRule)]
    assert sees(rule) == sees(type(rule)) == expected


@pytest.mark.parametrize("name", SCORE_NAMES)
def test_rules_that_see_scores_change_nothing_they_are_given_and_permute_with_the_experts(name):
    rule = make_rule(name)
    scores = np.random.default_rng(0).random((40, 5))
    bias, target = np.zeros(5), np.full(5, 16.0)
    before = scores.copy()
    new = next_bias(rule, scores, bias, target, 2)
    np.testing.assert_array_equal(scores, before)
    np.testing.assert_array_equal(bias, np.zeros(5))
    np.testing.assert_array_equal(next_bias(rule, scores, bias, target, 2), new)
    order = np.array([3, 0, 4, 1, 2])
    permuted = next_bias(rule, scores[:, order], bias, target, 2)
    if name == "exact":  # an optimal bias need not be unique, its loads are
        loads = [
            duality.allocate(AssignmentProblem(s, 2), p).load_E
            for s, p in ((scores, new), (scores[:, order], permuted))
        ]
        np.testing.assert_array_equal(loads[0][order], loads[1])
    else:  # quantiles put tokens on ties, which rounding breaks: compare biases, not loads
        np.testing.assert_allclose(new[order], permuted, atol=1e-12)


@pytest.mark.parametrize("name", SCORE_NAMES)
def test_no_token_moves_at_exact_balance(name):
    rule, moved = make_rule(name), 0
    for seed in range(20):
        scores, bias, target = balanced_batch(seed, unit=2.0 ** -(10 + seed))
        before = chosen(scores, bias, 2)
        assert (np.bincount(before.ravel(), minlength=5) == target).all()
        after = chosen(scores, next_bias(rule, scores, bias, target, 2), 2)
        moved += int((before != after).any())
    assert (moved > 0) == (name in MOVES_AT_BALANCE)


@pytest.mark.parametrize("name", SCORE_NAMES)
def test_rules_that_see_scores_take_float32_forbidden_pairs_and_top_k_equal_to_the_experts(name):
    rule = make_rule(name)
    scores = np.random.default_rng(3).random((40, 5)).astype(np.float32)
    assert np.isfinite(next_bias(rule, scores, np.zeros(5), np.full(5, 40.0), 5)).all()
    scores[::2, 0] = -np.inf  # half of the tokens may not use expert 0
    assert np.isfinite(next_bias(rule, scores, np.zeros(5), np.full(5, 16.0), 2)).all()


@pytest.mark.parametrize("name", [name for name in SCORE_NAMES if isinstance(make_rule(name), HindsightRule)])
def test_a_rule_that_needs_scores_refuses_loads(name):
    with pytest.raises(ValueError, match="loads are not enough"):
        run(make_rule(name), random_loads(0))


def test_unknown_rule_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'proportional'"):
        make_rule("proportinal", 1e-3)


@pytest.mark.parametrize(
    ("name", "constants", "words"),
    [
        ("sign", {"schedule": -1}, "schedule is -1"),
        ("ema", {"bta": 0.5}, "unknown constant of rule 'ema' 'bta': did you mean 'beta'"),
        ("ema", {"beta": 1.0}, "beta is 1.0"),
        ("accumulated_sign", {"interval": 0}, "interval is 0"),
        ("top_j_sign", {"count": 1.5}, "count is 1.5"),
        ("rms", {"beta1": 1.0}, "beta1 is 1.0"),
        ("rms", {"beta2": -0.1}, "beta2 is -0.1"),
        ("adam", {"epsilon": 0.0}, "epsilon is 0.0"),
        ("smebu", {"kappa": 0.0}, "kappa is 0.0"),
        ("smebu", {"beta": np.nan}, "beta is nan"),
        ("damped", {"damping": 1.0}, "damping is 1.0"),
        ("mirror_descent", {"scale": 0.0}, "scale is 0.0"),
        ("pid", {"proportional": -1.0}, "proportional is -1.0"),
        ("pid", {"derivative": np.inf}, "derivative is inf"),
        ("qb", {"rounds": 0}, "rounds is 0"),
        ("damped_qb", {"gain": 1.5}, "gain is 1.5"),
        ("damped_qb", {"gain": 0.0}, "gain is 0.0"),
        ("histogram_qb", {"bins": 0}, "bins is 0"),
        ("bip", {"rounds": 0}, "rounds is 0"),
        ("sinkhorn", {"temperature": 0.0}, "temperature is 0.0"),
        ("sinkhorn", {"rounds": 0}, "rounds is 0"),
        ("sinkhorn", {"tolerance": -1.0}, "tolerance is -1.0"),
    ],
)
def test_a_bad_constant_is_refused_by_name(name, constants, words):
    with pytest.raises(ValueError, match=words):
        make_rule(name, **constants)
