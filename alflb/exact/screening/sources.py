"""Where the scores come from: an array in memory, or batches that can be read again and again.

The solver asks for little: a sample of rows, and passes over all rows in chunks. Nothing it does depends on
whether a chunk is a slice of one array or a batch generated on the fly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from alflb.problem import FloatArray, check_scores

_CHUNK = 8192
"""Rows of an array handled together."""
_STREAM_SAMPLE = 2**20
"""Most rows of a stream kept in memory as the sample."""


class ScoreSource(Protocol):
    """Re-readable scores of T tokens by E experts."""

    num_tokens: int
    num_experts: int
    dtype: np.dtype[Any]
    largest: float
    """max |score| over the finite scores."""

    def sample(self, size: int) -> FloatArray:
        """At most `size` rows, spread over all of them."""

    def chunks(self) -> Iterator[tuple[int, FloatArray]]:
        """(index of the first row, rows) from first to last; may be called repeatedly."""


class ArraySource:
    """Scores that are in memory."""

    def __init__(self, scores_TE: FloatArray) -> None:
        self.scores_TE = scores_TE
        self.num_tokens, self.num_experts = scores_TE.shape
        self.dtype = scores_TE.dtype
        self.largest = max(largest_finite(rows) for _, rows in self.chunks())

    def sample(self, size: int) -> FloatArray:
        """One row from each of `size` equal stretches, at a random place in it (regular steps could beat in time)."""
        if size >= self.num_tokens:
            return self.scores_TE
        edges = np.arange(size) * self.num_tokens // size
        lengths = np.diff(edges, append=self.num_tokens)
        return self.scores_TE[edges + np.random.default_rng(0).integers(lengths)]

    def chunks(self) -> Iterator[tuple[int, FloatArray]]:
        """Slices of the array."""
        for first in range(0, self.num_tokens, _CHUNK):
            yield first, self.scores_TE[first : first + _CHUNK]


def largest_finite(scores_TE: FloatArray) -> float:
    """max |score|, -inf left out; 0 for none."""
    highest, lowest = float(scores_TE.max()), float(scores_TE.min())
    if lowest == -np.inf:
        lowest = float(np.min(scores_TE, where=scores_TE > -np.inf, initial=highest))
    return max(abs(highest), abs(lowest))
