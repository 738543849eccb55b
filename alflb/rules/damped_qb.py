"""Damped quantile balancing: part of the way from the present bias to the quantiles of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from alflb.duality import center
from alflb.problem import check_number
from alflb.rules.base import RULES, SHARES, Observation, Rule, Sight, State, Tuned
from alflb.rules.quantiles import quantile_bias


@RULES.register("damped_qb")
@dataclass(frozen=True)
class DampedQuantileBalancing(Rule):
    """b = (1 - g) b + g bhat, with bhat the centered quantiles of `qb`.

    The same as `qb` with an exponential average of its biases, beta = 1 - g, that is routed with: the average over
    batches makes up for the noise of one batch's quantiles, and for the overshoot of moving all experts at once.

    Parameters
    ----------
    gain : float
        g, 0 < g <= 1; 1 is `qb`, and the default of Megatron-LM (an EMA of 0). 0.1 is ours.

    Notes
    -----
    By convexity D never rises on the batch the step is made from. At exact balance no token moves, as for `qb`.

    Source: Megatron-LM's `moe_router_quantile_balancing_ema` = 1 - g (main branch, August 2026, read), on the mean of
    the quantiles of micro-batches. Su, kexue.fm 11619, has the undamped rule.

    Examples
    --------
    >>> import numpy as np
    >>> scores_TE = np.array([[0.75, 0.25], [0.75, 0.5]])
    >>> seen = Observation(1, np.ones(2), scores_TE=scores_TE, top_k=1)
    >>> DampedQuantileBalancing(gain=0.5).step(np.zeros(2), seen, ())[0].tolist()
    [-0.0625, 0.0625]
    """

    sees: ClassVar[Sight] = Sight.SCORES_AFTER_ROUTING

    tuned: ClassVar[Tuned | None] = Tuned("gain", SHARES)

    gain: float = 0.1

    def __post_init__(self) -> None:
        if check_number(self.gain, "gain", positive=True) > 1:
            raise ValueError(f"gain is {self.gain!r}; pass a number with 0 < gain <= 1")

    def step(self, bias_E: NDArray[np.float64], seen: Observation, state: State) -> tuple[NDArray[np.float64], State]:
        """A weighted mean of the present bias and the quantiles."""
        quantile_E = center(quantile_bias(seen.scores_TE, bias_E, seen.target_E, seen.top_k))
        return (1.0 - self.gain) * bias_E + self.gain * quantile_E, state
