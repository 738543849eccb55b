"""How a batch is routed: chunks of tokens, block by block, from an array, from groups of experts, or from a draw.

Everything a chunk leaves is its own: its loads and its dual sum are added to those of the others afterwards, in the
order of the chunks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb.kernels._blocks import copy_rows, route_block
from alflb.kernels._draws import draw_rows
from alflb.kernels._jit import jit_borrowing, jit_inline
from alflb.kernels._simd import read_only

CHUNK = 2048
"""Tokens whose loads and dual sum are accumulated together; part of the result's definition."""


class Results(NamedTuple):
    """Where the chunks write what they find."""

    load_CE: NDArray[np.int64]
    dual_C: NDArray[np.float64]
    """Sum of the dual values of each chunk; zero at first."""
    experts_TK: NDArray[np.int32]
    """Chosen experts, ascending; no rows if they are not wanted."""
    margin_T: NDArray[np.float64]
    """K-th minus (K+1)-th biased score, NaN if both are -inf; empty if not wanted."""


class NodeScratch(NamedTuple):
    """Working memory of one thread for group-limited routing; its groups of experts are called nodes here."""

    score_N: NDArray[Any]
    """Sum of the two largest biased scores of each node, in the dtype of the scores."""
    is_open_N: NDArray[np.bool_]
    """Whether the current token may use a node."""


@jit_borrowing
def route_chunks(scores, routing, results, first, last, scratch):
    """Route chunks first..last - 1 of all.

    Parameters
    ----------
    scores : float32 or float64 array, flat
        The rows of all tokens, one after the other.
    routing : Routing
        Its bias has the dtype of the scores, its pitch is E. Margins need groups of one expert.
    results : Results
        The rows of these chunks are filled.
    first, last : int
    scratch : Scratch
        Made for top_k values, or for top_k + 1 if margins are wanted.
    """
    num_experts = results.load_CE.shape[1]
    num_tokens = scores.size // num_experts
    tile = read_only(scratch.tile)
    block = tile.size // routing.bias_P.size
    room = (block - 1) * num_experts + routing.bias_P.size  # numbers that routing a block may read
    for chunk in range(first, last):
        scratch.load_P[:] = 0
        end = min((chunk + 1) * CHUNK, num_tokens)
        for token in range(chunk * CHUNK, end, block):
            rows = min(block, end - token)
            start = token * num_experts
            if start + room <= scores.size:
                dual = route_block(scores, start, rows, routing, results, token, scratch)
            else:
                copy_rows(scores, start, rows, num_experts, num_experts, scratch.tile)
                dual = route_block(tile, 0, rows, routing, results, token, scratch)
            results.dual_C[chunk] += dual
        _write_loads(scratch.load_P, results.load_CE, chunk)


@jit_borrowing
def route_drawn_chunks(source, num_tokens, routing, results, first, last, scratch):
    """`route_chunks` for scores that are drawn a block at a time and never stored; no margins."""
    stride = routing.bias_P.size
    tile = read_only(scratch.tile)
    block = tile.size // stride
    for chunk in range(first, last):
        scratch.load_P[:] = 0
        end = min((chunk + 1) * CHUNK, num_tokens)
        for token in range(chunk * CHUNK, end, block):
            rows = min(block, end - token)
            draw_rows(source, token, rows, scratch.tile, stride)
            results.dual_C[chunk] += route_block(tile, 0, rows, routing, results, token, scratch)
        _write_loads(scratch.load_P, results.load_CE, chunk)


@jit_borrowing
def route_chunks_in_nodes(scores, routing, topk_group, results, first, last, scratch, node_scratch):
    """`route_chunks` with each token kept to its best nodes: the scores of the others are not copied; no margins."""
    num_experts = results.load_CE.shape[1]
    num_tokens = scores.size // num_experts
    stride = routing.bias_P.size
    tile = read_only(scratch.tile)
    block = tile.size // stride
    for chunk in range(first, last):
        scratch.load_P[:] = 0
        end = min((chunk + 1) * CHUNK, num_tokens)
        for token in range(chunk * CHUNK, end, block):
            rows = min(block, end - token)
            for row in range(rows):
                score_E = scores[(token + row) * num_experts :][:num_experts]
                tile_E = scratch.tile[row * stride :][:num_experts]
                _open_best_nodes(score_E, routing.bias_P, topk_group, node_scratch)
                _copy_open_nodes(score_E, node_scratch.is_open_N, tile_E)
            results.dual_C[chunk] += route_block(tile, 0, rows, routing, results, token, scratch)
        _write_loads(scratch.load_P, results.load_CE, chunk)


@jit_borrowing
def _write_loads(load_P, load_CE, chunk):
    for k in range(load_CE.shape[1]):
        load_CE[chunk, k] = load_P[k]


@jit_inline
def _open_best_nodes(score_E, bias_P, topk_group, node_scratch):
    """Open the nodes whose two largest biased scores have the largest sums, the lowest index first among equals."""
    score_N, is_open_N = node_scratch.score_N, node_scratch.is_open_N
    size = score_E.size // score_N.size
    for node in range(score_N.size):
        # Both start from a score, not from -inf, which would make them float64.
        best = score_E[node * size] + bias_P[node * size]
        second = score_E[node * size + 1] + bias_P[node * size + 1]
        if second > best:
            best, second = second, best
        for k in range(node * size + 2, (node + 1) * size):
            value = score_E[k] + bias_P[k]
            lower = best if value > best else value
            best = value if value > best else best
            second = lower if lower > second else second
        score_N[node] = best + second
        is_open_N[node] = False
    for _ in range(topk_group):
        opening = -1
        for node in range(score_N.size):
            if not is_open_N[node] and (opening < 0 or score_N[node] > score_N[opening]):
                opening = node
        is_open_N[opening] = True


@jit_inline
def _copy_open_nodes(score_E, is_open_N, tile_E):
    size = score_E.size // is_open_N.size
    for node in range(is_open_N.size):
        score_S, tile_S = score_E[node * size :][:size], tile_E[node * size :][:size]
        if is_open_N[node]:
            for k in range(size):
                tile_S[k] = score_S[k]
        else:
            tile_S[:] = -np.inf
