"""Stage 5: the proof. One pass over all T x E pairs, in integers, with no tolerance.

If every row holds K experts whose biased scores are at least those of all others, and every load equals its
target, then x is feasible, D(p) = <gamma, x>, and by weak duality both are optimal. The pass takes nothing from
the earlier stages but prices and, for tied rows, a proposal of how to break the tie; so windows, samples and
floating point may have erred at will: a wrong answer does not pass.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb.exact.screening.row_kernels import Found, ListedRows, Prices, certify_rows, make_proof
from alflb.exact.screening.sources import ScoreSource
from alflb.exact.screening.undecided import Undecided
from alflb.exact.units import Grid

IntArray = NDArray[np.int64]


class Assignment(NamedTuple):
    """What the pass found: a plan that meets the targets."""

    value: float
    """<gamma, x> with the scores as given, from a compensated sum in float64."""
    is_lossless: bool
    """Whether every score is a multiple of the quantum."""
    load_E: IntArray
    """Loads in units."""
    experts_TK: NDArray[np.int32]
    """Experts of each row, ascending; no rows if they were not wanted, meaningless for split ones."""
    split_S3: IntArray
    """(row, expert, units) of rows that share a pick among experts; none if targets are whole and rows are tokens."""


def prove_assignment(
    source: ScoreSource,
    grid: Grid,
    top_k: int,
    unit: int,
    target_E: IntArray,
    price_E: IntArray,
    rows: Undecided,
    units_N: IntArray,
    *,
    reach: int = 0,
    keep_experts: bool,
) -> Assignment | None:
    """The assignment that prices and listed rows make, if it meets the targets; with a reach of 0, an optimal one.

    Parameters
    ----------
    source : ScoreSource
    grid : Grid
    top_k, unit : int
        K, and the units in one pick.
    target_E : int64 array, shape (E,)
        Target loads in units.
    price_E : int64 array, shape (E,)
        Prices in quanta.
    rows : Undecided
        Rows whose picks are not left to the prices.
    units_N : int64 array
        Units of each entry of `rows`.
    reach : int
        How far from a tie, in quanta, listed units decide; beyond 0 whoever listed them answers for optimality.
    keep_experts : bool
        Whether to fill `experts_TK`; streams leave it empty.
    """
    listed = ListedRows(rows.token_R, rows.start_R, rows.expert_N, units_N)
    proof = make_proof(source.dtype, source.largest, Prices(grid.per_unit, price_E, reach, top_k, unit))
    experts_TK = np.empty((source.num_rows if keep_experts else 0, top_k), np.int32)
    split_S3 = np.empty(
        (
            0 if unit == 1 and source.num_rows == source.num_tokens else len(rows.expert_N) + top_k * len(rows.token_R),
            3,
        ),
        np.int64,
    )
    load_E, num_splits, sums, is_lossless = (
        np.zeros(source.num_experts, np.int64), np.zeros(1, np.int64), np.zeros(2), np.ones(1, np.bool_)
    )  # fmt: skip
    for first, scores_CE in source.chunks():
        before = num_splits[0]
        found = Found(load_E, experts_TK[first : first + len(scores_CE)], split_S3, num_splits, sums, is_lossless)
        if not certify_rows(scores_CE, source.weights(first, len(scores_CE)), first, proof, listed, found):
            return None
        split_S3[before : num_splits[0], 0] += first
    if not np.array_equal(load_E, target_E):
        return None
    return Assignment(float(sums.sum()), bool(is_lossless[0]), load_E, experts_TK, split_S3[: num_splits[0]])
