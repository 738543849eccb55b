"""Tokens in documents: neighbors share a topic, so a batch holds far fewer independent draws than tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alflb.problem import FloatArray, check_count, check_number
from alflb.streams.base import STREAMS, seeded
from alflb.streams.linear_router import LinearRouter


@STREAMS.register("documents")
@dataclass(frozen=True)
class Documents(LinearRouter):
    r"""The `linear_router` on text: a topic is held for a document, topics have Zipf frequencies.

    gamma_i = a score function of (z_i W + offsets), z_i ~ N(mean of the topic of token i, I). A document's length is
    geometric; its topic is drawn with probability proportional to rank^(-topic_exponent). Documents run on over the
    end of a batch, so short batches resemble the batch before. Tokens at distance d share their topic with probability

    .. math:: P(d) = q + (1 - q) \sum_j f_j^2, \quad q = (1 - 1 / \text{document\_tokens})^d

    with f the topics' frequencies. What it models: pre-training text, where a sequence is a few documents; with
    `document_tokens` 1 and many topics, a vocabulary (each "topic" a word, the noise its context). It breaks
    independence of the tokens of a batch and of successive batches: loads scatter much more than
    sqrt(K T / E), and no bias balances every batch.

    Parameters
    ----------
    document_tokens : float
        Mean length of a document in tokens, at least 1 (1: every token has a topic of its own).
    topic_exponent : float
        Zipf exponent of the topics' frequencies; 0 makes them equal.

    Examples
    --------
    >>> stream = Documents(num_tokens=1000, document_tokens=100)
    >>> topic_T = next(stream.topics(seed=0))
    >>> int((topic_T[1:] != topic_T[:-1]).sum()) < 20
    True
    """

    num_topics: int = 64
    document_tokens: float = 256.0
    topic_exponent: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if check_number(self.document_tokens, "document_tokens") < 1:
            raise ValueError(f"document_tokens is {self.document_tokens}; pass a mean length of at least 1 token")
        check_number(self.topic_exponent, "topic_exponent")

    def batches(self, seed: int) -> Iterator[FloatArray]:
        """Batches for t = 1, 2, ... without end."""
        check_count(seed, "seed", minimum=0)
        router, topic_means = self._router(), self._topic_means()
        z_TH = np.empty((self.num_tokens, self.hidden_dim))
        for t, topic_T in zip(itertools.count(1), self.topics(seed)):
            seeded(self.name, seed, t).standard_normal(out=z_TH)
            z_TH += topic_means[topic_T]
            yield router(z_TH)

    def topics(self, seed: int) -> Iterator[NDArray[np.int64]]:
        """The topic of every token, batch by batch."""
        rng = seeded(f"{self.name} topics", seed)
        share = self.topic_shares()
        waiting = np.empty(0, dtype=np.int64)
        while True:
            while len(waiting) < self.num_tokens:
                topics = rng.choice(self.num_topics, size=1 + int(self.num_tokens / self.document_tokens), p=share)
                lengths = rng.geometric(1.0 / self.document_tokens, size=len(topics))
                waiting = np.concatenate([waiting, np.repeat(topics, lengths)])
            yield waiting[: self.num_tokens]
            waiting = waiting[self.num_tokens :]

    def topic_shares(self) -> NDArray[np.float64]:
        """f, how often each topic is drawn; the most frequent first."""
        weights: NDArray[np.float64] = np.arange(1, self.num_topics + 1.0) ** -self.topic_exponent
        return weights / weights.sum()
