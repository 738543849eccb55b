"""Stages 3 and 4: settle the undecided entries exactly, in integers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb.exact.screening import flow_kernels
from alflb.exact.screening.undecided import Undecided

IntArray = NDArray[np.int64]

_PATIENCE = 2
"""Quantile steps without gain or shortening before they are given up."""
_GAIN = 0.8
_CLOSER = 0.5
_DAMPING = 0.85
_ROWS_PER_PICK = 24
"""Closest rows, for each misplaced pick, that the first attempt at rerouting looks at."""
_MORE_ROWS = 4


class Settlement(NamedTuple):
    """Prices that balance the loads, with the units every tied row needs to get there."""

    price_E: IntArray
    rows: Undecided
    """All rows whose picks the prices alone do not decide, and some that they do."""
    units_N: IntArray
    """Units of each entry of `rows`."""
    is_balanced: bool
    """False when the undecided entries do not allow balance; the prices are then merely better than before."""


def settle(undecided: Undecided, price_E: IntArray, room_E: IntArray, unit: int) -> Settlement:
    """Fill the experts' room exactly at least loss, if the undecided entries allow it."""
    price_E = quantile_descent(undecided, price_E, room_E, unit)
    return reroute_closest(undecided, price_E, room_E, unit)


def quantile_descent(undecided: Undecided, price_E: IntArray, room_E: IntArray, unit: int) -> IntArray:
    """Exact damped quantile steps while they pay; the best prices seen."""
    num_experts = len(price_E)
    start_E = np.concatenate([[0], np.cumsum(np.bincount(undecided.expert_N, minlength=num_experts))])
    margin_N = np.empty_like(undecided.score_N)
    rank_E = -(-room_E // unit)
    step_E = np.empty_like(price_E)
    best_E, least, reach, idle = price_E, np.inf, np.inf, 0
    while True:
        flow_kernels.expert_margins(
            undecided.start_R, undecided.picks_R, undecided.expert_N, undecided.score_N, price_E, start_E, margin_N
        )
        misplaced = flow_kernels.quantile_steps(start_E, margin_N, rank_E, step_E)
        longest = int(np.abs(step_E).max())
        idle = 0 if misplaced < _GAIN * least or longest < _CLOSER * reach else idle + 1
        reach = min(reach, longest)
        if misplaced < least:
            best_E, least = price_E, misplaced
        if least <= num_experts or idle >= _PATIENCE:
            return best_E
        price_E = price_E - np.rint(_DAMPING * step_E).astype(np.int64)


def reroute_closest(undecided: Undecided, price_E: IntArray, room_E: IntArray, unit: int) -> Settlement:
    """Shortest augmenting paths over the rows closest to a tie, over more of them until the others agree."""
    num_rows = len(undecided.token_R)
    count = 0
    price_E, room_E = price_E.copy(), room_E.copy()
    units_N = np.zeros_like(undecided.score_N)
    redo_R = np.ones(num_rows, np.bool_)
    while True:
        last_in_R, first_out_R = undecided.boundaries(price_E)
        flow_kernels.reassign(
            undecided.start_R, undecided.picks_R, undecided.expert_N, undecided.score_N, price_E, last_in_R,
            first_out_R, redo_R, unit, units_N, room_E,
        )  # fmt: skip
        count = count or _ROWS_PER_PICK * max(len(price_E), int(np.maximum(room_E, 0).sum()) // unit)
        gap_R = last_in_R - first_out_R
        close_R = gap_R <= (np.partition(gap_R, count)[count] if count < num_rows else gap_R.max(initial=0))
        close, close_N = undecided.rows(close_R)
        close_units_N = units_N[close_N]
        is_balanced = flow_kernels.reroute(
            close.start_R, *close.by_expert(len(price_E)), close.expert_N, close.score_N, unit, close_units_N,
            price_E, room_E,
        )  # fmt: skip
        units_N[close_N] = close_units_N
        num_wrong = flow_kernels.find_contradicted(
            undecided.start_R, undecided.expert_N, undecided.score_N, unit, units_N, price_E, redo_R
        )
        if (is_balanced and num_wrong == 0) or close_R.all():
            return Settlement(price_E, close, close_units_N, is_balanced)
        count *= _MORE_ROWS
