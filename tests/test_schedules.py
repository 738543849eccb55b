"""Schedules by hand, and what they refuse."""

import itertools
import math

import pytest

from alflb import schedules
from alflb.schedules import Constant, Cosine, Inverse, InverseSqrt, LinearDecay, Piecewise, WarmUp


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
    schedule = schedules.deepseek_v3(14_800)
    assert (schedule(14_300), schedule(14_301)) == (1e-3, 0.0)


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


def test_any_callable_is_a_schedule():
    assert schedules.as_schedule(lambda t: 2.0 * t)(3) == 6.0
    assert schedules.as_schedule(1e-3) == Constant(1e-3)
