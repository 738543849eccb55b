"""Functions of loads and biases: how balanced, how soon, how steady. None of them needs the scores.

Loads are arrays of shape (..., E), or a `Trajectory`, which brings its own targets.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alflb import duality
from alflb.problem import check_count, check_number
from alflb.trajectory import Trajectory

FloatVector = NDArray[np.float64]


def max_vio(loads: ArrayLike | Trajectory, targets: ArrayLike | None = None) -> FloatVector:
    """MaxVio: max_k load_k / target_k - 1 of every load vector; 0 at exact balance.

    Of the loads of one batch it is MaxVio_batch, of loads summed over many MaxVio_global.

    Parameters
    ----------
    loads : array_like, shape (..., E), or Trajectory
        Tokens per expert.
    targets : array_like, shape (E,) or like `loads`, optional
        Target loads in the same unit; by default the mean load, and those of the trajectory.

    Returns
    -------
    array, shape (...)
        A scalar for one load vector.

    Raises
    ------
    ValueError
        For loads that are negative or not finite, targets that are not positive, or a load vector without tokens.

    References
    ----------
    Wang et al., arXiv 2408.15664, section 4.1.

    Examples
    --------
    >>> float(max_vio([3, 1, 2]))
    0.5
    >>> max_vio([[3, 1], [2, 2]], targets=[2.0, 2.0]).tolist()
    [0.5, 0.0]
    """
    load_NE, target_NE = _loads_and_targets(loads, targets)
    return np.asarray(np.max(load_NE / target_NE, axis=-1) - 1.0)


def min_vio(loads: ArrayLike | Trajectory, targets: ArrayLike | None = None) -> FloatVector:
    """MinVio: min_k load_k / target_k - 1 of every load vector; 0 at exact balance, -1 if an expert gets no token.

    Parameters and errors are those of `max_vio`.

    Examples
    --------
    >>> float(min_vio([3, 1, 2]))
    -0.5
    """
    load_NE, target_NE = _loads_and_targets(loads, targets)
    return np.asarray(np.min(load_NE / target_NE, axis=-1) - 1.0)


def avg_vio(loads: ArrayLike | Trajectory, targets: ArrayLike | None = None) -> FloatVector:
    """AvgVio: the mean over k of abs(load_k / target_k - 1), for every load vector; 0 at exact balance.

    Parameters and errors are those of `max_vio`.

    Examples
    --------
    >>> float(avg_vio([4, 1, 1]))
    0.6666666666666666
    """
    load_NE, target_NE = _loads_and_targets(loads, targets)
    return np.asarray(np.mean(np.abs(load_NE / target_NE - 1.0), axis=-1))


def rank_loads(loads: ArrayLike | Trajectory, num_ranks: int) -> NDArray[Any]:
    """Loads of the ranks of expert parallelism, shape (..., R): each of R ranks holds E / R consecutive experts.

    Raises
    ------
    ValueError
        If R does not divide E.

    Examples
    --------
    >>> rank_loads([4, 2, 1, 1], num_ranks=2).tolist()
    [6, 2]
    """
    load_NE, _ = _loads_and_targets(loads, None)
    num_experts = load_NE.shape[-1]
    if num_experts % check_count(num_ranks, "num_ranks"):
        raise ValueError(f"num_ranks is {num_ranks}, which does not divide {num_experts} experts")
    return np.asarray(load_NE.reshape(*load_NE.shape[:-1], num_ranks, -1).sum(axis=-1))


def max_vio_global(loads: ArrayLike | Trajectory, targets: ArrayLike | None = None, *, first_step: int = 1) -> float:
    """MaxVio of the loads summed over steps first_step, first_step + 1, ..., N.

    Examples
    --------
    >>> max_vio_global([[3, 1], [1, 3]])
    0.0
    """
    check_count(first_step, "first_step")
    load_NE, target_NE = _loads_and_targets(loads, targets)
    num_steps = len(load_NE)
    if first_step > num_steps:
        raise ValueError(f"first_step is {first_step} but the run has {num_steps} steps")
    mean_target_E = np.broadcast_to(target_NE, load_NE.shape)[first_step - 1 :].mean(axis=0)
    return float(max_vio(load_NE[first_step - 1 :].mean(axis=0), mean_target_E))


def load_cv(loads: ArrayLike | Trajectory) -> FloatVector:
    """Coefficient of variation of the loads over the experts (population sd / mean), shape (...).

    Examples
    --------
    >>> float(load_cv([3, 1]))
    0.5
    """
    load_NE, _ = _loads_and_targets(loads, None)
    return np.asarray(load_NE.std(axis=-1) / load_NE.mean(axis=-1))


def settled_from(values: ArrayLike, level: float) -> int | None:
    """First step t = 1, 2, ... from which the values stay at or below the level to the end; None if they do not.

    Examples
    --------
    >>> settled_from([2.0, 0.1, 0.5, 0.2], 0.3)
    4
    """
    value_N = np.asarray(values, dtype=np.float64)
    outside = np.flatnonzero(~(value_N <= level))
    first = int(outside[-1]) + 2 if outside.size else 1
    return first if first <= len(value_N) else None


def settling_time(loads: ArrayLike | Trajectory, tolerance: float, targets: ArrayLike | None = None) -> int | None:
    """First step t from which MaxVio stays <= tolerance to the end of the run; None if it never does.

    Examples
    --------
    >>> settling_time([[4, 0], [3, 1], [2, 2]], tolerance=0.5)
    2
    """
    return settled_from(max_vio(loads, targets), check_number(tolerance, "tolerance"))


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
        "bias_spread_final": duality.spread(trajectory.bias_NE[-1]),
        "settling_time_10": settling_time(trajectory, 0.10),
    }


def _loads_and_targets(
    loads: ArrayLike | Trajectory, targets: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both as checked arrays that divide by broadcasting."""
    if isinstance(loads, Trajectory):
        targets = loads.target_E if targets is None else targets
        loads = loads.load_NE
    load_NE = np.asarray(loads)
    if load_NE.ndim == 0 or load_NE.dtype.kind not in "iuf":
        raise ValueError(f"loads has shape {load_NE.shape} and dtype {load_NE.dtype}; pass tokens per expert, (..., E)")
    if not (np.isfinite(load_NE).all() and (load_NE >= 0).all()):
        raise ValueError("loads holds values that are negative or not finite; pass tokens per expert")
    if not load_NE.any(axis=-1).all():
        raise ValueError("loads holds a batch without tokens; leave it out")
    if targets is None:
        return load_NE, load_NE.mean(axis=-1, keepdims=True)
    target_NE = np.asarray(targets, dtype=np.float64)
    if not (target_NE > 0).all():
        raise ValueError("targets holds values that are not positive; MaxVio is relative to the target")
    return load_NE, target_NE
