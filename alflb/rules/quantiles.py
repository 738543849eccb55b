"""Block descent on the dual: what quantile balancing, its histogram form and BIP share.

With a threshold alpha_i for each token the dual of the theory is the minimum over alpha of

    F(alpha, b) = sum_i [K alpha_i + sum_j max(0, s_ij + b_j - alpha_i)] - sum_j L_j b_j,   D(b) = min over alpha of F.

For a given b every alpha_i between the (K+1)-th and the K-th largest of s_i + b is a minimum; for given alpha every
-b_j between the (q+1)-th and the q-th largest of s_j - alpha is, with q = L_j. Each half of a round thus minimizes F
exactly over one block, and **D never rises on the batch the round is made from**, whatever K, L and ties are.

The quantile is a score of the batch, so a round leaves one token of each expert exactly at its threshold: on the same
batch a tie, broken by rounding and by index. Loads of the batch itself can be off by a token or so for each expert.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alflb.problem import FloatArray

FloatMatrix = NDArray[np.float64]


def thresholds(scores_TE: FloatArray, bias_E: NDArray[np.float64], top_k: int) -> NDArray[np.float64]:
    """alpha_i, the (K+1)-th largest of s_i + b, for K < E; shape (T,), score units."""
    biased_TE = scores_TE.astype(np.float64) + bias_E
    return np.asarray(np.partition(biased_TE, -(top_k + 1), axis=1)[:, -(top_k + 1)])


def excesses(scores_TE: FloatArray, alpha_T: NDArray[np.float64]) -> FloatMatrix:
    """Row j is s_j - alpha, shape (E, T); -inf for a forbidden pair, whatever its token's threshold is."""
    scores_ET = np.ascontiguousarray(scores_TE.T, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # -inf - -inf
        return np.where(np.isneginf(scores_ET), -np.inf, scores_ET - alpha_T)


def ranks(target_E: NDArray[np.float64], num_tokens: int) -> NDArray[np.int64]:
    """The place, 1 for the largest, of the excess that sets an expert's bias: floor(q) + 1, at most T.

    For a fractional target this is still an exact minimum of F: the number of larger excesses is at most q, and
    that of excesses at least as large is at least q.
    """
    whole_E = np.floor(target_E + 1e-9)  # a target that is a whole number up to rounding is that number
    return np.minimum(whole_E.astype(np.int64) + 1, num_tokens)


def nth_largest(values_ET: FloatMatrix, rank_E: NDArray[np.int64]) -> NDArray[np.float64]:
    """Row j's rank_E[j]-th largest value, by selection in O(T) for each row."""
    place_E = values_ET.shape[1] - rank_E
    parted_ET = np.partition(values_ET, np.unique(place_E), axis=1)
    return np.asarray(np.take_along_axis(parted_ET, place_E[:, None], axis=1)[:, 0])


def quantile_bias(
    scores_TE: FloatArray, bias_E: NDArray[np.float64], target_E: NDArray[np.float64], top_k: int
) -> NDArray[np.float64]:
    """One round: the thresholds of the bias, then the bias of the thresholds; not centered.

    An expert that too few tokens may use, or too many must, has no finite quantile and keeps its bias. With K = E every
    token uses every expert and nothing changes.
    """
    if top_k == len(bias_E):
        return bias_E
    excess_ET = excesses(scores_TE, thresholds(scores_TE, bias_E, top_k))
    return keep_finite(-nth_largest(excess_ET, ranks(target_E, len(scores_TE))), bias_E)


def keep_finite(new_E: NDArray[np.float64], old_E: NDArray[np.float64]) -> NDArray[np.float64]:
    """`new_E` where it is finite, `old_E` elsewhere."""
    return np.where(np.isfinite(new_E), new_E, old_E)
