"""Compiled loops of a pass of the streaming solver: route the rows of a batch, and add up its bits."""

from __future__ import annotations

import math

import numpy as np

from alflb.exact.screening.row_kernels import add_compensated
from alflb.kernels._blocks import bound_rows, copy_rows
from alflb.kernels._jit import jit, jit_borrowing
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


@jit
def route_rows(  # type: ignore[no-untyped-def]
    scores_TE, bias_E, routing, scratch, width, dither, seed, top_exponent,
    load_E, count_EEB, loss_EEB, gap_T, experts_TK, sums,
):  # fmt: skip
    """Top-K of scores + bias in float64, and what each row would lose by its cheapest swap.

    Candidates are found by `routing` in the scores' own type, as many rows at once as a register has lanes: the experts
    no more than `width` below the (K+1)-th best, which covers that rounding and the dither. Where the K-th and (K+1)-th
    largest are within `dither` of each other, hashed numbers in [0, dither) are added first, so that ties are shared
    out among the experts as a smooth density would be.

    The swap gives up the last expert in for the first one out. Its (dithered) margin, at most 2^top_exponent, decides
    the bin of `count_EEB[last in, first out]`; bin b >= 1 holds margins in [1/2, 1) 2^(top_exponent + b + 1 - bins),
    bin 0 smaller ones. `loss_EEB` adds what the swap loses of score + bias, without dither.

    `gap_T` receives the margins (inf where no swap is allowed), `experts_TK` the chosen experts.
    `sums` adds up, compensated, the K largest (0, 1) and the chosen (2, 3), and plainly the sizes of all chosen (4).
    """
    num_tokens, num_experts = scores_TE.shape
    num_bins = count_EEB.shape[2]
    flat = scores_TE.reshape(-1)
    lanes, stride, top_k = scratch.sum_L.size, routing.bias_P.size, routing.top_k
    room = (lanes - 1) * num_experts + stride  # numbers that are read to bound a register of rows
    tile = read_only(scratch.tile)
    near = np.empty(stride, np.int32)
    exact, dithered = np.empty(stride + WIDTH), np.empty(stride + WIDTH)
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
        store(exact, count, splat(-np.inf))
        last_in, first_out = _boundary(exact, count + 1, top_k, np.inf)
        ranked = exact
        is_close = last_in - first_out <= dither
        if is_close:
            add_compensated(sums, 0, _sum_largest(exact, count, last_in, top_k))
            for n in range(count):
                dithered[n] = exact[n] + dither * _hashed(seed, np.uint64(start + near[n]))
            store(dithered, count, splat(-np.inf))
            last_in, first_out = _boundary(dithered, count + 1, top_k, np.inf)
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
        gap_T[token] = np.inf
        if entering >= 0 and first_out > -np.inf:
            gap_T[token] = last_in - first_out
            _, exponent = math.frexp(math.ldexp(last_in - first_out, -top_exponent))
            if exponent <= 0:
                b = max(0, num_bins - 1 + exponent)
                count_EEB[near[leaving], near[entering], b] += 1
                loss_EEB[near[leaving], near[entering], b] += exact[leaving] - exact[entering]
        if not is_close:
            add_compensated(sums, 0, chosen)
        add_compensated(sums, 2, chosen)
        sums[4] += size


@jit
def _sum_largest(value, count, last_in, top_k):  # type: ignore[no-untyped-def]
    """The K largest of the first `count` values added up, `last_in` being the K-th."""
    left = top_k
    total = 0.0
    for n in range(count):
        if value[n] > last_in:
            total += value[n]
            left -= 1
    return total + left * last_in


@jit
def _hashed(seed, index):  # type: ignore[no-untyped-def]
    """A number in [0, 1) that looks random."""
    return np.float64(splitmix(seed, index + np.uint64(1)) >> np.uint64(11)) * 2.0**-53


@jit_borrowing
def _list_near(source, start, num_experts, bias_P, bound, near):  # type: ignore[no-untyped-def]
    """List the experts of a row that reach the bound; how many they are."""
    count = 0
    for k in range(0, bias_P.size, WIDTH):
        bits = at_least(add(load(source, start + k), load(bias_P, k)), bound)
        if num_experts - k < WIDTH:
            bits &= (np.uint64(1) << np.uint64(max(0, num_experts - k))) - np.uint64(1)
        while bits != 0:
            near[count] = k + lowest_bit(bits)
            bits &= bits - np.uint64(1)
            count += 1
    return count


@jit
def _boundary(value, count, top_k, highest):  # type: ignore[no-untyped-def]
    """The K-th and (K+1)-th largest of the first `count` values; the last vector may be padded with lower ones."""
    last_in = splat(highest)
    first_out = splat(highest)
    for start in range(0, count, WIDTH):
        here = load(value, start)
        rank = no_ranks()
        for n in range(count):
            rank = rank_against(rank, here, value[n])
        last_in = smaller_if(last_in, here, rank, top_k - 1)
        first_out = smaller_if(first_out, here, rank, top_k)
    return least_element(last_in), least_element(first_out)
