"""Is the balancing of a run doing what it should? Checks on recorded counts and biases, for faults MaxVio can hide.

What is needed is what a training run can log each step: the counts its update was given, and its bias. Rows follow
`alflb.Trajectory`: ``counts_NE[n]`` moved ``bias_NE[n]`` to ``bias_NE[n + 1]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alflb.precision import PRECISIONS, round_to
from alflb.problem import check_count

FloatArray = NDArray[np.float64]

_EXACT_UP_TO = {"bf16": 2**8, "fp16": 2**11}
"""Every whole number up to here is representable, so smaller counts tell nothing."""
_FEWEST_COUNTS = 30
"""Half of the counts just above the limit are representable: 2^-30 of all runs would look rounded by chance."""
_FEWEST_VALUES = 6
"""Counts that are all alike, as at exact balance, are one number and not evidence."""
_FEWEST_BIASES = 4
_UNMOVED = 0.05
"""Share of biases that stay where they are although their counts are off, from which on it is reported."""
_FEWEST_CHANCES = 8
"""An expert that stayed put so often, off the mean every time, is frozen."""
_CORRELATED = 0.2
_ONE_WAY = 0.9
"""Net movement over total movement of a bias that never turns back."""
_WORSE = 1.35
"""Counts that are so many times as far off the mean as at first have got worse."""
_JUMP = 5.0
"""A step so many times the median one is a jump."""


@dataclass(frozen=True)
class Suspicion:
    """Something in a record that a healthy run does not show."""

    check: str
    """One of "totals", "rounded counts", "rounded bias", "resolution", "unmoved bias", "frozen experts", "sign",
    "unrelated", "permuted", "runaway", "delay", "jump" or "ranks"."""
    evidence: str
    """What was seen, with numbers."""
    likely_causes: str
    """Where to look first."""


def diagnose(
    counts: ArrayLike,
    bias: ArrayLike | None,
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
        What the update was given at each step, in tokens (not normalized). Arrays, lists or tensors of any dtype.
    bias : array_like, shape (N + 1, E), or None
        The bias in force at each step, and after the last one. Without it only the counts are checked.
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

    Raises
    ------
    ValueError
        For arrays that are not finite or whose shapes do not fit together, and for counts that are out of range.

    Notes
    -----
    Meant for rules that move every unbalanced expert at every step. Of a rule that rests on purpose (a schedule that
    ended, an update every M steps, the j largest only) "unmoved bias" and "frozen experts" are true and no fault; of
    one with a long memory, or one that sees scores, "unrelated" may be. A dyadic step size such as 2^-10 keeps biases
    representable in bf16 until they exceed 256 steps: "rounded bias" is then no fault. What no record of counts and
    biases can show: counts of the wrong tokens in the right number.

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
    counts_NE = _check_counts(counts)
    ratio_N = counts_NE.sum(axis=1) / check_count(num_picks, "num_picks")
    once_NE = counts_NE / ratio_N[0] if _is_multiple(ratio_N) else counts_NE  # doubled counts are even, not rounded
    found = [_totals(ratio_N), *(_rounded_counts(once_NE, precision) for precision in PRECISIONS)]
    if bias is not None:
        bias_NE = _check_record(counts, bias)[1]
        load_NE = counts_NE if loads is None else _check_record(loads, bias, "loads")[0]
        found += [
            _rounded_bias(bias_NE[-1]),
            _too_coarse(bias_NE),
            _jumped(bias_NE),
            _running_away(bias_NE, counts_NE),
            *_not_moving(bias_NE, counts_NE),
            _not_following(bias_NE, counts_NE, load_NE, check_count(max_delay, "max_delay", minimum=0)),
        ]
    elif loads is not None:
        raise ValueError("loads are compared with the bias; pass bias too, or leave loads out")
    if rank_bias is not None:
        found.append(_ranks(rank_disagreement(_check_ranks(rank_bias, counts_NE.shape[1]))))
    return [suspicion for suspicion in found if suspicion is not None]


def representable_share(values: ArrayLike, precision: str) -> float:
    """Which share of some numbers a low precision holds exactly; 1 means that they were probably rounded to it.

    Examples
    --------
    >>> representable_share([40_840, 40_960], "bf16")
    0.5
    """
    array = _as_floats(values, "values")
    if array.size == 0:
        raise ValueError("values are empty; pass at least one number")
    return float(np.mean(round_to(array, precision) == array))


def unmoved_share(bias: ArrayLike, counts: ArrayLike) -> float:
    """Share of (step, expert) pairs whose count was off the mean and whose bias did not move, in the last half.

    It is 0 for a rule that moves every unbalanced expert. Biases of too low a precision swallow steps below half their
    spacing; a frozen bias swallows all.

    Examples
    --------
    >>> unmoved_share([[0.0, 0.0], [0.0, 0.1], [0.0, 0.2]], [[3, 1], [3, 1]])
    0.5
    """
    off_NE, unmoved_NE = _unmoved(*_check_record(counts, bias))
    return float(unmoved_NE.sum() / max(1, off_NE.sum()))


def update_delay(bias: ArrayLike, loads: ArrayLike, *, max_delay: int = 64) -> int | None:
    """How many steps the bias lags behind the loads it follows: 0 for a healthy rule.

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
    load_NE, bias_NE = _check_record(loads, bias, "loads")
    correlation_D = _lagged_correlations(bias_NE, load_NE, check_count(max_delay, "max_delay", minimum=0))
    return int(np.argmax(correlation_D)) if correlation_D.max() >= _CORRELATED else None


def rank_disagreement(rank_bias: ArrayLike) -> float:
    """The largest difference between two ranks' biases of one expert; must be 0.

    Examples
    --------
    >>> rank_disagreement([[0.5, -0.5], [0.5, -0.25]])
    0.25
    """
    bias_RE = _check_ranks(rank_bias, None)
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
    if large.size < _FEWEST_COUNTS or len(np.unique(large)) < _FEWEST_VALUES:
        return None
    if representable_share(large, precision) < 1:
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


def _too_coarse(bias_NE: FloatArray) -> Suspicion | None:
    """Steps, or what differs between experts, below the spacing of float32 at the size of the biases."""
    largest = float(np.abs(bias_NE[-1]).max())
    spacing = float(np.spacing(np.float32(largest)))
    sizes = np.abs(np.diff(bias_NE, axis=0))
    steps = sizes[sizes > 0]
    if steps.size == 0 or float(np.median(steps)) >= 2 * spacing:
        return None
    return Suspicion(
        "resolution",
        f"biases are as large as {largest:.4g}, where float32 numbers are {spacing:.2g} apart, and the median step is "
        f"{float(np.median(steps)):.2g}",
        "steps are lost and scores tie once the bias is added in float32: take the mean off the bias (top-K does not "
        "see it), or use scores of a larger scale",
    )


def _jumped(bias_NE: FloatArray) -> Suspicion | None:
    """A step far larger than the others that leads back to the start of the record, to an earlier bias, or to zero."""
    size_N = np.linalg.norm(np.diff(bias_NE, axis=0), axis=1)
    usual = float(np.median(size_N))
    for n in np.flatnonzero(size_N > _JUMP * usual):
        if n > 0 and usual > 0 and _returns(bias_NE, int(n), 2 * usual):
            return Suspicion(
                "jump",
                f"at step {n + 1} the bias moved {size_N[n] / usual:.3g} times as far as usual, to where it had been",
                "the bias was reset, or an older checkpoint loaded, in the middle of the run",
            )
    return None


def _running_away(bias_NE: FloatArray, counts_NE: FloatArray) -> Suspicion | None:
    """Biases that keep going one way while the counts they are to move get worse."""
    quarter = len(counts_NE) // 4
    if quarter < 8:
        return None
    step_NE = np.diff(bias_NE, axis=0)[-2 * quarter :]
    total_E = np.abs(step_NE).sum(axis=0)
    one_way_E = (total_E > 0) & (np.abs(step_NE.sum(axis=0)) >= _ONE_WAY * total_E)
    off_NE = np.abs(counts_NE / counts_NE.mean(axis=1, keepdims=True) - 1)
    early, late = off_NE[:quarter].mean(), off_NE[-quarter:].mean()
    if one_way_E.mean() < 0.5 or late < _WORSE * early or late < _CORRELATED:
        return None
    return Suspicion(
        "runaway",
        f"the biases of {one_way_E.sum()} of {len(one_way_E)} experts kept going one way in the last half, and counts "
        f"are {late:.0%} off the mean, after {early:.0%} at first",
        "the biases move other experts than those that are counted (another order or layer), the update has the wrong "
        "sign, or the router does not use the bias",
    )


def _returns(bias_NE: FloatArray, n: int, tolerance: float) -> bool:
    """Whether the bias after step n + 1 is, up to about a step, one of those before or the same for all experts."""
    known_NE = np.vstack([bias_NE[: n - 1], np.full_like(bias_NE[:1], bias_NE[n + 1].mean())])
    return bool((np.linalg.norm(known_NE - bias_NE[n + 1], axis=1) <= tolerance).any())


def _unmoved(counts_NE: FloatArray, bias_NE: FloatArray) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """In the last half: which counts were off the mean, and which of these left their bias where it was."""
    half = len(counts_NE) // 2
    off_NE = counts_NE[half:] != counts_NE[half:].mean(axis=1, keepdims=True)
    return off_NE, off_NE & (bias_NE[half + 1 :] == bias_NE[half:-1])


def _not_moving(bias_NE: FloatArray, counts_NE: FloatArray) -> list[Suspicion]:
    """Biases that stay: of all experts now and then, or of some experts always."""
    off_NE, unmoved_NE = _unmoved(counts_NE, bias_NE)
    chances_E, still_E = off_NE.sum(axis=0), unmoved_NE.sum(axis=0)
    frozen_E = (chances_E >= _FEWEST_CHANCES) & (still_E == chances_E)
    share = float(unmoved_NE.sum() / max(1, off_NE.sum()))
    found = []
    if frozen_E.any() and not frozen_E.all():
        names = ", ".join(map(str, np.flatnonzero(frozen_E)[:8]))
        found.append(
            Suspicion(
                "frozen experts",
                f"the biases of {frozen_E.sum()} of {len(frozen_E)} experts never moved in the last half ({names})",
                "a part of the bias is not updated: a slice, an expert-parallel shard, or a clipped bias",
            )
        )
    if share >= _UNMOVED:
        found.append(
            Suspicion(
                "unmoved bias",
                f"{share:.0%} of the biases of unbalanced experts did not move in the last half of the record",
                "step size 0, update not called, or steps lost to rounding",
            )
        )
    return found


def _not_following(bias_NE: FloatArray, counts_NE: FloatArray, load_NE: FloatArray, max_delay: int) -> Suspicion | None:
    """A bias that follows the loads the wrong way, late, in another order, or not at all."""
    same_counts = np.array_equal(np.sort(counts_NE, axis=1), np.sort(load_NE, axis=1))
    if same_counts and not np.array_equal(counts_NE, load_NE):
        return _permuted("the counts are the loads in another order of the experts")
    if not _enough_movement(bias_NE, load_NE):
        return None
    order = _other_order(bias_NE, load_NE)
    if order is not None:
        return _permuted(order)
    correlation_D = _lagged_correlations(bias_NE, load_NE, max_delay)
    delay, best = int(np.argmax(correlation_D)), float(correlation_D.max())
    shortfall_NE = load_NE.mean(axis=1, keepdims=True) - load_NE
    direct = _correlation(np.diff(bias_NE, axis=0), shortfall_NE)
    if best >= max(_CORRELATED, -direct):
        return _delayed(delay)
    if direct <= -_CORRELATED:
        return Suspicion(
            "sign",
            f"biases rise with their loads (correlation {-direct:.2f})",
            "the update has the wrong sign (the bias of an overloaded expert must fall), or experts in another order",
        )
    if direct >= _CORRELATED:
        return None
    return Suspicion(
        "unrelated",
        f"steps of the bias hardly correlate with the loads at any delay (at most {max(best, direct):.2f})",
        "counts of another layer or rank, another order of the experts, or a rule with a long memory",
    )


def _delayed(delay: int) -> Suspicion | None:
    if not delay:
        return None
    return Suspicion(
        "delay",
        f"the bias follows the loads of {delay} steps before",
        "counts reduced asynchronously and read late, or counter cleared at the wrong place",
    )


def _permuted(evidence: str) -> Suspicion:
    return Suspicion(
        "permuted",
        evidence,
        "experts are numbered differently in the counter and in the bias, as after expert-parallel dispatch",
    )


def _enough_movement(bias_NE: FloatArray, load_NE: FloatArray) -> bool:
    """Whether both the bias and the loads vary over the last half of at least 16 steps."""
    half = len(load_NE) // 2
    return half >= 8 and bool(np.diff(bias_NE[half:], axis=0).any() and np.ptp(load_NE[half:], axis=0).any())


def _other_order(bias_NE: FloatArray, load_NE: FloatArray) -> str | None:
    """How many experts' biases follow one other expert's load, if most of them do."""
    step_NE, load_NE = _last_half(bias_NE, load_NE)
    size_EE = np.linalg.norm(step_NE, axis=0)[:, None] * np.linalg.norm(load_NE, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation_EE = np.nan_to_num(-(step_NE.T @ load_NE) / size_EE)
    experts = np.arange(len(correlation_EE))
    follows_E = correlation_EE.argmax(axis=1)
    clearly_E = correlation_EE.max(axis=1) > correlation_EE[experts, experts] + 2 * _CORRELATED
    moved = int(clearly_E.sum())
    if moved < len(experts) / 2 or len(set(follows_E.tolist())) < 0.9 * len(experts):
        return None
    return f"the biases of {moved} of {len(experts)} experts follow the load of one other expert each"


def _ranks(disagreement: float) -> Suspicion | None:
    if disagreement == 0:
        return None
    return Suspicion(
        "ranks",
        f"biases differ between ranks by up to {disagreement:.4g}",
        "counts not reduced over all ranks before the update, or a reduction that is not the same on all of them",
    )


def _check_record(counts: ArrayLike, bias: ArrayLike, name: str = "counts") -> tuple[FloatArray, FloatArray]:
    """Counts or loads, called `name` in messages, and bias, as float64."""
    counts_NE, bias_NE = _check_counts(counts, name), _as_floats(bias, "bias")
    if bias_NE.shape != (len(counts_NE) + 1, counts_NE.shape[1]):
        raise ValueError(
            f"bias has shape {bias_NE.shape} and {name} {counts_NE.shape}; pass one bias more than {name}: "
            "the bias of every step, and the one after the last"
        )
    return counts_NE, bias_NE


def _check_counts(counts: ArrayLike, name: str = "counts") -> FloatArray:
    """Counts or loads, called `name` in messages, as float64."""
    counts_NE = _as_floats(counts, name)
    if counts_NE.ndim != 2 or counts_NE.size == 0:
        raise ValueError(f"{name} have shape {counts_NE.shape}; pass (steps, experts)")
    if counts_NE.min() < 0:
        raise ValueError(f"{name} hold {counts_NE.min():g}; pass tokens per expert, 0 or more")
    return counts_NE


def _check_ranks(rank_bias: ArrayLike, num_experts: int | None) -> FloatArray:
    bias_RE = _as_floats(rank_bias, "rank_bias")
    if bias_RE.ndim != 2 or bias_RE.size == 0:
        raise ValueError(f"rank_bias has shape {bias_RE.shape}; pass (ranks, experts)")
    if num_experts is not None and bias_RE.shape[1] != num_experts:
        raise ValueError(f"rank_bias has {bias_RE.shape[1]} experts and bias {num_experts}; pass those of one layer")
    return bias_RE


def _as_floats(values: Any, name: str) -> FloatArray:
    """Numbers as float64: arrays, tensors (of bf16 too, which numpy lacks), and lists of either."""
    if isinstance(values, (list, tuple)) and any(hasattr(value, "detach") for value in values):
        values = [_as_floats(value, name) for value in values]
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ValueError(f"{name} has masked entries; pass a record without gaps")
    if hasattr(values, "detach"):
        values = values.detach().double().cpu().numpy()
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be read as numbers ({error}); pass an array or a tensor") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or inf; pass finite numbers")
    return array


def _last_half(bias_NE: FloatArray, load_NE: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Steps of the bias and loads in the last half, each expert's mean over time taken off."""
    half = len(load_NE) // 2
    return _around_mean(np.diff(bias_NE, axis=0)[half:]), _around_mean(load_NE[half:])


def _lagged_correlations(bias_NE: FloatArray, load_NE: FloatArray, max_delay: int) -> FloatArray:
    """Correlation of the bias's steps with the negative loads of d steps before, for d = 0, 1, ..., max_delay."""
    step_NE, load_NE = _last_half(bias_NE, load_NE)
    longest = min(max_delay, len(load_NE) // 2)
    return np.array([-_correlation(step_NE[d:], load_NE[: len(load_NE) - d]) for d in range(longest + 1)])


def _around_mean(values_NE: FloatArray) -> FloatArray:
    """Each expert's deviations from its mean over the steps."""
    return np.asarray(values_NE - values_NE.mean(axis=0))


def _correlation(left: FloatArray, right: FloatArray) -> float:
    size = np.sqrt((left**2).sum() * (right**2).sum())
    return float((left * right).sum() / size) if size > 0 else 0.0
