"""Replay of a real router trace in batches: in its own order, or with its batches or tokens shuffled."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from alflb.problem import FloatArray, check_count
from alflb.registry import unknown_name
from alflb.streams.base import STREAMS, seeded
from alflb.traces import RouterTrace, load_router_trace

ORDERS = ("text", "batches", "shuffled")
_DEFAULT_TOKENS = 2048


@STREAMS.register("trace")
@dataclass(frozen=True, eq=False)
class TraceReplay:
    """Consecutive batches of a trace, from the start again when it ends.

    Real text is not stationary, so the order is part of the problem:

    * "text" keeps it, from the first token on: with the batch size of the run that was recorded, its own batches;
    * "batches" keeps each batch whole but draws a new order of the batches for every pass (by the seed): neighbors
      in the text still meet in a batch, while drift from batch to batch is gone;
    * "shuffled" draws a new permutation of all tokens for every pass: batches are exchangeable.

    Tokens after the last whole batch of a pass are left out of that pass. It models a router as it is, frozen at a
    checkpoint, or (for a trace recorded during training) as it moved. "text" breaks independence of tokens and
    batches and the fixed population, "batches" the independence of tokens, "shuffled" neither.

    Parameters
    ----------
    trace : RouterTrace, optional
        Default: the trace that ships with the package. Several in a row: one trace of their scores laid end to end.
    num_tokens : int, optional
        T, tokens per batch, at most the tokens of the trace. Default: ``batch_tokens`` of the trace's metadata, or 2048
        if it has none.
    order : {"text", "batches", "shuffled"}

    Examples
    --------
    >>> stream = TraceReplay(num_tokens=2048, order="shuffled")
    >>> next(stream.batches(seed=1)).shape
    (2048, 64)
    """

    scores_are_gates: ClassVar[bool] = True
    replays_a_trace: ClassVar[bool] = True

    trace: RouterTrace | None = None
    num_tokens: int = None  # type: ignore[assignment]  # filled in below
    order: str = "text"

    def __post_init__(self) -> None:
        if self.trace is not None and not isinstance(self.trace, RouterTrace):
            raise ValueError(f"trace is of type {type(self.trace).__name__}; pass a RouterTrace(scores, top_k)")
        object.__setattr__(self, "num_tokens", _batch_tokens(self.trace, self.num_tokens))
        if self.order not in ORDERS:
            raise unknown_name("order", self.order, ORDERS)
        available = len(self.scores_TE)
        if self.num_tokens > available:
            raise ValueError(f"num_tokens is {self.num_tokens} but the trace has {available} tokens; choose fewer")

    @cached_property
    def scores_TE(self) -> FloatArray:
        """All scores of the trace."""
        return (self.trace or load_router_trace()).scores_TE

    @property
    def num_experts(self) -> int:
        """E."""
        return int(self.scores_TE.shape[1])

    @property
    def is_random(self) -> bool:
        """Whether the order depends on the seed."""
        return self.order != "text"

    def batches(self, seed: int) -> Iterator[FloatArray]:
        """Batches for t = 1, 2, ... without end; in text order the seed does not matter."""
        check_count(seed, "seed", minimum=0)
        total = len(self.scores_TE)
        in_order = np.arange(0, total - self.num_tokens + 1, self.num_tokens)
        for epoch in itertools.count(1):
            tokens, starts = np.arange(total), in_order
            if self.order == "shuffled":
                tokens = seeded("trace", seed, epoch).permutation(total)
            elif self.order == "batches":
                starts = seeded("trace batches", seed, epoch).permutation(in_order)
            for start in starts:
                yield self.scores_TE[tokens[start : start + self.num_tokens]]


def _batch_tokens(trace: RouterTrace | None, num_tokens: int | None) -> int:
    """The batch size asked for, or that of the run the trace was recorded from."""
    if num_tokens is not None:
        return check_count(num_tokens, "num_tokens")
    metadata = {} if trace is None else trace.metadata
    return check_count(metadata.get("batch_tokens", _DEFAULT_TOKENS), "metadata batch_tokens")
