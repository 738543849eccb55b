"""Properties of every registered rule; a new rule file is covered without an edit here."""

import numpy as np
import pytest

from alflb.rules import ScoreRule, make_rule, rule_names

TARGET = np.full(5, 12.0)
RULES = [rule for rule in (make_rule(name, 0.25) for name in rule_names()) if not isinstance(rule, ScoreRule)]
SCORE_RULES = [rule for rule in (make_rule(name, 0.25) for name in rule_names()) if isinstance(rule, ScoreRule)]


def run(rule, loads, bias=None):
    """Biases after each of several given loads."""
    bias = np.zeros(5) if bias is None else bias
    state, path = rule.init(5), [bias]
    for t, load in enumerate(loads, 1):
        bias, state = rule.update(bias, np.asarray(load), TARGET, t, state)
        path.append(bias)
    return np.array(path)


def random_loads(seed, steps=6):
    return np.random.default_rng(seed).multinomial(60, np.full(5, 0.2), size=steps)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_expert_permutation_equivariance(rule):
    order = np.array([3, 0, 4, 1, 2])
    loads = random_loads(0)
    np.testing.assert_allclose(run(rule, loads[:, order]), run(rule, loads)[:, order], atol=1e-15)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_nothing_moves_at_exact_balance(rule):
    bias = np.array([0.5, -0.25, 0.0, 1.0, 2.0])
    path = run(rule, [TARGET.astype(np.int64)] * 3, bias)
    np.testing.assert_array_equal(path, np.tile(bias, (4, 1)))


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_no_input_is_changed_and_updates_repeat(rule):
    loads, bias = random_loads(1), np.arange(5.0)
    before = loads.copy(), bias.copy()
    first = run(rule, loads, bias)
    np.testing.assert_array_equal(loads, before[0])
    np.testing.assert_array_equal(bias, before[1])
    np.testing.assert_array_equal(run(rule, loads, bias), first)  # no memory hides on the rule


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_an_overloaded_expert_falls_behind_an_underloaded_one(rule):
    load = np.array([30, 12, 12, 6, 0])
    step = np.diff(run(rule, [load]), axis=0)[0]
    assert step[0] < step[1]
    assert step[1] < step[4]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_rules_are_values(rule):
    assert rule == make_rule(next(name for name in rule_names() if make_rule(name, 0.25) == rule), 0.25)
    with pytest.raises(AttributeError):
        rule.schedule = None


@pytest.mark.parametrize("rule", SCORE_RULES, ids=repr)
def test_rules_that_see_scores_change_nothing_they_are_given_and_permute_with_the_experts(rule):
    scores = np.random.default_rng(0).random((40, 5))
    bias, target = np.zeros(5), np.full(5, 16.0)
    before = scores.copy()
    chosen = rule.route_with(scores, bias, target, 2)
    np.testing.assert_array_equal(scores, before)
    np.testing.assert_array_equal(bias, np.zeros(5))
    order = np.array([3, 0, 4, 1, 2])
    permuted = rule.route_with(scores[:, order], bias, target, 2)
    loads = [
        np.bincount(np.argsort(-(s + p), axis=1)[:, :2].ravel(), minlength=5)
        for s, p in ((scores, chosen), (scores[:, order], permuted))
    ]
    np.testing.assert_array_equal(loads[0][order], loads[1])


def test_unknown_rule_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'proportional'"):
        make_rule("proportinal", 1e-3)


def test_a_bad_schedule_is_refused_by_name():
    with pytest.raises(ValueError, match="schedule is -1"):
        make_rule("sign", -1)
