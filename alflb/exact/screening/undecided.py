"""Stage 2: screen all scores, keep what the guess leaves undecided.

Given a bias with a window around each expert's, one pass splits the picks of each token into certain ones, which
are only counted, and undecided ones. The undecided entries form a small sparse problem with the same E prices;
from here on everything is integer.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb.exact.screening import flow_kernels, row_kernels
from alflb.exact.screening.guess import BiasGuess
from alflb.exact.screening.sources import CHUNK, ScoreSource
from alflb.exact.units import Grid

IntArray = NDArray[np.int64]

_GUARD = 16
"""Roundings of the scores' dtype by which windows are widened, since screening adds biases in that dtype."""


class Undecided(NamedTuple):
    """Rows of a sparse matrix: tokens with picks left to make, and the experts they may choose from.

    Every row has at least one pick left and more entries than picks.
    """

    token_R: IntArray
    """Index of the row in the source."""
    weight_R: IntArray
    """Tokens that the row stands for."""
    picks_R: NDArray[np.int32]
    """Picks left to each of them."""
    start_R: IntArray
    """Row r owns entries start_R[r] to start_R[r + 1]; one more number than rows."""
    expert_N: NDArray[np.int32]
    score_N: IntArray

    def rows(self, keep_R: NDArray[np.bool_]) -> tuple[Undecided, NDArray[np.bool_]]:
        """The matrix of the rows kept, and which entries those are."""
        length_R = np.diff(self.start_R)
        keep_N = np.repeat(keep_R, length_R)
        start_R = np.concatenate([[0], np.cumsum(length_R[keep_R])])
        kept = Undecided(
            self.token_R[keep_R],
            self.weight_R[keep_R],
            self.picks_R[keep_R],
            start_R,
            self.expert_N[keep_N],
            self.score_N[keep_N],
        )
        return kept, keep_N

    @property
    def weight_N(self) -> IntArray:
        """The weight of each entry's row."""
        return np.repeat(self.weight_R, np.diff(self.start_R))

    def loads(self, places: IntArray | slice, num_experts: int) -> IntArray:
        """Loads, in tokens, of the experts at these places."""
        load_E = np.bincount(self.expert_N[places], self.weight_N[places], minlength=num_experts)
        return load_E.astype(np.int64)

    def near(self, price_E: IntArray, reach: int, rank_E: IntArray) -> tuple[Undecided, IntArray]:
        """The matrix of the entries within `reach` of a tie, and their places; other picks are deducted from ranks."""
        kept = Undecided(*map(np.empty_like, self))
        kept.start_R[0] = 0
        place_N = np.empty_like(self.score_N)
        num_rows, num_entries = flow_kernels.keep_near(self, price_E, reach, kept, place_N, rank_E)
        if num_entries == len(place_N):
            return self, place_N
        near = Undecided(
            kept.token_R[:num_rows].copy(),
            kept.weight_R[:num_rows].copy(),
            kept.picks_R[:num_rows].copy(),
            kept.start_R[: num_rows + 1].copy(),
            kept.expert_N[:num_entries].copy(),
            kept.score_N[:num_entries].copy(),
        )
        return near, place_N[:num_entries]

    def by_expert(self, num_experts: int) -> tuple[IntArray, IntArray, IntArray]:
        """Entries ordered by expert, where each expert's begin, and the row of each entry."""
        order_N, row_N = np.empty_like(self.score_N), np.empty_like(self.score_N)
        start_E = np.zeros(num_experts + 1, np.int64)
        flow_kernels.order_by_expert(self, order_N, start_E, row_N)
        return order_N, start_E, row_N


def screen(source: ScoreSource, guess: BiasGuess, top_k: int, grid: Grid) -> tuple[Undecided, IntArray]:
    """Read all scores once: the undecided rows, and the certain picks of each expert (tokens)."""
    dtype, num_experts = source.dtype, source.num_experts
    width_E = guess.width_E + _GUARD * np.finfo(dtype).eps * source.largest
    scan = row_kernels.make_scan(dtype, guess.bias_E, width_E, top_k)
    certain_E = np.zeros(num_experts, np.int64)
    listed = row_kernels.UndecidedRows(
        token_R=np.empty(CHUNK, np.int64),
        picks_R=np.empty(CHUNK, np.int32),
        end_R=np.empty(CHUNK, np.int64),
        expert_N=np.empty(CHUNK * num_experts, np.int32),
        score_N=np.empty(CHUNK * num_experts, np.int64),
    )
    parts = []
    for first, scores_CE in source.chunks():
        num_rows, num_entries = row_kernels.collect_undecided(
            scores_CE, source.weights(first, len(scores_CE)), scan, grid.per_unit, certain_E, listed
        )
        written = (
            listed.token_R[:num_rows] + first,
            source.weights(first, len(scores_CE))[listed.token_R[:num_rows]],
            listed.picks_R[:num_rows].copy(),
            np.diff(listed.end_R[:num_rows], prepend=0),
            listed.expert_N[:num_entries].copy(),
            listed.score_N[:num_entries].copy(),
        )
        parts.append(written)
    token_R, weight_R, picks_R, length_R, expert_N, score_N = (np.concatenate(arrays) for arrays in zip(*parts))
    start_R = np.concatenate([[0], np.cumsum(length_R)])
    return Undecided(token_R, weight_R, picks_R, start_R, expert_N, score_N), certain_E


def list_all(source: ScoreSource, top_k: int, grid: Grid) -> tuple[Undecided, IntArray]:
    """Screening switched off: every pair that is allowed is undecided, save where a token has no choice."""
    allowed_TE = np.concatenate([rows > -np.inf for _, rows in source.chunks()])
    score_TE = np.concatenate([np.rint(rows.astype(np.float64) * grid.per_unit) for _, rows in source.chunks()])
    weight_T = source.weights(0, len(allowed_TE))
    free_T = np.count_nonzero(allowed_TE, axis=1) > top_k
    certain_E = weight_T[~free_T] @ allowed_TE[~free_T]
    allowed_TE &= free_T[:, None]
    token_R = np.flatnonzero(free_T)
    undecided = Undecided(
        token_R,
        weight_T[free_T],
        np.full(len(token_R), top_k, np.int32),
        np.concatenate([[0], np.cumsum(np.count_nonzero(allowed_TE[free_T], axis=1))]),
        np.nonzero(allowed_TE)[1].astype(np.int32),
        score_TE[allowed_TE].astype(np.int64),
    )
    return undecided, certain_E
