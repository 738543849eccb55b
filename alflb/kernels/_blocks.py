"""How a block of tokens is routed: top-K by a sorting network that moves values only, sixteen tokens at a time.

Finding the K best experts of a token is mostly comparisons, and comparisons are cheapest when many tokens make the
same one at once: as many as a register has lanes. `route_block` takes tokens through three steps:

1. **Bounds** (`bound_rows`). The tokens' biased scores are transposed in registers, so that a register holds one
   expert and a lane is a token. A sorting network, which moves values and never indices, keeps the largest ``width``
   values of every lane, width being K rounded up to a power of two. The K-th of them, *tau*, is the bar that a token's
   experts must reach; the sum of the first K is its dual value.
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

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb.kernels._jit import jit_borrowing, jit_inline
from alflb.kernels._network import WIDEST, keep_best
from alflb.kernels._simd import count_bits, lowest_bit, mark_hits, register_lanes, sum_best, transpose_biased
from alflb.problem import FloatArray

BLOCK_BYTES = 64
"""A block is as many tokens as there are numbers in so many bytes; their dual values are added up first."""
WORD = 64
"""Experts whose hits share one integer."""
_BYTE = 8
_SET_BITS = np.array(
    [(*(bit for bit in range(_BYTE) if byte >> bit & 1), *range(_BYTE - byte.bit_count())) for byte in range(2**_BYTE)],
    dtype=np.int32,
)
"""The bits set in each byte, and numbers of no meaning behind them."""
_MANY_PICKS = 12
"""Picks per word of experts from which they are listed by bytes."""
_STRIDE = 16
"""Rows are padded to a multiple of it."""
_SHARED_GROUPS = 0.17
"""Pairs of a token's top K that may fall into one group, on average; each such token costs a repair."""


class Routing(NamedTuple):
    """What every token of a batch is routed by."""

    bias_P: NDArray[Any]
    """The bias in the dtype of the scores, padded with -inf, so that nobody picks what follows a row."""
    pitch: int
    """Numbers from one row to the next."""
    top_k: int
    groups: int
    """Groups in which experts enter the sorting network."""
    merges: tuple[int, ...]
    """As long as the logarithm of the width of the network in registers: code is compiled for this width only."""
    run: int | None
    """Numbers in so many columns, if more values are kept than that; None, for which less code is compiled, if not."""


def make_routing(
    bias_E: FloatArray, dtype: np.dtype[Any], top_k: int, *, with_next: bool = False, is_padded: bool = True
) -> Routing:
    """What tokens are routed by.

    `with_next` lets the (K+1)-th values be found too, with groups of one expert; `is_padded` says that rows come padded
    like the bias, not one right after the other.
    """
    groups = _num_groups(bias_E.size, top_k + with_next, register_lanes(dtype), 0.0 if with_next else _SHARED_GROUPS)
    bias_P = np.full(_round_up(max(bias_E.size, groups), _STRIDE), -np.inf, dtype)
    bias_P[: bias_E.size] = bias_E
    pitch = bias_P.size if is_padded else bias_E.size
    width = _network_width(top_k + with_next)
    merges = (0,) * (min(width, WIDEST).bit_length() - 1)
    run = WIDEST * register_lanes(dtype) if width > WIDEST else None
    return Routing(bias_P, pitch, top_k, groups, merges, run)


@lru_cache
def _num_groups(num_experts: int, num_best: int, lanes: int, most_shared: float) -> int:
    """How many groups the experts form on their way into the sorting network.

    Fewer groups mean less sorting and more repairs, a group of one expert none: the fewest that fill registers and the
    network and keep repairs rare.
    """
    unit = max(lanes, _network_width(num_best))
    most = _round_up(num_experts, unit)
    pairs = num_best * (num_best - 1) / 2 / max(1, num_experts * (num_experts - 1) / 2)
    enough = (g for g in range(unit, most, unit) if pairs * _pairs_within(num_experts, g) <= most_shared)
    return next(enough, most)


def _pairs_within(num_experts: int, groups: int) -> int:
    """Pairs of experts that share a group, the experts being dealt out in turn."""
    size, larger = divmod(num_experts, groups)
    return groups * (size * (size - 1) // 2) + larger * size


def _network_width(num_best: int) -> int:
    """Values kept of each lane: a power of two."""
    return 1 << (num_best - 1).bit_length()


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


class Scratch(NamedTuple):
    """Working memory of one thread; every function here overwrites it."""

    tile: NDArray[Any]
    """A block of rows, for tokens whose scores cannot be used where they lie."""
    columns_GL: NDArray[Any]
    """Transposed tokens: the lanes of group 0, of group 1, ..."""
    best_KL: NDArray[Any]
    """Largest values of each lane, descending: the lanes of the largest, of the second, ..."""
    sum_L: NDArray[np.float64]
    """Sum of the K largest values of each lane."""
    hits_W: NDArray[np.uint64]
    """Bit k of all words in sequence: whether the current row takes expert k."""
    load_P: NDArray[np.int32]
    """Loads of the current chunk."""
    value_C: NDArray[Any]
    """Biased scores of the row under repair."""
    expert_C: NDArray[np.int32]
    """Its experts, or those of a row that are being listed."""


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
        expert_C=np.empty(padded + _BYTE, np.int32),
    )


@jit_borrowing
def copy_rows(scores, start, rows, num_experts, pitch, tile):
    """Copy rows of num_experts scores that lie one after the other to `tile`, `pitch` apart."""
    for row in range(rows):
        scores_E = scores[start + row * num_experts : start + (row + 1) * num_experts]
        tile_E = tile[row * pitch : row * pitch + num_experts]
        for k in range(num_experts):
            tile_E[k] = scores_E[k]


@jit_borrowing
def route_block(source, start, rows, routing, results, token, scratch):
    """Route a block of tokens; the sum of their dual values, float64.

    Parameters
    ----------
    source : float array, flat
        Scores; one row after the other, `routing.pitch` apart, from `start` on.
    start, rows : int
        At most as many rows as `scratch.tile` holds; that many, padded, can be read in any case.
    routing : Routing
    results : Results
        Rows `token`, `token` + 1, ... of `experts_TK` and `margin_T` are written, unless these are empty.
    token : int
    scratch : Scratch
        Loads are added to `scratch.load_P`.
    """
    lanes, pitch = scratch.sum_L.size, routing.pitch
    dual = 0.0
    for first in range(0, rows, lanes):
        count = min(lanes, rows - first)
        dual = _route_register(source, start + first * pitch, count, routing, results, token + first, dual, scratch)
    return dual


@jit_borrowing
def _route_register(source, start, rows, routing, results, token, dual, scratch):
    """`route_block` for no more rows than a register has lanes; `dual` plus the sum of their dual values."""
    lanes, pitch, top_k = scratch.sum_L.size, routing.pitch, routing.top_k
    bound_rows(source, start, routing, scratch)
    sum_best(scratch.best_KL, top_k, scratch.sum_L)
    for row in range(rows):
        row_start = start + row * pitch
        tau = scratch.best_KL[(top_k - 1) * lanes + row]
        if _mark_row(source, row_start, routing, tau, scratch) == top_k:
            dual += scratch.sum_L[row]
        else:
            dual += _repair_row(source, row_start, routing, tau, scratch)
        if results.experts_TK.shape[0] > 0:
            _write_row(scratch, results.experts_TK, token + row)
        if results.margin_T.size > 0:
            results.margin_T[token + row] = tau - scratch.best_KL[top_k * lanes + row]
    return dual


@jit_borrowing
def _write_row(scratch, experts_TK, token):
    """List the experts of a row: one by one or, where many are picked, eight at once."""
    top_k = experts_TK.shape[1]
    if top_k < _MANY_PICKS * scratch.hits_W.size:
        pick = np.uint64(0)
        for word in range(scratch.hits_W.size):
            bits = scratch.hits_W[word]
            while bits != 0:
                experts_TK[token, pick] = word * WORD + lowest_bit(bits)
                bits &= bits - np.uint64(1)
                pick += np.uint64(1)
        return
    count = 0
    for word in range(scratch.hits_W.size):
        bits = scratch.hits_W[word]
        for first in range(word * WORD, (word + 1) * WORD, _BYTE):
            byte = bits & np.uint64(255)
            for n in range(_BYTE):
                scratch.expert_C[count + n] = first + _SET_BITS[byte, n]
            count += count_bits(byte)
            bits >>= np.uint64(_BYTE)
    for k in range(top_k):
        experts_TK[token, k] = scratch.expert_C[k]


@jit_inline
def bound_rows(source, start, routing, scratch):
    """Step 1: for each of a register of rows a bar that at least top_k experts reach, in place K - 1 of `best_KL`.

    With groups of one expert it is the K-th value, and the next place holds the (K+1)-th.
    """
    for group in range(0, routing.groups, scratch.sum_L.size):
        transpose_biased(source, start, routing.pitch, routing.bias_P, group, routing.groups, scratch.columns_GL)
    keep_best(scratch.columns_GL, scratch.best_KL, scratch.sum_L.size, routing.merges, routing.run)


@jit_inline
def _mark_row(source, row_start, routing, tau, scratch):
    """Step 2: mark and count the experts that reach tau, and add them to the loads."""
    bias_P, later = routing.bias_P, scratch.sum_L.size * routing.pitch
    count = 0
    for word in range(bias_P.size // WORD):
        bits = mark_hits(source, row_start, later, bias_P, word * WORD, tau, scratch.load_P, WORD)
        scratch.hits_W[word] = bits
        count += count_bits(bits)
    if bias_P.size % WORD > 0:
        count += _mark_rest(source, row_start, later, bias_P, tau, scratch)
    return count


@jit_borrowing
def _mark_rest(source, row_start, later, bias_P, tau, scratch):
    """The same for what whole words leave of the row: 16, 32 or 48 experts."""
    first, load_P = bias_P.size // WORD * WORD, scratch.load_P
    if bias_P.size == first + 16:
        bits = mark_hits(source, row_start, later, bias_P, first, tau, load_P, 16)
    elif bias_P.size == first + 32:
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
    tau, above = _raise_bar(value_C, count, top_k, tau)
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


@jit_borrowing
def _raise_bar(value_C, count, top_k, bar):
    """The K-th largest of the first `count` values, `bar` being a lower bound; how many values exceed it."""
    while True:
        above = 0
        lowest_above = value_C[0]
        for c in range(count):
            if value_C[c] > bar:
                lowest_above = value_C[c] if above == 0 else min(lowest_above, value_C[c])
                above += 1
        if above < top_k:
            return bar, above
        bar = lowest_above
