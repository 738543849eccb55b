"""Compiled loops of a pass of the streaming solver: route the rows of a batch, and add up its bits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb.exact.screening.row_kernels import add_compensated
from alflb.kernels._blocks import WORD, bound_rows, copy_rows
from alflb.kernels._jit import jit_borrowing
from alflb.kernels._simd import (
    WIDTH,
    add,
    at_least,
    least_element,
    load,
    lowest_bit,
    no_ranks,
    rank_against,
    read_only,
    smaller_if,
    splat,
    store,
)
from alflb.kernels._splitmix import splitmix


@jit_borrowing
def sum_words(words):  # type: ignore[no-untyped-def]
    """The sum of unsigned integers modulo 2^64."""
    total = np.uint64(0)
    for n in range(words.size):
        total += np.uint64(words[n])
    return total


_MANTISSA_BITS, _EXPONENT_BIAS = 52, 1022
"""A float64 of at least 0 is below 2^e and not below 2^(e - 1), e being its bits >> 52, less 1022."""


class Candidates(NamedTuple):
    """Working memory: the experts of one row that may be among its K + 1 best."""

    near: NDArray[np.int32]
    """Ascending."""
    exact: NDArray[np.float64]
    """Scores + bias."""
    dithered: NDArray[np.float64]
    """The same with dither added; only where that decides."""

    @classmethod
    def room_for(cls, num_experts: int) -> Candidates:
        """Arrays large enough for all experts, and for a vector behind them."""
        return cls(np.empty(num_experts, np.int32), np.empty(num_experts + WIDTH), np.empty(num_experts + WIDTH))


class Swaps(NamedTuple):
    """The cheapest swap of each row: its last expert in, i, is given up for its first one out, j."""

    gap_T: NDArray[np.float64]
    """(Dithered) margin; inf if no swap is allowed."""
    pair_T: NDArray[np.int32]
    """i E + j; of no meaning if no swap is allowed."""
    loss_T: NDArray[np.float64]
    """What it loses of score + bias, without dither."""

    @classmethod
    def room_for(cls, num_tokens: int) -> Swaps:
        """Arrays for so many rows."""
        return cls(np.empty(num_tokens), np.empty(num_tokens, np.int32), np.empty(num_tokens))


@jit_borrowing
def route_rows(  # type: ignore[no-untyped-def]
    scores_TE, bias_E, routing, scratch, candidates, width, dither, seed, load_E, experts_TK, swaps, sums
):
    """Top-K of scores + bias in float64, and what each row would lose by its cheapest swap.

    Candidates are found by `routing` in the scores' own type, as many rows at once as a register has lanes: the experts
    no more than `width` below the (K+1)-th best, which covers that rounding and the dither. Where the K-th and (K+1)-th
    largest are within `dither` of each other, hashed numbers in [0, dither) are added first, so that ties are shared
    out among the experts as a smooth density would be.

    `experts_TK` receives the chosen experts, `swaps` the cheapest swaps. `sums` adds up, compensated, the K largest
    (0, 1) and the chosen (2, 3), and plainly the sizes of all chosen (4).
    """
    num_tokens, num_experts = scores_TE.shape
    flat = scores_TE.reshape(-1)
    lanes, stride, top_k = scratch.sum_L.size, routing.bias_P.size, routing.top_k
    room = (lanes - 1) * num_experts + stride  # numbers that are read to bound a register of rows
    tile = read_only(scratch.tile)
    near, exact, dithered = candidates
    for token in range(num_tokens):
        row = token % lanes
        if row == 0:
            source, first = flat, token * num_experts
            if first + room > flat.size:
                copy_rows(flat, first, min(lanes, num_tokens - token), num_experts, num_experts, scratch.tile)
                source, first = tile, 0
            bound_rows(source, first, routing, scratch)
        start = token * num_experts
        bound = scratch.best_KL[top_k * lanes + row] - width
        count = _list_near(source, first + row * num_experts, num_experts, routing.bias_P, bound, near)
        for n in range(count):
            exact[n] = np.float64(flat[start + near[n]]) + bias_E[near[n]]
        last_in, first_out = _boundary(exact, count, top_k)
        ranked = exact
        is_close = last_in - first_out <= dither
        if is_close:
            add_compensated(sums, 0, _sum_largest(exact, count, last_in, top_k))
            for n in range(count):
                dithered[n] = exact[n] + dither * _hashed(seed, np.uint64(start + near[n]))
            last_in, first_out = _boundary(dithered, count, top_k)
            ranked = dithered
        left = top_k  # picks for values equal to the last one in
        if last_in == first_out:
            for n in range(count):
                left -= ranked[n] > last_in
        chosen = 0.0
        size = 0.0
        picks = 0
        leaving = -1
        entering = -1
        for n in range(count):
            is_last = ranked[n] == last_in and left > 0
            if ranked[n] > last_in or is_last:
                k = near[n]
                load_E[k] += 1
                experts_TK[token, picks] = k
                picks += 1
                chosen += exact[n]
                size += abs(exact[n])
                if is_last:
                    leaving = n
                    left -= 1
            elif ranked[n] == first_out and entering < 0:
                entering = n
        swaps.gap_T[token] = np.inf
        if entering >= 0 and first_out > -np.inf:
            swaps.gap_T[token] = last_in - first_out
            swaps.pair_T[token] = near[leaving] * num_experts + near[entering]
            swaps.loss_T[token] = exact[leaving] - exact[entering]
        if not is_close:
            add_compensated(sums, 0, chosen)
        add_compensated(sums, 2, chosen)
        sums[4] += size


@jit_borrowing
def count_swaps(gap_bits_T, swaps, top_exponent, count_EEB, loss_EEB):  # type: ignore[no-untyped-def]
    """Add the swaps with margins below 2^top_exponent to histograms of their number and of what they lose.

    Bin b >= 1 holds margins in [1/2, 1) 2^(top_exponent + b + 1 - bins), bin 0 smaller ones. This is a loop of its own
    since the histograms are large: here the next rows do not wait for memory. `gap_bits_T` are the bits of `gap_T`.
    """
    num_bins = count_EEB.shape[2]
    count, loss = count_EEB.reshape(-1), loss_EEB.reshape(-1)
    for token in range(gap_bits_T.size):
        exponent = (gap_bits_T[token] >> _MANTISSA_BITS) - _EXPONENT_BIAS - top_exponent
        if exponent <= 0:
            place = swaps.pair_T[token] * num_bins + max(0, num_bins - 1 + exponent)
            count[place] += 1
            loss[place] += swaps.loss_T[token]


@jit_borrowing
def _sum_largest(value, count, last_in, top_k):  # type: ignore[no-untyped-def]
    """The K largest of the first `count` values added up, `last_in` being the K-th."""
    left = top_k
    total = 0.0
    for n in range(count):
        if value[n] > last_in:
            total += value[n]
            left -= 1
    return total + left * last_in


@jit_borrowing
def _hashed(seed, index):  # type: ignore[no-untyped-def]
    """A number in [0, 1) that looks random."""
    return np.float64(splitmix(seed, index + np.uint64(1)) >> np.uint64(11)) * 2.0**-53


@jit_borrowing
def _list_near(source, start, num_experts, bias_P, bound, near):  # type: ignore[no-untyped-def]
    """List the experts of a row that reach the bound; how many they are."""
    count = 0
    for first in range(0, num_experts, WORD):
        bits = np.uint64(0)
        for k in range(first, min(first + WORD, bias_P.size), WIDTH):
            bits |= at_least(add(load(source, start + k), load(bias_P, k)), bound) << np.uint64(k - first)
        if num_experts - first < WORD:
            bits &= (np.uint64(1) << np.uint64(num_experts - first)) - np.uint64(1)
        while bits != 0:
            near[count] = first + lowest_bit(bits)
            bits &= bits - np.uint64(1)
            count += 1
    return count


@jit_borrowing
def _boundary(value, count, top_k):  # type: ignore[no-untyped-def]
    """The K-th and (K+1)-th largest of the first `count` values, which are at least K; -inf if there are no more.

    There is room for a vector behind them, which is overwritten.
    """
    if count == top_k + 1:
        first_out, last_in = min(value[0], value[1]), max(value[0], value[1])
        for n in range(2, count):
            last_in = min(last_in, max(value[n], first_out))
            first_out = min(first_out, value[n])
        return last_in, first_out
    store(value, count, splat(-np.inf))
    lowest_in, highest_out = splat(np.inf), splat(np.inf)
    for start in range(0, count + 1, WIDTH):
        here = load(value, start)
        rank = no_ranks()
        for n in range(count + 1):
            rank = rank_against(rank, here, value[n])
        lowest_in = smaller_if(lowest_in, here, rank, top_k - 1)
        highest_out = smaller_if(highest_out, here, rank, top_k)
    return least_element(lowest_in), least_element(highest_out)
