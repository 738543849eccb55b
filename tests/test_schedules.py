"""Schedules by hand, and what they refuse."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alflb import schedules
from alflb.rules import RULES, Observation, Rule, make_rule, rule_names
from alflb.schedules import Constant, Cosine, Inverse, InverseSqrt, LinearDecay, Piecewise, WarmUp
from alflb.simulation import simulate
from alflb.streams import Static

SCHEDULED_RULES = [name for name in rule_names() if RULES.get(name).takes_schedule]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(0.5), [0.5, 0.5, 0.5, 0.5]),
        (Inverse(1.0), [1.0, 0.5, 1 / 3, 0.25]),
        (InverseSqrt(1.0), [1.0, 1 / math.sqrt(2), 1 / math.sqrt(3), 0.5]),
        (LinearDecay(1.0, num_steps=3), [1.0, 0.5, 0.0, 0.0]),
        (LinearDecay(1.0, num_steps=3, final=0.5), [1.0, 0.75, 0.5, 0.5]),
        (LinearDecay(1.0, num_steps=1), [0.0, 0.0, 0.0, 0.0]),
        (Cosine(1.0, num_steps=3), [1.0, 0.5, 0.0, 0.0]),
        (Cosine(1.0, num_steps=3, final=1.0), [1.0, 1.0, 1.0, 1.0]),
        (WarmUp(Constant(1.0), num_steps=2), [0.5, 1.0, 1.0, 1.0]),
        (WarmUp(Inverse(1.0), num_steps=2), [0.5, 0.5, 1 / 3, 0.25]),
        (Piecewise((1, 3), (1.0, 0.5, 0.0)), [1.0, 0.5, 0.5, 0.0]),
    ],
)
def test_first_four_steps(schedule, expected):
    assert [schedule(t) for t in (1, 2, 3, 4)] == pytest.approx(expected)


def test_deepseek_v3_freezes_after_its_published_share_of_tokens():
    schedule = schedules.DeepSeekV3(1e-3, 14_800)
    assert (schedule(14_300), schedule(14_301)) == (1e-3, 0.0)


@pytest.mark.parametrize("name", schedules.schedule_names())
def test_a_horizon_is_asked_for_only_where_it_matters(name):
    if schedules.SCHEDULES.get(name).has_horizon():
        with pytest.raises(ValueError, match=f"num_steps is None, but the schedule '{name}' ends with the run"):
            schedules.make_schedule(name, 0.25)
    else:
        assert schedules.make_schedule(name, 0.25) == schedules.make_schedule(name, 0.25, 40)
    with pytest.raises(ValueError, match="num_steps is 0"):
        schedules.make_schedule(name, 0.25, 0)


@pytest.mark.parametrize("name", schedules.schedule_names())
def test_every_named_schedule_starts_at_its_step_size_and_never_rises(name):
    schedule = schedules.make_schedule(name, 0.25, 40)
    values = [schedule(t) for t in range(1, 60)]
    assert values[0] == 0.25
    assert all(later <= earlier for earlier, later in itertools.pairwise(values))
    assert min(values) >= 0


def test_warm_up_by_name():
    schedule = schedules.make_schedule("constant", 1.0, 10, warm_up=4)
    assert [schedule(t) for t in (1, 4, 5)] == [0.25, 1.0, 1.0]


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, "1e-3", None, True])
def test_bad_step_sizes_are_refused_by_name(value):
    with pytest.raises(ValueError, match="step_size is"):
        Constant(value)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="strictly increasing"):
        Piecewise((3, 3), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="one more than boundaries"):
        Piecewise((3,), (1.0,))
    with pytest.raises(ValueError, match="num_steps is 0"):
        LinearDecay(1.0, num_steps=0)
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        schedules.make_schedule("cosin", 1.0, 1)


BAD_VALUES = st.one_of(
    st.sampled_from(
        [math.nan, math.inf, -math.inf, "1e-3", None, True, 1j, [1e-3], np.float64("nan"), np.array([1e-3])]
    ),
    st.floats(max_value=0, exclude_max=True),
)


@given(value=BAD_VALUES, first_bad=st.integers(1, 4), rule=st.sampled_from(SCHEDULED_RULES))
@settings(max_examples=60, deadline=None)
def test_a_bad_value_is_refused_at_the_step_that_uses_it(value, first_bad, rule):
    """In the loop and in a rule's own step, which is what training calls; whichever rule has the schedule."""

    def schedule(t):
        return value if t >= first_bad else 1e-3

    constants = {"interval": 1} if rule == "accumulated_sign" else {}  # it asks its schedule once per interval
    made, steps = make_rule(rule, schedule, **constants), []
    with pytest.raises(ValueError, match=f"schedule at step {first_bad} is "):
        simulate(Static([[0.75, 0.25], [0.75, 0.5]]), made, top_k=1, num_steps=5, on_step=steps.append)
    assert steps == list(range(1, first_bad))
    seen = Observation(first_bad, np.ones(2), load_E=np.array([2, 0]))
    with pytest.raises(ValueError, match=f"schedule at step {first_bad} is "):
        made.step(np.zeros(2), seen, made.init(2))


@pytest.mark.parametrize(
    "schedule", [lambda t: [0.1, 0.1][t + 5], lambda t: 1e-3 / (t - 1), lambda t: t.size, lambda: 1]
)
def test_a_schedule_that_fails_is_named_with_its_step(schedule):
    with pytest.raises(ValueError, match=r"schedule fails at step 1 with \w+Error: .*called with t = 1, 2"):
        simulate(Static([[0.75, 0.25], [0.75, 0.5]]), make_rule("sign", schedule), top_k=1, num_steps=2)


def test_a_bias_that_overflows_is_refused():
    class Lifting(Rule):
        def step(self, bias_E, seen, state):
            with np.errstate(over="ignore"):
                return bias_E + 1.7e308, state

    with pytest.raises(ValueError, match=r"the bias after step 2 of .* holds NaN or inf"):
        simulate(Static([[0.75, 0.25], [0.5, 0.25]]), Lifting(), top_k=1, num_steps=3)


def test_the_name_of_a_schedule_is_no_schedule():
    with pytest.raises(ValueError, match=r"schedule is 'cosine'; pass a number, a callable, or make_schedule"):
        make_rule("sign", "cosine")
    assert WarmUp(1e-3, 4)(2) == 0.5e-3


def test_any_callable_is_a_schedule():
    assert schedules.as_schedule(lambda t: 2.0 * t)(3) == 6.0
    assert schedules.as_schedule(1e-3) == Constant(1e-3)
