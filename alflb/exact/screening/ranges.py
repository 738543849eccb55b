"""Scores of unusual size: brought to where floating point has room, or left out while nobody needs them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from alflb.exact.screening.sources import MappedSource, ScoreSource
from alflb.exact.units import NeededScores, none_is_huge

_SMALLEST = {np.dtype(np.float32): 2.0**-60, np.dtype(np.float64): 2.0**-500}
_LARGEST = {np.dtype(np.float32): 2.0**100, np.dtype(np.float64): math.inf}
"""Sizes of the largest score between which biases, windows and quanta are ordinary numbers of that type."""
_FEW_ROWS = 256


def rescaled(source: ScoreSource) -> tuple[ScoreSource, int]:
    """The scores times 2 to a power, exactly, in a type in which there is room for that size; and the power."""
    dtype, largest = source.dtype, source.largest
    if largest == 0.0 or _SMALLEST[dtype] <= largest <= _LARGEST[dtype]:
        return source, 0
    power = -math.frexp(largest)[1] if largest < 1.0 else 0
    return MappedSource(source, lambda rows_CE: np.ldexp(rows_CE.astype(np.float64), power)), power


class UsualScores(NamedTuple):
    """A source without the negative scores that are far larger than what any token needs, and the proof it takes."""

    source: ScoreSource
    """Those scores are -inf here."""
    limit: float
    """Their size is above this."""
    room: float
    """Biases that spread no wider leave every score left out below the K-th best of its row."""


def usual_scores(source: ScoreSource, top_k: int) -> UsualScores | None:
    """The scores without huge negative ones (-1e9, the lowest float: masks, most likely); None if there are none."""
    scores_TE, rows_M = source.sample()
    few_rows = scores_TE[rows_M[:: -(-len(rows_M) // _FEW_ROWS)]]
    if none_is_huge(source.largest, few_rows):
        return None
    needed = [NeededScores.of(rows_CE, top_k) for _, rows_CE in source.chunks()]
    worst, limit = min(one.worst for one in needed), max(one.limit for one in needed)
    if source.largest <= limit:
        return None
    usual = MappedSource(source, lambda rows_CE: np.where(rows_CE < -limit, -np.inf, rows_CE).astype(source.dtype))
    return UsualScores(usual, limit, worst + limit)
