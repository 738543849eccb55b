"""Compiled loops over rows of scores: count margins, collect the undecided entries, check the optimum.

For a row whose K-th and (K+1)-th largest biased scores are A >= B, the *margin* of expert k is ``biased - B`` if
k is among the K best and ``biased - A`` otherwise: by so much may the bias of k alone fall (rise) before the
token drops k (picks it up).

All loops find A and B alike. The row goes to a buffer padded to whole vectors. The maxima of the buffer's *lanes*
(positions equal modulo `lanes`) come first, since they vectorise: B cannot be below the (K+1)-th largest of them.
The few entries within reach of that bound, the *survivors*, are then ranked by counting.

The functions call each other, so they stand in one file: numba's cache does not look across files.
"""

from __future__ import annotations

import numpy as np
from numba import njit

BINS = 32
"""Bins of a margin histogram; one more counts the margins above the window."""

FORBIDDEN = -(2**62)
"""Integer score of a pair the problem forbids (-inf); sums with prices stay inside int64."""

_VECTOR = 16
_JIT = {"cache": True, "nogil": True, "error_model": "numpy"}


@njit(**_JIT)
def count_margins(scores_TE, bias_E, width_E, top_k, counts_EB):  # type: ignore[no-untyped-def]
    """Add the margins of all rows to histograms: BINS equal bins on [-width, width], then one for those above."""
    num_tokens, num_experts = scores_TE.shape
    lanes, padded = _shape(num_experts, top_k)
    biased = np.full(padded, -np.inf, scores_TE.dtype)
    lane_best = np.empty(lanes, scores_TE.dtype)
    value = np.empty(padded + _VECTOR, scores_TE.dtype)
    rank = np.empty(padded + _VECTOR, np.int32)
    near = np.empty(padded, np.int32)
    bins_per_unit_E = (BINS / 2) / width_E
    for token in range(num_tokens):
        for k in range(num_experts):
            biased[k] = scores_TE[token, k] + bias_E[k]
        num_near = _survivors(biased, width_E, top_k, lane_best, rank, near, value, -np.inf)
        last_in, first_out = _boundary(value, rank, num_near, top_k)
        for n in range(num_near):
            k = near[n]
            margin = value[n] - (first_out if value[n] >= last_in else last_in)
            if margin > width_E[k]:
                counts_EB[k, BINS] += 1
            elif margin >= -width_E[k]:
                counts_EB[k, min(BINS - 1, int((margin + width_E[k]) * bins_per_unit_E[k]))] += 1


@njit(**_JIT)
def collect_undecided(scores_TE, bias_E, width_E, top_k, certain_E, token_R, picks_R, end_R, expert_N):  # type: ignore[no-untyped-def]
    """Split the picks of each row into certain ones, counted in `certain_E`, and undecided ones, listed.

    An entry with margin above its width is a certain pick; below minus its width, certainly none. A row with
    undecided entries is listed as token, number of picks left to make, end of its entries, and the entries'
    experts. Returns the numbers of rows and entries written.
    """
    num_tokens, num_experts = scores_TE.shape
    lanes, padded = _shape(num_experts, top_k)
    biased = np.full(padded, -np.inf, scores_TE.dtype)
    lane_best = np.empty(lanes, scores_TE.dtype)
    value = np.empty(padded + _VECTOR, scores_TE.dtype)
    rank = np.empty(padded + _VECTOR, np.int32)
    near = np.empty(padded, np.int32)
    num_rows = 0
    num_entries = 0
    for token in range(num_tokens):
        for k in range(num_experts):
            biased[k] = scores_TE[token, k] + bias_E[k]
        num_near = _survivors(biased, width_E, top_k, lane_best, rank, near, value, -np.inf)
        last_in, first_out = _boundary(value, rank, num_near, top_k)
        picks = top_k
        start = num_entries
        for n in range(num_near):
            k = near[n]
            margin = value[n] - (first_out if value[n] >= last_in else last_in)
            if margin > width_E[k]:
                certain_E[k] += 1
                picks -= 1
            elif margin >= -width_E[k]:
                expert_N[num_entries] = k
                num_entries += 1
        if picks == num_entries - start:
            for entry in range(start, num_entries):
                certain_E[expert_N[entry]] += 1
            num_entries = start
        elif picks == 0:
            num_entries = start
        else:
            token_R[num_rows] = token
            picks_R[num_rows] = picks
            end_R[num_rows] = num_entries
            num_rows += 1
    return num_rows, num_entries


@njit(**_JIT)
def quantise_entries(scores_TE, token_R, end_R, expert_N, per_unit, score_N):  # type: ignore[no-untyped-def]
    """The integer scores of listed entries."""
    start = 0
    for row in range(token_R.size):
        for entry in range(start, end_R[row]):
            score_N[entry] = _quantised(scores_TE[token_R[row], expert_N[entry]], per_unit)
        start = end_R[row]


@njit(**_JIT)
def _quantised(score, per_unit):  # type: ignore[no-untyped-def]
    scaled = np.rint(np.float64(score) * per_unit)
    return np.int64(scaled) if scaled > -np.inf else np.int64(FORBIDDEN)


@njit(**_JIT)
def _shape(num_experts, top_k):  # type: ignore[no-untyped-def]
    """Lanes (whole vectors, and some more than the K + 1 wanted) and the row buffer's length in whole lanes."""
    lanes = _VECTOR * -(-3 * (top_k + 1) // (2 * _VECTOR))
    return lanes, lanes * -(-num_experts // lanes)


@njit(**_JIT)
def _survivors(biased, width_E, top_k, lane_best, rank, near, value, lowest):  # type: ignore[no-untyped-def]
    """List the experts that may be among the K + 1 best or have a margin of at least -width, with their values."""
    lanes = lane_best.size
    for lane in range(lanes):
        lane_best[lane] = biased[lane]
    for start in range(lanes, biased.size, lanes):
        for lane in range(lanes):
            here = biased[start + lane]
            best = lane_best[lane]
            lane_best[lane] = here if here > best else best
    bound = _ranked(lane_best, rank, lanes, top_k)
    count = 0
    for k in range(width_E.size):
        near[count] = k
        count += biased[k] + width_E[k] >= bound
    for n in range(count):
        value[n] = biased[near[n]]
    for n in range(count, _VECTOR * (1 + count // _VECTOR)):
        value[n] = lowest
    return count


@njit(**_JIT)
def _boundary(value, rank, count, top_k):  # type: ignore[no-untyped-def]
    """The K-th and (K+1)-th largest of the first `count` values, which pads at the lowest value follow."""
    padded = _VECTOR * (1 + count // _VECTOR)
    first_out = _ranked(value, rank, padded, top_k)
    last_in = value[0]
    found = False
    for n in range(count):
        if rank[n] < top_k and (not found or value[n] < last_in):
            last_in = value[n]
            found = True
    return last_in, first_out


@njit(**_JIT)
def _ranked(value, rank, count, above):  # type: ignore[no-untyped-def]
    """The least value that at most `above` of the first `count` values exceed; leaves those numbers in `rank`."""
    for n in range(count):
        rank[n] = 0
    for m in range(count):
        pivot = value[m]
        for n in range(count):
            rank[n] += pivot > value[n]
    best = value[0]
    found = False
    for n in range(count):
        if rank[n] <= above and (not found or value[n] < best):
            best = value[n]
            found = True
    return best



@njit(**_JIT)
def certify_rows(  # type: ignore[no-untyped-def]
    scores_TE, per_unit, price_E, top_k, unit, first_token, token_R, start_R, expert_N, units_N,
    load_E, experts_TK, split_S3,
):  # fmt: skip
    """Re-derive every row's assignment from integer scores and prices, and add it up.

    Rows whose K best are separated from the rest by the prices need nothing else. Where the K-th and (K+1)-th
    tie, the listed units decide, and the remaining picks go to the lowest expert index. Either way every expert
    assigned scores at least as much as every expert with units to spare: it is an optimal choice for the row.

    Loads are added to `load_E` in units; `experts_TK` (if it has rows) receives the experts, ascending; rows with
    shares of picks are written to `split_S3` as (token, expert, units). Returns the value <gamma, x>, whether all
    scores were multiples of the quantum, the number of splits, and whether each row made exactly K picks.
    """
    num_tokens, num_experts = scores_TE.shape
    lanes, padded = _shape(num_experts, top_k)
    biased = np.full(padded, FORBIDDEN, np.int64)
    lane_best = np.empty(lanes, np.int64)
    value = np.empty(padded + _VECTOR, np.int64)
    rank = np.empty(padded + _VECTOR, np.int64)
    near = np.empty(padded, np.int32)
    share = np.empty(padded, np.int64)
    exact_E = np.zeros(num_experts, np.int64)
    listed = np.searchsorted(token_R, first_token)
    total = 0.0
    lossless = True
    num_splits = 0
    for token in range(num_tokens):
        for k in range(num_experts):
            scaled = np.float64(scores_TE[token, k]) * per_unit
            whole = np.rint(scaled)
            lossless &= whole == scaled
            biased[k] = np.int64(whole) + price_E[k] if scaled > -np.inf else FORBIDDEN
        num_near = _survivors(biased, exact_E, top_k, lane_best, rank, near, value, FORBIDDEN)
        last_in, first_out = _boundary(value, rank, num_near, top_k)
        while listed < token_R.size and token_R[listed] < first_token + token:
            listed += 1
        row = listed if listed < token_R.size and token_R[listed] == first_token + token else -1
        left = top_k * unit
        whole_picks = True
        for n in range(num_near):
            share[n] = unit if value[n] > last_in or (value[n] == last_in and last_in > first_out) else 0
            if row >= 0 and value[n] == last_in == first_out:
                share[n] = _listed_units(row, near[n], start_R, expert_N, units_N)
                whole_picks &= share[n] == 0 or share[n] == unit
            left -= share[n]
        for n in range(num_near):
            if left > 0 and value[n] == last_in and row < 0:
                share[n] = unit
                left -= unit
        if left != 0:
            return total, lossless, num_splits, False
        pick = 0
        for n in range(num_near):
            if share[n] == 0:
                continue
            load_E[near[n]] += share[n]
            total += np.float64(scores_TE[token, near[n]]) * (share[n] / unit)
            if not whole_picks:
                split_S3[num_splits, 0] = first_token + token
                split_S3[num_splits, 1] = near[n]
                split_S3[num_splits, 2] = share[n]
                num_splits += 1
            elif experts_TK.shape[0] > 0:
                experts_TK[token, pick] = near[n]
                pick += 1
    return total, lossless, num_splits, True


@njit(**_JIT)
def _listed_units(row, expert, start_R, expert_N, units_N):  # type: ignore[no-untyped-def]
    for entry in range(start_R[row], start_R[row + 1]):
        if expert_N[entry] == expert:
            return units_N[entry]
    return 0
