"""How the benchmark pages write numbers."""

import pytest

from experiments.benchmarks._bench import duration, ratio, take_turns, three_digits


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0.00"),
        (0.04123, "0.0412"),
        (5.0, "5.00"),
        (5.919, "5.92"),
        (99.96, "100"),
        (126.4, "126"),
        (18123.4, "18,123"),
    ],
)
def test_three_digits(number, text):
    assert three_digits(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        ([18.123], "18.1 s"),
        ([0.00592, 0.00581, 0.00619], "5.92 ms (5.81–6.19)"),
        ([41.2e-6], "41.2 µs"),
        ([2e-7], "0.200 µs"),
        ([47.0, 47.0], "47.0 s (47.0–47.0)"),
    ],
)
def test_durations_are_written_in_the_unit_that_suits_them(seconds, text):
    assert duration(seconds) == text


def test_contenders_take_turns():
    calls = []
    timings = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, turns=4, seconds_each=1.0)
    assert calls[4:] == ["a", "b"] * 4
    assert {name: len(times) for name, times in timings.items()} == {"a": 4, "b": 4}
    assert float(ratio([3.0, 2.0, 1.0], [4.0])) == 0.5
