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

import numpy as np
from numpy.typing import NDArray

from alflb.kernels import Allocation
from alflb.kernels._compiled import CHUNK, MAX_WIDTH, REGISTER_BYTES, WORD, make_scratch, route_chunks
from alflb.problem import FloatArray, check_count

_SHARED_GROUPS = 0.17
"""Pairs of a token's top K that may fall into one group, on average; each such token costs a repair."""


def allocate(scores_TE: FloatArray, bias_E: FloatArray, top_k: int) -> Allocation:
    """Top-K of scores + bias for each token, ties to the lowest expert index."""
    experts_TK = np.empty((scores_TE.shape[0], top_k), dtype=np.int32)
    load_E, dual_sum = _route(scores_TE, bias_E, top_k, experts_TK)
    return Allocation(experts_TK, load_E, dual_sum)


def loads(scores_TE: FloatArray, bias_E: FloatArray, top_k: int) -> tuple[NDArray[np.int64], float]:
    """Loads and dual sum of the same allocation, without writing the chosen experts."""
    return _route(scores_TE, bias_E, top_k, np.empty((0, top_k), dtype=np.int32))


def num_threads() -> int:
    """Threads in use: the environment variable ALFLB_NUM_THREADS, else the cores this process may use."""
    wanted = os.environ.get("ALFLB_NUM_THREADS")
    if wanted:
        return check_count(int(wanted) if wanted.isdigit() else wanted, "ALFLB_NUM_THREADS")
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _route(
    scores_TE: FloatArray, bias_E: FloatArray, top_k: int, experts_TK: NDArray[np.int32]
) -> tuple[NDArray[np.int64], float]:
    num_tokens, num_experts = scores_TE.shape
    groups = _num_groups(num_experts, top_k, REGISTER_BYTES // scores_TE.itemsize)
    bias_P = _padded(bias_E.astype(scores_TE.dtype), groups)
    scores = scores_TE.reshape(-1)

    def work(first: int, last: int, load_CE: NDArray[np.int64], dual_C: NDArray[np.float64]) -> None:
        scratch = make_scratch(bias_P, top_k, groups)
        route_chunks(scores, bias_P, top_k, groups, experts_TK, first, last, load_CE, dual_C, scratch)

    return _over_chunks(work, num_tokens, num_experts)


def _num_groups(num_experts: int, top_k: int, lanes: int) -> int:
    """How many groups the experts form on their way into the sorting network (see `alflb.kernels._compiled`).

    Fewer groups mean less sorting and more repairs, a group of one expert none: the lowest power of two that
    fills a register, is no narrower than the network, and keeps repairs rare.
    """
    groups = lanes
    while groups < min(top_k, MAX_WIDTH):
        groups *= 2
    pairs = top_k * (top_k - 1) / 2
    while top_k <= MAX_WIDTH and pairs * (-(-num_experts // groups) - 1) > _SHARED_GROUPS * (num_experts - 1):
        groups *= 2
    return groups


def _padded(bias_E: FloatArray, groups: int) -> FloatArray:
    """The bias with zeros behind it, up to whole groups and whole words."""
    unit = max(groups, WORD)
    bias_P = np.zeros(-(-bias_E.size // unit) * unit, dtype=bias_E.dtype)
    bias_P[: bias_E.size] = bias_E
    return bias_P


def _over_chunks(
    work: Callable[[int, int, NDArray[np.int64], NDArray[np.float64]], None], num_tokens: int, num_experts: int
) -> tuple[NDArray[np.int64], float]:
    """Share the chunks out among threads; loads and dual sums added in chunk order."""
    num_chunks = -(-num_tokens // CHUNK)
    load_CE = np.zeros((num_chunks, num_experts), dtype=np.int64)
    dual_C = np.zeros(num_chunks, dtype=np.float64)
    num_spans = min(num_threads(), num_chunks)
    edges = [num_chunks * span // num_spans for span in range(num_spans + 1)]
    others = [_pool(num_spans - 1).submit(work, first, last, load_CE, dual_C) for first, last in pairwise(edges[1:])]
    work(edges[0], edges[1], load_CE, dual_C)
    for other in others:
        other.result()
    return load_CE.sum(axis=0), float(sum(dual_C.tolist()))


@lru_cache(maxsize=1)
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, thread_name_prefix="alflb")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
