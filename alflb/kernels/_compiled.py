"""The compiled allocator: top-K by a sorting network that moves values only, sixteen tokens at a time.

Finding the K best experts of a token is mostly comparisons, and comparisons are cheapest when many tokens
make the same one at once. A *block* is as many tokens as a 64-byte register has lanes (16 in float32, 8 in
float64), and `_route_block` takes it through three steps:

1. **Bounds** (`_bound_rows`). The block's biased scores are transposed in registers, so that a register
   holds one expert and a lane is a token. A sorting network, which moves values and never indices, keeps
   the largest ``width`` values of every lane, width being K rounded up to a power of two. The K-th of them,
   *tau*, is the bar a token's experts must reach; the sum of the first K is its dual value.
   With many experts, the experts g, g + groups, g + 2 groups, ... enter the network as their maximum; tau
   is then the K-th largest of the maxima, a lower bound on the true bar.
2. **Hits** (`_mark_row`). Each row is read again, now from cache, and compared with its tau. If exactly K
   experts reach it, they are the top K: K values reach it at least, so nothing was lost and nothing tied.
3. **Repair** (`_repair_row`). More hits than K mean a tie at the bar, or a bound that was too low. The few
   hits are sorted out exactly, lowest expert index first among equals.

The steps rest on a few *primitives* that stand in this file twice: as LLVM vector code, and as the same
loops in plain numba for processors and modes in which the vector code has not been tested. Both give the
same bits; which one is used is settled at import.

Everything that calls another compiled function stands in this one file, because numba's cache notices a
changed file only for the function it looks up, not for the functions which that one calls.

Suffixes besides T, E, K: P experts padded to whole words and groups, G groups, L lanes, W words of 64
experts, C candidates, N nodes, S experts of one node.
"""

from __future__ import annotations

import math
import platform
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable
from numpy.typing import NDArray

CHUNK = 2048
"""Tokens whose loads and dual sum are accumulated together; part of the result's definition."""
REGISTER_BYTES = 64
WORD = 64
"""Experts whose hits share one integer."""

_USE_VECTOR_CODE = not config.DISABLE_JIT and platform.machine().lower() in ("x86_64", "amd64")

# Compiled functions borrow their arrays from the caller and allocate nothing. Saying so (_nrt=False) spares
# two atomic operations an array and call, which would cost more than the work. error_model: numpy's rules,
# since a check for division by zero keeps loops from becoming vector code. Functions with one caller are
# inlined by numba, because LLVM would optimise their code once for themselves and once more in each caller.
_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False}
_jit = njit(**_OPTIONS)
_jit_inline = njit(**_OPTIONS, inline="always")


class Scratch(NamedTuple):
    """Working memory of one thread."""

    tile: NDArray[Any]
    """A block of padded rows, for tokens whose scores cannot be used where they lie."""
    columns_GL: NDArray[Any]
    """The transposed block: the lanes of group 0, of group 1, ..."""
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
    """Its experts."""


def make_scratch(bias_P: NDArray[Any], top_k: int, groups: int) -> Scratch:
    """Working memory for one thread."""
    dtype, padded = bias_P.dtype, bias_P.size
    lanes = REGISTER_BYTES // dtype.itemsize
    width = 1 << (top_k - 1).bit_length()
    return Scratch(
        tile=np.full(lanes * padded, -np.inf, dtype),
        columns_GL=np.empty(groups * lanes, dtype),
        best_KL=np.empty(width * lanes, dtype),
        sum_L=np.empty(lanes),
        hits_W=np.empty(-(-padded // WORD), np.uint64),
        load_P=np.empty(padded, np.int32),
        value_C=np.empty(padded, dtype),
        expert_C=np.empty(padded, np.int32),
    )


class NodeScratch(NamedTuple):
    """Working memory of one thread for group-limited routing. Its groups of experts are called nodes in this file."""

    score_N: NDArray[Any]
    """Sum of the two largest biased scores of each node."""
    is_open_N: NDArray[np.bool_]
    """Whether the current token may use a node."""


# ------------------------------------------------------------------------------------- chunks and blocks


@_jit
def route_chunks(scores, bias_P, top_k, groups, experts_TK, margin_T, first, last, load_CE, dual_C, scratch):
    """Route chunks first..last - 1 of all, whose scores lie one row after the other.

    experts_TK and margin_T have no rows if they are not wanted. Margins need groups of one expert and scratch
    made for K + 1.
    """
    num_experts = load_CE.shape[1]
    num_tokens = scores.size // num_experts
    lanes, stride = scratch.sum_L.size, bias_P.size
    for chunk in range(first, last):
        scratch.load_P[:] = 0
        end = min((chunk + 1) * CHUNK, num_tokens)
        for token in range(chunk * CHUNK, end, lanes):
            rows = min(lanes, end - token)
            if rows == lanes and num_experts == stride:
                dual = _route_block(scores, token * stride, rows, bias_P, top_k, groups, experts_TK, token, scratch)
            else:
                _copy_rows(scores, token * num_experts, rows, num_experts, stride, scratch.tile)
                dual = _route_block(scratch.tile, 0, rows, bias_P, top_k, groups, experts_TK, token, scratch)
            dual_C[chunk] += dual
            if margin_T.size > 0:
                _write_margins(scratch.best_KL, top_k, lanes, rows, margin_T, token)
        for k in range(num_experts):
            load_CE[chunk, k] = scratch.load_P[k]


@_jit
def _write_margins(best_KL, top_k, lanes, rows, margin_T, token):
    """K-th minus (K+1)-th value of each row; NaN if both are -inf."""
    for row in range(rows):
        margin_T[token + row] = best_KL[(top_k - 1) * lanes + row] - best_KL[top_k * lanes + row]


@_jit
def _copy_rows(scores, start, rows, num_experts, stride, tile):
    for row in range(rows):
        scores_E = scores[start + row * num_experts : start + (row + 1) * num_experts]
        tile_E = tile[row * stride : row * stride + num_experts]
        for k in range(num_experts):
            tile_E[k] = scores_E[k]


@_jit
def route_chunks_in_nodes(
    scores, bias_P, top_k, groups, topk_group, experts_TK, first, last, load_CE, dual_C, scratch, node_scratch
):
    """`route_chunks` with each token kept to its best nodes: the scores of the others are not copied."""
    num_experts = load_CE.shape[1]
    num_tokens = scores.size // num_experts
    lanes, stride = scratch.sum_L.size, bias_P.size
    for chunk in range(first, last):
        scratch.load_P[:] = 0
        end = min((chunk + 1) * CHUNK, num_tokens)
        for token in range(chunk * CHUNK, end, lanes):
            rows = min(lanes, end - token)
            for row in range(rows):
                score_E = scores[(token + row) * num_experts :][:num_experts]
                tile_E = scratch.tile[row * stride :][:num_experts]
                _open_best_nodes(score_E, bias_P, topk_group, node_scratch)
                _copy_open_nodes(score_E, node_scratch.is_open_N, tile_E)
            dual_C[chunk] += _route_block(scratch.tile, 0, rows, bias_P, top_k, groups, experts_TK, token, scratch)
        for k in range(num_experts):
            load_CE[chunk, k] = scratch.load_P[k]


@_jit_inline
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


@_jit_inline
def _copy_open_nodes(score_E, is_open_N, tile_E):
    size = score_E.size // is_open_N.size
    for node in range(is_open_N.size):
        score_S, tile_S = score_E[node * size :][:size], tile_E[node * size :][:size]
        if is_open_N[node]:
            for k in range(size):
                tile_S[k] = score_S[k]
        else:
            tile_S[:] = -np.inf


@_jit
def _route_block(source, start, rows, bias_P, top_k, groups, experts_TK, token, scratch):
    """Route the tokens whose padded rows lie at source[start:]; the sum of their dual values."""
    lanes, stride = scratch.sum_L.size, bias_P.size
    _bound_rows(source, start, bias_P, top_k, groups, scratch)
    dual = 0.0
    for row in range(rows):
        row_start = start + row * stride
        tau = scratch.best_KL[(top_k - 1) * lanes + row]
        if _mark_row(source, row_start, bias_P, tau, scratch) == top_k:
            dual += scratch.sum_L[row]
        else:
            dual += _repair_row(source, row_start, bias_P, top_k, tau, scratch)
        if experts_TK.shape[0] > 0:
            _write_row(scratch.hits_W, experts_TK, token + row)
    return dual


@_jit
def _write_row(hits_W, experts_TK, token):
    pick = 0
    for word in range(hits_W.size):
        bits = hits_W[word]
        while bits != 0:
            experts_TK[token, pick] = word * WORD + lowest_bit(bits)
            bits &= bits - np.uint64(1)
            pick += 1


# ------------------------------------------------------------------------------------- the three steps of a block


@_jit_inline
def _bound_rows(source, start, bias_P, top_k, groups, scratch):
    """Step 1: for each row a bar that at least K experts reach, and the sum of K values that reach it."""
    lanes = scratch.sum_L.size
    for group in range(0, groups, lanes):
        transpose_biased(source, start, bias_P, group, groups, scratch.columns_GL)
    _keep_best(scratch.columns_GL, scratch.best_KL, lanes)
    sum_best(scratch.best_KL, top_k, scratch.sum_L)


@_jit_inline
def _keep_best(columns_GL, best_KL, lanes):
    """Pass all columns through a network of the right width: in registers if that is a constant of the code."""
    width = best_KL.size // lanes
    best_KL[:] = -np.inf
    for start in range(0, columns_GL.size, best_KL.size):
        if width == 1:
            absorb(columns_GL, start, best_KL, 1)
        elif width == 2:
            absorb(columns_GL, start, best_KL, 2)
        elif width == 4:
            absorb(columns_GL, start, best_KL, 4)
        elif width == 8:
            absorb(columns_GL, start, best_KL, 8)
        elif width == 16:
            absorb(columns_GL, start, best_KL, 16)
        elif width == 32:
            absorb(columns_GL, start, best_KL, 32)
        else:
            _plain_absorb(columns_GL, start, best_KL, width)


@_jit_inline
def _mark_row(source, row_start, bias_P, tau, scratch):
    """Step 2: mark and count the experts that reach tau, and add them to the loads."""
    stride = bias_P.size
    next_block = scratch.sum_L.size * stride
    if stride == 16:
        bits = mark_hits(source, row_start, next_block, bias_P, 0, tau, scratch.load_P, 16)
        scratch.hits_W[0] = bits
        return count_bits(bits)
    if stride == 32:
        bits = mark_hits(source, row_start, next_block, bias_P, 0, tau, scratch.load_P, 32)
        scratch.hits_W[0] = bits
        return count_bits(bits)
    count = 0
    for word in range(scratch.hits_W.size):
        bits = mark_hits(source, row_start, next_block, bias_P, word * WORD, tau, scratch.load_P, WORD)
        scratch.hits_W[word] = bits
        count += count_bits(bits)
    return count


@_jit
def _repair_row(source, row_start, bias_P, top_k, tau, scratch):
    """Step 3: reduce the hits to the top K, ties to the lowest index; the sum of their values."""
    value_C, expert_C = scratch.value_C, scratch.expert_C
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
            total += value_C[c]
        elif value_C[c] == tau and ties_to_keep > 0:
            total += value_C[c]
            ties_to_keep -= 1
        else:
            expert = expert_C[c]
            scratch.load_P[expert] -= 1
            scratch.hits_W[expert // WORD] ^= np.uint64(1) << np.uint64(expert % WORD)
    return total


@_jit
def _raise_bar(value_C, count, top_k, tau):
    """The K-th largest of the first `count` values, tau being a lower bound; how many values exceed it."""
    while True:
        above = 0
        lowest_above = value_C[0]
        for c in range(count):
            if value_C[c] > tau:
                lowest_above = value_C[c] if above == 0 else min(lowest_above, value_C[c])
                above += 1
        if above < top_k:
            return tau, above
        tau = lowest_above


# ------------------------------------------------------------------------------------- drawn scores
#
# A drawn score is a function of (key, token, expert) alone, so a block can be made where it is used. Two
# neighbouring experts share one 64-bit output of splitmix64, 32 bits each. The formulas are float32
# throughout and made of exactly rounded operations only, so the same bits come out wherever they run.


@_jit
def route_drawn_chunks(source, num_tokens, bias_P, top_k, groups, experts_TK, first, last, load_CE, dual_C, scratch):
    """`route_chunks` for scores that are drawn a block at a time and never stored."""
    num_experts = load_CE.shape[1]
    lanes, stride = scratch.sum_L.size, bias_P.size
    for chunk in range(first, last):
        scratch.load_P[:] = 0
        end = min((chunk + 1) * CHUNK, num_tokens)
        for token in range(chunk * CHUNK, end, lanes):
            rows = min(lanes, end - token)
            draw_rows(source, token, rows, scratch.tile, stride)
            dual_C[chunk] += _route_block(scratch.tile, 0, rows, bias_P, top_k, groups, experts_TK, token, scratch)
        for k in range(num_experts):
            load_CE[chunk, k] = scratch.load_P[k]


class DrawSource(NamedTuple):
    """What a row of drawn scores depends on, and room for its random bits."""

    distribution: int
    """Index into `alflb.kernels.draws.DISTRIBUTIONS`."""
    key: np.uint64
    offset_E: NDArray[np.float32]
    words: NDArray[np.uint64]
    """Random bits of one row, two experts a word, padded to whole registers."""
    halves: NDArray[np.uint32]
    """The same memory, one expert an element."""


@_jit
def draw_rows(source, token, rows, target, stride):
    """Write the scores of tokens token..token + rows - 1 to target, rows `stride` apart."""
    num_experts = source.offset_E.size
    for row in range(rows):
        hash_words(source.key + np.uint64(token + row) * np.uint64(source.words.size) * _GOLDEN, source.words)
        scores_E = target[row * stride : row * stride + num_experts]
        if source.distribution == 0:
            _uniform(source.halves, source.offset_E, scores_E)
        elif source.distribution == 1:
            _logistic(source.halves, source.offset_E, scores_E)
        elif source.distribution == 2:
            _gumbel(source.halves, source.offset_E, scores_E)
        else:
            _normal(source.halves, source.offset_E, scores_E)


@_jit
def _uniform(halves, offset_E, scores_E):
    """Multiples of 2^-24 in [0, 1)."""
    for k in range(offset_E.size):
        scores_E[k] = np.float32(np.int32(halves[k] >> np.uint32(8))) * _TWO_TO_MINUS_24 + offset_E[k]


@_jit
def _logistic(halves, offset_E, scores_E):
    """+-log((1 - v) / v), v the probability beyond the score."""
    for k in range(offset_E.size):
        v = _tail(halves[k])
        distance = _log((_ONE - v) / v)
        scores_E[k] = (distance if _is_upper(halves[k]) else -distance) + offset_E[k]


@_jit
def _gumbel(halves, offset_E, scores_E):
    """-log(-log(u)), with u = 1 - v in the upper tail, where u itself would be rounded to 1."""
    for k in range(offset_E.size):
        v = _tail(halves[k])
        upper = _is_upper(halves[k])
        near_one = -_log_of_one_plus(-v)
        elsewhere = -_log(_ONE - v if upper else v)
        scores_E[k] = offset_E[k] - _log(near_one if upper and v < _QUARTER else elsewhere)


@_jit
def _normal(halves, offset_E, scores_E):
    """The quantile of the normal law: odd about the median, so (1 - 2v) times a function of w = -log(4v(1 - v))."""
    for k in range(offset_E.size):
        v = _tail(halves[k])
        w = -_log(_FOUR * v * (_ONE - v))
        centre = _polynomial(_NORMAL_CENTRE, w - _THREE)
        tail = _polynomial(_NORMAL_TAIL, math.sqrt(w) - _THREE_AND_HALF)
        distance = (_ONE - v - v) * (centre if w < _SIX else tail)
        scores_E[k] = (distance if _is_upper(halves[k]) else -distance) + offset_E[k]


@register_jitable
def _is_upper(half):
    """One random bit chooses the side of the median ..."""
    return (half & np.uint32(1)) != 0


@register_jitable
def _tail(half):
    """... and the other 31 the probability beyond the score, in (0, 1/2]."""
    return (np.float32(np.int32(half >> np.uint32(1))) + _HALF) * _TWO_TO_MINUS_32


@register_jitable
def _log(x):
    """Natural logarithm of a positive normal number, to about one unit in the last place."""
    bits = float_to_bits(x)
    exponent = np.int32(np.int32(bits - _SQRT_HALF_BITS) >> 23)  # x = m 2^exponent, m in [sqrt(1/2), sqrt(2))
    mantissa = bits_to_float(np.int32(bits - np.int32(exponent << 23)))
    log_m = _log_of_one_plus(mantissa - _ONE)
    return log_m + np.float32(exponent) * _LN_2_LOW + np.float32(exponent) * _LN_2_HIGH


@register_jitable
def _log_of_one_plus(f):
    """log(1 + f) for f in [sqrt(1/2) - 1, sqrt(2) - 1], accurate also near 0."""
    return f - _HALF * f * f + f * f * f * _polynomial(_LOG, f)


@register_jitable
def _polynomial(c, x):
    """c[0] + c[1] x + ... + c[8] x^8, bracketed for short chains of dependent operations."""
    x2 = x * x
    x4 = x2 * x2
    low = (c[0] + c[1] * x) + (c[2] + c[3] * x) * x2
    high = (c[4] + c[5] * x) + (c[6] + c[7] * x) * x2
    return low + (high + c[8] * x4) * x4


_SQRT_HALF_BITS = np.int32(0x3F3504F3)
_HALF, _QUARTER, _ONE, _THREE, _FOUR, _SIX = (np.float32(x) for x in (0.5, 0.25, 1, 3, 4, 6))
_THREE_AND_HALF = np.float32(3.5)
_TWO_TO_MINUS_24, _TWO_TO_MINUS_32 = np.float32(2.0**-24), np.float32(2.0**-32)
_LN_2_HIGH = np.float32(0.693359375)  # few bits, so that its product with an exponent is exact
_LN_2_LOW = np.float32(math.log(2.0) - 0.693359375)


def _float32(*numbers):
    return tuple(np.float32(number) for number in numbers)


# Minimax polynomials of degree 8, fitted in float64. Relative error below 1e-7 for (log(1 + f) - f + f^2/2) / f^3,
# 4e-7 for the normal quantile over 1 - 2v: in w - 3 for w <= 6, in sqrt(w) - 3.5 beyond.
_LOG = _float32(
    0.3333331048,
    -0.2499998659,
    0.2000215203,
    -0.1666919590,
    0.1421989799,
    -0.1238581091,
    0.1186618209,
    -0.1177964434,
    0.06917648017,
)
_NORMAL_CENTRE = _float32(
    2.296035528,
    0.3417185545,
    -0.008116988465,
    -0.001184988301,
    2.772347943e-4,
    -1.696207619e-5,
    -2.807346164e-6,
    4.804090850e-7,
    1.736122357e-9,
)
_NORMAL_TAIL = _float32(
    4.717089176,
    1.424632788,
    0.004640130792,
    -0.002897806937,
    0.001513415249,
    -0.001013339846,
    6.807355094e-4,
    -2.794867614e-4,
    4.428939428e-5,
)


# ------------------------------------------------------------------------------------- primitives, plain numba


@register_jitable
def _plain_transpose_biased(source, start, bias_P, group, groups, columns_GL):
    """Of the block at source[start:], columns of `lanes` groups from `group` on: maxima of score + bias."""
    lanes, stride = columns_GL.size // groups, bias_P.size
    columns_GL[group * lanes : (group + lanes) * lanes] = -np.inf
    for first in range(group, stride, groups):
        for row in range(lanes):
            score_L = source[start + row * stride + first :][:lanes]
            bias_L = bias_P[first:][:lanes]
            column_L = columns_GL[group * lanes + row :][: lanes * lanes : lanes]
            for g in range(lanes):
                value = score_L[g] + bias_L[g]
                column_L[g] = value if value > column_L[g] else column_L[g]


@register_jitable
def _plain_absorb(columns_GL, start, best_KL, width):
    """Replace the best `width` values of each lane by the best of them and of `width` more, descending."""
    lanes = best_KL.size // width
    new_KL = columns_GL[start:][: best_KL.size]
    merged = 1
    while merged < width:  # Batcher's odd-even merge sort, as in `sorting_network`
        step = merged
        while step >= 1:
            for first in range(step % merged, width - step, 2 * step):
                for i in range(first, min(first + step, width - step)):
                    if i ^ (i + step) < 2 * merged:
                        _plain_exchange(new_KL, i, i + step, lanes)
            step //= 2
        merged *= 2
    for i in range(width):  # largest against smallest, then a bitonic merge
        best_L, new_L = best_KL[i * lanes :][:lanes], new_KL[(width - 1 - i) * lanes :][:lanes]
        for lane in range(lanes):
            best_L[lane] = new_L[lane] if new_L[lane] > best_L[lane] else best_L[lane]
    step = width // 2
    while step >= 1:
        for i in range(width):
            if not i & step:
                _plain_exchange(best_KL, i, i + step, lanes)
        step //= 2


@register_jitable
def _plain_exchange(values_KL, i, j, lanes):
    """Put the larger of values i and j first, in every lane."""
    first_L, second_L = values_KL[i * lanes :][:lanes], values_KL[j * lanes :][:lanes]
    for lane in range(lanes):
        x, y = first_L[lane], second_L[lane]
        first_L[lane] = x if x > y else y
        second_L[lane] = y if x > y else x


@register_jitable
def _plain_sum_best(best_KL, top_k, sum_L):
    """Sum of the first top_k values of each lane, in float64."""
    sum_L[:] = 0.0
    for k in range(top_k):
        best_L = best_KL[k * sum_L.size :][: sum_L.size]
        for lane in range(sum_L.size):
            sum_L[lane] += best_L[lane]


@register_jitable
def _plain_mark_hits(source, row_start, next_block, bias_P, first, tau, load_P, count):
    """Of `count` experts from `first` on, the bits of those that reach tau; each is counted in load_P."""
    score_C, bias_C, load_C = source[row_start + first :][:count], bias_P[first:][:count], load_P[first:][:count]
    bits = np.uint64(0)
    for k in range(count):
        hit = np.uint64(score_C[k] + bias_C[k] >= tau)
        load_C[k] += np.int32(hit)
        bits |= hit << np.uint64(k)
    return bits


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


@register_jitable
def _plain_hash_words(counter, words):
    """splitmix64 (Steele, Lea and Flood, OOPSLA 2014): words.size outputs, a multiple of 8, from `counter` on."""
    for i in range(words.size):
        z = counter + np.uint64(i) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        words[i] = z ^ (z >> np.uint64(31))


@register_jitable
def _plain_float_to_bits(x):
    """The float32's bits as an int32."""
    return np.float32(x).view(np.int32)


@register_jitable
def _plain_bits_to_float(bits):
    """The float32 with these bits."""
    return np.int32(bits).view(np.float32)


@register_jitable
def _plain_count_bits(bits):
    count = 0
    while bits != 0:
        bits &= bits - np.uint64(1)
        count += 1
    return count


@register_jitable
def _plain_lowest_bit(bits):
    return _plain_count_bits(~bits & (bits - np.uint64(1)))


# ------------------------------------------------------------------------------------- primitives, LLVM vector code

_I1, _I32, _I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)


def _register_type(dtype):
    """The LLVM type of one full register of this numba dtype."""
    element = ir.FloatType() if dtype == types.float32 else ir.DoubleType()
    return ir.VectorType(element, REGISTER_BYTES * 8 // dtype.bitwidth)


def _address(context, builder, array_type, array, index, pointee):
    """Pointer to array[index] of a flat array, to be read as `pointee`."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ir.PointerType(pointee))


def _load(builder, pointer, index, element_bytes):
    return builder.load(builder.gep(pointer, [ir.Constant(_I64, index)]), align=element_bytes)


def _store(builder, vectors, pointer, element_bytes):
    for index, vector in enumerate(vectors):
        builder.store(vector, builder.gep(pointer, [ir.Constant(_I64, index)]), align=element_bytes)


def _larger(builder, x, y):
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


def _smaller(builder, x, y):
    return builder.select(builder.fcmp_ordered("<", x, y), x, y)


def _compare_exchange(builder, vectors, i, j):
    x, y = vectors[i], vectors[j]
    vectors[i], vectors[j] = _larger(builder, x, y), _smaller(builder, x, y)


def _lane_mask(lanes):
    return ir.Constant(ir.VectorType(_I32, len(lanes)), lanes)


def sorting_network(width):
    """Pairs (i, j), i < j, of Batcher's odd-even merge sort; a width that is a power of two.

    Examples
    --------
    >>> sorting_network(4)
    [(0, 1), (2, 3), (0, 2), (1, 3), (1, 2)]
    """
    pairs = []
    merged = 1
    while merged < width:
        step = merged
        while step >= 1:
            for start in range(step % merged, width - step, 2 * step):
                for i in range(start, min(start + step, width - step)):
                    if i ^ (i + step) < 2 * merged:  # both in one pair of merged runs
                        pairs.append((i, i + step))
            step //= 2
        merged *= 2
    return pairs


@intrinsic
def _vector_transpose_biased(_, source, start, bias_P, group, groups, columns_GL):
    register = _register_type(bias_P.dtype)
    lanes, element_bytes = register.count, bias_P.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        source_, start_, bias_, group_, groups_, columns_ = args
        stride = builder.extract_value(context.make_array(bias_P)(context, builder, bias_).shape, 0)

        def biased_rows(expert):
            bias = _load(builder, _address(context, builder, bias_P, bias_, expert, register), 0, element_bytes)
            index = builder.add(start_, expert)
            for _ in range(lanes):
                row = _load(builder, _address(context, builder, source, source_, index, register), 0, element_bytes)
                yield builder.fadd(row, bias)
                index = builder.add(index, stride)

        slots = [cgutils.alloca_once(builder, register) for _ in range(lanes)]
        for slot, row in zip(slots, biased_rows(group_)):
            builder.store(row, slot)
        others = cgutils.for_range_slice(builder, builder.add(group_, groups_), stride, groups_, _I64)
        with others as (expert, _):
            for slot, row in zip(slots, biased_rows(expert)):
                builder.store(_larger(builder, row, builder.load(slot)), slot)

        # A transposition is log2(lanes) rounds of interleaving row i with row i + lanes / 2.
        rows = [builder.load(slot) for slot in slots]
        half = lanes // 2
        interleaved = [i // 2 + i % 2 * lanes for i in range(lanes)]
        low, high = _lane_mask(interleaved), _lane_mask([i + half for i in interleaved])
        for _ in range(lanes.bit_length() - 1):
            rows = [builder.shuffle_vector(rows[i], rows[i + half], mask) for i in range(half) for mask in (low, high)]
        first = builder.mul(group_, ir.Constant(_I64, lanes))
        _store(builder, rows, _address(context, builder, columns_GL, columns_, first, register), element_bytes)
        return context.get_dummy_value()

    return types.void(source, types.intp, bias_P, types.intp, types.intp, columns_GL), codegen


@intrinsic(prefer_literal=True)
def _vector_absorb(_, columns_GL, start, best_KL, width):
    if not isinstance(width, types.IntegerLiteral):
        return None
    register = _register_type(best_KL.dtype)
    count, element_bytes = width.literal_value, best_KL.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        columns = _address(context, builder, columns_GL, args[0], args[1], register)
        best = _address(context, builder, best_KL, args[2], ir.Constant(_I64, 0), register)
        new = [_load(builder, columns, i, element_bytes) for i in range(count)]
        for i, j in sorting_network(count):
            _compare_exchange(builder, new, i, j)
        # Largest against smallest: the larger of each pair are the best `count` of both, rising then falling.
        merged = [_larger(builder, _load(builder, best, i, element_bytes), new[-1 - i]) for i in range(count)]
        step = count // 2
        while step:
            for i in range(count):
                if not i & step:
                    _compare_exchange(builder, merged, i, i + step)
            step //= 2
        _store(builder, merged, best, element_bytes)
        return context.get_dummy_value()

    return types.void(columns_GL, types.intp, best_KL, width), codegen


@intrinsic
def _vector_sum_best(_, best_KL, top_k, sum_L):
    register = _register_type(best_KL.dtype)
    wide = _register_type(types.float64)
    element_bytes = best_KL.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        best = _address(context, builder, best_KL, args[0], ir.Constant(_I64, 0), register)
        zero = ir.Constant(wide, [0.0] * wide.count)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(register.count // wide.count)]
        with cgutils.for_range(builder, args[1]) as loop:
            values = builder.load(builder.gep(best, [loop.index]), align=element_bytes)
            for part, total in enumerate(sums):
                first = part * wide.count
                addend = builder.shuffle_vector(values, values, _lane_mask(list(range(first, first + wide.count))))
                if addend.type != wide:
                    addend = builder.fpext(addend, wide)
                builder.store(builder.fadd(builder.load(total), addend), total)
        target = _address(context, builder, sum_L, args[2], ir.Constant(_I64, 0), wide)
        _store(builder, [builder.load(total) for total in sums], target, 8)
        return context.get_dummy_value()

    return types.void(best_KL, types.intp, sum_L), codegen


@intrinsic(prefer_literal=True)
def _vector_mark_hits(_, source, row_start, next_block, bias_P, first, tau, load_P, count):
    if not isinstance(count, types.IntegerLiteral):
        return None
    register = _register_type(bias_P.dtype)
    lanes, element_bytes = register.count, bias_P.dtype.bitwidth // 8
    counters = ir.VectorType(_I32, lanes)

    def codegen(context, builder, signature, args):
        source_, row_start_, next_block_, bias_, first_, tau_, load_, _ = args
        index = builder.add(row_start_, first_)
        row = _address(context, builder, source, source_, index, register)
        next_row = _address(context, builder, source, source_, builder.add(index, next_block_), register)
        bias = _address(context, builder, bias_P, bias_, first_, register)
        load = _address(context, builder, load_P, load_, first_, counters)
        bar = builder.insert_element(ir.Constant(register, ir.Undefined), tau_, ir.Constant(_I32, 0))
        bar = builder.shuffle_vector(bar, bar, _lane_mask([0] * lanes))
        word = ir.Constant(_I64, 0)
        new_loads = []
        for part in range(count.literal_value // lanes):
            # While the core is busy here, fetch the rows it will want next.
            _prefetch(builder, builder.gep(next_row, [ir.Constant(_I64, part)]))
            value = builder.fadd(_load(builder, row, part, element_bytes), _load(builder, bias, part, element_bytes))
            hits = builder.fcmp_ordered(">=", value, bar)
            new_loads.append(builder.add(_load(builder, load, part, 4), builder.zext(hits, counters)))
            bits = builder.zext(builder.bitcast(hits, ir.IntType(lanes)), _I64)
            word = builder.or_(word, builder.shl(bits, ir.Constant(_I64, part * lanes)))
        _store(builder, new_loads, load, 4)
        return word

    signature = types.uint64(source, types.intp, types.intp, bias_P, types.intp, bias_P.dtype, load_P, count)
    return signature, codegen


def _prefetch(builder, pointer):
    pointer = builder.bitcast(pointer, ir.PointerType(ir.IntType(8)))
    function_type = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
    prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], function_type)
    read, keep_close, data = (ir.Constant(_I32, flag) for flag in (0, 3, 1))
    builder.call(prefetch, [pointer, read, keep_close, data])


@intrinsic
def _vector_count_bits(_, bits):
    def codegen(context, builder, signature, args):
        return builder.ctpop(args[0])

    return types.int64(types.uint64), codegen


@intrinsic
def _vector_lowest_bit(_, bits):
    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(_I1, 0))

    return types.int64(types.uint64), codegen


@intrinsic
def _vector_hash_words(_, counter, words):
    register = ir.VectorType(_I64, 8)

    def every_lane(number):
        return ir.Constant(register, [int(number)] * register.count)

    def codegen(context, builder, signature, args):
        counters = builder.insert_element(ir.Constant(register, ir.Undefined), args[0], ir.Constant(_I32, 0))
        counters = builder.shuffle_vector(counters, counters, _lane_mask([0] * register.count))
        steps = ir.Constant(register, [lane * int(_GOLDEN) % 2**64 for lane in range(register.count)])
        counters = cgutils.alloca_once_value(builder, builder.add(counters, steps))
        target = _address(context, builder, words, args[1], ir.Constant(_I64, 0), register)
        size = builder.extract_value(context.make_array(words)(context, builder, args[1]).shape, 0)
        with cgutils.for_range(builder, builder.udiv(size, ir.Constant(_I64, register.count))) as loop:
            z = builder.load(counters)
            builder.store(builder.add(z, every_lane(register.count * int(_GOLDEN) % 2**64)), counters)
            for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
                z = builder.mul(builder.xor(z, builder.lshr(z, every_lane(shift))), every_lane(factor))
            z = builder.xor(z, builder.lshr(z, every_lane(31)))
            builder.store(z, builder.gep(target, [loop.index]), align=8)
        return context.get_dummy_value()

    return types.void(types.uint64, words), codegen


@intrinsic
def _vector_float_to_bits(_, x):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], _I32)

    return types.int32(types.float32), codegen


@intrinsic
def _vector_bits_to_float(_, bits):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


if _USE_VECTOR_CODE:
    transpose_biased, absorb, sum_best = _vector_transpose_biased, _vector_absorb, _vector_sum_best
    mark_hits, count_bits, lowest_bit = _vector_mark_hits, _vector_count_bits, _vector_lowest_bit
    hash_words, float_to_bits, bits_to_float = _vector_hash_words, _vector_float_to_bits, _vector_bits_to_float
else:
    transpose_biased, absorb, sum_best = _plain_transpose_biased, _plain_absorb, _plain_sum_best
    mark_hits, count_bits, lowest_bit = _plain_mark_hits, _plain_count_bits, _plain_lowest_bit
    hash_words, float_to_bits, bits_to_float = _plain_hash_words, _plain_float_to_bits, _plain_bits_to_float
