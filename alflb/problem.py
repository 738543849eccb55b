"""The assignment problem, and the door through which every score array, bias and top-k enters.

Shape suffixes used in the whole package: T tokens, E experts, K picks per token, N steps.
``scores_TE`` is a (T, E) array, ``bias_E`` a vector over experts, ``experts_TK`` expert indices.
"""

from __future__ import annotations

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


def check_scores(scores: ArrayLike, *, name: str = "scores") -> FloatArray:
    """Return `scores` as a C-contiguous float32 or float64 (T, E) array, or say what is wrong.

    -inf marks an expert a token may not use and is accepted; NaN and +inf are not.

    Raises
    ------
    ValueError
        If the array is ragged, not 2-D, empty, not float32/float64, or holds NaN or +inf.
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
    return np.ascontiguousarray(array)


def check_top_k(top_k: object, num_experts: int) -> int:
    """Return `top_k` as an int with 1 <= top_k <= num_experts, or raise ValueError."""
    value = check_count(top_k, "top_k")
    if value > num_experts:
        raise ValueError(f"top_k is {value} but there are {num_experts} experts; choose 1 <= top_k <= {num_experts}")
    return value


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
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(f"{name} is {value!r}; pass a finite number {'> 0' if positive else '>= 0'}")
    return float(value)


def check_bias(bias: ArrayLike, num_experts: int, *, name: str = "bias") -> NDArray[np.float64]:
    """Return `bias` as a finite float64 vector over the experts, or raise ValueError."""
    array = _as_array(bias, name)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name} has dtype {array.dtype}; pass real numbers, one for each expert")
    if array.shape != (num_experts,):
        raise ValueError(f"{name} has shape {array.shape}; pass one number for each expert, shape ({num_experts},)")
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} holds NaN or inf at expert {_first(~np.isfinite(array))[0]}; every bias must be finite"
        )
    return array.astype(np.float64)


def check_target(target: ArrayLike | None, num_tokens: int, num_experts: int, top_k: int) -> NDArray[np.float64]:
    """Return target loads in tokens, exact balance for None; ValueError unless within [0, T] with sum K T."""
    if target is None:
        return target_load_E(num_tokens, num_experts, top_k)
    target_E = check_bias(target, num_experts, name="target_E")
    if target_E.min() < 0 or target_E.max() > num_tokens:
        raise ValueError(f"target_E holds values outside [0, {num_tokens}]; an expert takes a token at most once")
    picks = top_k * num_tokens
    if abs(target_E.sum() - picks) > 1e-9 * picks:
        raise ValueError(f"target_E sums to {target_E.sum():g}; it must sum to top_k * num_tokens = {picks}")
    return target_E


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
        On any input outside these bounds; the message names the argument and the mend.

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
        target_E = check_target(self.target_E, self.num_tokens, self.num_experts, self.top_k)
        object.__setattr__(self, "target_E", target_E)
        self._check_enough_experts_allowed()

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

    def _check_enough_experts_allowed(self) -> None:
        allowed_T = np.count_nonzero(self.scores_TE > -np.inf, axis=1)
        if allowed_T.min() < self.top_k:
            token = int(np.argmin(allowed_T))
            raise ValueError(
                f"scores: token {token} has {allowed_T[token]} experts with a score above -inf but top_k is "
                f"{self.top_k}; give it more finite scores or lower top_k"
            )


def target_load_E(num_tokens: int, num_experts: int, top_k: int) -> NDArray[np.float64]:
    """Exact balance, L = K T / E for every expert, in tokens; refuses counts that int64 cannot hold."""
    if num_tokens * top_k > _MAX_PICKS:
        raise ValueError(f"num_tokens * top_k is {num_tokens * top_k}; loads are counted in int64, so split the batch")
    return np.full(num_experts, top_k * num_tokens / num_experts)


def _as_array(values: ArrayLike, name: str) -> NDArray[Any]:
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} is ragged or not numeric ({error}); pass a rectangular array of numbers") from None


def _refuse_nan_and_inf(array: FloatArray, name: str) -> None:
    if array.max() < np.inf:  # max propagates NaN, so this one pass clears the common case
        return
    bad = np.isnan(array) | (array == np.inf)
    token, expert = _first(bad)
    raise ValueError(
        f"{name} holds {array[token, expert]} at token {token}, expert {expert} ({np.count_nonzero(bad)} such values); "
        "replace NaN and +inf by finite numbers (only -inf, a forbidden expert, is allowed)"
    )


def _first(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(index) for index in np.argwhere(mask)[0])
