"""BIP balancing: rounds of quantiles on the scores of a batch before that batch is routed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alflb.problem import FloatArray, check_count
from alflb.rules._base import RULES, PerBatchRule
from alflb.rules._quantiles import excesses, keep_finite, nth_largest, ranks, thresholds


@RULES.register("bip")
@dataclass(frozen=True)
class Bip(PerBatchRule):
    """T rounds of p_i = max(0, (K+1)-th largest of s_i - q); q_j = max(0, (L+1)-th largest of s_j - p); bias = -q.

    Parameters
    ----------
    rounds : int
        T, rounds for each batch; the next batch starts from the q of this one, shifted. 4 is ours.

    Notes
    -----
    The clamps at zero belong to the problem with inequalities (at most K experts a token, at most L tokens an
    expert), of which each round is block descent: its dual K sum p + L sum q + sum max(0, s_ij - p_i - q_j) never
    rises. Where they bind, as for scores that may be negative (logits), it can stop short of balance.

    Prices carried from batch to batch as they are rise all together (by 0.01 a batch on gates, measured), until
    after some 80 batches p >= 0 binds and balance is lost (`tests/rules/test_quantiles.py`). So they are carried
    shifted, the least of them at zero, which routes alike; that is ours. At exact balance no token moves if no token
    ties at its top-K boundary and, with the largest bias at zero, every token's (K+1)-th biased score is >= 0.

    Source: Sun, arXiv 2502.15451; formula from rules.md. It sees a batch before routing it, as no rule can that is used
    on the next batch, and it looks at all tokens, also later ones (not causal).

    Examples
    --------
    >>> import numpy as np
    >>> scores_TE = np.array([[0.75, 0.25], [0.75, 0.5]])
    >>> Bip().route_with(scores_TE, np.zeros(2), np.ones(2), top_k=1).tolist()
    [-0.25, -0.0]
    """

    rounds: int = 4

    def __post_init__(self) -> None:
        check_count(self.rounds, "rounds")

    def route_with(
        self, scores_TE: FloatArray, bias_E: NDArray[np.float64], target_E: NDArray[np.float64], top_k: int
    ) -> NDArray[np.float64]:
        """Minus the prices q after the rounds on this batch."""
        price_E = bias_E.max() - bias_E
        if top_k == len(bias_E):
            return -price_E
        rank_E = ranks(target_E, len(scores_TE))
        for _ in range(self.rounds):
            value_T = np.maximum(0.0, thresholds(scores_TE, -price_E, top_k))
            price_E = np.maximum(0.0, keep_finite(nth_largest(excesses(scores_TE, value_T), rank_E), price_E))
        return -price_E
