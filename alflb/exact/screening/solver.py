"""The stages in order, and what happens when one of them was too bold."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb import duality
from alflb.exact.results import SolverError
from alflb.exact.screening.guess import BiasGuess, guess_bias
from alflb.exact.screening.proof import Assignment, prove_assignment
from alflb.exact.screening.ranges import rescaled, usual_scores
from alflb.exact.screening.refine import refine
from alflb.exact.screening.settle import is_short, settle
from alflb.exact.screening.sources import ScoreSource
from alflb.exact.screening.undecided import list_all, screen
from alflb.exact.units import Grid, target_units

_SCREENINGS = 7
"""Attempts with ever wider windows before screening is switched off."""
_HEADROOM = 2.0**-24
"""Part of the floating-point range that scores may use if biases and windows are to stay inside it."""
_FARTHEST_START = 1e300
_WIDEN_SHORT = 4.0
"""Growth of the windows of experts whose undecided entries cannot meet the target."""
_WIDEN_ALL = 2.0
"""Growth of the other windows."""
_NEAR_MISS = 0.25
"""Growth of all windows when balance was reached but not certified, for the first time: a few rows were screened
out wrongly, which moves the optimal prices little from those found."""


class Optimum(NamedTuple):
    """A proven optimum."""

    assignment: Assignment
    value: float
    """LP*, score units summed over tokens."""
    bias_E: NDArray[np.float64]
    """An optimal bias, rounded to float64, not centered."""
    unit: int
    """Load units in one pick."""
    forbidden_below: float = -math.inf
    """Scores below this were left out."""


class _Problem(NamedTuple):
    """What all attempts have in common."""

    top_k: int
    target_E: NDArray[np.float64]
    units_E: NDArray[np.int64]
    """Target loads in units."""
    unit: int
    start_E: NDArray[np.float64]
    """The bias the guess starts from."""
    keep_experts: bool


class _Infeasible(Exception):
    """No balanced assignment exists."""


def find_optimum(
    source: ScoreSource, top_k: int, target_E: NDArray[np.float64], bias_E: NDArray[np.float64], *, keep_experts: bool
) -> Optimum:
    """An optimum for the scores as given, of whatever size they are.

    Huge negative scores are first left out, as if they were -inf. If the rest has an optimum whose biases cannot bring
    any of them back, it is the optimum; otherwise all scores count.

    Parameters
    ----------
    source : ScoreSource
    top_k : int
    target_E : array, shape (E,)
        Target loads, tokens.
    bias_E : array, shape (E,)
        Where the guess starts; any bias will do.
    keep_experts : bool
        Whether the assignment should hold the experts of every token.

    Raises
    ------
    SolverError
        If no balanced assignment exists.
    """
    units_E, unit = target_units(target_E, source.num_tokens, top_k)
    problem = _Problem(top_k, target_E, units_E, unit, bias_E, keep_experts)
    found = _usual_optimum(source, problem)
    if found is None:
        try:
            found = _exact_optimum(source, problem)
        except _Infeasible:
            raise SolverError(
                "no balanced assignment exists: the pairs allowed (score above -inf) cannot meet the targets"
            ) from None
    return found


def _usual_optimum(source: ScoreSource, problem: _Problem) -> Optimum | None:
    """The optimum, if huge negative scores have no part in it."""
    usual = usual_scores(source, problem.top_k)
    if usual is None:
        return None
    try:
        found = _exact_optimum(usual.source, problem)
    except _Infeasible:
        return None
    if not duality.spread(found.bias_E) < usual.room:
        return None
    return found._replace(forbidden_below=-usual.limit)


def _exact_optimum(source: ScoreSource, problem: _Problem) -> Optimum:
    """An optimum on the grid, and from there one for the scores as given."""
    source, power = rescaled(source)
    with np.errstate(over="ignore"):
        start_E = np.clip(np.ldexp(problem.start_E, power), -_FARTHEST_START, _FARTHEST_START)
    grid = Grid.finest(source.largest, source.num_experts)
    assignment, price_E = _rounded_optimum(source, grid, problem._replace(start_E=start_E))
    bias_E = grid.bias(price_E)
    if not (assignment.is_lossless and grid.is_ordinary):
        found = refine(source, grid, problem.top_k, problem.unit, problem.units_E, price_E)
        refined = prove_assignment(
            source, grid, problem.top_k, problem.unit, problem.units_E, price_E, found.rows, found.units_N,
            reach=found.reach, keep_experts=problem.keep_experts,
        )  # fmt: skip
        if refined is None:
            raise SolverError("no certified optimum: the digits below the quantum left the targets unmet")
        assignment, bias_E = refined, found.bias_E
    return Optimum(assignment, float(np.ldexp(assignment.value, -power)), np.ldexp(bias_E, -power), problem.unit)


def _rounded_optimum(source: ScoreSource, grid: Grid, problem: _Problem) -> tuple[Assignment, NDArray[np.int64]]:
    """Guess, screen, settle, prove; on failure again with wider windows around the better prices."""
    top_k, unit = problem.top_k, problem.unit
    can_screen = source.largest < np.finfo(source.dtype).max * _HEADROOM
    guess = BiasGuess(0.0 * problem.target_E, 0.0 * problem.target_E)
    if can_screen:
        guess = guess_bias(source, top_k, problem.target_E, problem.start_E)
    near_miss = False
    for attempt in range(0 if can_screen else _SCREENINGS, _SCREENINGS + 1):
        if attempt < _SCREENINGS:
            undecided, certain_E = screen(source, guess, top_k, grid)
        else:
            undecided, certain_E = list_all(source, top_k, grid)
        room_E = problem.units_E - unit * certain_E
        found = settle(undecided, grid.prices(guess.bias_E), room_E, unit)
        if found.is_balanced:
            assignment = prove_assignment(
                source, grid, top_k, unit, problem.units_E, found.price_E, found.rows, found.units_N,
                keep_experts=problem.keep_experts,
            )  # fmt: skip
            if assignment is not None:
                return assignment, found.price_E
        if found.is_balanced and not near_miss:
            near_miss, growth_E = True, np.full(len(room_E), _NEAR_MISS)
        else:
            growth_E = np.where(is_short(undecided, room_E, unit), _WIDEN_SHORT, _WIDEN_ALL)
        guess = BiasGuess(grid.bias(found.price_E), guess.width_E * growth_E)
    if found.is_balanced:
        raise SolverError("no certified optimum: the loads are balanced, but the prices do not prove the assignment")
    raise _Infeasible
