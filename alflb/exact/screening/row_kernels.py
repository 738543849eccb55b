"""Compiled loops over rows of scores: count margins, collect the undecided entries, check the optimum.

For a row whose K-th and (K+1)-th largest biased scores are A >= B, the *margin* of expert k is ``biased - B`` if
k is among the K best and ``biased - A`` otherwise: by so much may the bias of k alone fall (rise) before the
token drops k (picks it up).

In the scores' own type, A and B of as many rows as a register has lanes are found at once, by the allocator's sorting
network (`alflb.kernels._blocks`); each row is then read once more, sixteen experts at a time.

The proof needs integers only where floats cannot tell (`float_guard`): for the entries near A and B of rows whose A
and B are close.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb.exact.screening.flow_kernels import first_at_least
from alflb.kernels._blocks import Routing, Scratch, bound_rows, copy_rows, make_routing, make_scratch
from alflb.kernels._jit import jit, jit_borrowing
from alflb.kernels._simd import (
    WIDTH,
    add,
    add_bits,
    at_least,
    count_bits,
    exceeds,
    finite_size,
    larger,
    load,
    lowest_bit,
    margins,
    multiply,
    off_grid,
    reaches,
    splat,
    store,
)
from alflb.problem import FloatArray

BINS = 32
"""Bins of a margin histogram; one more counts the margins above the window, another those below."""

_NARROW = 64
"""Most experts of rows that are read where they lie."""

FORBIDDEN = -(2**62)
"""Integer score of a pair the problem forbids (-inf); sums with prices stay inside int64."""


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
    found = 0.0
    for n in range(WIDTH):
        found = max(found, np.float64(sizes[n]))
    return found


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
def _bound_tile(flat, token, rows, num_experts, scan):  # type: ignore[no-untyped-def]
    """Bound a register of rows (`bound_rows`): the array that holds them, padded, and where the first one starts.

    Wide rows are copied first, since reading many at once where they lie is slow.
    """
    stride = scan.routing.bias_P.size
    if rows == scan.scratch.sum_L.size and num_experts == stride <= _NARROW:
        source, start = flat, token * stride
    else:
        copy_rows(flat, token * num_experts, rows, num_experts, stride, scan.scratch.tile)
        source, start = scan.scratch.tile, 0
    bound_rows(source, start, scan.routing, scan.scratch)
    return source, start


@jit
def count_margins(scores_TE, rows_M, scan, counts_EB):  # type: ignore[no-untyped-def]
    """Add the margins of some rows to histograms: BINS equal bins on [-width, width], and those above.

    Parameters
    ----------
    scores_TE : float32 or float64 array
    rows_M : int64 array
        Indices of the rows to look at, ascending.
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
        if rows_M[first + rows - 1] - rows_M[first] == rows - 1:
            source, start = _bound_tile(flat, rows_M[first], rows, num_experts, scan)
        else:
            for row in range(rows):
                copy_rows(flat, rows_M[first + row] * num_experts, 1, num_experts, stride, tile[row * stride :])
            bound_rows(tile, 0, routing, scratch)
            source, start = tile, 0
        for row in range(rows):
            last_in = scratch.best_KL[(top_k - 1) * lanes + row]
            first_out = scratch.best_KL[top_k * lanes + row]
            for k in range(0, stride, WIDTH):
                biased = add(load(source, start + row * stride + k), load(routing.bias_P, k))
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
def collect_undecided(scores_TE, weight_T, scan, per_unit, certain_E, undecided):  # type: ignore[no-untyped-def]
    """Split the picks of each row into certain ones, which are counted, and undecided ones, which are listed.

    An entry with a margin above its width is a certain pick; one below minus its width is certainly none.

    Parameters
    ----------
    scores_TE : float32 or float64 array
    weight_T : int64 array
        How many tokens each row stands for.
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
        source, start = _bound_tile(flat, token, rows, num_experts, scan)
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
                if weight_T[token + row] == 1:
                    add_bits(certain_P, k, certain)
                else:
                    _add_weight(certain_E, k, certain, weight_T[token + row])
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
                    certain_E[undecided.expert_N[entry]] += weight_T[token + row]
            num_entries = first
    for k in range(num_experts):
        certain_E[k] += certain_P[k]
    return num_rows, num_entries


@jit_borrowing
def _add_weight(load_E, first, bits, weight):  # type: ignore[no-untyped-def]
    """Add the weight to the loads of the experts `first` + n, for all bits n that are set."""
    while bits != 0:
        load_E[first + lowest_bit(bits)] += weight
        bits &= bits - np.uint64(1)


class Prices(NamedTuple):
    """The values that rows choose by, in integers."""

    per_unit: float
    """Quanta in one score unit, a power of two."""
    price_E: NDArray[np.int64]
    """Prices in quanta."""
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
    """Ascending in each row."""
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
    num_splits: NDArray[np.int64]
    """One number: how many rows of `split_S3` are written."""
    sums: NDArray[np.float64]
    """<gamma, x>, added up with the rounding error kept apart."""
    is_lossless: NDArray[np.bool_]
    """One truth value: whether all scores so far are multiples of the quantum."""


class Proof(NamedTuple):
    """What rows are proved by."""

    scan: RowScan
    """At the bias of the prices."""
    guard: float
    """`float_guard` of these prices."""
    prices: Prices


def float_guard(dtype: np.dtype[Any], largest: float, prices: Prices, bias_E: FloatArray) -> float:
    r"""What fl(score + bias) of two experts must differ by for their integer values to differ by more than `reach`.

    Let q = 1 / per_unit be the quantum, s = rint(x / q) the integer score of x, p the price, and b = fl(q (p - c)) the
    bias, c whole and the same for all. With u the largest relative rounding error of the dtype, |x| <= X, |b| <= B:
    s is off by half a quantum, b by relative 2 u (float64 first, then the dtype), and the sum by u (X + B). Hence

    .. math:: |fl(x + b) - q (s + p - c)| \le \delta = q / 2 + 3 u (X + B) + t

    where t, some of the smallest subnormals, covers underflow of b (sums never underflow). If now
    fl(x + b) - fl(x' + b') > 2 delta + q reach before the difference is rounded, s + p exceeds s' + p' by more than
    `reach`. That rounding is relative, and twice the bound covers it with room to spare; so it does if fl(x + b) is
    compared with fl(fl(x' + b') + guard), the guard being rounded to the dtype too.

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


def make_proof(dtype: np.dtype[Any], largest: float, prices: Prices) -> Proof:
    """Prepare to prove rows at these prices; `largest` bounds the finite |scores|."""
    price_E = prices.price_E
    middle = price_E.min() // 2 + price_E.max() // 2
    bias_E = (price_E - middle) / prices.per_unit
    guard = float_guard(dtype, largest, prices, bias_E)
    with np.errstate(over="ignore"):
        scan = make_scan(dtype, bias_E, np.zeros(price_E.size), prices.top_k)
    return Proof(scan, guard, prices)


@jit
def certify_rows(scores_TE, weight_T, first_token, proof, listed, found):  # type: ignore[no-untyped-def]
    """Derive every row's assignment from integer scores and prices alone, and add it up.

    Rows whose K-th and (K+1)-th best are more than `reach` apart need nothing else. In the others the units listed for
    the row decide among the experts within `reach` of that boundary, or, if `reach` is 0, the lowest index among the
    tied ones where the row is not listed. With a reach of 0 every expert used then scores at least as much as every
    expert with units to spare.

    Rows whose boundary is wider than the guard in floats have it in integers too (`float_guard`); the rest are looked
    at in integers.

    Parameters
    ----------
    scores_TE : float32 or float64 array
    weight_T : int64 array
        How many tokens each row stands for; shares are of all their picks together.
    first_token : int
        Index of the first row among all.
    proof : Proof
    listed : ListedRows
    found : Found
        Written to; `experts_TK` has a row for each of these rows, or none.

    Returns
    -------
    is_complete : bool
        Whether each row made K picks.
    """
    num_tokens, num_experts = scores_TE.shape
    flat = scores_TE.reshape(-1)
    routing, _, scratch = proof.scan
    lanes, stride, top_k = scratch.sum_L.size, routing.bias_P.size, routing.top_k
    near = _Near(
        np.empty(stride, np.int32),
        np.empty(stride, np.int64),
        np.empty(stride, np.int64),
        np.empty(top_k + 1, np.int64),
    )
    row_listed = first_at_least(listed.token_R, first_token)
    scratch.load_P[:] = 0
    for token in range(0, num_tokens, lanes):
        rows = min(lanes, num_tokens - token)
        source, start = _bound_tile(flat, token, rows, num_experts, proof.scan)
        for row in range(rows):
            last_in = scratch.best_KL[(top_k - 1) * lanes + row]
            first_out = scratch.best_KL[top_k * lanes + row]
            if np.float64(last_in - first_out) > proof.guard:
                _take_picks(source, start + row * stride, token + row, weight_T[token + row], last_in, proof, found)
                continue
            while row_listed < listed.token_R.size and listed.token_R[row_listed] < first_token + token + row:
                row_listed += 1
            is_listed = row_listed < listed.token_R.size and listed.token_R[row_listed] == first_token + token + row
            unit = proof.prices.unit * weight_T[token + row]
            count = _list_near(source, start + row * stride, num_experts, last_in, first_out, proof, found, near)
            if not _share_out(near, count, unit, proof.prices, listed, row_listed if is_listed else -1):
                return False
            _give_shares(source, start + row * stride, token + row, unit, proof.prices.unit, near, count, found)
    for k in range(num_experts):
        found.load_E[k] += proof.prices.unit * np.int64(scratch.load_P[k])
    return True


@jit_borrowing
def _take_picks(source, start, token, weight, last_in, proof, found):  # type: ignore[no-untyped-def]
    """Give a row to the experts that reach `last_in`."""
    routing, scratch = proof.scan.routing, proof.scan.scratch
    per_unit = source.dtype.type(proof.prices.per_unit)
    total = 0.0
    pick = 0
    off = np.uint64(0)
    for k in range(0, routing.bias_P.size, WIDTH):
        scores = load(source, start + k)
        bits = at_least(add(scores, load(routing.bias_P, k)), last_in)
        if weight == 1:
            add_bits(scratch.load_P, k, bits)
        else:
            _add_weight(found.load_E, k, bits, weight * proof.prices.unit)
        if found.is_lossless[0]:
            off |= off_grid(scores, per_unit)
        while bits != 0:
            expert = k + lowest_bit(bits)
            total += np.float64(source[start + expert])
            if found.experts_TK.shape[0] > 0:
                found.experts_TK[token, pick] = expert
            pick += 1
            bits &= bits - np.uint64(1)
    add_compensated(found.sums, 0, weight * total)
    found.is_lossless[0] &= off == 0


class _Near(NamedTuple):
    """Experts of one row that may be among its best, ascending, in as many places as there are: working memory."""

    expert_C: NDArray[np.int32]
    value_C: NDArray[np.int64]
    """Integer scores + prices; for experts sure to be picked -FORBIDDEN, which is above all."""
    share_C: NDArray[np.int64]
    """Units."""
    best_K: NDArray[np.int64]
    """The largest values, bar the experts sure to be picked."""


@jit_borrowing
def _list_near(source, start, num_experts, last_in, first_out, proof, found, near):  # type: ignore[no-untyped-def]
    """List the experts that floats do not rule out; how many they are.

    By the bound of `float_guard`, an expert above B + guard exceeds E - K others by more than `reach` in integers, so
    it is picked whatever is listed; one below A - guard falls short of K others by as much.
    """
    prices, bias_P = proof.prices, proof.scan.routing.bias_P
    guard = source.dtype.type(proof.guard)
    low, high = splat(last_in - guard), splat(first_out + guard)
    off = np.uint64(0)
    count = 0
    for k in range(0, bias_P.size, WIDTH):
        scores = load(source, start + k)
        biased = add(scores, load(bias_P, k))
        sure = exceeds(biased, high)
        bits = ~exceeds(low, biased) & np.uint64((1 << WIDTH) - 1)
        if num_experts - k < WIDTH:
            bits &= (np.uint64(1) << np.uint64(max(0, num_experts - k))) - np.uint64(1)
        if found.is_lossless[0]:
            off |= off_grid(scores, prices.per_unit)
        while bits != 0:
            n = lowest_bit(bits)
            near.expert_C[count] = k + n
            near.value_C[count] = -FORBIDDEN
            if (sure >> np.uint64(n)) & np.uint64(1) == 0:
                near.value_C[count] = _quantized(source[start + k + n], prices.per_unit) + prices.price_E[k + n]
            count += 1
            bits &= bits - np.uint64(1)
    found.is_lossless[0] &= off == 0
    return count


@jit_borrowing
def _share_out(near, count, unit, prices, listed, row):  # type: ignore[no-untyped-def]
    """Share out a row's units, K times `unit`: all far above the boundary, those within `reach` as listed.

    Where the boundary is a tie, the tied experts of a row that is not listed (row < 0) have their turn by index.
    Returns whether all units were given away.
    """
    last_in, first_out = _best_values(near, count)
    low, high = last_in - prices.reach, first_out + prices.reach
    if low > first_out:  # no listed unit can matter
        low = last_in
        high = last_in - 1
    left = prices.top_k * unit
    entry, end = (listed.start_R[row], listed.start_R[row + 1]) if row >= 0 else (0, 0)
    for n in range(count):
        near.share_C[n] = unit if near.value_C[n] > high else 0
        if low <= near.value_C[n] <= high:
            while entry < end and listed.expert_N[entry] < near.expert_C[n]:
                entry += 1
            if entry < end and listed.expert_N[entry] == near.expert_C[n]:
                near.share_C[n] = listed.units_N[entry]
            if near.share_C[n] < 0 or near.share_C[n] > unit:
                return False
        left -= near.share_C[n]
    if row < 0 and low == high:
        for n in range(count):
            if near.value_C[n] == low and left > 0:
                near.share_C[n] = unit
                left -= unit
    return left == 0


@jit_borrowing
def _best_values(near, count):  # type: ignore[no-untyped-def]
    """The K-th and (K+1)-th largest value; FORBIDDEN where there are not so many."""
    last = near.best_K.size - 1
    for n in range(count):
        last -= near.value_C[n] == -FORBIDDEN
    near.best_K[: last + 1] = FORBIDDEN
    for n in range(count):
        value = near.value_C[n]
        if near.best_K[last] < value < -FORBIDDEN:
            slot = last
            while slot > 0 and value > near.best_K[slot - 1]:
                near.best_K[slot] = near.best_K[slot - 1]
                slot -= 1
            near.best_K[slot] = value
    return near.best_K[last - 1], near.best_K[last]


@jit_borrowing
def _give_shares(source, start, token, most, unit, near, count, found):  # type: ignore[no-untyped-def]
    """Add up a row's shares, at most `most` units to an expert, and write them down."""
    is_split = False
    for n in range(count):
        is_split |= 0 < near.share_C[n] < most
    total = 0.0
    picks = 0
    for n in range(count):
        k, share = near.expert_C[n], near.share_C[n]
        if share == 0:
            continue
        found.load_E[k] += share
        total += np.float64(source[start + k]) * (share / unit)
        if is_split:
            split = found.num_splits[0]
            found.split_S3[split, 0] = token
            found.split_S3[split, 1] = k
            found.split_S3[split, 2] = share
            found.num_splits[0] += 1
        if share == most:
            if picks < found.experts_TK.shape[1] and found.experts_TK.shape[0] > 0:
                found.experts_TK[token, picks] = k
            picks += 1
    add_compensated(found.sums, 0, total)


@jit
def count_decided(scores_TE, weight_T, proof, load_E, close_T):  # type: ignore[no-untyped-def]
    """Mark the rows whose K-th and (K+1)-th best may be within `reach` in integers; count the others' picks."""
    num_tokens, num_experts = scores_TE.shape
    flat = scores_TE.reshape(-1)
    routing, _, scratch = proof.scan
    lanes, stride, top_k = scratch.sum_L.size, routing.bias_P.size, routing.top_k
    for token in range(0, num_tokens, lanes):
        rows = min(lanes, num_tokens - token)
        source, start = _bound_tile(flat, token, rows, num_experts, proof.scan)
        for row in range(rows):
            last_in = scratch.best_KL[(top_k - 1) * lanes + row]
            close_T[token + row] = not np.float64(last_in - scratch.best_KL[top_k * lanes + row]) > proof.guard
            if not close_T[token + row]:
                for k in range(0, stride, WIDTH):
                    biased = add(load(source, start + row * stride + k), load(routing.bias_P, k))
                    _add_weight(load_E, k, at_least(biased, last_in), weight_T[token + row])


@jit_borrowing
def add_compensated(sums, place, value):  # type: ignore[no-untyped-def]
    """sums[place] + sums[place + 1] += value, with the rounding error of the first kept in the second."""
    total = sums[place] + value
    shift = total - sums[place]
    sums[place + 1] += (sums[place] - (total - shift)) + (value - shift)
    sums[place] = total


@jit_borrowing
def _quantized(score, per_unit):  # type: ignore[no-untyped-def]
    scaled = np.rint(np.float64(score) * per_unit)
    return np.int64(scaled) if scaled > -np.inf else np.int64(FORBIDDEN)
