"""Is the balancing of a run doing what it should? Checks on recorded counts and biases, for faults MaxVio can hide.

What is needed is what a training run can log each step: the counts its update was given, and its bias. Rows follow
`alflb.Trajectory`: ``counts_NE[n]`` moved ``bias_NE[n]`` to ``bias_NE[n + 1]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alflb.precision import PRECISIONS, round_to
from alflb.problem import check_count

FloatArray = NDArray[np.float64]

_EXACT_UP_TO = {"bf16": 2**8, "fp16": 2**11}
"""Every whole number up to here is representable, so smaller counts tell nothing."""
_FEWEST_COUNTS = 30
"""Half of the counts just above the limit are representable: 2^-30 of all runs would look rounded by chance."""
_FEWEST_BIASES = 4
_UNMOVED = 0.05
"""Share of biases that stay where they are although their counts are off, from which on it is reported."""
_CORRELATED = 0.2


@dataclass(frozen=True)
class Suspicion:
    """Something in a record that a healthy run does not show."""

    check: str
    """One of "totals", "rounded counts", "rounded bias", "unmoved bias", "delay" or "ranks"."""
    evidence: str
    """What was seen, with numbers."""
    likely_causes: str
    """Where to look first."""


def diagnose(
    counts: ArrayLike,
    bias: ArrayLike,
    *,
    num_picks: int,
    loads: ArrayLike | None = None,
    rank_bias: ArrayLike | None = None,
    max_delay: int = 64,
) -> list[Suspicion]:
    """Run every check on a record and say what looks wrong; an empty list means nothing does.

    Parameters
    ----------
    counts : array_like, shape (N, E)
        What the update was given at each step, in tokens (not normalised).
    bias : array_like, shape (N + 1, E)
        The bias in force at each step, and after the last one.
    num_picks : int
        K T: what the counts of one global batch must sum to (tokens of all ranks and micro-batches).
    loads : array_like, shape (N, E), optional
        Tokens per expert as routed, counted independently of the update (default: its counts). Only these can show
        a delay: late counts look fresh to the update that is given them.
    rank_bias : array_like, shape (R, E), optional
        The bias of every rank at one moment; they must be equal.
    max_delay : int
        Longest delay to look for, in steps.

    Returns
    -------
    list of Suspicion

    Notes
    -----
    Meant for rules that move every unbalanced expert at every step. Of a rule that rests on purpose (a
    schedule that ended, an update every M steps, the j largest only) "unmoved bias" is true and no fault. A dyadic step
    size such as 2^-10 keeps biases representable in bf16 until they exceed 256 steps: "rounded bias" is then no fault.
    What no record of counts and biases can show: counts of the wrong tokens in the right number.

    Examples
    --------
    >>> from alflb import make_rule, make_stream, simulate
    >>> run = simulate(make_stream("logistic", num_tokens=512, num_experts=8), make_rule("sign"), top_k=2, num_steps=50)
    >>> diagnose(run.load_NE, run.bias_NE, num_picks=1024)
    []
    >>> [found] = diagnose(2 * run.load_NE, run.bias_NE, num_picks=1024)
    >>> found.check, found.evidence
    ('totals', 'counts sum to 2 times K T in 50 of 50 batches')
    """
    counts_NE, bias_NE = _check_record(counts, bias)
    ratio_N = counts_NE.sum(axis=1) / check_count(num_picks, "num_picks")
    once_NE = counts_NE / ratio_N[0] if _is_multiple(ratio_N) else counts_NE  # doubled counts are even, not rounded
    found = [
        _totals(ratio_N),
        *(_rounded_counts(once_NE, precision) for precision in PRECISIONS),
        _rounded_bias(bias_NE[-1]),
        _unmoved(bias_NE, counts_NE),
        _delayed(bias_NE, counts_NE if loads is None else loads, max_delay),
    ]
    if rank_bias is not None:
        found.append(_ranks(rank_disagreement(rank_bias)))
    return [suspicion for suspicion in found if suspicion is not None]


def representable_share(values: ArrayLike, precision: str) -> float:
    """Which share of some numbers a low precision holds exactly; 1 means that they were probably rounded to it.

    Examples
    --------
    >>> representable_share([40_840, 40_960], "bf16")
    0.5
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("values are empty; pass at least one number")
    return float(np.mean(round_to(array, precision) == array))


def unmoved_share(bias: ArrayLike, counts: ArrayLike) -> float:
    """Share of (step, expert) pairs whose count was off the mean and whose bias did not move, in the last half.

    0 for a rule that moves every unbalanced expert. Biases of too low a precision swallow steps below half their
    spacing; a frozen bias swallows all.

    Examples
    --------
    >>> unmoved_share([[0.0, 0.0], [0.0, 0.1], [0.0, 0.2]], [[3, 1], [3, 1]])
    0.5
    """
    counts_NE, bias_NE = _check_record(counts, bias)
    half = len(counts_NE) // 2
    off_NE = counts_NE[half:] != counts_NE[half:].mean(axis=1, keepdims=True)
    still_NE = bias_NE[half + 1 :] == bias_NE[half:-1]
    return float((off_NE & still_NE).sum() / max(1, off_NE.sum()))


def update_delay(bias: ArrayLike, loads: ArrayLike, *, max_delay: int = 64) -> int | None:
    """By how many steps the bias lags the loads it follows: 0 for a healthy rule.

    The delay d at which the steps bias[n + 1] - bias[n] correlate best with -load[n - d], over the last half of the
    steps and all experts, each expert's mean over time taken off; None if no correlation reaches 0.2. Pass the loads as
    they were, counted independently: those handed to a stale update look fresh to it.

    Examples
    --------
    >>> from alflb import make_rule, make_stream, simulate
    >>> run = simulate(make_stream("logistic", num_tokens=512, num_experts=8), make_rule("sign"), top_k=2, num_steps=99)
    >>> update_delay(run.bias_NE, run.load_NE)
    0
    >>> update_delay(run.bias_NE[:-3], run.load_NE[3:])  # the bias of step n follows the load now in row n - 3
    3
    """
    load_NE, bias_NE = _check_record(loads, bias)
    step_NE, load_NE = (_around_mean(array[len(load_NE) // 2 :]) for array in (np.diff(bias_NE, axis=0), load_NE))
    longest = min(max_delay, len(load_NE) // 2)
    correlation = [-_correlation(step_NE[d:], load_NE[: len(load_NE) - d]) for d in range(longest + 1)]
    return int(np.argmax(correlation)) if max(correlation) >= _CORRELATED else None


def rank_disagreement(rank_bias: ArrayLike) -> float:
    """The largest difference between two ranks' biases of one expert; must be 0.

    Examples
    --------
    >>> rank_disagreement([[0.5, -0.5], [0.5, -0.25]])
    0.25
    """
    bias_RE = np.asarray(rank_bias, dtype=np.float64)
    if bias_RE.ndim != 2 or bias_RE.size == 0:
        raise ValueError(f"rank_bias has shape {bias_RE.shape}; pass (ranks, experts)")
    return float(np.ptp(bias_RE, axis=0).max())


def _is_multiple(ratio_N: FloatArray) -> bool:
    """Whether every batch was counted the same whole number of times."""
    return bool(ratio_N[0] >= 1 and np.all(ratio_N == np.rint(ratio_N[0])))


def _totals(ratio_N: FloatArray) -> Suspicion | None:
    wrong = ratio_N != 1.0
    if not wrong.any():
        return None
    low, high = ratio_N[wrong].min(), ratio_N[wrong].max()
    extent = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
    return Suspicion(
        "totals",
        f"counts sum to {extent} times K T in {wrong.sum()} of {len(wrong)} batches",
        "2: counted again when activations are recomputed; 1/R: not summed over R ranks; more, now and then: "
        "evaluation or padding counted; near 1: counts kept in low precision",
    )


def _rounded_counts(counts_NE: FloatArray, precision: str) -> Suspicion | None:
    large = counts_NE[counts_NE > _EXACT_UP_TO[precision]]
    if large.size < _FEWEST_COUNTS or representable_share(large, precision) < 1:
        return None
    return Suspicion(
        "rounded counts",
        f"all {large.size} counts above {_EXACT_UP_TO[precision]} are {precision} numbers",
        f"the counter is a {precision} buffer (cast with the model), or was reduced over ranks in {precision}",
    )


def _rounded_bias(bias_E: FloatArray) -> Suspicion | None:
    nonzero = bias_E[bias_E != 0]
    if nonzero.size < _FEWEST_BIASES or representable_share(nonzero, "bf16") < 1:
        return None
    return Suspicion(
        "rounded bias",
        f"all {nonzero.size} biases are bf16 numbers, {len(np.unique(bias_E))} of them distinct",
        "the bias is a bf16 buffer (cast with the model): steps below half its spacing are lost; keep it in float32",
    )


def _unmoved(bias_NE: FloatArray, counts_NE: FloatArray) -> Suspicion | None:
    share = unmoved_share(bias_NE, counts_NE)
    if share < _UNMOVED:
        return None
    return Suspicion(
        "unmoved bias",
        f"{share:.0%} of the biases of unbalanced experts did not move in the last half of the record",
        "step size 0, update not called, or steps lost to rounding",
    )


def _delayed(bias_NE: FloatArray, loads: ArrayLike, max_delay: int) -> Suspicion | None:
    delay = update_delay(bias_NE, loads, max_delay=max_delay)
    if not delay:
        return None
    return Suspicion(
        "delay",
        f"the bias follows the loads of {delay} steps before",
        "counts reduced asynchronously and read late, or counter cleared at the wrong place",
    )


def _ranks(disagreement: float) -> Suspicion | None:
    if disagreement == 0:
        return None
    return Suspicion(
        "ranks",
        f"biases differ between ranks by up to {disagreement:.4g}",
        "counts not reduced over all ranks before the update, or a reduction that is not the same on all of them",
    )


def _check_record(counts: ArrayLike, bias: ArrayLike) -> tuple[FloatArray, FloatArray]:
    counts_NE, bias_NE = np.asarray(counts, dtype=np.float64), np.asarray(bias, dtype=np.float64)
    if counts_NE.ndim != 2 or counts_NE.size == 0:
        raise ValueError(f"counts have shape {counts_NE.shape}; pass (steps, experts)")
    if bias_NE.shape != (len(counts_NE) + 1, counts_NE.shape[1]):
        raise ValueError(
            f"bias has shape {bias_NE.shape} and counts {counts_NE.shape}; pass one bias more than counts: "
            "the bias of every step, and the one after the last"
        )
    for name, array in (("counts", counts_NE), ("bias", bias_NE)):
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or inf; pass finite numbers")
    return counts_NE, bias_NE


def _around_mean(values_NE: FloatArray) -> FloatArray:
    """Each expert's deviations from its mean over the steps."""
    return np.asarray(values_NE - values_NE.mean(axis=0))


def _correlation(left: FloatArray, right: FloatArray) -> float:
    size = np.sqrt((left**2).sum() * (right**2).sum())
    return float((left * right).sum() / size) if size > 0 else 0.0
