"""Stages 3 and 4: settle the undecided entries exactly, in integers.

The quantile steps of stage 1, now on the undecided entries and without rounding, bring the loads within about a
token of the targets. What is left to move then goes along shortest paths in the graph of experts, which also
yields prices at which nobody wants to move: an optimum of the sparse problem.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb.exact.screening import flow_kernels
from alflb.exact.screening.undecided import Undecided

IntArray = NDArray[np.int64]

_PATIENCE = 2
"""Quantile steps that do not pay before their kind is given up."""
_ENTRIES_PER_PICK = 500
"""Entries that a quantile step reads in the time it takes to reroute a pick."""
_CLOSER = 0.5
"""Part of the former reach that is worth leaving rows out."""
_REACH = 2
"""How many times the longest step two prices may still move apart."""
_ROWS_PER_PICK = 24
"""Closest rows, for each misplaced pick, that the first attempt at rerouting looks at."""
_MORE_ROWS = 4
"""Growth of that number from attempt to attempt."""


class Settlement(NamedTuple):
    """Prices that balance the loads, with the units every tied row needs to get there."""

    price_E: IntArray
    rows: Undecided
    """All rows whose picks the prices alone do not decide."""
    units_N: IntArray
    """Units of each entry of `rows`."""
    is_balanced: bool
    """False when the undecided entries do not allow balance; the prices are then merely better than before."""


def settle(undecided: Undecided, price_E: IntArray, room_E: IntArray, unit: int) -> Settlement:
    """Fill the experts' room exactly at least loss, if the undecided entries allow it.

    Room for parts of picks is filled in two steps, by whole picks first: the second step starts from prices that are
    optimal but for a pick per expert, and moves few units along long paths.
    """
    price_E = quantile_descent(undecided, price_E, room_E, unit)
    if is_short(undecided, room_E, unit).any():
        nothing, _ = undecided.rows(np.zeros(len(undecided.token_R), np.bool_))
        return Settlement(price_E, nothing, np.empty(0, np.int64), False)
    if unit > 1:
        price_E = reroute_closest(undecided, price_E, _whole_room(room_E, unit), 1).price_E
    return reroute_closest(undecided, price_E, room_E, unit)


def is_short(undecided: Undecided, room_E: IntArray, unit: int) -> NDArray[np.bool_]:
    """Experts whose undecided entries cannot meet their room, however they fall."""
    return (room_E < 0) | (room_E > unit * undecided.loads(slice(None), len(room_E)))


def _whole_room(room_E: IntArray, unit: int) -> IntArray:
    """Room in whole picks, with the same sum: rounded down, and up where most was cut off."""
    whole_E = room_E // unit
    missing = int(room_E.sum()) // unit - int(whole_E.sum())
    whole_E[np.argsort(whole_E * unit - room_E, kind="stable")[:missing]] += 1
    return whole_E


def quantile_descent(undecided: Undecided, price_E: IntArray, room_E: IntArray, unit: int) -> IntArray:
    """Exact quantile steps while they pay; the best prices seen.

    A full step moves a price to where tokens tie, and prices that should tie meet after a few steps; damped steps would
    only come closer. All experts step at once until some answer each other and swap their places forever; then every
    other expert steps, in turns.

    Entries that are farther from a tie than the steps can still reach are left out as the steps get shorter.
    """
    rank_E = -(-room_E // unit)
    is_turn_E = np.arange(len(price_E)) % 2 == 0
    step_E = np.empty_like(price_E)
    best_E, least, idle, in_turns = price_E, np.inf, 0, False
    reach = np.inf
    while True:
        misplaced = flow_kernels.quantile_steps(undecided, price_E, rank_E, step_E)
        longest = int(np.abs(step_E).max())
        idle = 0 if misplaced + len(undecided.score_N) / _ENTRIES_PER_PICK < least else idle + 1
        if misplaced < least:
            best_E, least = price_E, misplaced
        if idle >= _PATIENCE and not in_turns:
            in_turns, idle = True, 0
        if least <= len(price_E) or idle >= _PATIENCE or longest == 0:
            return best_E
        price_E = price_E - (step_E * is_turn_E if in_turns else step_E)
        is_turn_E = ~is_turn_E
        if _REACH * longest < _CLOSER * reach:
            reach = _REACH * longest
            undecided, _ = undecided.near(price_E, reach, rank_E)


def reroute_closest(undecided: Undecided, price_E: IntArray, room_E: IntArray, unit: int) -> Settlement:
    """Shortest augmenting paths over the rows closest to a tie, over more of them until the others agree.

    An attempt that leaves fewer picks misplaced and rows wrong than there were misplaced picks is kept, and those rows
    choose again; other attempts are undone.
    """
    num_rows = len(undecided.token_R)
    price_E, room_E = price_E.copy(), room_E.copy()
    units_N, redo_R = np.zeros_like(undecided.score_N), np.ones(num_rows, np.bool_)
    tied_R = np.empty(num_rows, np.bool_)
    count = 0
    while True:
        gap_R = _choose_again(undecided, price_E, room_E, unit, units_N, redo_R)
        misplaced = int(np.maximum(room_E, 0).sum()) // unit
        count = _MORE_ROWS * count or _ROWS_PER_PICK * max(len(price_E), misplaced)
        close, close_N = undecided, np.arange(len(units_N))
        if count < num_rows:
            reach = _REACH * np.partition(gap_R, count)[count]
            close, close_N = undecided.near(price_E, reach, np.zeros_like(price_E))
        old_units_N, new_units_N, new_price_E, new_room_E = (
            units_N[close_N],
            units_N[close_N],
            price_E.copy(),
            room_E.copy(),
        )
        is_balanced = room_E.min() == 0 or flow_kernels.reroute(
            close, close.by_expert(len(price_E)), unit, new_units_N, new_price_E, new_room_E
        )
        units_N[close_N] = new_units_N
        num_wrong = flow_kernels.find_contradicted(undecided, unit, units_N, new_price_E, redo_R, tied_R)
        if (is_balanced and num_wrong == 0) or count >= num_rows:
            tied, tied_N = undecided.rows(tied_R)
            return Settlement(new_price_E, tied, units_N[tied_N], is_balanced)
        if int(np.maximum(new_room_E, 0).sum()) // unit + num_wrong < misplaced:
            price_E, room_E = new_price_E, new_room_E
        else:
            units_N[close_N] = old_units_N
            redo_R[:] = False


def _choose_again(
    undecided: Undecided, price_E: IntArray, room_E: IntArray, unit: int, units_N: IntArray, redo_R: NDArray[np.bool_]
) -> IntArray:
    """Let the rows marked choose again at these prices, in place; the distance of every row from a tie, A - B."""
    last_in_R, first_out_R = np.empty_like(undecided.token_R), np.empty_like(undecided.token_R)
    flow_kernels.row_boundaries(undecided, price_E, last_in_R, first_out_R)
    flow_kernels.reassign(undecided, price_E, last_in_R, first_out_R, redo_R, unit, units_N, room_E)
    return last_in_R - first_out_R
