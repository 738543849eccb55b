"""Assignment problems whose scores do not fit in memory: batches that can be read more than once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from numpy.typing import ArrayLike

from alflb.problem import AssignmentProblem, FloatArray


@runtime_checkable
class BatchHandle(Protocol):
    """A batch that is not there yet: small to send, and made into scores where they are wanted.

    A `alflb.kernels.draws.Draw` is one; a dataclass with the name of a file is another.
    """

    def scores(self) -> FloatArray:
        """The scores, shape (tokens, E), the same each time."""


Batch = FloatArray | BatchHandle


def load_batch(batch: Batch, top_k: int, *, position: int) -> FloatArray:
    """A batch as scores held to the conditions of `AssignmentProblem`; ValueError says what fails, and where."""
    try:
        return AssignmentProblem(batch.scores() if isinstance(batch, BatchHandle) else batch, top_k).scores_TE
    except ValueError as error:
        raise ValueError(f"batch {position}: {error}") from None


@dataclass(frozen=True, eq=False)
class BatchedProblem:
    """One pooled assignment problem over the tokens of many batches, for instance of a whole run.

    Parameters
    ----------
    batches : callable
        Returns a fresh iterable over score batches, shape (tokens, E), or over handles of them (`BatchHandle`), each
        time it is called, with the same scores each time; E and the dtype must not change, the numbers of tokens may.
    top_k : int
        Picks per token, 1 <= K <= E.
    target_E : array_like, shape (E,), optional
        Target loads over all batches together; default exact balance.

    Examples
    --------
    >>> import numpy as np
    >>> problem = BatchedProblem(lambda: (np.eye(2) for _ in range(3)), top_k=1)
    >>> sum(len(batch) for batch in problem.checked_batches())
    6
    """

    batches: Callable[[], Iterable[Batch]]
    top_k: int
    target_E: ArrayLike | None = None

    def checked_batches(self) -> Iterator[FloatArray]:
        """The scores of all batches, each fit for an `AssignmentProblem`; ValueError says which is not, and why."""
        first: FloatArray | None = None
        for count, batch in enumerate(self.batches(), start=1):
            scores_TE = load_batch(batch, self.top_k, position=count)
            first = scores_TE if first is None else first
            if (scores_TE.shape[1], scores_TE.dtype) != (first.shape[1], first.dtype):
                raise ValueError(
                    f"batch {count} has shape {scores_TE.shape} and dtype {scores_TE.dtype}, the first one "
                    f"{first.shape} and {first.dtype}; experts and dtype must not change"
                )
            yield scores_TE
        if first is None:
            raise ValueError("batches() gave no batch; it must return a fresh iterable each time it is called")
