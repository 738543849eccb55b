"""Stages 3 and 4: settle the undecided entries exactly, in integers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb.exact.screening import flow_kernels
from alflb.exact.screening.undecided import Undecided

IntArray = NDArray[np.int64]

_PATIENCE = 2
"""Quantile steps without a gain of a fifth before they are given up."""
_ROWS_PER_EXPERT = 32
"""Closest rows, for each expert, that the first attempt at rerouting looks at."""


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
    by_expert_N, start_E, row_N = undecided.by_expert(num_experts)
    rank_E = -(-room_E // unit)
    step_E = np.empty_like(price_E)
    best_E, least, idle, reach = price_E, np.inf, 0, np.inf
    while True:
        boundaries = undecided.boundaries(price_E)
        left_E = undecided.assign(price_E, boundaries, room_E, unit)[1]
        misplaced = np.maximum(left_E, 0).sum() / unit
        flow_kernels.quantile_steps(
            undecided.start_R, by_expert_N, start_E, row_N, undecided.score_N, price_E, *boundaries, rank_E, step_E
        )
        longest = int(np.abs(step_E).max())
        idle = 0 if misplaced < 0.8 * least or longest < 0.5 * reach else idle + 1
        reach = min(reach, longest)
        if misplaced < least:
            best_E, least = price_E, misplaced
        if least <= num_experts / 2 or idle >= _PATIENCE:
            return best_E
        price_E = price_E - np.rint(0.85 * step_E).astype(np.int64)


def reroute_closest(undecided: Undecided, price_E: IntArray, room_E: IntArray, unit: int) -> Settlement:
    """Shortest augmenting paths over the rows closest to a tie, over more of them until the rest agrees."""
    num_rows = len(undecided.token_R)
    count = _ROWS_PER_EXPERT * len(price_E)
    while True:
        last_in_R, first_out_R = undecided.boundaries(price_E)
        units_N, _ = undecided.assign(price_E, (last_in_R, first_out_R), room_E, unit)
        gap_R = last_in_R - first_out_R
        close_R = np.ones(num_rows, np.bool_)
        if count < num_rows:
            close_R = gap_R <= np.partition(gap_R, count)[count]
        close, rest = undecided.rows(close_R), undecided.rows(~close_R)
        close_N = np.repeat(close_R, np.diff(undecided.start_R))
        left_E = room_E.copy()
        np.subtract.at(left_E, undecided.expert_N, units_N)
        close_units_N, moved_E = units_N[close_N], price_E.copy()
        by_expert_N, start_E, row_N = close.by_expert(len(price_E))
        done = flow_kernels.reroute(
            close.start_R, by_expert_N, start_E, row_N, close.expert_N, close.score_N, unit, close_units_N, moved_E,
            left_E,
        )  # fmt: skip
        if done and flow_kernels.rows_hold(rest.start_R, rest.expert_N, rest.score_N, unit, units_N[~close_N], moved_E):
            return Settlement(moved_E, close, close_units_N, True)
        if close_R.all():
            return Settlement(price_E, close, close_units_N, False)
        price_E, count = moved_E, 4 * count
