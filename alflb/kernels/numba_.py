"""Compiled, parallel kernels: the same integers as the reference, for any thread count.

Tokens are cut into chunks of fixed size. Each chunk has its own load counts and its own dual sum, which
are added in chunk order afterwards, so threads decide only who computes a chunk, never a result.

How a chunk is routed stands in `alflb.kernels._chunks`, and how a block of it in `alflb.kernels._blocks`; this module
decides the shapes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from alflb.kernels import Allocation
from alflb.kernels._blocks import make_routing, make_scratch
from alflb.kernels._chunks import CHUNK, NodeScratch, Results, route_chunks, route_chunks_in_nodes, route_drawn_chunks
from alflb.kernels._draws import make_source
from alflb.kernels._sharing import share_out
from alflb.kernels.draws import Draw
from alflb.problem import FloatArray

_NO_MARGINS = np.empty(0)

routes_lazily = True


def allocate(scores_TE: FloatArray, bias_E: FloatArray, top_k: int) -> Allocation:
    """Top-K of scores + bias for each token, ties to the lowest expert index."""
    experts_TK = np.empty((scores_TE.shape[0], top_k), dtype=np.int32)
    return Allocation(experts_TK, *_route(scores_TE, bias_E, top_k, experts_TK))


def allocate_in_groups(
    scores_TE: FloatArray, bias_E: FloatArray, top_k: int, n_group: int, topk_group: int
) -> Allocation:
    """Top-K of scores + bias from each token's best groups of experts; all ties to the lowest index."""
    experts_TK = np.empty((scores_TE.shape[0], top_k), dtype=np.int32)
    routing = make_routing(bias_E, scores_TE.dtype, top_k)
    scores = _flat(scores_TE)

    def work(results: Results, first: int, last: int) -> None:
        nodes = NodeScratch(np.empty(n_group, dtype=scores.dtype), np.empty(n_group, dtype=np.bool_))
        scratch = make_scratch(routing, top_k)
        route_chunks_in_nodes(scores, routing, topk_group, results, first, last, scratch, nodes)

    return Allocation(experts_TK, *_count_chunks(work, scores_TE.shape, experts_TK))


def loads(scores_TE: FloatArray, bias_E: FloatArray, top_k: int) -> tuple[NDArray[np.int64], float]:
    """Loads and dual sum of the same allocation, without writing the chosen experts."""
    return _route(scores_TE, bias_E, top_k, _no_experts(top_k))


def allocate_with_margins(
    scores_TE: FloatArray, bias_E: FloatArray, top_k: int
) -> tuple[Allocation, NDArray[np.float64]]:
    """The allocation, and each token's K-th minus (K+1)-th biased score (NaN if both are -inf)."""
    experts_TK = np.empty((scores_TE.shape[0], top_k), dtype=np.int32)
    margin_T = np.empty(scores_TE.shape[0])
    return Allocation(experts_TK, *_route(scores_TE, bias_E, top_k, experts_TK, margin_T)), margin_T


def drawn_loads(draw: Draw, bias_E: FloatArray, top_k: int) -> tuple[NDArray[np.int64], float]:
    """`loads` of scores that are drawn where they are routed: the same bits as ``loads(draw.scores(), ...)``."""
    routing = make_routing(bias_E, np.dtype(np.float32), top_k)

    def work(results: Results, first: int, last: int) -> None:
        source = make_source(draw.distribution, draw.key, draw.offset_E)
        route_drawn_chunks(source, draw.num_tokens, routing, results, first, last, make_scratch(routing, top_k))

    return _count_chunks(work, (draw.num_tokens, draw.offset_E.size), _no_experts(top_k))


def _no_experts(top_k: int) -> NDArray[np.int32]:
    return np.empty((0, top_k), dtype=np.int32)


def _flat(scores_TE: FloatArray) -> FloatArray:
    """The rows one after the other, not to be written to: kernels are compiled for such arrays only."""
    scores = scores_TE.reshape(-1)
    scores.flags.writeable = False
    return scores


def _route(
    scores_TE: FloatArray,
    bias_E: FloatArray,
    top_k: int,
    experts_TK: NDArray[np.int32],
    margin_T: NDArray[np.float64] = _NO_MARGINS,
) -> tuple[NDArray[np.int64], float]:
    has_margins = margin_T.size > 0
    routing = make_routing(bias_E, scores_TE.dtype, top_k, with_next=has_margins, is_padded=False)
    scores = _flat(scores_TE)

    def work(results: Results, first: int, last: int) -> None:
        route_chunks(scores, routing, results, first, last, make_scratch(routing, top_k + has_margins))

    return _count_chunks(work, scores_TE.shape, experts_TK, margin_T)


def _count_chunks(
    work: Callable[[Results, int, int], None],
    shape: tuple[int, ...],
    experts_TK: NDArray[np.int32],
    margin_T: NDArray[np.float64] = _NO_MARGINS,
) -> tuple[NDArray[np.int64], float]:
    """Let threads route chunks of tokens; loads and dual sums added in chunk order."""
    num_tokens, num_experts = shape
    num_chunks = -(-num_tokens // CHUNK)
    load_CE = np.zeros((num_chunks, num_experts), dtype=np.int64)
    results = Results(load_CE, np.zeros(num_chunks), experts_TK, margin_T)
    share_out(num_chunks, lambda first, last: work(results, first, last))
    load_E = load_CE[0] if num_chunks == 1 else load_CE.sum(axis=0)
    return load_E, float(sum(results.dual_C.tolist()))
