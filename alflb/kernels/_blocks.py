"""How a block of tokens is routed: top-K by a sorting network that moves values only, sixteen tokens at a time.

Finding the K best experts of a token is mostly comparisons, and comparisons are cheapest when many tokens make the
same one at once: as many as a register has lanes. `route_block` takes tokens through three steps:

1. **Bounds** (`bound_rows`). The tokens' biased scores are transposed in registers, so that a register holds one
   expert and a lane is a token. A sorting network, which moves values and never indices, keeps the largest ``width``
   values of every lane, width being K rounded up to a power of two. The K-th of them, *tau*, is the bar that a token's
   experts must reach; the sum of the first K is its dual value.
   With many picks, K > 32, each row's bar is found by halving an interval instead (`alflb.kernels._selection`).
   With many experts, the experts g, g + groups, g + 2 groups, ... enter the network as their maximum; tau is then the
   K-th largest of the maxima, a lower bound on the true bar.
2. **Hits** (`_mark_row`). Each row is read again, now from cache, and compared with its tau. If exactly K experts
   reach it, they are the top K: K values reach it at least, so nothing was lost and nothing tied.
3. **Repair** (`_repair_row`). More hits than K mean a tie at the bar, or a bound that was too low. The few hits are
   sorted out exactly, lowest expert index first among equals.

Suffixes besides T, E, K: P experts padded to whole registers and groups, G groups, L lanes, W words of 64 experts,
C candidates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb.kernels._jit import jit_borrowing, jit_inline
from alflb.kernels._network import WIDEST, keep_best
from alflb.kernels._selection import raise_bar, select_rows
from alflb.kernels._simd import count_bits, lowest_bit, mark_hits, register_lanes, sum_best, transpose_biased
from alflb.problem import FloatArray

BLOCK_BYTES = 64
"""A block is as many tokens as there are numbers in so many bytes; their dual values are added up first."""
WORD = 64
"""Experts whose hits share one integer."""
_STRIDE = 16
"""Rows are padded to a multiple of it."""
_SHARED_GROUPS = 0.17
"""Pairs of a token's top K that may fall into one group, on average; each such token costs a repair."""


class Routing(NamedTuple):
    """What every token of a batch is routed by."""

    bias_P: NDArray[Any]
    """The bias in the dtype of the scores, padded with zeros."""
    top_k: int
    groups: int
    """Groups in which experts enter the sorting network; 0 if there is none."""
    merges: tuple[int, ...]
    """As long as the logarithm of the network's width, so that code is compiled for this width only."""


def make_routing(bias_E: FloatArray, dtype: np.dtype[Any], top_k: int, *, with_next: bool = False) -> Routing:
    """What tokens are routed by; `with_next` lets the (K+1)-th values be found too, with groups of one expert."""
    groups = _num_groups(bias_E.size, top_k + with_next, register_lanes(dtype), 0.0 if with_next else _SHARED_GROUPS)
    bias_P = np.zeros(_round_up(max(bias_E.size, groups), _STRIDE), dtype=dtype)
    bias_P[: bias_E.size] = bias_E
    merges = (0,) * (top_k + with_next - 1).bit_length() if groups else ()
    return Routing(bias_P, top_k, groups, merges)


def _num_groups(num_experts: int, num_best: int, lanes: int, shared: float) -> int:
    """How many groups the experts form on their way into the sorting network.

    Fewer groups mean less sorting and more repairs, a group of one expert none: the lowest power of two that fills a
    register, is no narrower than the network, and keeps repairs rare; or else every expert is alone.
    """
    if num_best > WIDEST:
        return 0
    unit = max(lanes, _network_width(num_best))
    groups, pairs = unit, num_best * (num_best - 1) / 2
    while pairs * (-(-num_experts // groups) - 1) > shared * (num_experts - 1):
        groups *= 2
    return min(groups, _round_up(num_experts, unit))


def _network_width(num_best: int) -> int:
    """The width of the network; without one, its last two places are there for the K-th and (K+1)-th value."""
    return 1 << (num_best - 1).bit_length()


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


class Scratch(NamedTuple):
    """Working memory of one thread; every function here overwrites it."""

    tile: NDArray[Any]
    """A block of padded rows, for tokens whose scores cannot be used where they lie."""
    columns_GL: NDArray[Any]
    """Transposed tokens: the lanes of group 0, of group 1, ..."""
    best_KL: NDArray[Any]
    """Largest values of each lane, descending: the lanes of the largest, of the second, ...; without a network only
    the K-th and (K+1)-th."""
    sum_L: NDArray[np.float64]
    """Sum of the K largest values of each lane."""
    hits_W: NDArray[np.uint64]
    """Bit k of all words in sequence: whether the current row takes expert k."""
    load_P: NDArray[np.int32]
    """Loads of the current chunk."""
    value_C: NDArray[Any]
    """Biased scores of the row under repair."""
    expert_C: NDArray[np.int32]
    """Its experts."""


def make_scratch(routing: Routing, num_best: int) -> Scratch:
    """Working memory for one thread that asks for the `num_best` largest values of each token."""
    dtype, padded = routing.bias_P.dtype, routing.bias_P.size
    lanes = register_lanes(dtype)
    return Scratch(
        tile=np.full(BLOCK_BYTES // dtype.itemsize * padded, -np.inf, dtype),
        columns_GL=np.empty(routing.groups * lanes, dtype),
        best_KL=np.empty(_network_width(num_best) * lanes, dtype),
        sum_L=np.empty(lanes),
        hits_W=np.empty(-(-padded // WORD), np.uint64),
        load_P=np.empty(padded, np.int32),
        value_C=np.empty(padded, dtype),
        expert_C=np.empty(padded, np.int32),
    )


@jit_borrowing
def copy_rows(scores, start, rows, num_experts, stride, tile):
    """Copy rows of num_experts scores that lie one after the other to `tile`, `stride` apart."""
    for row in range(rows):
        scores_E = scores[start + row * num_experts : start + (row + 1) * num_experts]
        tile_E = tile[row * stride : row * stride + num_experts]
        for k in range(num_experts):
            tile_E[k] = scores_E[k]


@jit_borrowing
def route_block(source, start, rows, routing, results, token, scratch):
    """Route a block of tokens; the sum of their dual values, float64.

    Parameters
    ----------
    source : float array, flat
        Scores; one padded row after the other from `start` on.
    start, rows : int
        At most as many rows as `scratch.tile` holds; that many can be read in any case.
    routing : Routing
    results : Results
        Rows `token`, `token` + 1, ... of `experts_TK` and `margin_T` are written, unless these are empty.
    token : int
    scratch : Scratch
        Loads are added to `scratch.load_P`.
    """
    lanes, stride = scratch.sum_L.size, routing.bias_P.size
    dual = 0.0
    for first in range(0, rows, lanes):
        count = min(lanes, rows - first)
        dual = _route_register(source, start + first * stride, count, routing, results, token + first, dual, scratch)
    return dual


@jit_borrowing
def _route_register(source, start, rows, routing, results, token, dual, scratch):
    """`route_block` for no more rows than a register has lanes; `dual` plus the sum of their dual values."""
    lanes, stride, top_k = scratch.sum_L.size, routing.bias_P.size, routing.top_k
    bound_rows(source, start, routing, scratch)
    if routing.groups > 0:
        sum_best(scratch.best_KL, top_k, scratch.sum_L)
    for row in range(rows):
        row_start = start + row * stride
        tau = scratch.best_KL[(top_k - 1) * lanes + row]
        if _mark_row(source, row_start, routing.bias_P, tau, scratch) == top_k:
            dual += scratch.sum_L[row]
        else:
            dual += _repair_row(source, row_start, routing, tau, scratch)
        if results.experts_TK.shape[0] > 0:
            _write_row(scratch.hits_W, results.experts_TK, token + row)
        if results.margin_T.size > 0:
            results.margin_T[token + row] = tau - scratch.best_KL[top_k * lanes + row]
    return dual


@jit_borrowing
def _write_row(hits_W, experts_TK, token):
    pick = 0
    for word in range(hits_W.size):
        bits = hits_W[word]
        while bits != 0:
            experts_TK[token, pick] = word * WORD + lowest_bit(bits)
            bits &= bits - np.uint64(1)
            pick += 1


@jit_inline
def bound_rows(source, start, routing, scratch):
    """Step 1: for each of a register of rows a bar that at least top_k experts reach, in place K - 1 of `best_KL`.

    With groups of one expert it is the K-th value, and the next place holds the (K+1)-th. Without a network both are
    exact, and `sum_L` holds the sum of the K largest.
    """
    if routing.groups == 0:
        select_rows(source, start, routing, scratch)
        return
    for group in range(0, routing.groups, scratch.sum_L.size):
        transpose_biased(source, start, routing.bias_P, group, routing.groups, scratch.columns_GL)
    keep_best(scratch.columns_GL, scratch.best_KL, routing.merges)


@jit_inline
def _mark_row(source, row_start, bias_P, tau, scratch):
    """Step 2: mark and count the experts that reach tau, and add them to the loads."""
    stride = bias_P.size
    count = 0
    for word in range(stride // WORD):
        later = scratch.sum_L.size * stride
        bits = mark_hits(source, row_start, later, bias_P, word * WORD, tau, scratch.load_P, WORD)
        scratch.hits_W[word] = bits
        count += count_bits(bits)
    if stride % WORD > 0:
        count += _mark_rest(source, row_start, bias_P, tau, scratch)
    return count


@jit_borrowing
def _mark_rest(source, row_start, bias_P, tau, scratch):
    """The same for what whole words leave of the row: 16, 32 or 48 experts."""
    stride, load_P = bias_P.size, scratch.load_P
    first, later = stride // WORD * WORD, scratch.sum_L.size * stride
    if stride == first + 16:
        bits = mark_hits(source, row_start, later, bias_P, first, tau, load_P, 16)
    elif stride == first + 32:
        bits = mark_hits(source, row_start, later, bias_P, first, tau, load_P, 32)
    else:
        bits = mark_hits(source, row_start, later, bias_P, first, tau, load_P, 48)
    scratch.hits_W[-1] = bits
    return count_bits(bits)


@jit_borrowing
def _repair_row(source, row_start, routing, tau, scratch):
    """Step 3: reduce the hits to the top K, ties to the lowest index; the sum of their values."""
    bias_P, top_k, value_C, expert_C = routing.bias_P, routing.top_k, scratch.value_C, scratch.expert_C
    count = 0
    for word in range(scratch.hits_W.size):
        bits = scratch.hits_W[word]
        while bits != 0:
            expert = word * WORD + lowest_bit(bits)
            expert_C[count] = expert
            value_C[count] = source[row_start + expert] + bias_P[expert]
            bits &= bits - np.uint64(1)
            count += 1
    tau, above = raise_bar(value_C, count, top_k, tau)
    ties_to_keep = top_k - above
    total = 0.0
    for c in range(count):
        if value_C[c] > tau:
            total += np.float64(value_C[c])
        elif value_C[c] == tau and ties_to_keep > 0:
            total += np.float64(value_C[c])
            ties_to_keep -= 1
        else:
            expert = expert_C[c]
            scratch.load_P[expert] -= 1
            scratch.hits_W[expert // WORD] ^= np.uint64(1) << np.uint64(expert % WORD)
    return total
