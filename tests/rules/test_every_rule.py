"""Properties of every registered rule; a new rule file is covered without an edit here."""

import numpy as np
import pytest

from alflb import duality, simulate
from alflb.problem import AssignmentProblem
from alflb.rules import RULES, Observation, Sight, make_rule, rule_names
from alflb.schedules import Constant
from alflb.streams import Static

TARGET = np.full(5, 12.0)
STEP_SIZE = 0.25
NAMES = rule_names()
LOAD_NAMES = [name for name in NAMES if RULES.get(name).sees is Sight.LOADS]
SCORE_NAMES = [name for name in NAMES if RULES.get(name).sees is not Sight.LOADS]

# The exceptions, by name. Each is asserted to be one, so that a rule cannot hide here.
NEVER_MOVES = {"none"}
DRAWS_BACK = {"dual_averaging", "phi_balancing"}
"""At balance the bias draws back to where it started, and rests there."""
MOVES_AT_BALANCE = {
    "damped": "the bias leaks away",
    "binned_qb": "tokens within a bin of the boundary may move",
    "histogram_qb": "tokens within a bin of the boundary may move",
    "sinkhorn": "it balances the entropic plan, not its top-K",
    **dict.fromkeys(DRAWS_BACK, "the bias draws back to where it started"),
}
SCORES = np.random.default_rng(4).random((40, 5))
STEPS = 8
"""Long enough for every default interval of accumulation to end."""


def make(name):
    """The rule, with a large step size if it has one."""
    return make_rule(name, STEP_SIZE if RULES.get(name).takes_schedule else None)


def run(rule, loads, bias=None):
    """Biases after each of several given loads."""
    bias = np.zeros(5) if bias is None else bias
    state, path = rule.init(5), [bias]
    for t, load in enumerate(loads, 1):
        bias, state = rule.step(bias, Observation(t, TARGET, load_E=np.asarray(load)), state)
        path.append(bias)
    return np.array(path)


def next_bias(rule, scores, bias, target, top_k):
    """The bias a score-seeing rule makes of a batch: for that batch or for the next one."""
    return rule.step(bias, Observation(1, target, scores_TE=scores, top_k=top_k), rule.init(len(bias)))[0]


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
    rule = make(name)
    order = np.array([3, 0, 4, 1, 2])
    loads = random_loads(0)
    np.testing.assert_allclose(run(rule, loads[:, order]), run(rule, loads)[:, order], atol=1e-14)


@pytest.mark.parametrize("name", LOAD_NAMES)
def test_nothing_moves_at_exact_balance(name):
    bias = np.array([0.5, -0.25, 0.0, 1.0, 2.0])
    path = run(make(name), [TARGET.astype(np.int64)] * STEPS, bias)
    if name not in MOVES_AT_BALANCE:
        np.testing.assert_array_equal(path, np.tile(bias, (STEPS + 1, 1)))
    elif name in DRAWS_BACK:  # they rest where they started, and nowhere else: see test_rules_by_hand.py
        np.testing.assert_array_equal(path[-1], bias)
    else:
        assert not np.array_equal(path[-1], bias)


@pytest.mark.parametrize("name", LOAD_NAMES)
def test_no_input_is_changed_and_updates_repeat(name):
    rule = make(name)
    loads, bias = random_loads(1), np.arange(5.0)
    before = loads.copy(), bias.copy()
    first = run(rule, loads, bias)
    np.testing.assert_array_equal(loads, before[0])
    np.testing.assert_array_equal(bias, before[1])
    np.testing.assert_array_equal(run(rule, loads, bias), first)  # no memory hides on the rule


@pytest.mark.parametrize("name", LOAD_NAMES)
def test_a_memory_is_not_changed_in_place(name):
    rule, loads = make(name), random_loads(2)
    bias, state = np.zeros(5), rule.init(5)
    for t, load in enumerate(loads, 1):
        seen = Observation(t, TARGET, load_E=load)
        once = rule.step(bias, seen, state)[0]
        twice, next_state = rule.step(bias, seen, state)
        np.testing.assert_array_equal(once, twice)
        bias, state = twice, next_state


@pytest.mark.parametrize("name", LOAD_NAMES)
def test_an_overloaded_expert_falls_behind_an_underloaded_one(name):
    load = np.array([30, 12, 12, 6, 0])
    path = run(make(name), [load] * STEPS)
    moved = path[-1] - path[0]
    if name in NEVER_MOVES:
        np.testing.assert_array_equal(moved, 0.0)
    else:
        assert moved[0] < moved[1]
        assert moved[1] < moved[4]


@pytest.mark.parametrize("name", NAMES)
def test_rules_are_values(name):
    assert make(name) == make(name)
    with pytest.raises(AttributeError):
        make_rule(name).anything = None


class Watched(Observation):
    """An observation that shows everything and writes down what is read."""

    def __init__(self, t, target_E, load_E, scores_TE, top_k):
        super().__init__(t, target_E, load_E=load_E, scores_TE=scores_TE, top_k=top_k)
        self.read = set()

    @property
    def load_E(self):
        self.read.add("loads")
        return super().load_E

    @property
    def scores_TE(self):
        self.read.add("scores")
        return super().scores_TE


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_reads_what_it_declares_to_see(name):
    rule, read = make_rule(name), set()
    scores, bias, state = np.random.default_rng(0).random((40, 5)), np.zeros(5), rule.init(5)
    target = np.full(5, 16.0)
    for t in range(1, STEPS + 1):
        load = duality.allocate(AssignmentProblem(scores, 2), bias).load_E
        seen = Watched(t, target, load, scores, 2)
        bias, state = rule.step(bias, seen, state)
        read |= seen.read
    assert read == ({"loads"} if rule.sees is Sight.LOADS else {"scores"}) - (
        {"loads"} if name in NEVER_MOVES else set()
    )


@pytest.mark.parametrize("name", NAMES)
def test_exactly_one_of_the_two_moments_takes_the_step(name):
    rule, bias = make_rule(name), np.zeros(5)
    seen = Observation(1, np.full(5, 16.0), load_E=np.array([40, 40, 0, 0, 0]), scores_TE=SCORES, top_k=2)
    stepped, _ = rule.step(bias, seen, rule.init(5))
    before, _ = rule.before_routing(bias, seen, rule.init(5))
    after, _ = rule.after_routing(bias, seen, rule.init(5))
    takes, keeps = (before, after) if rule.sees is Sight.SCORES_BEFORE_ROUTING else (after, before)
    np.testing.assert_array_equal(takes, stepped)
    assert keeps is bias


@pytest.mark.parametrize("name", SCORE_NAMES)
def test_a_rule_that_needs_scores_says_so_where_there_are_none(name):
    with pytest.raises(ValueError, match=r"reads (scores_TE|top_k), which this loop does not show it"):
        run(make_rule(name), random_loads(0))


@pytest.mark.parametrize("name", NAMES)
def test_the_tuned_number_is_an_argument_of_the_rule(name):
    tuned = RULES.get(name).tuned
    if tuned is None:
        return
    for value in tuned.values:
        given = getattr(make_rule(name, **{tuned.name: value}), tuned.name)
        assert given in (value, Constant(value))


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_is_used_or_refused(name):
    if RULES.get(name).takes_schedule:
        assert make_rule(name, 0.125).schedule == Constant(0.125)
    else:
        for schedule in ("nonsense", -1, 0.0, Constant(1.0)):
            with pytest.raises(ValueError, match=f"the rule {name!r} has no step size; leave the schedule out"):
                make_rule(name, schedule)


@pytest.mark.parametrize("name", [name for name in NAMES if RULES.get(name).routes_as])
def test_a_rule_that_routes_as_another_gives_its_loads(name):
    stream = Static(np.random.default_rng(0).random((64, 8)))
    loads = [
        simulate(stream, make_rule(rule, 0.125), top_k=2, num_steps=20).load_NE
        for rule in (name, RULES.get(name).routes_as)
    ]
    np.testing.assert_array_equal(*loads)


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
    if name == "exact":  # an optimal bias need not be unique; its value is, and its loads are but for ties
        values = []
        for s, p in ((scores, new), (scores[:, order], permuted)):
            problem = AssignmentProblem(s, 2)
            values.append(duality.dual_value(problem, p))
            biased = np.sort(s + p, axis=1)
            tied = int((biased[:, -2] - biased[:, -3] < 1e-12).sum())
            assert tied < 5
            assert np.abs(duality.allocate(problem, p).load_E - target).max() <= tied
        assert values[0] == pytest.approx(values[1], rel=1e-14)
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


def test_unknown_rule_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'proportional'"):
        make_rule("proportinal", 1e-3)


@pytest.mark.parametrize(
    ("name", "constants", "words"),
    [
        ("sign", {"schedule": -1}, "schedule is -1"),
        ("sign", {"step_size": 0.1}, r"make_rule has no step_size; pass the step size second: make_rule\('sign', 1e-3"),
        ("none", {"rate": 0.1}, "unknown constant of rule 'none' 'rate': there is none"),
        ("ema", {"bta": 0.5}, "unknown constant of rule 'ema' 'bta': did you mean 'beta'"),
        ("ema", {"beta": 1.0}, "beta is 1.0"),
        ("variance_ema", {"beta_max": 1.0}, "beta_max is 1.0"),
        ("variance_ema", {"reference": 0.0}, "reference is 0.0"),
        ("oscillation_ema", {"beta_min": 0.96}, "beta_min is 0.96, above beta_max = 0.95"),
        ("oscillation_ema", {"energy_decay": -0.5}, "energy_decay is -0.5"),
        ("phi_balancing", {"gain": 0.0}, "gain is 0.0"),
        ("phi_balancing", {"gain": 2.0}, "gain is 2.0"),
        ("longcat", {"num_zero": -1}, "num_zero is -1"),
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
        ("binned_qb", {"bins": 0}, "bins is 0"),
        ("binned_qb", {"decay": 1.0}, "decay is 1.0"),
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
