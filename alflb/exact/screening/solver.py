"""The five stages in order, and what happens when one of them was too bold."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb.exact.results import SolverError
from alflb.exact.screening.certificate import Certificate, certify_optimum
from alflb.exact.screening.guess import BiasGuess, guess_bias
from alflb.exact.screening.settle import settle
from alflb.exact.screening.sources import ScoreSource
from alflb.exact.screening.undecided import list_all, screen
from alflb.exact.screening.units import Grid, target_units

_SCREENINGS = 7
"""Attempts with ever wider windows before screening is switched off."""
_HEADROOM = 2.0**-24
"""Part of the floating-point range that scores may use if biases and windows are to stay inside it."""
_WIDEN_SHORT = 4.0
"""Growth of the windows of experts whose undecided entries cannot meet the target."""
_WIDEN_ALL = 2.0
"""Growth of the other windows."""
_NEAR_MISS = 0.25
"""Growth of all windows when balance was reached but not certified, for the first time: a few rows were screened
out wrongly, which moves the optimal prices little from those found."""


class Optimum(NamedTuple):
    """A certified optimum, in integers."""

    certificate: Certificate
    price_E: NDArray[np.int64]
    """Optimal prices, in quanta."""
    grid: Grid
    unit: int
    """Load units in one pick."""


def find_optimum(
    source: ScoreSource, top_k: int, target_E: NDArray[np.float64], bias_E: NDArray[np.float64], *, keep_experts: bool
) -> Optimum:
    """Guess, screen, settle, certify; on failure again with wider windows around the better prices.

    Parameters
    ----------
    source : ScoreSource
    top_k : int
    target_E : array, shape (E,)
        Target loads, tokens.
    bias_E : array, shape (E,)
        Where the guess starts; any bias will do.
    keep_experts : bool
        Whether the certificate should hold the experts of every token.

    Raises
    ------
    SolverError
        If no balanced assignment exists.
    """
    grid = Grid.finest(source.largest, source.num_experts)
    target_units_E, unit = target_units(target_E, source.num_tokens, top_k)
    can_screen = source.largest < np.finfo(source.dtype).max * _HEADROOM
    guess = guess_bias(source, top_k, target_E, bias_E) if can_screen else BiasGuess(0.0 * bias_E, 0.0 * bias_E)
    near_miss = False
    for attempt in range(0 if can_screen else _SCREENINGS, _SCREENINGS + 1):
        if attempt < _SCREENINGS:
            undecided, certain_E = screen(source, guess, top_k, grid)
        else:
            undecided, certain_E = list_all(source, top_k, grid)
        room_E = target_units_E - unit * certain_E
        found = settle(undecided, grid.prices(guess.bias_E), room_E, unit)
        if found.is_balanced:
            certificate = certify_optimum(source, grid, top_k, unit, target_units_E, found, keep_experts)
            if certificate is not None:
                return Optimum(certificate, found.price_E, grid, unit)
        if found.is_balanced and not near_miss:
            near_miss, growth_E = True, np.full(len(room_E), _NEAR_MISS)
        else:
            short_E = (room_E < 0) | (room_E > unit * np.bincount(undecided.expert_N, minlength=len(room_E)))
            growth_E = np.where(short_E, _WIDEN_SHORT, _WIDEN_ALL)
        guess = BiasGuess(grid.bias(found.price_E), guess.width_E * growth_E)
    raise SolverError("no balanced assignment exists: the pairs allowed (score above -inf) cannot meet the targets")
