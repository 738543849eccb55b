"""The assignment problem, and the door through which every score array, bias and top-k enters.

Shape suffixes used in the whole package: T tokens, E experts, K picks per token, N steps.
``scores_TE`` is a (T, E) array, ``bias_E`` a vector over experts, ``experts_TK`` expert indices.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import operator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]

_MAX_PICKS = np.iinfo(np.int64).max
"""Loads are counted in int64; T K beyond it would wrap around."""

_FLOAT32_ROUNDING = 1e-6
"""Largest relative error of a sum of targets that were rounded to float32."""


def check_scores(scores: ArrayLike, *, top_k: int = 1, name: str = "scores") -> FloatArray:
    """Return `scores` as a C-contiguous float32 or float64 (T, E) array, or say what is wrong.

    -inf marks an expert a token may not use and is accepted where `top_k` experts remain; NaN and +inf are not. Padding
    is refused, as a row that is all -inf or as a masked array: drop such tokens first. A torch tensor is taken as the
    array it holds, bfloat16 as float32.

    Raises
    ------
    ValueError
        If the array is masked, ragged, not 2-D, empty, not float32/float64, holds NaN or +inf, or leaves a token fewer
        than `top_k` experts.
    """
    array = _as_array(scores, name)
    if array.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"{name} has dtype {array.dtype}; pass float32 or float64, "
            f"for example np.asarray({name}).astype(np.float32)"
        )
    if array.ndim != 2:
        raise ValueError(f"{name} has shape {array.shape}; pass a 2-D array (tokens, experts)")
    if array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; it needs at least one token and one expert")
    _refuse_nan_and_inf(array, name)
    check_enough_experts(array, top_k, name)
    return np.ascontiguousarray(array)


def check_top_k(top_k: object, num_experts: int) -> int:
    """Return `top_k` as an int with 1 <= top_k <= num_experts, or raise ValueError."""
    value = check_count(top_k, "top_k")
    if value > num_experts:
        raise ValueError(f"top_k is {value} but there are {num_experts} experts; choose 1 <= top_k <= {num_experts}")
    return value


def check_enough_experts(array: FloatArray, top_k: int, name: str) -> None:
    """Raise ValueError unless each row of scores has `top_k` experts above -inf."""
    if array.min() > -np.inf:  # one pass clears the common case
        return
    allowed_T = np.count_nonzero(array > -np.inf, axis=1)
    token = int(np.argmin(allowed_T))
    if allowed_T[token] == 0:
        raise ValueError(
            f"{name}: token {token} has no expert with a score above -inf ({np.count_nonzero(allowed_T == 0)} such "
            f"tokens); if they are padding, mark them in the trace or drop them: {name}[({name} > -np.inf).any(axis=1)]"
        )
    if allowed_T[token] < top_k:
        raise ValueError(
            f"{name}: token {token} has {allowed_T[token]} experts with a score above -inf but top_k is {top_k}; "
            "give it more finite scores or lower top_k"
        )


def check_count(value: object, name: str, *, minimum: int = 1) -> int:
    """Return `value` as an int >= minimum; floats, booleans and text are refused by name."""
    if isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} is {value!r}; pass an integer >= {minimum}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name} is {value!r}; pass an integer >= {minimum}") from None
    if number < minimum:
        raise ValueError(f"{name} is {number}; pass an integer >= {minimum}")
    return number


def check_number(value: Any, name: str, *, positive: bool = False) -> float:
    """Return `value` as a finite float >= 0 (> 0 if `positive`), or raise ValueError naming the argument."""
    is_number, number = isinstance(value, numbers.Real) and not isinstance(value, bool), math.nan
    if is_number:
        with contextlib.suppress(OverflowError):  # an integer beyond the floats
            number = float(value)
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        raise ValueError(f"{name} is {value!r:.40}; pass a finite number {'> 0' if positive else '>= 0'}")
    return number


def check_bias(bias: ArrayLike, num_experts: int, *, name: str = "bias") -> NDArray[np.float64]:
    """Return `bias` as a finite float64 vector over the experts, or raise ValueError."""
    array = _as_array(bias, name)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name} has dtype {array.dtype}; pass real numbers, one per expert")
    if array.shape != (num_experts,):
        raise ValueError(f"{name} has shape {array.shape}; pass one number per expert, shape ({num_experts},)")
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} holds NaN or inf at expert {_first(~np.isfinite(array))[0]}; every bias must be finite"
        )
    return array.astype(np.float64)


def check_target(target: ArrayLike | None, num_tokens: int, num_experts: int, top_k: int) -> NDArray[np.float64]:
    """Return target loads in tokens, exact balance for None; ValueError unless within [0, T] with sum K T.

    Targets that were computed in float32 miss the sum by its rounding; they are moved by as much.
    """
    if target is None:
        return target_load_E(num_tokens, num_experts, top_k)
    target_E = check_bias(target, num_experts, name="target_E")
    picks = top_k * num_tokens
    total = float(target_E.sum())
    if abs(total - picks) > _FLOAT32_ROUNDING * picks:
        raise ValueError(f"target_E sums to {total:.10g}; it must sum to top_k * num_tokens = {picks}")
    if target_E.min() < 0 or target_E.max() > num_tokens * (1 + _FLOAT32_ROUNDING):
        raise ValueError(f"target_E holds values outside [0, {num_tokens}]; an expert takes a token at most once")
    return _with_sum(np.minimum(target_E, num_tokens), picks, num_tokens)


@dataclass(frozen=True, eq=False)
class AssignmentProblem:
    r"""Balanced top-K assignment of tokens to experts (problem P of the theory page).

    .. math:: \max_x \sum_{ik} \gamma_{ik} x_{ik} \quad\text{s.t.}\quad
              \sum_k x_{ik} = K,\; \sum_i x_{ik} = L_k,\; 0 \le x_{ik} \le 1.

    Parameters
    ----------
    scores_TE : array_like of float32 or float64, shape (T, E)
        Token-expert affinities gamma. -inf forbids a pair; each token needs K experts that are not forbidden.
    top_k : int
        Picks per token, 1 <= K <= E.
    target_E : array_like, shape (E,), optional
        Target load of each expert in tokens, between 0 and T, summing to K T.
        Default: exact balance, L = K T / E for each expert (which may be fractional).

    Raises
    ------
    ValueError
        On any input outside these bounds; the message names the argument and says how to fix it.

    References
    ----------
    Han & Zhong, arXiv 2512.03915, the primal problem.

    Examples
    --------
    >>> problem = AssignmentProblem([[0.9, 0.1], [0.8, 0.3]], top_k=1)
    >>> problem.target_load
    1.0
    """

    scores_TE: FloatArray
    top_k: int
    target_E: NDArray[np.float64] = None  # type: ignore[assignment]  # filled in below

    def __post_init__(self) -> None:
        scores_TE = check_scores(self.scores_TE).view()
        scores_TE.flags.writeable = False
        object.__setattr__(self, "scores_TE", scores_TE)
        object.__setattr__(self, "top_k", check_top_k(self.top_k, self.num_experts))
        check_enough_experts(scores_TE, self.top_k, "scores")
        target_E = check_target(self.target_E, self.num_tokens, self.num_experts, self.top_k)
        object.__setattr__(self, "target_E", target_E)

    @property
    def num_tokens(self) -> int:
        """T, the number of tokens."""
        return int(self.scores_TE.shape[0])

    @property
    def num_experts(self) -> int:
        """E, the number of experts."""
        return int(self.scores_TE.shape[1])

    @property
    def target_load(self) -> float:
        """L = K T / E, the mean load in tokens."""
        return self.top_k * self.num_tokens / self.num_experts

    @property
    def is_integral(self) -> bool:
        """Whether every target load is a whole number of tokens (then an optimal 0/1 assignment exists)."""
        return bool(np.all(self.target_E == np.rint(self.target_E)))

    @cached_property
    def score_range(self) -> float:
        """rho, the largest over tokens of (highest - lowest score); inf when a pair is forbidden."""
        return float(np.max(np.max(self.scores_TE, axis=1) - np.min(self.scores_TE, axis=1).astype(np.float64)))


def check_problem(problem: object) -> None:
    """Raise ValueError, saying what to pass, if `problem` is not an `AssignmentProblem`.

    Examples
    --------
    >>> check_problem(np.zeros((4, 2)))
    Traceback (most recent call last):
    ...
    ValueError: problem is of type ndarray, of shape (4, 2); pass AssignmentProblem(scores, top_k)
    """
    if not isinstance(problem, AssignmentProblem):
        shape = getattr(problem, "shape", None)
        what = f"{problem!r:.60}" if shape is None else f"of shape {tuple(shape)}"
        kind = type(problem).__name__
        raise ValueError(f"problem is of type {kind}, {what}; pass AssignmentProblem(scores, top_k)")


def target_load_E(num_tokens: int, num_experts: int, top_k: int) -> NDArray[np.float64]:
    """Exact balance, L = K T / E for every expert, in tokens; refuses counts that int64 cannot hold."""
    if num_tokens * top_k > _MAX_PICKS:
        raise ValueError(f"num_tokens * top_k is {num_tokens * top_k}; loads are counted in int64, so split the batch")
    return np.full(num_experts, top_k * num_tokens / num_experts)


def _as_array(values: ArrayLike, name: str) -> NDArray[Any]:
    if np.ma.isMaskedArray(values):
        raise ValueError(
            f"{name} is a masked array; drop padding tokens before, for example {name}[~padding], and forbid single "
            f"pairs with {name}.filled(-np.inf)"
        )
    if hasattr(values, "detach"):  # a torch tensor
        return _from_torch(values)
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} is ragged or not numeric ({error}); pass a rectangular array of numbers") from None


def _from_torch(tensor: Any) -> NDArray[Any]:
    """Its numbers, which numpy cannot read itself on a device, with a gradient or in bfloat16."""
    tensor = tensor.detach().cpu()
    return np.asarray(tensor.float() if "bfloat16" in str(tensor.dtype) else tensor)


def _refuse_nan_and_inf(array: FloatArray, name: str) -> None:
    if array.max() < np.inf:  # max propagates NaN, so this one pass clears the common case
        return
    bad = np.isnan(array) | (array == np.inf)
    token, expert = _first(bad)
    raise ValueError(
        f"{name} holds {array[token, expert]} at token {token}, expert {expert} ({np.count_nonzero(bad)} such values); "
        "replace NaN and +inf by finite numbers (only -inf, a forbidden expert, is allowed)"
    )


def _with_sum(target_E: NDArray[np.float64], picks: int, num_tokens: int) -> NDArray[np.float64]:
    """Targets within [0, T], moved in proportion to the room each has unless they sum to K T already."""
    missing = picks - float(target_E.sum())
    if abs(missing) <= 1e-9 * picks:
        return target_E
    room_E = num_tokens - target_E if missing > 0 else target_E
    return target_E + missing * (room_E / room_E.sum())


def _first(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(index) for index in np.argwhere(mask)[0])
