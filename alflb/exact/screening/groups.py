"""Tokens with identical scores: solved as one row that stands for all of them, and told apart at the end.

Repeated rows (the same token id before the first layer that mixes tokens, say) tie wherever one of them does. Together
they are one row with as many picks to make as they have; shares of it are then handed out token by token, in a circle.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from alflb.exact.screening.proof import Assignment
from alflb.exact.screening.sources import ArraySource, slices
from alflb.kernels._jit import jit
from alflb.problem import FloatArray

IntArray = NDArray[np.int64]

_LOOK_AT = 256
"""Rows among which repeats are looked for first."""
_FEWER = 4
"""Distinct rows must be fewer than tokens by this factor to be worth looking for them all."""
_SAMPLE_PER_ROW = 4
"""Tokens in the sample for each distinct row, about."""
_FACTOR = 0x100000001B3
"""The prime of the FNV hash."""


class GroupedSource:
    """Scores in memory, identical rows read once."""

    def __init__(self, source: ArraySource, first_R: IntArray, group_T: IntArray) -> None:
        self._source = source
        self._scores_RE = source.scores_TE[first_R]
        self._scores_RE.flags.writeable = False
        self._weight_R = np.bincount(group_T)
        self._group_T = group_T
        self.num_tokens, self.num_rows, self.num_experts = source.num_tokens, len(first_R), source.num_experts
        self.dtype, self.largest = source.dtype, source.largest

    def sample(self) -> tuple[FloatArray, IntArray]:
        """Some of the tokens: that many distinct rows do not need all."""
        scores_TE, rows_M = self._source.sample()
        return scores_TE, rows_M[:: max(1, len(rows_M) // max(_LOOK_AT, _SAMPLE_PER_ROW * self.num_rows))]

    def chunks(self) -> Iterator[tuple[int, FloatArray]]:
        """Slices of the distinct rows."""
        return slices(self._scores_RE)

    def weights(self, first: int, count: int) -> IntArray:
        """Repeats of each of these rows."""
        return self._weight_R[first : first + count]

    def spread(self, found: Assignment, unit: int) -> Assignment:
        """The assignment of rows as one of tokens."""
        experts_TK = found.experts_TK[self._group_T]
        member_T = np.argsort(self._group_T, kind="stable")
        end_R = np.cumsum(self._weight_R)
        num_parts = 0 if unit == 1 else int(np.sum(found.split_S3[:, 2] // unit + 2))
        parts_S3 = np.empty((num_parts, 3), np.int64)
        num_parts = _deal_out(found.split_S3, self._weight_R, unit, member_T, end_R, experts_TK, parts_S3)
        return found._replace(experts_TK=experts_TK, split_S3=parts_S3[:num_parts])


def grouped(source: ArraySource) -> ArraySource | GroupedSource:
    """The source with identical rows as one, if a look at some of them says that this pays."""
    bits_TB = source.scores_TE.view(np.uint32)
    if not _has_repeats(bits_TB):
        return source
    group_T, first_T = np.empty(source.num_tokens, np.int64), np.empty(source.num_tokens, np.int64)
    slots = np.full(2 << source.num_tokens.bit_length(), -1, np.int64)
    num_groups = _group_rows(bits_TB, slots, group_T, first_T)
    if num_groups * _FEWER > source.num_tokens:
        return source
    return GroupedSource(source, first_T[:num_groups].copy(), group_T)


def _has_repeats(bits_TB: NDArray[np.uint32]) -> bool:
    """Whether some rows repeat each other as often as `_FEWER` calls for: two of R distinct ones agree once in R."""
    count = min(len(bits_TB), _LOOK_AT)
    rows = bits_TB[np.arange(count) * len(bits_TB) // count]
    sums = rows.astype(np.float64) @ np.sqrt(np.arange(1.0, rows.shape[1] + 1))
    repeats = count - len(np.unique(sums))
    return repeats > min(count / 2, _FEWER * count**2 / 2 / len(bits_TB))


@jit
def _group_rows(bits_TB, slots, group_T, first_T):  # type: ignore[no-untyped-def]
    """Number the distinct rows in order of appearance, by a hash table of open addresses; returns their number."""
    num_groups = 0
    mask = np.uint64(slots.size - 1)
    for token in range(bits_TB.shape[0]):
        digest = np.uint64(0)
        for b in range(bits_TB.shape[1]):
            digest = (digest ^ np.uint64(bits_TB[token, b])) * np.uint64(_FACTOR)
        slot = (digest >> np.uint64(32)) & mask
        while slots[slot] >= 0 and not np.array_equal(bits_TB[first_T[slots[slot]]], bits_TB[token]):
            slot = (slot + np.uint64(1)) & mask
        if slots[slot] < 0:
            slots[slot] = num_groups
            first_T[num_groups] = token
            num_groups += 1
        group_T[token] = slots[slot]
    return num_groups


@jit
def _deal_out(split_S3, weight_R, unit, member_T, end_R, experts_TK, parts_S3):  # type: ignore[no-untyped-def]
    """Deal the units of each row's experts out to its tokens; how many rows of `parts_S3` were written.

    The tokens stand in a circle of ``weight * unit`` places. Each expert takes the places after those of the one before
    it, at most all of them, so that no token gets an expert twice; and after the last one each place has been taken K
    times.
    """
    place = 0
    num_parts = 0
    for s in range(split_S3.shape[0]):
        row, expert, left = split_S3[s]
        if s == 0 or row != split_S3[s - 1, 0]:
            place = 0
        places = weight_R[row] * unit
        first = end_R[row] - weight_R[row]
        while left > 0:
            part = min(left, unit - place % unit)
            token = member_T[first + place % places // unit]
            if unit == 1:
                experts_TK[token, place // places] = expert
            else:
                parts_S3[num_parts, 0] = token
                parts_S3[num_parts, 1] = expert
                parts_S3[num_parts, 2] = part
                num_parts += 1
            place += part
            left -= part
    return num_parts
