"""Functions of a trajectory: how balanced, how soon, how steady. None of them needs the scores."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb.problem import check_count
from alflb.simulation import Trajectory

FloatVector = NDArray[np.float64]


def max_vio(trajectory: Trajectory) -> FloatVector:
    """MaxVio_batch: max_k load_k / target_k - 1 at each step, shape (N,) (Wang et al., arXiv 2408.15664).

    Examples
    --------
    >>> from alflb import simulate, make_rule, Static
    >>> run = simulate(Static([[0.75, 0.25], [0.75, 0.5]]), make_rule("sign", 0.125), top_k=1, num_steps=3)
    >>> max_vio(run).tolist()
    [1.0, 1.0, 0.0]
    """
    return np.asarray(np.max(trajectory.load_NE / trajectory.target_E, axis=1) - 1.0)


def max_vio_global(trajectory: Trajectory, *, first_step: int = 1) -> float:
    """MaxVio_global: the same of the loads summed over steps first_step, first_step + 1, ..., N."""
    check_count(first_step, "first_step")
    if first_step > trajectory.num_steps:
        raise ValueError(f"first_step is {first_step} but the run has {trajectory.num_steps} steps")
    mean_load_E = trajectory.load_NE[first_step - 1 :].mean(axis=0)
    return float(np.max(mean_load_E / trajectory.target_E) - 1.0)


def violation_norms(trajectory: Trajectory) -> dict[str, FloatVector]:
    """l1, l2 and linf norms of load - target at each step, in tokens."""
    excess_NE = trajectory.load_NE - trajectory.target_E
    return {
        "l1": np.abs(excess_NE).sum(axis=1),
        "l2": np.sqrt((excess_NE**2).sum(axis=1)),
        "linf": np.abs(excess_NE).max(axis=1),
    }


def load_cv(trajectory: Trajectory) -> FloatVector:
    """Coefficient of variation of the loads over the experts (population sd / mean) at each step."""
    return np.asarray(trajectory.load_NE.std(axis=1) / trajectory.load_NE.mean(axis=1))


def bias_spread(trajectory: Trajectory) -> FloatVector:
    """max(p) - min(p) of every bias, shape (N + 1,), score units."""
    return np.asarray(np.ptp(trajectory.bias_NE, axis=1))


def settling_time(trajectory: Trajectory, tolerance: float) -> int | None:
    """First step t from which MaxVio_batch stays <= tolerance to the end of the run; None if it never does."""
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; pass a MaxVio >= 0")
    outside = np.flatnonzero(max_vio(trajectory) > tolerance)
    first = int(outside[-1]) + 2 if outside.size else 1
    return first if first <= trajectory.num_steps else None


class Cycle(NamedTuple):
    """From step `start` on, loads repeat every `period` steps (1: a fixed point)."""

    start: int
    period: int


def find_cycle(trajectory: Trajectory) -> Cycle | None:
    """The cycle a static problem ran into, or None if it had not closed one by the end of the run.

    A cycle is closed when the bias of the last step is one the run had before and the loads have repeated exactly for
    at least one whole period since. Biases are compared modulo a common shift, which top-K does not see, and
    modulo the rounding that the run can have gathered. `start` is the first step whose loads belong to the cycle.

    Raises
    ------
    ValueError
        If the scores changed during the run: then a repeated bias promises nothing.

    Notes
    -----
    The bias is the whole state only for a memoryless rule with a constant step size; for others a reported
    cycle describes the run, and says nothing about its future.

    Examples
    --------
    >>> from alflb import simulate, make_rule, Static
    >>> run = simulate(Static([[0.75, 0.25], [0.75, 0.5]]), make_rule("sign", 0.5), top_k=1, num_steps=9)
    >>> find_cycle(run)
    Cycle(start=1, period=2)
    """
    if not trajectory.meta.get("static", False):
        raise ValueError("cycles are defined for one static batch of scores; this run saw different batches")
    states = trajectory.bias_NE - trajectory.bias_NE[:, :1]
    rounding = 4.0 * trajectory.num_steps * np.finfo(np.float64).eps * np.abs(trajectory.bias_NE).max()
    same = np.abs(states[:-1] - states[-1]).max(axis=1) <= rounding
    for n in np.flatnonzero(same)[::-1].tolist():
        period = trajectory.num_steps - n
        repeats = np.all(trajectory.load_NE[period:] == trajectory.load_NE[:-period], axis=1)
        broken = np.flatnonzero(~repeats)
        start = int(broken[-1]) + 1 if broken.size else 0
        if start + 2 * period <= trajectory.num_steps:
            return Cycle(start + 1, period)
    return None


def summary(trajectory: Trajectory, *, tail: int) -> dict[str, float | int | None]:
    """The numbers one quotes for a run; `tail` is how many last steps count as its steady state.

    Examples
    --------
    >>> from alflb import simulate, make_rule, Static
    >>> run = simulate(Static([[0.75, 0.25], [0.75, 0.5]]), make_rule("sign", 0.125), top_k=1, num_steps=3)
    >>> summary(run, tail=1)["max_vio_final"]
    0.0
    """
    tail = min(check_count(tail, "tail"), trajectory.num_steps)
    per_batch = max_vio(trajectory)
    return {
        "num_steps": trajectory.num_steps,
        "max_vio_first": float(per_batch[0]),
        "max_vio_final": float(per_batch[-1]),
        "max_vio_tail": float(per_batch[-tail:].mean()),
        "max_vio_best": float(per_batch.min()),
        "max_vio_global_tail": max_vio_global(trajectory, first_step=trajectory.num_steps - tail + 1),
        "load_cv_tail": float(load_cv(trajectory)[-tail:].mean()),
        "bias_spread_final": float(bias_spread(trajectory)[-1]),
        "settling_time_10": settling_time(trajectory, 0.10),
    }
