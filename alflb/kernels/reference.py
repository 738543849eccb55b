"""The slow, obvious kernels in plain numpy: the definition every other backend is tested against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alflb.kernels import Allocation
from alflb.kernels.draws import Draw
from alflb.problem import FloatArray

routes_lazily = True


def allocate(scores_TE: FloatArray, bias_E: FloatArray, top_k: int) -> Allocation:
    """Top-K of scores + bias for each token, ties to the lowest expert index."""
    biased_TE = scores_TE + bias_E.astype(scores_TE.dtype)
    best_first_TE = np.argsort(-biased_TE, axis=1, kind="stable")  # stable: equal scores stay in index order
    experts_TK = np.sort(best_first_TE[:, :top_k], axis=1).astype(np.int32)
    load_E = np.bincount(experts_TK.ravel(), minlength=scores_TE.shape[1]).astype(np.int64)
    dual_sum = np.take_along_axis(biased_TE, experts_TK, axis=1).sum(dtype=np.float64)
    return Allocation(experts_TK, load_E, float(dual_sum))


def allocate_in_groups(
    scores_TE: FloatArray, bias_E: FloatArray, top_k: int, n_group: int, topk_group: int
) -> Allocation:
    """Top-K of scores + bias from each token's best groups of experts; all ties to the lowest index."""
    num_tokens, num_experts = scores_TE.shape
    biased_TGS = (scores_TE + bias_E.astype(scores_TE.dtype)).reshape(num_tokens, n_group, num_experts // n_group)
    best_two_TG2 = np.sort(biased_TGS, axis=2)[:, :, -2:]
    group_score_TG = best_two_TG2[:, :, 0] + best_two_TG2[:, :, 1]
    best_first_TG = np.argsort(-group_score_TG, axis=1, kind="stable")
    is_kept_TG = np.zeros((num_tokens, n_group), dtype=bool)
    np.put_along_axis(is_kept_TG, best_first_TG[:, :topk_group], True, axis=1)
    is_kept_TE = np.repeat(is_kept_TG, num_experts // n_group, axis=1)
    return allocate(np.where(is_kept_TE, scores_TE, scores_TE.dtype.type(-np.inf)), bias_E, top_k)


def loads(scores_TE: FloatArray, bias_E: FloatArray, top_k: int) -> tuple[NDArray[np.int64], float]:
    """Loads and dual sum of the same allocation."""
    _, load_E, dual_sum = allocate(scores_TE, bias_E, top_k)
    return load_E, dual_sum


def drawn_loads(draw: Draw, bias_E: FloatArray, top_k: int) -> tuple[NDArray[np.int64], float]:
    """Loads and dual sum of scores that are drawn first."""
    return loads(draw.scores(), bias_E, top_k)


def allocate_with_margins(
    scores_TE: FloatArray, bias_E: FloatArray, top_k: int
) -> tuple[Allocation, NDArray[np.float64]]:
    """The allocation, and each token's K-th minus (K+1)-th biased score (NaN if both are -inf)."""
    biased_TE = np.sort(scores_TE + bias_E.astype(scores_TE.dtype), axis=1)[:, ::-1]
    lowest_T = np.full(len(scores_TE), -np.inf) if top_k == scores_TE.shape[1] else biased_TE[:, top_k]
    with np.errstate(invalid="ignore"):
        margin_T = (biased_TE[:, top_k - 1] - lowest_T).astype(np.float64)
    return allocate(scores_TE, bias_E, top_k), margin_T
