"""Loads of batch after batch, each counted the cheapest way that gives the same integers.

A batch that is drawn (`alflb.kernels.draws`) is routed where it is drawn. A batch seen for the first time is
routed as it is. A batch that comes again, the deterministic setting, is routed *lazily*:

Let a token's margin be its K-th minus its (K+1)-th biased score when it was last routed. Its set of experts
can change only if some expert gained on another by at least the margin since then, so never before the
bias changes of the steps in between, each measured by max - min over the experts, add up to the margin. A token
with fewer than K experts that are not forbidden has no margin, and takes the same experts whatever the bias.
`FixedScores` adds these spreads up as *travel*, notes for each token the travel at which it *expires*, and
routes the expired tokens only. A guard is taken off for rounding, so the loads are those of the plain way, bit
for bit. Where too many tokens expire at each step, the plain way is faster: `FixedScores` then takes it, for
longer each time, before it tries again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from alflb.kernels import Kernels
from alflb.kernels.draws import Draw
from alflb.problem import FloatArray

_SMALLEST = 1 << 18
"""Scores in a batch below which routing all of it costs no more than finding out which tokens to route."""
_MOST_EXPIRED = 0.15
"""Share of tokens that may be routed one by one; it costs several times what it costs in sequence."""
_SHORTEST_PAUSE, _LONGEST_PAUSE = 8, 512
"""Steps for which all tokens are routed before it is seen again whether few of them expire."""


class LoadCounter:
    """Counts loads of a sequence of batches; results do not depend on the sequence, only the time taken does."""

    def __init__(self, kernels: Kernels, top_k: int) -> None:
        self._kernels = kernels
        self._top_k = top_k
        self._previous: FloatArray | None = None
        self._fixed: FixedScores | None = None

    def loads(self, batch: FloatArray | Draw, bias_E: NDArray[np.float64]) -> NDArray[np.int64]:
        """Tokens per expert under top-K of batch + bias."""
        if isinstance(batch, Draw):
            return self._kernels.drawn_loads(batch, bias_E, self._top_k)[0]
        if batch is not self._previous:
            self._previous, self._fixed = batch, None
        elif self._fixed is None and self._is_worth_it(batch):
            self._fixed = FixedScores(self._kernels, batch, self._top_k)
        if self._fixed is not None:
            return self._fixed.loads(bias_E)
        return self._kernels.loads(batch, bias_E, self._top_k)[0]

    def _is_worth_it(self, scores_TE: FloatArray) -> bool:
        """Whether to route lazily; an array that could be written to may have other scores next time."""
        return self._kernels.routes_lazily and scores_TE.size >= _SMALLEST and not scores_TE.flags.writeable


class FixedScores:
    """One batch routed again and again at a changing bias."""

    def __init__(self, kernels: Kernels, scores_TE: FloatArray, top_k: int) -> None:
        self._kernels = kernels
        self._scores_TE = scores_TE
        self._top_k = top_k
        self._largest_score = float(np.max(np.abs(scores_TE), where=np.isfinite(scores_TE), initial=0.0))
        self._most_bias = float(np.finfo(scores_TE.dtype).max) / 2 - self._largest_score
        self._pause = _SHORTEST_PAUSE
        self._steps_to_wait = 0
        self._route_all_next = True

    def loads(self, bias_E: NDArray[np.float64]) -> NDArray[np.int64]:
        """Tokens per expert under top-K of scores + bias."""
        if self._steps_to_wait > 0:
            self._steps_to_wait -= 1
            return self._plain_loads(bias_E)
        if np.abs(bias_E).max() >= self._most_bias:  # sums that overflow to -inf have margins that mean nothing
            self._route_all_next = True
            return self._plain_loads(bias_E)
        if self._route_all_next:
            return self._route_all(bias_E)
        self._travel_to(bias_E)
        expired = np.flatnonzero(self._expiry_T <= self._travel + self._guard())  # NaN, no margin, never expires
        if expired.size > _MOST_EXPIRED * len(self._scores_TE):
            self._steps_to_wait = self._pause
            self._pause = min(4 * self._pause, _LONGEST_PAUSE)
            self._route_all_next = True
            return self._plain_loads(bias_E)
        self._pause = _SHORTEST_PAUSE
        self._route_again(expired, bias_E)
        return self._load_E.copy()

    def _plain_loads(self, bias_E: NDArray[np.float64]) -> NDArray[np.int64]:
        return self._kernels.loads(self._scores_TE, bias_E, self._top_k)[0]

    def _route_all(self, bias_E: NDArray[np.float64]) -> NDArray[np.int64]:
        allocation, margin_T = self._kernels.allocate_with_margins(self._scores_TE, bias_E, self._top_k)
        self._experts_TK, self._load_E, _ = allocation
        self._expiry_T = margin_T.astype(np.float64)
        self._bias_E = bias_E.copy()
        self._travel = 0.0
        self._num_moves = 0
        self._largest_bias = float(np.abs(bias_E).max())
        self._route_all_next = False
        return self._load_E.copy()

    def _travel_to(self, bias_E: NDArray[np.float64]) -> None:
        self._travel += float(np.ptp(bias_E - self._bias_E))
        self._num_moves += 1
        self._bias_E = bias_E.copy()
        self._largest_bias = max(self._largest_bias, float(np.abs(bias_E).max()))

    def _guard(self) -> float:
        """More than all rounding errors between two routings of a token.

        Score + bias is off by at most eps (|score| + |bias|), bias rounded to the scores' dtype included: two
        such sums make the margin, two more the comparison now, and the margin's own rounding makes six. Every
        move adds a rounded spread to a rounded travel in float64.
        """
        size = self._largest_score + self._largest_bias
        precision = np.finfo(self._scores_TE.dtype)
        in_scores = 8.0 * (float(precision.eps) * size + float(precision.smallest_subnormal))
        in_travel = (self._num_moves + 4) * float(np.finfo(np.float64).eps) * (self._travel + 4.0 * size)
        return in_scores + in_travel

    def _route_again(self, expired: NDArray[np.intp], bias_E: NDArray[np.float64]) -> None:
        if expired.size == 0:
            return
        allocation, margin = self._kernels.allocate_with_margins(self._scores_TE[expired], bias_E, self._top_k)
        old_picks = self._experts_TK[expired].ravel()
        self._load_E += allocation.load_E - np.bincount(old_picks, minlength=self._load_E.size)
        self._experts_TK[expired] = allocation.experts_TK
        self._expiry_T[expired] = self._travel + margin
