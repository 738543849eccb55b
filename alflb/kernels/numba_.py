"""Compiled, parallel kernels: the same integers as the reference, for any thread count.

Tokens are cut into chunks of fixed size. Each chunk has its own load counts and its own dual sum, which
are added in chunk order afterwards, so threads decide only who computes a chunk, never a result.
Threads are plain Python threads around code that releases the GIL: numba's default threading layer may
not be entered from two threads at once, which callers of a library do.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit
from numpy.typing import NDArray

from alflb.kernels import Allocation
from alflb.problem import FloatArray
from alflb.threads import num_threads

_CHUNK = 2048
"""Tokens whose loads and dual sum are accumulated together; part of the result's definition."""


def allocate(scores_TE: FloatArray, bias_E: FloatArray, top_k: int) -> Allocation:
    """Top-K of scores + bias for each token, ties to the lowest expert index."""
    experts_TK = np.empty((scores_TE.shape[0], top_k), dtype=np.int32)
    load_E, dual_sum = _run(scores_TE, bias_E, top_k, experts_TK)
    return Allocation(experts_TK, load_E, dual_sum)


def loads(scores_TE: FloatArray, bias_E: FloatArray, top_k: int) -> tuple[NDArray[np.int64], float]:
    """Loads and dual sum of the same allocation, without writing the chosen experts."""
    return _run(scores_TE, bias_E, top_k, np.empty((0, top_k), dtype=np.int32))


def _run(
    scores_TE: FloatArray, bias_E: FloatArray, top_k: int, experts_TK: NDArray[np.int32]
) -> tuple[NDArray[np.int64], float]:
    num_tokens, num_experts = scores_TE.shape
    num_chunks = -(-num_tokens // _CHUNK)
    load_CE = np.zeros((num_chunks, num_experts), dtype=np.int64)
    dual_C = np.zeros(num_chunks, dtype=np.float64)
    bias_E = bias_E.astype(scores_TE.dtype)

    def work(first: int, last: int) -> None:
        _route_chunks(scores_TE, bias_E, top_k, experts_TK, first, last, load_CE, dual_C)

    edges = np.linspace(0, num_chunks, min(num_threads(), num_chunks) + 1).astype(int)
    spans = list(zip(edges[:-1].tolist(), edges[1:].tolist()))
    if len(spans) == 1:
        work(*spans[0])
    else:
        with ThreadPoolExecutor(len(spans)) as pool:
            list(pool.map(lambda span: work(*span), spans))
    return load_CE.sum(axis=0), float(sum(dual_C.tolist()))


@njit(cache=True, nogil=True, error_model="numpy")
def _route_chunks(scores_TE, bias_E, top_k, experts_TK, first, last, load_CE, dual_C):  # type: ignore[no-untyped-def]
    num_tokens = scores_TE.shape[0]
    biased_E = np.empty_like(bias_E)
    value_K = np.empty(top_k, dtype=scores_TE.dtype)
    expert_K = np.empty(top_k, dtype=np.int32)
    for chunk in range(first, last):
        for token in range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, num_tokens)):
            for k in range(bias_E.size):
                biased_E[k] = scores_TE[token, k] + bias_E[k]
            _top_k_of_row(biased_E, value_K, expert_K)
            for pick in range(top_k):
                load_CE[chunk, expert_K[pick]] += 1
                dual_C[chunk] += value_K[pick]
            if experts_TK.shape[0] > 0:
                _write_ascending(expert_K, experts_TK[token])


@njit(cache=True, nogil=True, error_model="numpy")
def _top_k_of_row(biased_E, value_K, expert_K):  # type: ignore[no-untyped-def]
    """Keep the K best so far, best first; a later expert must be strictly better to enter or to pass another."""
    top_k = value_K.size
    for k in range(biased_E.size):
        value = biased_E[k]
        if k < top_k:
            slot = k
        elif value > value_K[top_k - 1]:
            slot = top_k - 1
        else:
            continue
        while slot > 0 and value > value_K[slot - 1]:
            value_K[slot] = value_K[slot - 1]
            expert_K[slot] = expert_K[slot - 1]
            slot -= 1
        value_K[slot] = value
        expert_K[slot] = k


@njit(cache=True, nogil=True, error_model="numpy")
def _write_ascending(expert_K, row_K):  # type: ignore[no-untyped-def]
    for pick in range(expert_K.size):
        slot = pick
        while slot > 0 and row_K[slot - 1] > expert_K[pick]:
            row_K[slot] = row_K[slot - 1]
            slot -= 1
        row_K[slot] = expert_K[pick]
