"""Replay of a real router trace in batches, in the order of the text or shuffled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from alflb.datasets import RouterTrace, load_router_trace
from alflb.problem import FloatArray, check_count
from alflb.registry import unknown_name
from alflb.streams._base import STREAMS, seeded

_ORDERS = ("text", "shuffled")


@STREAMS.register("trace")
@dataclass(frozen=True, eq=False)
class TraceReplay:
    """Consecutive batches of a trace, from the start again when it ends.

    Real text is not stationary, so the order is part of the problem: "text" keeps it, "shuffled" draws a new
    permutation of all tokens for every pass (by the seed), which makes batches exchangeable. Tokens after the
    last whole batch of a pass are left out of that pass.

    Parameters
    ----------
    trace : RouterTrace, optional
        Default: the trace that ships with the package.
    num_tokens : int
        T, tokens per batch, at most the tokens of the trace.
    order : {"text", "shuffled"}

    Examples
    --------
    >>> stream = TraceReplay(num_tokens=2048, order="shuffled")
    >>> next(stream.batches(seed=1)).shape
    (2048, 64)
    """

    trace: RouterTrace | None = None
    num_tokens: int = 2048
    order: str = "text"

    def __post_init__(self) -> None:
        check_count(self.num_tokens, "num_tokens")
        if self.order not in _ORDERS:
            raise unknown_name("order", self.order, _ORDERS)
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

    def batches(self, seed: int) -> Iterator[FloatArray]:
        """Batches for t = 1, 2, ... without end; in text order the seed does not matter."""
        check_count(seed, "seed", minimum=0)
        total = len(self.scores_TE)
        epoch = 0
        while True:
            epoch += 1
            order = seeded("trace", seed, epoch).permutation(total) if self.order == "shuffled" else np.arange(total)
            for start in range(0, total - self.num_tokens + 1, self.num_tokens):
                yield self.scores_TE[order[start : start + self.num_tokens]]
