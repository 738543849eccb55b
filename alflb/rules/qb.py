"""Quantile balancing: the bias of the next batch is the quantile that would have balanced this one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from alflb.duality import center
from alflb.problem import check_count
from alflb.rules.base import RULES, Observation, Rule, Sight, State
from alflb.rules.quantiles import quantile_bias


@RULES.register("qb")
@dataclass(frozen=True)
class QuantileBalancing(Rule):
    """alpha_i = (K+1)-th largest of s_i + b; bhat_j = -[(q+1)-th largest of s_j - alpha]; b = bhat - mean bhat.

    q is the target load; for a fractional one its whole part counts. The scores of a batch set the bias of the
    **next** one. There is no step size.

    Parameters
    ----------
    rounds : int
        R, rounds on each batch: 1 online (in use), more to work on a fixed set of scores ("offline").

    Notes
    -----
    Each round is block descent on the dual, so D never rises on the batch it is made from (`rules/quantiles.py`), and
    nothing limits how far a bias moves. **Rounds need not reach the minimum**: the dual has kinks, at which both
    halves of a round can stand still above it (three tokens and three experts are enough,
    tests/rules/test_quantiles.py).
    An exponential average of the biases is `damped_qb` with gain 1 - beta. At
    exact balance with no ties at the top-K boundary the bias may still move, but no token does, and a second update
    moves nothing: chosen pairs stay above alpha_i and the others rise to it at most.

    Source: Su, kexue.fm 11619. Megatron-LM has it on raw logits (main branch, August 2026, read; not in release 0.16.1)
    and averages the quantiles of micro-batches and ranks, which is not the quantile of the whole batch. Kimi K3 counts
    in bins instead: `binned_qb`.

    Examples
    --------
    >>> import numpy as np
    >>> scores_TE = np.array([[0.75, 0.25], [0.75, 0.5]])
    >>> seen = Observation(1, np.ones(2), scores_TE=scores_TE, top_k=1)
    >>> QuantileBalancing().step(np.zeros(2), seen, ())[0].tolist()
    [-0.125, 0.125]
    """

    sees: ClassVar[Sight] = Sight.SCORES_AFTER_ROUTING

    rounds: int = 1

    def __post_init__(self) -> None:
        check_count(self.rounds, "rounds")

    def step(self, bias_E: NDArray[np.float64], seen: Observation, state: State) -> tuple[NDArray[np.float64], State]:
        """The centered quantiles after R rounds."""
        for _ in range(self.rounds):
            bias_E = quantile_bias(seen.scores_TE, bias_E, seen.target_E, seen.top_k)
        return center(bias_E), state
