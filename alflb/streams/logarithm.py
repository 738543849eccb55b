"""Logarithms of another stream's scores: what a rule that multiplies scores needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from alflb.problem import FloatArray, check_scores
from alflb.streams.base import Stream


@dataclass(frozen=True, eq=False)
class LogScores:
    """log of every score of `stream`: top-K of log s + log m is top-K of s * m, for positive scores and factors.

    Not registered by name, since it has no default: give it a stream. A score of 0 becomes -inf, never chosen.

    Parameters
    ----------
    stream : Stream
        Scores >= 0 (softmax or sigmoid gates, not logits).

    Raises
    ------
    ValueError
        When a batch holds a negative score.

    Examples
    --------
    >>> from alflb.streams import Static
    >>> stream = LogScores(Static([[1.0, 0.5], [0.25, 0.5]]))
    >>> np.exp(next(stream.batches(seed=0))).tolist()
    [[1.0, 0.5], [0.25, 0.5]]
    """

    stream: Stream

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.stream.num_tokens

    @property
    def num_experts(self) -> int:
        """E."""
        return self.stream.num_experts

    def batches(self, seed: int) -> Iterator[FloatArray]:
        """The logarithms, batch by batch; a batch that comes again is the same array again."""
        raw: FloatArray | None = None
        for batch in self.stream.batches(seed):
            if batch is not raw:
                raw, logarithms_TE = batch, _logarithms(batch)
            yield logarithms_TE


def _logarithms(batch: FloatArray) -> FloatArray:
    scores_TE = check_scores(batch)
    if scores_TE.min() < 0:
        raise ValueError("scores are negative, so they have no logarithm; give LogScores gates (softmax, sigmoid) >= 0")
    with np.errstate(divide="ignore"):  # log 0 = -inf marks an expert the token never uses
        logarithms_TE = np.log(scores_TE)
    logarithms_TE.flags.writeable = False
    return logarithms_TE
