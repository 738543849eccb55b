"""Compiled loops over rows of scores: count margins, collect the undecided entries, check the optimum; route rows
for the streaming solver.

For a row whose K-th and (K+1)-th largest biased scores are A >= B, the *margin* of expert k is ``biased - B`` if
k is among the K best and ``biased - A`` otherwise: by so much may the bias of k alone fall (rise) before the
token drops k (picks it up).

All loops find A and B alike. The row goes to a buffer padded to whole vectors. The maxima of the buffer's *lanes*
(positions equal modulo the number of lanes) come first: B cannot be below the (K+1)-th largest of them. The few
entries within reach of that bound, the *survivors*, are then ranked by counting.

Biases and widths come padded to whole lanes (`padded`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alflb.kernels._jit import jit
from alflb.kernels._simd import (
    WIDTH,
    add,
    append_chosen,
    at_least,
    finite_size,
    larger,
    least_element,
    load,
    no_ranks,
    off_grid,
    rank_against,
    smaller_if,
    splat,
    store,
    to_grid,
)
from alflb.kernels._splitmix import splitmix

BINS = 32
"""Bins of a margin histogram; one more counts the margins above the window, another those below."""

FORBIDDEN = -(2**62)
"""Integer score of a pair the problem forbids (-inf); sums with prices stay inside int64."""


def num_lanes(top_k: int) -> int:
    """Whole vectors, and some more lanes than the K + 1 that are wanted."""
    return WIDTH * -(-3 * (top_k + 1) // (2 * WIDTH))


def padded(values_E: NDArray[Any], lanes: int) -> NDArray[Any]:
    """The values followed by zeros, in whole lanes."""
    return np.pad(values_E, (0, -len(values_E) % lanes))


@jit
def largest_finite(scores_TE):  # type: ignore[no-untyped-def]
    """The largest |score|, -inf left out."""
    flat = scores_TE.reshape(-1)
    sizes = np.zeros(WIDTH, flat.dtype)
    whole = flat.size - flat.size % WIDTH
    largest = load(sizes, 0)
    for n in range(0, whole, WIDTH):
        largest = larger(largest, finite_size(load(flat, n)))
    store(sizes, 0, largest)
    for n in range(whole, flat.size):
        if flat[n] > -np.inf:
            sizes[0] = max(sizes[0], abs(flat[n]))
    return np.float64(sizes.max())


@jit
def count_margins(scores_TE, rows_M, bias_P, width_P, top_k, lanes, counts_EB):  # type: ignore[no-untyped-def]
    """Add the margins of some rows to histograms: BINS equal bins on [-width, width], those above, some of those below.

    Margins far below the window are not looked at; nothing needs their number.
    """
    num_experts = scores_TE.shape[1]
    flat = scores_TE.reshape(-1)
    lowest, highest = flat.dtype.type(-np.inf), flat.dtype.type(np.inf)
    biased, lane_best, near, value = _row_buffers(bias_P, lanes, lowest)
    bins_per_unit_P = flat.dtype.type(BINS / 2) / width_P
    for token in rows_M:
        _add_bias(flat, token * num_experts, num_experts, bias_P, biased)
        count = _survivors(biased, num_experts, width_P, top_k, lane_best, near, value, lowest, highest)
        last_in, first_out = _boundary(value, count + 1, top_k, highest)
        for n in range(count):
            k = near[n]
            margin = value[n] - (first_out if value[n] >= last_in else last_in)
            place = (margin + width_P[k]) * bins_per_unit_P[k]
            counts_EB[k, int(min(place, BINS)) if place >= 0 else BINS + 1] += 1


@jit
def collect_undecided(  # type: ignore[no-untyped-def]
    scores_TE, bias_P, width_P, top_k, lanes, per_unit, certain_E, token_R, picks_R, end_R, expert_N, score_N
):
    """Split the picks of each row into certain ones, counted in `certain_E`, and undecided ones, listed.

    An entry with a margin above its width is a certain pick; one below minus its width is certainly none. A row
    with a choice left is listed as its token, the number of picks left to make, the end of its entries, and the
    entries' experts and integer scores. Returns the numbers of rows and entries written.
    """
    num_tokens, num_experts = scores_TE.shape
    flat = scores_TE.reshape(-1)
    lowest, highest = flat.dtype.type(-np.inf), flat.dtype.type(np.inf)
    biased, lane_best, near, value = _row_buffers(bias_P, lanes, lowest)
    num_rows = 0
    num_entries = 0
    for token in range(num_tokens):
        _add_bias(flat, token * num_experts, num_experts, bias_P, biased)
        count = _survivors(biased, num_experts, width_P, top_k, lane_best, near, value, lowest, highest)
        last_in, first_out = _boundary(value, count + 1, top_k, highest)
        picks = top_k
        start = num_entries
        for n in range(count):
            k = near[n]
            margin = value[n] - (first_out if value[n] >= last_in else last_in)
            certain = margin > width_P[k]
            certain_E[k] += certain
            picks -= certain
            expert_N[num_entries] = k
            num_entries += margin >= -width_P[k] and not certain
        if 0 < picks < num_entries - start:
            token_R[num_rows] = token
            picks_R[num_rows] = picks
            end_R[num_rows] = num_entries
            num_rows += 1
            for entry in range(start, num_entries):
                score_N[entry] = _quantised(flat[token * num_experts + expert_N[entry]], per_unit)
            continue
        if picks > 0:
            for entry in range(start, num_entries):
                certain_E[expert_N[entry]] += 1
        num_entries = start
    return num_rows, num_entries


@jit
def certify_rows(  # type: ignore[no-untyped-def]
    scores_TE, per_unit, price_P, reach, top_k, lanes, unit, first_token, token_R, start_R, expert_N, units_N,
    load_E, experts_TK, split_S3, sums,
):  # fmt: skip
    """Derive every row's assignment from integer scores and prices alone, and add it up.

    Rows whose K-th and (K+1)-th best are more than `reach` apart need nothing else. In the others the units listed for
    the row decide among the experts within `reach` of that boundary, or, if `reach` is 0, the lowest index among the
    tied ones where the row is not listed. With a reach of 0 every expert used then scores at least as much as every
    expert with units to spare.

    Loads are added to `load_E` in units; `experts_TK`, if it has rows, receives the experts, ascending; rows that
    share a pick among experts are written to `split_S3` as (token, expert, units). `sums` adds up the value
    <gamma, x>, compensated. Returns whether all scores were multiples of the quantum, the number of splits, and whether
    each row made K picks.
    """
    num_tokens, num_experts = scores_TE.shape
    flat = scores_TE.reshape(-1)
    biased, lane_best, near, value = _row_buffers(price_P, lanes, FORBIDDEN)
    share = np.empty(price_P.size, np.int64)
    chosen = np.empty(price_P.size, np.int32)
    reach_P = np.full(price_P.size, reach, np.int64)
    row = np.searchsorted(token_R, first_token)
    lossless = True
    num_splits = 0
    for token in range(num_tokens):
        start = token * num_experts
        lossless &= _add_price(flat, start, num_experts, per_unit, price_P, biased)
        count = _survivors(biased, num_experts, reach_P, top_k, lane_best, near, value, FORBIDDEN, -FORBIDDEN)
        last_in, first_out = _boundary(value, count + 1, top_k, -FORBIDDEN)
        picks = 0
        total = 0.0
        if last_in - first_out > reach:
            for n in range(count):
                k = near[n]
                is_in = value[n] >= last_in
                load_E[k] += unit * is_in
                total += np.float64(flat[start + k]) if is_in else 0.0
                chosen[picks] = k
                picks += is_in
        else:
            while row < token_R.size and token_R[row] < first_token + token:
                row += 1
            is_listed = row < token_R.size and token_R[row] == first_token + token
            listed = row if is_listed else -1
            low, high = last_in - reach, first_out + reach
            if not _share_out(near, value, count, low, high, top_k, unit, listed, start_R, expert_N, units_N, share):
                return lossless, num_splits, False
            is_split = False
            for n in range(count):
                is_split |= 0 < share[n] < unit
            for n in range(count):
                k = near[n]
                load_E[k] += share[n]
                if share[n] > 0:
                    total += np.float64(flat[start + k]) * (share[n] / unit)
                if is_split and share[n] > 0:
                    split_S3[num_splits, 0] = first_token + token
                    split_S3[num_splits, 1] = k
                    split_S3[num_splits, 2] = share[n]
                    num_splits += 1
                chosen[picks] = k
                picks += share[n] == unit and picks < top_k
        _add_compensated(sums, 0, total)
        if experts_TK.shape[0] > 0:
            for pick in range(top_k):
                experts_TK[token, pick] = chosen[pick]
    return lossless, num_splits, True


@jit
def count_decided(scores_TE, per_unit, price_P, reach, top_k, lanes, load_E, close_T):  # type: ignore[no-untyped-def]
    """Mark the rows whose K-th and (K+1)-th best, in integers, are at most `reach` apart; count the others' picks."""
    num_tokens, num_experts = scores_TE.shape
    flat = scores_TE.reshape(-1)
    biased, lane_best, near, value = _row_buffers(price_P, lanes, FORBIDDEN)
    no_width_P = np.zeros(price_P.size, np.int64)
    for token in range(num_tokens):
        _add_price(flat, token * num_experts, num_experts, per_unit, price_P, biased)
        count = _survivors(biased, num_experts, no_width_P, top_k, lane_best, near, value, FORBIDDEN, -FORBIDDEN)
        last_in, first_out = _boundary(value, count + 1, top_k, -FORBIDDEN)
        close_T[token] = last_in - first_out <= reach
        if not close_T[token]:
            for n in range(count):
                load_E[near[n]] += value[n] >= last_in


@jit
def route_rows(  # type: ignore[no-untyped-def]
    scores_TE, bias_E, bias_P, width_P, top_k, lanes, dither, seed, top_exponent,
    load_E, count_EEB, loss_EEB, gap_T, experts_TK, sums,
):  # fmt: skip
    """Top-K of scores + bias in float64, and what each row would lose by its cheapest swap.

    `bias_P` is the bias in the scores' own type, in which candidates are found, and `width_P` covers that rounding and
    the dither. Where the K-th and (K+1)-th largest are within `dither` of each other, hashed numbers in [0, dither)
    are added first, so that ties are shared out among the experts as a smooth density would be.

    The swap gives up the last expert in for the first one out. Its (dithered) margin, at most 2^top_exponent, decides
    the bin of `count_EEB[last in, first out]`; bin b >= 1 holds margins in [1/2, 1) 2^(top_exponent + b + 1 - bins),
    bin 0 smaller ones. `loss_EEB` adds what the swap loses of score + bias, without dither.

    `gap_T` receives the margins (inf where no swap is allowed), `experts_TK` the chosen experts.
    `sums` adds up, compensated, the K largest (0, 1) and the chosen (2, 3), and plainly the sizes of all chosen (4).
    """
    num_tokens, num_experts = scores_TE.shape
    num_bins = count_EEB.shape[2]
    flat = scores_TE.reshape(-1)
    lowest, highest = flat.dtype.type(-np.inf), flat.dtype.type(np.inf)
    biased, lane_best, near, value = _row_buffers(bias_P, lanes, lowest)
    exact = np.empty(value.size)
    dithered = np.empty(value.size)
    for token in range(num_tokens):
        start = token * num_experts
        _add_bias(flat, start, num_experts, bias_P, biased)
        count = _survivors(biased, num_experts, width_P, top_k, lane_best, near, value, lowest, highest)
        for n in range(count):
            exact[n] = np.float64(flat[start + near[n]]) + bias_E[near[n]]
        store(exact, count, splat(-np.inf))
        last_in, first_out = _boundary(exact, count + 1, top_k, np.inf)
        ranked = exact
        is_close = last_in - first_out <= dither
        if is_close:
            _add_compensated(sums, 0, _sum_largest(exact, count, last_in, top_k))
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
            _add_compensated(sums, 0, chosen)
        _add_compensated(sums, 2, chosen)
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


@jit
def _add_compensated(sums, place, value):  # type: ignore[no-untyped-def]
    """sums[place] + sums[place + 1] += value, with the rounding error of the first kept in the second."""
    total = sums[place] + value
    shift = total - sums[place]
    sums[place + 1] += (sums[place] - (total - shift)) + (value - shift)
    sums[place] = total


@jit
def _share_out(near, value, count, low, high, top_k, unit, row, start_R, expert_N, units_N, share):  # type: ignore[no-untyped-def]
    """Share out a row's units: all above `high`, then down to `low` as listed; whether K picks came out.

    Where low = high, the tied experts of a row that is not listed have their turn by index.
    """
    left = top_k * unit
    for n in range(count):
        share[n] = unit if value[n] > high else 0
        if low <= value[n] <= high and row >= 0:
            share[n] = _listed_units(row, near[n], start_R, expert_N, units_N)
            if share[n] < 0 or share[n] > unit:
                return False
        left -= share[n]
    for n in range(count):
        if row < 0 and low == high and value[n] == low and left > 0:
            share[n] = unit
            left -= unit
    return left == 0


@jit
def _listed_units(row, expert, start_R, expert_N, units_N):  # type: ignore[no-untyped-def]
    for entry in range(start_R[row], start_R[row + 1]):
        if expert_N[entry] == expert:
            return units_N[entry]
    return 0


@jit
def _row_buffers(bias_P, lanes, lowest):  # type: ignore[no-untyped-def]
    """Biased scores with pads at the lowest value; lane maxima; the survivors' experts and values."""
    biased = np.full(bias_P.size, lowest, bias_P.dtype)
    value = np.empty(bias_P.size + WIDTH, bias_P.dtype)
    return biased, np.empty(lanes, bias_P.dtype), np.empty(bias_P.size + WIDTH, np.int32), value


@jit
def _add_bias(flat, start, num_experts, bias_P, biased):  # type: ignore[no-untyped-def]
    """The biased scores of one row; the pads are left as they are."""
    whole = num_experts - num_experts % WIDTH
    for k in range(0, whole, WIDTH):
        store(biased, k, add(load(flat, start + k), load(bias_P, k)))
    for k in range(whole, num_experts):
        biased[k] = flat[start + k] + bias_P[k]


@jit
def _add_price(flat, start, num_experts, per_unit, price_P, biased):  # type: ignore[no-untyped-def]
    """The same in integers; whether every score was a multiple of the quantum."""
    off = np.uint64(0)
    whole = num_experts - num_experts % WIDTH
    for k in range(0, whole, WIDTH):
        scores = load(flat, start + k)
        off |= off_grid(scores, per_unit)
        store(biased, k, add(to_grid(scores, per_unit, FORBIDDEN), load(price_P, k)))
    for k in range(whole, num_experts):
        scaled = np.float64(flat[start + k]) * per_unit
        off |= np.uint64(np.rint(scaled) != scaled)
        biased[k] = _quantised(flat[start + k], per_unit) + price_P[k]
    return off == 0


@jit
def _quantised(score, per_unit):  # type: ignore[no-untyped-def]
    scaled = np.rint(np.float64(score) * per_unit)
    return np.int64(scaled) if scaled > -np.inf else np.int64(FORBIDDEN)


@jit
def _survivors(biased, num_experts, width, top_k, lane_best, near, value, lowest, highest):  # type: ignore[no-untyped-def]
    """List the experts that may be among the K + 1 best or have a margin of at least -width, with their values."""
    lanes = lane_best.size
    for lane in range(0, lanes, WIDTH):
        best = load(biased, lane)
        for start in range(lane + lanes, biased.size, lanes):
            best = larger(best, load(biased, start))
        store(lane_best, lane, best)
    _, bound = _boundary(lane_best, lanes, top_k, highest)
    count = 0
    for start in range(0, num_experts, WIDTH):
        bits = at_least(add(load(biased, start), load(width, start)), bound)
        if num_experts - start < WIDTH:
            bits &= (np.uint64(1) << np.uint64(num_experts - start)) - np.uint64(1)
        count = append_chosen(biased, start, bits, near, value, count)
    store(value, count, splat(lowest))  # one pad counts as a value, for rows with no more than K experts allowed
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
