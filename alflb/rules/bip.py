"""BIP balancing: rounds of quantiles on the scores of a batch before that batch is routed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from alflb.problem import check_count
from alflb.rules.base import RULES, Observation, Rule, Sight, State
from alflb.rules.quantiles import excesses, keep_finite, nth_largest, ranks, thresholds


@RULES.register("bip")
@dataclass(frozen=True)
class Bip(Rule):
    """T rounds of p_i = max(0, (K+1)-th largest of s_i - q); q_j = max(0, (L+1)-th largest of s_j - p); bias = -q.

    Parameters
    ----------
    rounds : int
        T, rounds per batch; the next batch starts from the q of this one, shifted. 4 is ours.

    Notes
    -----
    The clamps at zero belong to the problem with inequalities (at most K experts per token, at most L tokens per
    expert), of which each round is block descent: its dual K sum p + L sum q + sum max(0, s_ij - p_i - q_j) never
    rises. Where they bind, as for scores that may be negative (logits), it can stop short of balance.

    Prices carried from batch to batch as they are rise all together (by 0.01 per batch on gates, measured), until
    after some 80 batches p >= 0 binds and balance is lost (`tests/rules/test_quantiles.py`). So they are carried
    shifted, the least of them at zero, which routes alike; that is ours. At exact balance no token moves if no token
    ties at its top-K boundary and, with the largest bias at zero, every token's (K+1)-th biased score is >= 0.

    Source: Sun, arXiv 2502.15451; formula from rules.md. It sees a batch before routing it, as no rule can that is used
    on the next batch, and it looks at all tokens, also later ones (not causal).

    Examples
    --------
    >>> import numpy as np
    >>> scores_TE = np.array([[0.75, 0.25], [0.75, 0.5]])
    >>> seen = Observation(1, np.ones(2), scores_TE=scores_TE, top_k=1)
    >>> Bip().step(np.zeros(2), seen, ())[0].tolist()
    [-0.25, -0.0]
    """

    sees: ClassVar[Sight] = Sight.SCORES_BEFORE_ROUTING

    rounds: int = 4

    def __post_init__(self) -> None:
        check_count(self.rounds, "rounds")

    def step(self, bias_E: NDArray[np.float64], seen: Observation, state: State) -> tuple[NDArray[np.float64], State]:
        """Minus the prices q after the rounds on this batch."""
        price_E = bias_E.max() - bias_E
        if seen.top_k == len(bias_E):
            return -price_E, state
        scores_TE = seen.scores_TE
        rank_E = ranks(seen.target_E, len(scores_TE))
        for _ in range(self.rounds):
            value_T = np.maximum(0.0, thresholds(scores_TE, -price_E, seen.top_k))
            price_E = np.maximum(0.0, keep_finite(nth_largest(excesses(scores_TE, value_T), rank_E), price_E))
        return -price_E, state
