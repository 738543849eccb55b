"""Stage 6, for scores that are no multiples of the quantum: the digits below it, level by level, until none is left.

The optimum of the rounded scores decides all rows but those within a few quanta of a tie. Only these are listed, with
what is left of their scores at those prices, and what rounding took away; on a grid finer by some 40 bits they form a
small problem of the same kind, solved by the same integer code (`settle`). Prices move by at most so many old quanta
as the listing allows for, which is checked; so what was decided stays decided, and the last level, where nothing is
rounded, proves the optimum of the scores as given. This is cost scaling (Goldberg & Tarjan, "Finding minimum-cost
circulations by successive approximation", 1990) with digits of the scores for its scales.

Scores may thus range over the whole of float64: a mask of -1e30 that some token has to use costs a few levels more.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb.exact.results import SolverError
from alflb.exact.screening import flow_kernels
from alflb.exact.screening.row_kernels import FORBIDDEN, Prices, count_decided, make_proof
from alflb.exact.screening.settle import Settlement, settle
from alflb.exact.screening.sources import ScoreSource
from alflb.exact.screening.undecided import Undecided
from alflb.exact.units import WORD_BITS, Grid
from alflb.problem import FloatArray

IntArray = NDArray[np.int64]

_REACH = 4
"""Quanta for each expert that the first listing allows prices to move; successive levels move them by fewer."""
_FARTHER = 8
"""Growth of that number when it was not enough."""
_FARTHEST = 2**32
_LOWEST_EXPONENT = -1074
"""All float64 numbers are multiples of 2 to this power."""


class Refinement(NamedTuple):
    """Which rows the rounded scores leave open, and how their picks fall for the scores as given."""

    rows: Undecided
    units_N: IntArray
    """Units of each entry of `rows`."""
    reach: int
    """Quanta: no other row has its K-th and (K+1)-th best within it."""
    bias_E: NDArray[np.float64]
    """An optimal bias, rounded to float64."""


class _Level(NamedTuple):
    """A level's rows, with what the scores are beyond the integers in them."""

    rows: Undecided
    rest_N: NDArray[np.float64]
    place_N: IntArray
    """Where each entry stands in the first level's."""


def refine(source: ScoreSource, grid: Grid, top_k: int, unit: int, target_E: IntArray, price_E: IntArray) -> Refinement:
    """From optimal prices of the rounded scores to an optimum of the scores as given.

    Parameters
    ----------
    source : ScoreSource
    grid : Grid
    top_k, unit : int
        K, and the units in one pick.
    target_E : int64 array, shape (E,)
        Target loads in units.
    price_E : int64 array, shape (E,)
        Optimal for the rounded scores.
    """
    reach = _REACH * len(price_E)
    while reach < _FARTHEST:
        found = _refine_within(source, grid, top_k, unit, target_E, price_E, reach)
        if found is not None:
            return found
        reach *= _FARTHER
    raise SolverError(f"no certified optimum for scores of 2^{grid.exponent} and below beside the largest")


def _refine_within(
    source: ScoreSource, grid: Grid, top_k: int, unit: int, target_E: IntArray, price_E: IntArray, reach: int
) -> Refinement | None:
    """The same if no level moves prices by more than `reach` quanta of the level before; None if one does."""
    level, certain_E = _list_near(source, grid, top_k, price_E, reach)
    first_rows, units_N = level.rows, np.zeros(len(level.rows.expert_N), np.int64)
    room_E = target_E - unit * certain_E
    terms_LE, exponent = [_centered(price_E, grid.exponent)], grid.exponent
    while len(level.rows.token_R):
        finer = _next_exponent(level, exponent, len(price_E))
        rows, rest_N = _finer_scores(level, exponent, finer)
        found = settle(rows, np.zeros_like(price_E), room_E, unit)
        terms_LE.append(_centered(found.price_E, finer))
        # What was decided holds while prices move by less than it was decided by, now and (2 reach) on later levels;
        # one quantum is for what rounding took away.
        moved = int(np.ptp(found.price_E)) + (2 * reach if rest_N.any() else 0)
        if not found.is_balanced or moved > (reach - 1) << (exponent - finer):
            return None
        level, exponent = _Level(rows, rest_N, level.place_N), finer
        if not rest_N.any():
            units_N[level.place_N] = units_now_N = _all_units(rows, found, unit)
            if _misses(rows, units_now_N, room_E) or _is_contradicted(rows, units_now_N, found.price_E, unit):
                return None
            break
        level, certain_N = _keep_near(level, found.price_E, reach)
        units_N[certain_N] = unit * first_rows.weight_N[certain_N]
        room_E = room_E - unit * first_rows.loads(certain_N, len(price_E))
    bias_E = np.array([math.fsum(terms_L) for terms_L in zip(*terms_LE)])
    return Refinement(first_rows, units_N, reach, bias_E)


def _centered(price_E: IntArray, exponent: int) -> NDArray[np.float64]:
    """Prices in score units, less about their mean, so that what they have in common costs no digits."""
    mean = int(np.rint(price_E.mean()))
    return np.ldexp((price_E - mean).astype(np.float64), exponent)


def _list_near(source: ScoreSource, grid: Grid, top_k: int, price_E: IntArray, reach: int) -> tuple[_Level, IntArray]:
    """One pass over all scores: the rows within `reach` of a tie, and the certain picks of each expert (tokens)."""
    certain_E = np.zeros(source.num_experts, np.int64)
    proof = make_proof(source.dtype, source.largest, Prices(grid.per_unit, price_E, reach, top_k, 1))
    parts = []
    for first, scores_CE in source.chunks():
        close_C = np.empty(len(scores_CE), np.bool_)
        weight_C = source.weights(first, len(scores_CE))
        count_decided(scores_CE, weight_C, proof, certain_E, close_C)
        level = _all_entries(first + np.flatnonzero(close_C), weight_C[close_C], scores_CE[close_C], grid, top_k)
        near, certain_N = _keep_near(level, price_E, reach)
        certain_E += level.rows.loads(certain_N, len(price_E))
        parts.append(near)
    rows = Undecided(
        np.concatenate([part.rows.token_R for part in parts]),
        np.concatenate([part.rows.weight_R for part in parts]),
        np.concatenate([part.rows.picks_R for part in parts]),
        np.concatenate([[0], np.cumsum(np.concatenate([np.diff(part.rows.start_R) for part in parts]))]),
        np.concatenate([part.rows.expert_N for part in parts]),
        np.concatenate([part.rows.score_N for part in parts]),
    )
    rest_N = np.concatenate([part.rest_N for part in parts])
    return _Level(rows, rest_N, np.arange(len(rest_N))), certain_E


def _all_entries(token_R: IntArray, weight_R: IntArray, scores_RE: FloatArray, grid: Grid, top_k: int) -> _Level:
    """Whole rows as a level: integers, and what rounding to them takes away."""
    num_rows, num_experts = scores_RE.shape
    allowed_RE = scores_RE > -np.inf
    finite_RE = np.where(allowed_RE, scores_RE, 0.0).astype(np.float64)
    whole_RE = np.rint(np.ldexp(finite_RE, -grid.exponent))
    rows = Undecided(
        token_R,
        weight_R,
        np.full(num_rows, top_k, np.int32),
        np.arange(num_rows + 1) * num_experts,
        np.tile(np.arange(num_experts, dtype=np.int32), num_rows),
        np.where(allowed_RE, whole_RE.astype(np.int64), FORBIDDEN).reshape(-1),
    )
    rest_N = (finite_RE - np.ldexp(whole_RE, grid.exponent)).reshape(-1)
    return _Level(rows, rest_N, np.arange(len(rest_N)))


def _keep_near(level: _Level, price_E: IntArray, reach: int) -> tuple[_Level, IntArray]:
    """The entries within `reach` of a tie, scores now relative to it; and which places are certain picks."""
    rows = level.rows
    side_N, last_in_R = np.empty(len(rows.expert_N), np.int8), np.empty_like(rows.token_R)
    flow_kernels.find_near(rows, price_E, reach, side_N, last_in_R)
    row_N = np.repeat(np.arange(len(rows.token_R)), np.diff(rows.start_R))
    num_near_R = np.bincount(row_N[side_N == 0], minlength=len(rows.token_R))
    num_in_R = np.bincount(row_N[side_N == 1], minlength=len(rows.token_R))
    kept_R, kept_N = num_near_R > 0, side_N == 0
    near = Undecided(
        rows.token_R[kept_R],
        rows.weight_R[kept_R],
        (rows.picks_R - num_in_R)[kept_R].astype(np.int32),
        np.concatenate([[0], np.cumsum(num_near_R[kept_R])]),
        rows.expert_N[kept_N],
        (rows.score_N + price_E[rows.expert_N] - last_in_R[row_N])[kept_N],
    )
    return _Level(near, level.rest_N[kept_N], level.place_N[kept_N]), level.place_N[side_N == 1]


def _next_exponent(level: _Level, exponent: int, num_experts: int) -> int:
    """The finest grid on which the level's scores leave room for sums of prices."""
    bits = WORD_BITS - 3 - math.ceil(math.log2(num_experts))
    largest = int(np.abs(level.rows.score_N).max())
    top = exponent + largest.bit_length() + 1 if largest else math.frexp(float(np.abs(level.rest_N).max()))[1]
    return min(exponent, max(top - bits, _LOWEST_EXPONENT))


def _finer_scores(level: _Level, exponent: int, finer: int) -> tuple[Undecided, NDArray[np.float64]]:
    """The rows with their scores on the finer grid, and what rounding to that takes away (nothing is lost)."""
    digit_N = np.rint(np.ldexp(level.rest_N, -finer))
    score_N = digit_N.astype(np.int64)
    if level.rows.score_N.any():
        score_N += level.rows.score_N << (exponent - finer)
    return level.rows._replace(score_N=score_N), level.rest_N - np.ldexp(digit_N, finer)


def _all_units(rows: Undecided, found: Settlement, unit: int) -> IntArray:
    """Units of all entries: as settled, or as prices alone decide."""
    side_N, last_in_R = np.empty(len(rows.expert_N), np.int8), np.empty_like(rows.token_R)
    flow_kernels.find_near(rows, found.price_E, 0, side_N, last_in_R)
    units_N = np.where(side_N == 1, unit * rows.weight_N, 0)
    is_settled_R = np.isin(rows.token_R, found.rows.token_R)
    units_N[np.repeat(is_settled_R, np.diff(rows.start_R))] = found.units_N
    return units_N


def _misses(rows: Undecided, units_N: IntArray, room_E: IntArray) -> bool:
    """Whether the units leave an expert's room unfilled."""
    load_E = np.zeros_like(room_E)
    np.add.at(load_E, rows.expert_N, units_N)
    return not np.array_equal(load_E, room_E)


def _is_contradicted(rows: Undecided, units_N: IntArray, price_E: IntArray, unit: int) -> bool:
    """Whether an entry with units to spare beats one with units, in any row."""
    wrong_R, tied_R = np.empty((2, len(rows.token_R)), np.bool_)
    found = flow_kernels.find_contradicted(rows, unit, units_N, price_E, wrong_R, tied_R)
    return bool(found)
