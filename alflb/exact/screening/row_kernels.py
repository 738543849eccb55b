"""Compiled loops over rows of scores: count margins, collect the undecided entries, check the optimum.

For a row whose K-th and (K+1)-th largest biased scores are A >= B, the *margin* of expert k is ``biased - B`` if
k is among the K best and ``biased - A`` otherwise: by so much may the bias of k alone fall (rise) before the
token drops k (picks it up).

In the scores' own type, A and B of as many rows as a register has lanes are found at once, by the allocator's sorting
network (`alflb.kernels._blocks`); each row is then read once more, sixteen experts at a time.

In integers rows are taken one by one. The row goes to a buffer padded to
whole vectors. The maxima of the buffer's *lanes* (positions equal modulo the number of lanes) come first: B cannot be
below the (K+1)-th largest of them. The few entries within reach of that bound, the *survivors*, are then ranked by
counting.
The proof needs integers only for rows whose A and B are too close for floats to tell (`float_guard`).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray

from alflb.kernels._blocks import Routing, Scratch, bound_rows, copy_rows, make_routing, make_scratch
from alflb.kernels._jit import jit
from alflb.kernels._simd import (
    WIDTH,
    add,
    add_bits,
    append_chosen,
    at_least,
    count_bits,
    exceeds,
    finite_size,
    larger,
    least_element,
    load,
    lowest_bit,
    margins,
    multiply,
    no_ranks,
    off_grid,
    rank_against,
    reaches,
    smaller_if,
    splat,
    store,
    to_grid,
)
from alflb.problem import FloatArray

BINS = 32
"""Bins of a margin histogram; one more counts the margins above the window, another those below."""

FORBIDDEN = -(2**62)
"""Integer score of a pair the problem forbids (-inf); sums with prices stay inside int64."""


@register_jitable
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


class RowScan(NamedTuple):
    """What rows are scanned with: their routing by scores + bias, widths, and working memory."""

    routing: Routing
    width_P: NDArray[Any]
    """Half-width of the window around each bias, in the dtype of the scores."""
    scratch: Scratch


def make_scan(dtype: np.dtype[Any], bias_E: FloatArray, width_E: FloatArray, top_k: int) -> RowScan:
    """Prepare to scan rows of scores of this dtype at a bias, in windows around it."""
    routing = make_routing(bias_E, dtype, top_k, with_next=True)
    width_P = np.zeros_like(routing.bias_P)
    width_P[: width_E.size] = width_E
    return RowScan(routing, width_P, make_scratch(routing, top_k + 1))


@jit
def count_margins(scores_TE, rows_M, scan, counts_EB):  # type: ignore[no-untyped-def]
    """Add the margins of some rows to histograms: BINS equal bins on [-width, width], and those above.

    Parameters
    ----------
    scores_TE : float32 or float64 array
    rows_M : int64 array
        Indices of the rows to look at.
    scan : RowScan
    counts_EB : int64 array, shape (E, BINS + 1)
        Counts are added to it; margins below the window are left out.
    """
    num_experts, flat = scores_TE.shape[1], scores_TE.reshape(-1)
    routing, width_P, scratch = scan
    lanes, stride, top_k, tile = scratch.sum_L.size, routing.bias_P.size, routing.top_k, scratch.tile
    bins_per_unit_P = flat.dtype.type(BINS / 2) / width_P
    most, zero = flat.dtype.type(BINS), flat.dtype.type(0)
    places = np.empty(WIDTH, flat.dtype)
    above_P = scratch.load_P
    above_P[:] = 0
    for first in range(0, rows_M.size, lanes):
        rows = min(lanes, rows_M.size - first)
        for row in range(rows):
            copy_rows(flat, rows_M[first + row] * num_experts, 1, num_experts, stride, tile[row * stride :])
        bound_rows(tile, 0, routing, scratch)
        for row in range(rows):
            last_in = scratch.best_KL[(top_k - 1) * lanes + row]
            first_out = scratch.best_KL[top_k * lanes + row]
            for k in range(0, stride, WIDTH):
                biased = add(load(tile, row * stride + k), load(routing.bias_P, k))
                margin = margins(biased, last_in, first_out)
                place = multiply(add(margin, load(width_P, k)), load(bins_per_unit_P, k))
                above = at_least(place, most)
                add_bits(above_P, k, above)
                bits = at_least(place, zero) & ~above
                if bits != 0:
                    store(places, 0, place)
                while bits != 0:
                    n = lowest_bit(bits)
                    counts_EB[k + n, int(places[n])] += 1
                    bits &= bits - np.uint64(1)
    for k in range(num_experts):
        counts_EB[k, BINS] += above_P[k]


class UndecidedRows(NamedTuple):
    """Where the rows with a choice left are listed; written from the front."""

    token_R: NDArray[np.int64]
    picks_R: NDArray[np.int32]
    """Picks left to make."""
    end_R: NDArray[np.int64]
    """Where the row's entries end."""
    expert_N: NDArray[np.int32]
    score_N: NDArray[np.int64]
    """Integer scores."""


@jit
def collect_undecided(scores_TE, scan, per_unit, certain_E, undecided):  # type: ignore[no-untyped-def]
    """Split the picks of each row into certain ones, which are counted, and undecided ones, which are listed.

    An entry with a margin above its width is a certain pick; one below minus its width is certainly none.

    Parameters
    ----------
    scores_TE : float32 or float64 array
    scan : RowScan
    per_unit : float
        Quanta in one score unit.
    certain_E : int64 array, shape (E,)
        The certain picks of each expert are added to it.
    undecided : UndecidedRows
        Has room for all rows and entries.

    Returns
    -------
    num_rows, num_entries : int
        How many were listed.
    """
    num_tokens, num_experts = scores_TE.shape
    flat = scores_TE.reshape(-1)
    routing, width_P, scratch = scan
    lanes, stride, top_k, certain_P = scratch.sum_L.size, routing.bias_P.size, routing.top_k, scratch.load_P
    lowest_P = -width_P
    certain_P[:] = 0
    num_rows = 0
    num_entries = 0
    for token in range(0, num_tokens, lanes):
        rows = min(lanes, num_tokens - token)
        if rows == lanes and num_experts == stride:
            source, start = flat, token * stride
        else:
            copy_rows(flat, token * num_experts, rows, num_experts, stride, scratch.tile)
            source, start = scratch.tile, 0
        bound_rows(source, start, routing, scratch)
        for row in range(rows):
            last_in = scratch.best_KL[(top_k - 1) * lanes + row]
            first_out = scratch.best_KL[top_k * lanes + row]
            picks = top_k
            first = num_entries
            for k in range(0, stride, WIDTH):
                biased = add(load(source, start + row * stride + k), load(routing.bias_P, k))
                margin = margins(biased, last_in, first_out)
                certain = exceeds(margin, load(width_P, k))
                bits = reaches(margin, load(lowest_P, k)) & ~certain
                picks -= count_bits(certain)
                add_bits(certain_P, k, certain)
                while bits != 0:
                    undecided.expert_N[num_entries] = k + lowest_bit(bits)
                    bits &= bits - np.uint64(1)
                    num_entries += 1
            if 0 < picks < num_entries - first:
                undecided.token_R[num_rows] = token + row
                undecided.picks_R[num_rows] = picks
                undecided.end_R[num_rows] = num_entries
                num_rows += 1
                for entry in range(first, num_entries):
                    score = flat[(token + row) * num_experts + undecided.expert_N[entry]]
                    undecided.score_N[entry] = _quantized(score, per_unit)
                continue
            if picks > 0:
                for entry in range(first, num_entries):
                    certain_P[undecided.expert_N[entry]] += 1
            num_entries = first
    for k in range(num_experts):
        certain_E[k] += certain_P[k]
    return num_rows, num_entries


class Prices(NamedTuple):
    """The values that rows choose by, in integers."""

    per_unit: float
    """Quanta in one score unit, a power of two."""
    price_P: NDArray[np.int64]
    """Prices in quanta, padded to whole lanes."""
    reach: int
    """How far from a tie, in quanta, listed units decide."""
    top_k: int
    unit: int
    """Load units in one pick."""


class ListedRows(NamedTuple):
    """Rows whose picks are not left to the prices: row r has entries start_R[r] to start_R[r + 1]."""

    token_R: NDArray[np.int64]
    """Ascending."""
    start_R: NDArray[np.int64]
    expert_N: NDArray[np.int32]
    units_N: NDArray[np.int64]
    """Units of each entry."""


class Found(NamedTuple):
    """What the proof writes."""

    load_E: NDArray[np.int64]
    """Loads in units; added to."""
    experts_TK: NDArray[np.int32]
    """Experts of each row, ascending; no rows if they are not wanted."""
    split_S3: NDArray[np.int64]
    """(token, expert, units) of the rows that share a pick among experts."""
    sums: NDArray[np.float64]
    """<gamma, x>, added up with the rounding error kept apart."""


def float_guard(dtype: np.dtype[Any], largest: float, prices: Prices, bias_E: FloatArray) -> float:
    r"""What fl(score + bias) of two experts must differ by for their integer values to differ by more than `reach`.

    Let q = 1 / per_unit be the quantum, s = rint(x / q) the integer score of x, p the price, and b = fl(q (p - c)) the
    bias, c whole and the same for all. With u the largest relative rounding error of the dtype, |x| <= X, |b| <= B:
    s is off by half a quantum, b by relative 2 u (float64 first, then the dtype), and the sum by u (X + B). Hence

    .. math:: |fl(x + b) - q (s + p - c)| \le \delta = q / 2 + 3 u (X + B) + t

    where t, some of the smallest subnormals, covers underflow of b (sums never underflow). If now
    fl(x + b) - fl(x' + b') > 2 delta + q reach before the difference is rounded, s + p exceeds s' + p' by more than
    `reach`. That rounding is relative, and twice the bound covers it with room to spare.

    Returns infinity, so that all rows are taken in integers, where sums could overflow, and where a score times
    per_unit is not exact in the dtype (the proof then could not tell multiples of the quantum).
    """
    precision = np.finfo(dtype)
    size = largest + float(np.abs(bias_E).max())
    if size > float(precision.max) / 4 or not 1.0 <= prices.per_unit <= float(precision.max) / 2:
        return math.inf
    quantum = 1.0 / prices.per_unit
    error = quantum / 2 + 1.5 * float(precision.eps) * size + 4.0 * float(precision.smallest_subnormal)
    return 2.0 * (2.0 * error + quantum * prices.reach)


def make_proof(dtype: np.dtype[Any], largest: float, prices: Prices, num_experts: int) -> tuple[RowScan, float]:
    """A scan at the bias of these prices, and the guard of its comparisons; `largest` bounds the finite |scores|."""
    price_E = prices.price_P[:num_experts]
    middle = price_E.min() // 2 + price_E.max() // 2
    bias_E = (price_E - middle) / prices.per_unit
    guard = float_guard(dtype, largest, prices, bias_E)
    with np.errstate(over="ignore"):
        scan = make_scan(dtype, bias_E, np.zeros(num_experts), prices.top_k)
    return scan, guard


@jit
def certify_rows(scores_TE, first_token, prices, listed, found, scan, guard):  # type: ignore[no-untyped-def]
    """Derive every row's assignment from integer scores and prices alone, and add it up.

    Rows whose K-th and (K+1)-th best are more than `reach` apart need nothing else. In the others the units listed for
    the row decide among the experts within `reach` of that boundary, or, if `reach` is 0, the lowest index among the
    tied ones where the row is not listed. With a reach of 0 every expert used then scores at least as much as every
    expert with units to spare.

    Rows whose boundary is wider than `guard` in floats have it in integers too (`float_guard`); only the rest are
    looked at in integers.

    Parameters
    ----------
    scores_TE : float32 or float64 array
    first_token : int
        Index of the first row among all.
    prices : Prices
    listed : ListedRows
    found : Found
        Written to; `experts_TK` has a row for each of these rows, or none.
    scan : RowScan
        At the bias of the prices (`make_proof`).
    guard : float

    Returns
    -------
    is_lossless : bool
        Whether all scores are multiples of the quantum.
    num_splits : int
        Rows of `split_S3` written.
    is_complete : bool
        Whether each row made K picks.
    """
    num_tokens, num_experts = scores_TE.shape
    flat = scores_TE.reshape(-1)
    routing, _, scratch = scan
    lanes, stride, top_k = scratch.sum_L.size, routing.bias_P.size, routing.top_k
    per_unit = flat.dtype.type(prices.per_unit)
    reach_P = np.full(prices.price_P.size, prices.reach, np.int64)
    share = np.empty(prices.price_P.size, np.int64)
    buffers = (*_row_buffers(prices.price_P, num_lanes(top_k), FORBIDDEN), reach_P, share)
    row_listed = np.searchsorted(listed.token_R, first_token)
    is_lossless = True
    num_splits = 0
    scratch.load_P[:] = 0
    for token in range(0, num_tokens, lanes):
        rows = min(lanes, num_tokens - token)
        if rows == lanes and num_experts == stride:
            source, start = flat, token * stride
        else:
            copy_rows(flat, token * num_experts, rows, num_experts, stride, scratch.tile)
            source, start = scratch.tile, 0
        bound_rows(source, start, routing, scratch)
        for row in range(rows):
            last_in = scratch.best_KL[(top_k - 1) * lanes + row]
            if np.float64(last_in - scratch.best_KL[top_k * lanes + row]) > guard:
                is_lossless = _take_picks(
                    source, start + row * stride, token + row, last_in, per_unit, scan, found, is_lossless
                )
                continue
            while row_listed < listed.token_R.size and listed.token_R[row_listed] < first_token + token + row:
                row_listed += 1
            on_grid, written = _certify_row(
                scores_TE, token + row, first_token, prices, listed, row_listed, found, num_splits, buffers
            )
            if written < 0:
                return False, num_splits, False
            is_lossless &= on_grid
            num_splits += written
    for k in range(num_experts):
        found.load_E[k] += prices.unit * np.int64(scratch.load_P[k])
    return is_lossless, num_splits, True


@jit
def _take_picks(source, start, token, last_in, per_unit, scan, found, is_lossless):  # type: ignore[no-untyped-def]
    """Give a row to the experts that reach `last_in`; whether all scores so far are multiples of the quantum."""
    routing, scratch = scan.routing, scan.scratch
    total = 0.0
    pick = 0
    off = np.uint64(0)
    for k in range(0, routing.bias_P.size, WIDTH):
        scores = load(source, start + k)
        bits = at_least(add(scores, load(routing.bias_P, k)), last_in)
        add_bits(scratch.load_P, k, bits)
        if is_lossless:
            off |= off_grid(scores, per_unit)
        while bits != 0:
            expert = k + lowest_bit(bits)
            total += np.float64(source[start + expert])
            if found.experts_TK.shape[0] > 0:
                found.experts_TK[token, pick] = expert
            pick += 1
            bits &= bits - np.uint64(1)
    _add_compensated(found.sums, 0, total)
    return is_lossless and off == 0


@jit
def _certify_row(scores_TE, token, first_token, prices, listed, row_listed, found, num_splits, buffers):  # type: ignore[no-untyped-def]
    """One row in integers: whether it is on the grid, and the number of its splits, -1 if it does not make K picks."""
    num_experts = scores_TE.shape[1]
    flat = scores_TE.reshape(-1)
    start, top_k, unit, reach = token * num_experts, prices.top_k, prices.unit, prices.reach
    biased, lane_best, near, value, reach_P, share = buffers
    on_grid = _add_price(flat, start, num_experts, prices.per_unit, prices.price_P, biased)
    count = _survivors(biased, num_experts, reach_P, top_k, lane_best, near, value, FORBIDDEN, -FORBIDDEN)
    last_in, first_out = _boundary(value, count + 1, top_k, -FORBIDDEN)
    if last_in - first_out > reach:
        for n in range(count):
            share[n] = unit if value[n] >= last_in else 0
    else:
        is_listed = row_listed < listed.token_R.size and listed.token_R[row_listed] == first_token + token
        row = row_listed if is_listed else -1
        if not _share_out(near, value, count, last_in - reach, first_out + reach, prices, row, listed, share):
            return on_grid, -1
    is_split = False
    for n in range(count):
        is_split |= 0 < share[n] < unit
    total = 0.0
    written = 0
    picks = 0
    for n in range(count):
        k = near[n]
        if share[n] == 0:
            continue
        found.load_E[k] += share[n]
        total += np.float64(flat[start + k]) * (share[n] / unit)
        if is_split:
            found.split_S3[num_splits + written, 0] = first_token + token
            found.split_S3[num_splits + written, 1] = k
            found.split_S3[num_splits + written, 2] = share[n]
            written += 1
        if share[n] == unit and picks < top_k and found.experts_TK.shape[0] > 0:
            found.experts_TK[token, picks] = k
        picks += share[n] == unit
    _add_compensated(found.sums, 0, total)
    return on_grid, written


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
def _add_compensated(sums, place, value):  # type: ignore[no-untyped-def]
    """sums[place] + sums[place + 1] += value, with the rounding error of the first kept in the second."""
    total = sums[place] + value
    shift = total - sums[place]
    sums[place + 1] += (sums[place] - (total - shift)) + (value - shift)
    sums[place] = total


@jit
def _share_out(near, value, count, low, high, prices, row, listed, share):  # type: ignore[no-untyped-def]
    """Share out a row's units: all above `high`, then down to `low` as listed; whether K picks came out.

    Where low = high, the tied experts of a row that is not listed (row < 0) have their turn by index.
    """
    unit = prices.unit
    left = prices.top_k * unit
    for n in range(count):
        share[n] = unit if value[n] > high else 0
        if low <= value[n] <= high and row >= 0:
            share[n] = _listed_units(row, near[n], listed)
            if share[n] < 0 or share[n] > unit:
                return False
        left -= share[n]
    for n in range(count):
        if row < 0 and low == high and value[n] == low and left > 0:
            share[n] = unit
            left -= unit
    return left == 0


@jit
def _listed_units(row, expert, listed):  # type: ignore[no-untyped-def]
    for entry in range(listed.start_R[row], listed.start_R[row + 1]):
        if listed.expert_N[entry] == expert:
            return listed.units_N[entry]
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
        biased[k] = _quantized(flat[start + k], per_unit) + price_P[k]
    return off == 0


@jit
def _quantized(score, per_unit):  # type: ignore[no-untyped-def]
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
