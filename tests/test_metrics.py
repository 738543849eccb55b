"""Metrics on trajectories written by hand."""

import numpy as np
import pytest

from alflb import metrics
from alflb.metrics import Cycle, find_cycle
from alflb.rules import make_rule
from alflb.simulation import simulate
from alflb.streams import Static, make_stream
from alflb.trajectory import Trajectory


def trajectory(loads, biases=None, static=True):
    loads = np.array(loads)
    biases = np.zeros((len(loads) + 1, loads.shape[1])) if biases is None else np.array(biases)
    target = np.full(loads.shape[1], loads[0].sum() / loads.shape[1])
    return Trajectory(biases, loads, target, {}, {"static": static})


RUN = trajectory([[6, 0, 0], [3, 2, 1], [1, 3, 2], [2, 2, 2]])


def test_max_vio_of_batches_and_of_the_whole():
    assert metrics.max_vio(RUN).tolist() == [2.0, 0.5, 0.5, 0.0]
    assert metrics.max_vio_global(RUN) == 0.5  # loads sum to (12, 7, 5), target 8
    assert metrics.max_vio_global(RUN, first_step=2) == pytest.approx(1 / 6)  # (6, 7, 5), target 6


def test_arrays_and_a_trajectory_give_the_same():
    for metric in (metrics.max_vio, metrics.max_vio_global, metrics.load_cv):
        np.testing.assert_array_equal(metric(RUN.load_NE), metric(RUN))
    assert metrics.settling_time(RUN.load_NE, 0.5) == metrics.settling_time(RUN, 0.5)
    assert metrics.max_vio(RUN.load_NE[1]) == 0.5


def test_unequal_targets():
    assert metrics.max_vio([3, 1], [3.0, 1.0]) == 0.0
    assert metrics.max_vio([[3, 1], [2, 2]], [3.0, 1.0]).tolist() == [0.0, 1.0]
    assert metrics.max_vio_global([[3, 1], [1, 1]], [[3.0, 1.0], [1.0, 1.0]]) == 0.0


@pytest.mark.parametrize(
    ("loads", "targets", "words"),
    [
        ([0, 0], None, "a batch without tokens"),
        ([[1, 1], [0, 0]], None, "a batch without tokens"),
        ([1, -1], None, "negative or not finite"),
        ([1, np.nan], None, "negative or not finite"),
        (["1", "2"], None, "dtype <U1; pass tokens per expert"),
        (3, None, r"shape \(\)"),
        ([1, 1], [2.0, 0.0], "targets holds values that are not positive"),
        ([1, 1], [2.0, np.nan], "targets holds values that are not positive"),
    ],
)
def test_loads_that_have_no_max_vio_are_refused(loads, targets, words):
    with pytest.raises(ValueError, match=words):
        metrics.max_vio(loads, targets)


def test_cv():
    np.testing.assert_allclose(metrics.load_cv(RUN), [np.sqrt(2), np.sqrt(2 / 3) / 2, np.sqrt(2 / 3) / 2, 0.0])


@pytest.mark.parametrize(("tolerance", "expected"), [(2.0, 1), (0.5, 2), (0.49, 4), (0.0, 4)])
def test_settling_time(tolerance, expected):
    assert metrics.settling_time(RUN, tolerance) == expected


def test_a_run_that_leaves_again_has_not_settled():
    assert metrics.settling_time(trajectory([[2, 2, 2], [6, 0, 0]]), 0.1) is None


@pytest.mark.parametrize("tolerance", [-0.1, np.nan])
def test_bad_tolerance(tolerance):
    with pytest.raises(ValueError, match="tolerance is"):
        metrics.settling_time(RUN, tolerance)


def test_first_step_beyond_the_run():
    with pytest.raises(ValueError, match="first_step is 5 but the run has 4 steps"):
        metrics.max_vio_global(RUN, first_step=5)


def test_cycle_of_length_two_after_a_transient():
    loads = [[6, 0, 0], [4, 1, 1], [1, 3, 2], [3, 1, 2], [1, 3, 2], [3, 1, 2]]
    biases = [[0, 0, 0], [-1, 1, 1], [-2, 1, 1], [-1, 0, 1], [-2, 1, 1], [-1, 0, 1], [-2, 1, 1]]
    assert find_cycle(trajectory(loads, biases)) == Cycle(start=3, period=2)


def test_cycle_is_seen_through_a_drift_of_the_gauge():
    loads = [[1, 3, 2], [3, 1, 2]] * 3
    biases = [[k + (k % 2), k, k] for k in range(7)]
    assert find_cycle(trajectory(loads, biases)) == Cycle(start=1, period=2)


def test_equal_biases_with_different_loads_are_no_cycle():
    loads = [[1, 3, 2], [3, 1, 2], [1, 3, 2], [2, 2, 2]]
    biases = [[0, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert find_cycle(trajectory(loads, biases)) is None


def test_a_return_seen_only_once_is_not_called_a_cycle():
    assert find_cycle(trajectory([[1, 3, 2], [3, 1, 2]], [[0, 0, 0], [1, 0, 0], [0, 0, 0]])) is None


def test_cycles_need_a_static_problem():
    run = simulate(make_stream("uniform", num_tokens=8, num_experts=2), make_rule("sign", 0.1), top_k=1, num_steps=3)
    with pytest.raises(ValueError, match="one static batch"):
        find_cycle(run)


@pytest.mark.parametrize("step_size", [2.0**-6, 1e-2])
@pytest.mark.parametrize("rule", ["sign", "recentred_sign"])
def test_the_cycle_found_predicts_the_future(rule, step_size):
    """What find_cycle promises: from `start` on, loads repeat forever. Checked on a run ten times as long."""
    scores = next(make_stream("logistic", num_tokens=48, num_experts=6).batches(1))

    def run(steps):
        return simulate(Static(scores), make_rule(rule, step_size), top_k=2, num_steps=steps)

    cycle = find_cycle(run(400))
    assert cycle is not None
    loads = run(4000).load_NE[cycle.start - 1 :]
    np.testing.assert_array_equal(loads[cycle.period :], loads[: -cycle.period])
