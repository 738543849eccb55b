"""Scores lowered where an expert has scored high earlier in the same sequence: moving quantile balancing (MQB)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alflb.problem import FloatArray, check_count, check_number, check_scores, check_top_k
from alflb.streams.base import Stream


@dataclass(frozen=True, eq=False)
class SequenceQuantiles:
    """s_i - strength * beta_i for every token i of a sequence, beta_i the running 1 - K/E quantile of each expert.

    One bias for all tokens balances a batch and not each sequence in it. Here every expert keeps a histogram of its
    scores along the sequence, an exponential average, and beta_i is its quantile after token i: what the bias of that
    expert would be if the last 1 / (1 - decay) tokens were the batch. It looks back only, so it is causal, and costs
    E x `bins` numbers per sequence. Any rule then balances the batch on the scores that come out; weights stay those of
    the scores that went in.

    Not registered by name, since it has no default: give it a stream.

    Parameters
    ----------
    stream : Stream
        Gates in [0, 1].
    top_k : int
        K, picks per token.
    sequence_tokens : int
        Tokens per sequence; a batch holds whole sequences, one after the other.
    strength : float
        lambda; 0 changes nothing, 1 balances each sequence. In use 0.3.
    decay : float
        Share of the histogram that is kept from token to token, 0 <= decay < 1; 0.99 in use.
    bins : int
        Bins between 0 and 1; 100 in use. beta_i is the middle of a bin.

    Raises
    ------
    ValueError
        For a value out of range, and for scores outside [0, 1].

    Notes
    -----
    Source: Su, kexue.fm 11760 (May 2026), known to us from two summaries that agree; there lambda = 0.3 costs no loss
    and lambda = 1 costs 0.06. How the histogram starts is not known to us: here it is empty and the quantile is that of
    the mass it has.

    Examples
    --------
    >>> from alflb.streams import Static
    >>> stream = SequenceQuantiles(Static([[0.75, 0.25]] * 4), top_k=1, sequence_tokens=2, strength=1.0, bins=2)
    >>> next(stream.batches(seed=0)).tolist()
    [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    """

    stream: Stream
    top_k: int
    sequence_tokens: int
    strength: float = 0.3
    decay: float = 0.99
    bins: int = 100

    def __post_init__(self) -> None:
        check_top_k(self.top_k, self.num_experts)
        check_count(self.sequence_tokens, "sequence_tokens")
        check_count(self.bins, "bins")
        check_number(self.strength, "strength")
        if check_number(self.decay, "decay") >= 1:
            raise ValueError(f"decay is {self.decay!r}; pass a number with 0 <= decay < 1")
        if self.num_tokens % self.sequence_tokens:
            raise ValueError(
                f"sequence_tokens is {self.sequence_tokens}, but batches have {self.num_tokens} tokens; pass a divisor"
            )

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.stream.num_tokens

    @property
    def num_experts(self) -> int:
        """E."""
        return self.stream.num_experts

    def batches(self, seed: int) -> Iterator[FloatArray]:
        """The lowered scores, batch by batch; a batch that comes again is the same array again."""
        raw: FloatArray | None = None
        for batch in self.stream.batches(seed):
            if batch is not raw:
                raw, lowered_TE = batch, self._lowered(batch)
            yield lowered_TE

    def _lowered(self, batch: FloatArray) -> FloatArray:
        scores_TE = check_scores(batch)
        if scores_TE.min() < 0 or scores_TE.max() > 1:
            raise ValueError("scores leave [0, 1]; give SequenceQuantiles gates (sigmoid, softmax)")
        scores_SLE = scores_TE.reshape(-1, self.sequence_tokens, self.num_experts)
        lowered_SLE = scores_SLE - self.strength * self._quantiles(scores_SLE)
        lowered_TE = np.asarray(lowered_SLE.reshape(scores_TE.shape), dtype=scores_TE.dtype)
        lowered_TE.flags.writeable = False
        return lowered_TE

    def _quantiles(self, scores_SLE: FloatArray) -> NDArray[np.float64]:
        """The quantiles after every token of every sequence, shape (S, L, E)."""
        place_SLE = np.minimum((scores_SLE * self.bins).astype(np.int64), self.bins - 1)
        histogram_SEB = np.zeros((len(scores_SLE), self.num_experts, self.bins))
        beta_SLE = np.empty(scores_SLE.shape)
        level = 1.0 - self.top_k / self.num_experts
        for i in range(self.sequence_tokens):
            place_SE1 = place_SLE[:, i, :, None]
            histogram_SEB *= self.decay
            np.put_along_axis(histogram_SEB, place_SE1, np.take_along_axis(histogram_SEB, place_SE1, 2) + 1.0, 2)
            below_SEB = histogram_SEB.cumsum(axis=2)
            bin_SE = np.argmax(below_SEB >= level * below_SEB[:, :, -1:], axis=2)
            beta_SLE[:, i] = (bin_SE + 0.5) / self.bins
        return beta_SLE
