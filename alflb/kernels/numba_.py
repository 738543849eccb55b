"""Compiled, parallel kernels: the same integers as the reference, for any thread count.

Tokens are cut into chunks of fixed size. Each chunk has its own load counts and its own dual sum, which
are added in chunk order afterwards, so threads decide only who computes a chunk, never a result.
Threads are plain Python threads around code that releases the GIL: numba's default threading layer may
not be entered from two threads at once, which callers of a library do.

How a chunk is routed is told in `alflb.kernels._compiled`; this module decides the shapes and who does what.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alflb.kernels import Allocation
from alflb.kernels._compiled import (
    CHUNK,
    REGISTER_BYTES,
    WORD,
    DrawSource,
    NodeScratch,
    draw_rows,
    make_scratch,
    route_chunks,
    route_chunks_in_nodes,
    route_drawn_chunks,
)
from alflb.kernels.draws import DISTRIBUTIONS, Draw
from alflb.problem import FloatArray
from alflb.threads import num_threads

_SHARED_GROUPS = 0.17
"""Pairs of a token's top K that may fall into one group, on average; each such token costs a repair."""

_NO_MARGINS = np.empty(0)

routes_lazily = True


def allocate(scores_TE: FloatArray, bias_E: FloatArray, top_k: int) -> Allocation:
    """Top-K of scores + bias for each token, ties to the lowest expert index."""
    experts_TK = np.empty((scores_TE.shape[0], top_k), dtype=np.int32)
    load_E, dual_sum = _route(scores_TE, bias_E, top_k, experts_TK)
    return Allocation(experts_TK, load_E, dual_sum)


def allocate_in_groups(
    scores_TE: FloatArray, bias_E: FloatArray, top_k: int, n_group: int, topk_group: int
) -> Allocation:
    """Top-K of scores + bias from each token's best groups of experts; all ties to the lowest index."""
    experts_TK = np.empty((scores_TE.shape[0], top_k), dtype=np.int32)
    bias_P, groups = _prepare(bias_E, scores_TE.dtype, top_k)
    scores = scores_TE.reshape(-1)

    def work(first: int, last: int, load_CE: NDArray[np.int64], dual_C: NDArray[np.float64]) -> None:
        scratch = make_scratch(bias_P, top_k, groups)
        nodes = NodeScratch(np.empty(n_group, dtype=scores.dtype), np.empty(n_group, dtype=np.bool_))
        route_chunks_in_nodes(
            scores, bias_P, top_k, groups, topk_group, experts_TK, first, last, load_CE, dual_C, scratch, nodes
        )

    return Allocation(experts_TK, *_count_chunks(work, *scores_TE.shape))


def loads(scores_TE: FloatArray, bias_E: FloatArray, top_k: int) -> tuple[NDArray[np.int64], float]:
    """Loads and dual sum of the same allocation, without writing the chosen experts."""
    return _route(scores_TE, bias_E, top_k, np.empty((0, top_k), dtype=np.int32))


def allocate_with_margins(
    scores_TE: FloatArray, bias_E: FloatArray, top_k: int
) -> tuple[Allocation, NDArray[np.float64]]:
    """The allocation, and each token's K-th minus (K+1)-th biased score (NaN if both are -inf)."""
    experts_TK = np.empty((scores_TE.shape[0], top_k), dtype=np.int32)
    margin_T = np.empty(scores_TE.shape[0])
    load_E, dual_sum = _route(scores_TE, bias_E, top_k, experts_TK, margin_T)
    return Allocation(experts_TK, load_E, dual_sum), margin_T


def drawn_loads(draw: Draw, bias_E: FloatArray, top_k: int) -> tuple[NDArray[np.int64], float]:
    """`loads` of scores that are drawn where they are routed: the same bits as ``loads(draw.scores(), ...)``."""
    num_experts = draw.offset_E.size
    bias_P, groups = _prepare(bias_E, np.dtype(np.float32), top_k)
    experts_TK = np.empty((0, top_k), dtype=np.int32)

    def work(first: int, last: int, load_CE: NDArray[np.int64], dual_C: NDArray[np.float64]) -> None:
        scratch = make_scratch(bias_P, top_k, groups)
        source = _draw_source(draw)
        route_drawn_chunks(
            source, draw.num_tokens, bias_P, top_k, groups, experts_TK, first, last, load_CE, dual_C, scratch
        )

    return _count_chunks(work, draw.num_tokens, num_experts)


def draw_scores(draw: Draw) -> NDArray[np.float32]:
    """The scores of a draw as an array."""
    num_experts = draw.offset_E.size
    scores_TE = np.empty((draw.num_tokens, num_experts), dtype=np.float32)

    def work(first: int, last: int) -> None:
        rows_TE = scores_TE[first * CHUNK : last * CHUNK]
        draw_rows(_draw_source(draw), first * CHUNK, len(rows_TE), rows_TE.reshape(-1), num_experts)

    _share_out(-(-draw.num_tokens // CHUNK), work)
    return scores_TE


def _route(
    scores_TE: FloatArray,
    bias_E: FloatArray,
    top_k: int,
    experts_TK: NDArray[np.int32],
    margin_T: NDArray[np.float64] = _NO_MARGINS,
) -> tuple[NDArray[np.int64], float]:
    width = top_k + 1 if margin_T.size else top_k
    bias_P, groups = _prepare(bias_E, scores_TE.dtype, width, one_by_one=margin_T.size > 0)
    scores = scores_TE.reshape(-1)

    def work(first: int, last: int, load_CE: NDArray[np.int64], dual_C: NDArray[np.float64]) -> None:
        scratch = make_scratch(bias_P, width, groups)
        route_chunks(scores, bias_P, top_k, groups, experts_TK, margin_T, first, last, load_CE, dual_C, scratch)

    return _count_chunks(work, *scores_TE.shape)


def _prepare(
    bias_E: FloatArray, dtype: np.dtype[Any], width: int, *, one_by_one: bool = False
) -> tuple[FloatArray, int]:
    """The bias in the dtype of the scores, with zeros behind it up to a length the kernels know; and the groups."""
    lanes = REGISTER_BYTES // dtype.itemsize
    shared = 0.0 if one_by_one else _SHARED_GROUPS
    groups = _num_groups(bias_E.size, width, lanes, shared)
    bias_P = np.zeros(_row_length(bias_E.size, groups), dtype=dtype)
    bias_P[: bias_E.size] = bias_E
    return bias_P, groups


def _row_length(num_experts: int, groups: int) -> int:
    """The least length that holds all experts, in whole groups: 16, 32, or whole words."""
    for length in (16, 32):
        if max(num_experts, groups) <= length:
            return length
    unit = max(groups, WORD)
    return -(-num_experts // unit) * unit


def _draw_source(draw: Draw) -> DrawSource:
    words = np.empty(-(-draw.offset_E.size // 16) * 8, dtype=np.uint64)
    distribution = DISTRIBUTIONS.index(draw.distribution)
    return DrawSource(distribution, np.uint64(draw.key), draw.offset_E, words, words.view(np.uint32))


def _num_groups(num_experts: int, top_k: int, lanes: int, shared: float) -> int:
    """How many groups the experts form on their way into the sorting network (see `alflb.kernels._compiled`).

    Fewer groups mean less sorting and more repairs, a group of one expert none: the lowest power of two that
    fills a register, is no narrower than the network, and keeps repairs rare.
    """
    groups = lanes
    while groups < top_k:
        groups *= 2
    pairs = top_k * (top_k - 1) / 2
    while pairs * (-(-num_experts // groups) - 1) > shared * (num_experts - 1):
        groups *= 2
    return groups


def _count_chunks(
    work: Callable[[int, int, NDArray[np.int64], NDArray[np.float64]], None], num_tokens: int, num_experts: int
) -> tuple[NDArray[np.int64], float]:
    """Let threads count chunks of tokens; loads and dual sums added in chunk order."""
    num_chunks = -(-num_tokens // CHUNK)
    load_CE = np.zeros((num_chunks, num_experts), dtype=np.int64)
    dual_C = np.zeros(num_chunks, dtype=np.float64)
    _share_out(num_chunks, lambda first, last: work(first, last, load_CE, dual_C))
    return load_CE.sum(axis=0), float(sum(dual_C.tolist()))


def _share_out(num_chunks: int, work: Callable[[int, int], None]) -> None:
    """Cover the chunks by work(first, last) calls, one in this thread and one in each of the others."""
    num_spans = min(num_threads(), num_chunks)
    edges = [num_chunks * span // num_spans for span in range(num_spans + 1)]
    others = [_pool(num_spans - 1).submit(work, first, last) for first, last in pairwise(edges[1:])]
    work(edges[0], edges[1])
    for other in others:
        other.result()


@lru_cache(maxsize=1)
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, thread_name_prefix="alflb")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
