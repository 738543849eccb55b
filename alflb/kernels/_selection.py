"""The K-th largest value of one row at a time, for K too large for a sorting network.

A bar is moved until exactly K values reach it: values are counted sixteen at a time, and the interval that holds the
bar is cut in turns where the counts at its ends suggest and in the middle. Ties may leave no such bar, and values of
very different sizes may hide it for long; then the few values above the interval's lower end are sorted out exactly.
"""

from __future__ import annotations

import numpy as np

from alflb.kernels._jit import jit_borrowing
from alflb.kernels._simd import (
    WIDTH,
    add,
    add_reaching,
    at_least,
    count_bits,
    finite_size,
    larger,
    largest_element,
    least_element,
    load,
    part,
    smaller,
    splat,
    store,
    sum_elements,
)

_MOST_CUTS = 24


@jit_borrowing
def select_rows(source, start, routing, scratch):
    """For a register of rows the K-th and (K+1)-th value and the sum of the K largest, as `bound_rows` wants them."""
    lanes, stride, top_k = scratch.sum_L.size, routing.bias_P.size, routing.top_k
    for row in range(lanes):
        last_in, first_out, total = _select(source, start + row * stride, routing, scratch.value_C)
        scratch.best_KL[(top_k - 1) * lanes + row] = last_in
        scratch.sum_L[row] = total
        if scratch.best_KL.size > top_k * lanes:
            scratch.best_KL[top_k * lanes + row] = first_out


@jit_borrowing
def _select(source, start, routing, value_C):
    """The K-th and (K+1)-th value of one row, and the sum of the K largest, which is of no meaning if these tie."""
    bias_P, top_k = routing.bias_P, routing.top_k
    half = value_C.dtype.type(0.5)
    size = splat(value_C.dtype.type(0))
    for k in range(0, bias_P.size, WIDTH):
        biased = add(load(source, start + k), load(bias_P, k))
        store(value_C, k, biased)
        size = larger(size, finite_size(biased))
    high = largest_element(size)
    low = -high
    num_low, num_high = _count(value_C, low), 0
    if num_low < top_k:
        return value_C.dtype.type(-np.inf), value_C.dtype.type(-np.inf), -np.inf
    bar = low
    num_bar = num_low
    for cut in range(_MOST_CUTS):
        if num_bar == top_k:
            break
        bar = low * half + high * half
        if cut % 2 == 0:
            share = value_C.dtype.type((top_k - num_high + 0.5) / (num_low - num_high + 1.0))
            bar = high - (high * half - low * half) * (share + share)
        if not low < bar < high:
            break
        num_bar = _count(value_C, bar)
        if num_bar >= top_k:
            low, num_low = bar, num_bar
        else:
            high, num_high = bar, num_bar
    if num_low > top_k:
        low, _ = raise_bar(value_C, value_C.size, top_k, low)
    return _around(value_C, low, top_k)


@jit_borrowing
def _count(value_C, bar):
    """How many values reach the bar."""
    count = 0
    for k in range(0, value_C.size, WIDTH):
        count += count_bits(at_least(load(value_C, k), bar))
    return count


@jit_borrowing
def _around(value_C, bar, top_k):
    """The least value that reaches the bar, the next one below it, and the sum of those that reach it.

    If more than top_k reach the bar, they tie at it: the next one is the same.
    """
    upper, lower = splat(value_C.dtype.type(np.inf)), splat(value_C.dtype.type(-np.inf))
    sums = splat(0.0)
    count = 0
    for k in range(0, value_C.size, WIDTH):
        values = load(value_C, k)
        reaching, others = part(values, bar)
        upper, lower = smaller(upper, reaching), larger(lower, others)
        sums = add_reaching(sums, values, bar)
        count += count_bits(at_least(values, bar))
    last_in = least_element(upper)
    return last_in, last_in if count > top_k else largest_element(lower), sum_elements(sums)


@jit_borrowing
def raise_bar(value_C, count, top_k, bar):
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
