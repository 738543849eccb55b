"""Where the scores come from: an array in memory, or batches that can be read again and again.

The solver asks for little: a sample of rows, and passes over all rows in chunks. Nothing it does depends on
whether a chunk is a slice of one array or a batch generated on the fly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from alflb.exact.batched import BatchedProblem
from alflb.exact.screening.row_kernels import largest_finite
from alflb.problem import AssignmentProblem, FloatArray

CHUNK = 2**12
"""Most rows handled together."""
_SAMPLE = 2**18
"""Most rows of an array's sample."""
_STREAM_SAMPLE = 2**20
"""Most rows of a stream's sample, which stand for many more."""


class ScoreSource(Protocol):
    """Re-readable scores of T tokens by E experts."""

    num_tokens: int
    num_experts: int
    dtype: np.dtype[Any]
    largest: float
    """max |score| over the finite scores."""

    def sample(self) -> tuple[FloatArray, NDArray[np.int64]]:
        """An array of scores, and the indices of those of its rows that represent all rows."""

    def chunks(self) -> Iterator[tuple[int, FloatArray]]:
        """(index of the first row, at most CHUNK rows) from first to last; may be called repeatedly."""

    @property
    def num_rows(self) -> int:
        """Rows to read; fewer than tokens where one row stands for many."""

    def weights(self, first: int, count: int) -> NDArray[np.int64]:
        """How many tokens each of so many rows stands for."""


class _OneTokenPerRow:
    num_tokens: int

    @property
    def num_rows(self) -> int:
        return self.num_tokens

    def weights(self, first: int, count: int) -> NDArray[np.int64]:
        return np.ones(count, np.int64)


class ArraySource(_OneTokenPerRow):
    """Scores that are in memory."""

    def __init__(self, problem: AssignmentProblem) -> None:
        self.scores_TE = problem.scores_TE
        self.num_tokens, self.num_experts = self.scores_TE.shape
        self.dtype = self.scores_TE.dtype
        self.largest = largest_finite(self.scores_TE)

    def sample(self) -> tuple[FloatArray, NDArray[np.int64]]:
        """One row from each of equal stretches, at a random place in it (regular steps could beat in time)."""
        return self.scores_TE, self._sample_M

    @cached_property
    def _sample_M(self) -> NDArray[np.int64]:
        size = min(self.num_tokens, _SAMPLE)
        edges = np.arange(size) * self.num_tokens // size
        places = np.random.default_rng(0).random(size) * np.diff(edges, append=self.num_tokens)
        return edges + places.astype(np.int64)

    def chunks(self) -> Iterator[tuple[int, FloatArray]]:
        """Slices of the array."""
        return slices(self.scores_TE)


class BatchSource(_OneTokenPerRow):
    """Scores that are read batch by batch; the first reading checks them and takes the sample."""

    def __init__(self, problem: BatchedProblem) -> None:
        self._problem = problem
        self.num_tokens = 0
        self.largest = 0.0
        kept: list[FloatArray] = []
        step = 1  # rows between two of the sample; doubled, and every other row dropped, when that is full
        rng = np.random.default_rng(0)
        for batch in problem.checked_batches():
            self.num_experts, self.dtype = batch.shape[1], batch.dtype
            offsets = np.arange(-self.num_tokens % step, len(batch), step)
            kept.append(batch[np.minimum(offsets + rng.integers(step, size=len(offsets)), len(batch) - 1)])
            self.num_tokens += len(batch)
            self.largest = max(self.largest, largest_finite(batch))
            if sum(map(len, kept)) > _STREAM_SAMPLE:
                kept, step = [np.concatenate(kept)[::2]], 2 * step
        self._sample = _read_only(np.concatenate(kept))

    def sample(self) -> tuple[FloatArray, NDArray[np.int64]]:
        """Rows kept by the first reading."""
        return self._sample, np.arange(len(self._sample))

    def chunks(self) -> Iterator[tuple[int, FloatArray]]:
        """The batches again, in slices."""
        start = 0
        for batch in self._problem.checked_batches():
            for first, rows in slices(batch):
                yield start + first, rows
            start += len(batch)
        if start != self.num_tokens:
            raise ValueError(f"batches gave {self.num_tokens} tokens at first and {start} later; they must repeat")


class MappedSource:
    """Another source's scores, changed by a function of rows as they are read."""

    def __init__(self, source: ScoreSource, change: Callable[[FloatArray], FloatArray]) -> None:
        self._source, self._change = source, change
        self.num_tokens, self.num_rows, self.num_experts = source.num_tokens, source.num_rows, source.num_experts
        scores_TE, rows_M = source.sample()
        self._sample = _read_only(change(scores_TE[rows_M]))
        self.dtype = self._sample.dtype
        self.largest = max(largest_finite(rows_CE) for _, rows_CE in self.chunks())

    def sample(self) -> tuple[FloatArray, NDArray[np.int64]]:
        """The other's sample, changed."""
        return self._sample, np.arange(len(self._sample))

    def chunks(self) -> Iterator[tuple[int, FloatArray]]:
        """The other's chunks, changed."""
        for first, rows_CE in self._source.chunks():
            yield first, _read_only(self._change(rows_CE))

    def weights(self, first: int, count: int) -> NDArray[np.int64]:
        """The other's weights."""
        return self._source.weights(first, count)


def slices(scores_TE: FloatArray) -> Iterator[tuple[int, FloatArray]]:
    """(index of the first row, at most CHUNK rows) from first to last."""
    for first in range(0, len(scores_TE), CHUNK):
        yield first, scores_TE[first : first + CHUNK]


def _read_only(rows: FloatArray) -> FloatArray:
    """Numba compiles apart for arrays that may be written to; a problem's scores may not."""
    rows.flags.writeable = False
    return rows
