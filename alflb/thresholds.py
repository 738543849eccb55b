"""Routing by thresholds: a token takes every expert whose score is above that expert's threshold.

Tokens then use different numbers of experts, K on average, so this is not top-K of score plus bias, and no rule of
`alflb.rules`. It is the assignment problem without the constraint on each token,

    max sum_ij s_ij x_ij   with   sum_i x_ij = L_j,  0 <= x_ij <= 1,

in which experts do not compete: each takes its L_j best tokens. So one quantile per expert solves it exactly, and that
quantile is the dual variable of its constraint. The threshold found on one batch decides the next, which keeps routing
causal; on its own batch it would be expert choice.

Source: Su, kexue.fm 11626 (February 2026), dynamic activation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from alflb.problem import check_bias, check_number, check_scores, check_top_k
from alflb.rules import check_fraction
from alflb.rules.quantiles import keep_finite, nth_largest, ranks


def initial_logit(top_k: int, num_experts: int, logit_std: float) -> float:
    """The threshold that normal logits exceed K / E of the time: std * Phi^-1(1 - K / E).

    A threshold of 0 would send every token to every expert at first. Of gates that increase with the logit, such as
    sigmoid, take the gate of this number. A router with weights of standard deviation sigma on d normalized inputs has
    logits of standard deviation sigma sqrt(d).

    Parameters
    ----------
    top_k, num_experts : int
        Experts per token on average, and experts.
    logit_std : float
        Standard deviation of the logits at the start.

    Examples
    --------
    >>> round(initial_logit(8, 64, logit_std=1.0), 3)
    1.15
    """
    check_top_k(top_k, num_experts)
    return float(check_number(logit_std, "logit_std", positive=True) * ndtri(1.0 - top_k / num_experts))


def choose(scores_TE: ArrayLike, threshold_E: ArrayLike) -> NDArray[np.bool_]:
    """Which token uses which expert: score above threshold.

    Examples
    --------
    >>> choose([[0.75, 0.25], [0.5, 0.5]], [0.5, 0.25]).tolist()
    [[True, False], [False, True]]
    """
    scores_TE = check_scores(scores_TE)
    return np.asarray(scores_TE > check_bias(threshold_E, scores_TE.shape[1], name="threshold_E"))


def next_threshold(
    scores_TE: ArrayLike, threshold_E: ArrayLike, target_E: ArrayLike, *, decay: float = 0.9
) -> NDArray[np.float64]:
    """The next batch's threshold: decay * the present one + (1 - decay) * each expert's (L + 1)-th largest score.

    Parameters
    ----------
    scores_TE : array_like, shape (T, E)
        Scores of the batch that has been routed.
    threshold_E : array_like, shape (E,)
        The threshold it was routed with, score units.
    target_E : array_like, shape (E,)
        L, loads wanted, tokens; the whole part of a fractional one counts.
    decay : float
        Share of the old threshold that is kept, 0 <= decay < 1; 0.9 in use. With 0 the result balances the batch it
        was made from, ties apart.

    Raises
    ------
    ValueError
        For shapes that do not fit, numbers that are not finite, or a decay out of range.

    Notes
    -----
    A target of T tokens or more takes the smallest score, which leaves out the token that has it. An expert that too
    few tokens may use (scores of -inf) keeps its threshold.

    Examples
    --------
    >>> next_threshold([[0.75, 0.25], [0.5, 0.5], [0.25, 1.0]], [0.0, 0.0], [1.0, 2.0], decay=0.0).tolist()
    [0.5, 0.25]
    """
    scores_TE = check_scores(scores_TE)
    num_tokens, num_experts = scores_TE.shape
    threshold_E = check_bias(threshold_E, num_experts, name="threshold_E")
    target_E = check_bias(target_E, num_experts, name="target_E")
    check_fraction(decay, "decay")
    columns_ET = np.ascontiguousarray(scores_TE.T, dtype=np.float64)
    quantile_E = keep_finite(nth_largest(columns_ET, ranks(target_E, num_tokens)), threshold_E)
    return decay * threshold_E + (1.0 - decay) * quantile_E


def dual_value(scores_TE: ArrayLike, threshold_E: ArrayLike, target_E: ArrayLike) -> float:
    """sum_ij max(0, s_ij - threshold_j) + sum_j L_j threshold_j: a bound on the optimum, attained at its quantiles.

    Examples
    --------
    >>> scores_TE, target_E = [[0.75, 0.25], [0.5, 0.5], [0.25, 1.0]], [1.0, 2.0]
    >>> dual_value(scores_TE, [0.5, 0.25], target_E), dual_value(scores_TE, [0.0, 0.0], target_E)
    (2.25, 3.25)
    """
    scores_TE = check_scores(scores_TE)
    num_experts = scores_TE.shape[1]
    threshold_E = check_bias(threshold_E, num_experts, name="threshold_E")
    target_E = check_bias(target_E, num_experts, name="target_E")
    return float(np.maximum(0.0, scores_TE.astype(np.float64) - threshold_E).sum() + target_E @ threshold_E)
