"""Sinkhorn routing: top-K of an entropic transport plan with balanced columns, found before the batch is routed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from alflb.duality import center
from alflb.problem import check_count, check_number
from alflb.rules.base import RULES, SHARES, Observation, Rule, Sight, State, Tuned


@RULES.register("sinkhorn")
@dataclass(frozen=True)
class Sinkhorn(Rule):
    """bias = temperature log(column scaling) of exp(s / temperature) with rows summing to K and columns to the target.

    The plan is r_i exp(s_ij / temperature) d_j, and its top-K in a row is the top-K of s_ij + temperature log d_j: so
    Sinkhorn routing is routing by a bias, found anew for each batch from its scores.

    Parameters
    ----------
    temperature : float
        Score units; 1 in use (Megatron-LM exponentiates the logits as they are). The lower, the slower to converge, and
        for K = 1 the closer to the optimal bias; for K > 1 its limit is another problem, see the notes.
    tolerance : float
        Stop when no column sum is off by more than this share of the mean target; 1e-4 (ours).
    rounds : int
        At most so many row-and-column scalings per batch, on top of those of the batch before; 20 (ours).

    Notes
    -----
    Only the *plan* is balanced. Its top-K need not be: at high temperature the plan is spread over all experts, and for
    K > 1 it may exceed 1 in a place, that is, use one expert of a token twice. It has no fixed point at exact
    balance: it solves another problem.

    Source: Megatron-LM's Sinkhorn load balancing; Clark et al., arXiv 2202.01169 (S-BASE). Centering
    the bias is ours; it routes alike.

    Examples
    --------
    >>> import numpy as np
    >>> scores_TE = np.array([[0.75, 0.25], [0.75, 0.5]])
    >>> seen = Observation(1, np.ones(2), scores_TE=scores_TE, top_k=1)
    >>> Sinkhorn(temperature=0.05).step(np.zeros(2), seen, ())[0].round(2).tolist()
    [-0.19, 0.19]
    """

    sees: ClassVar[Sight] = Sight.SCORES_BEFORE_ROUTING

    exchanged: ClassVar[str | None] = "E column sums a round, before routing"
    tuned: ClassVar[Tuned | None] = Tuned("temperature", SHARES)

    temperature: float = 1.0
    tolerance: float = 1e-4
    rounds: int = 20

    def __post_init__(self) -> None:
        check_number(self.temperature, "temperature", positive=True)
        check_number(self.tolerance, "tolerance", positive=True)
        check_count(self.rounds, "rounds")

    def step(self, bias_E: NDArray[np.float64], seen: Observation, state: State) -> tuple[NDArray[np.float64], State]:
        """The centered bias of the batch's column scalings, found from those of the batch before."""
        scores_TE, target_E = seen.scores_TE.astype(np.float64), seen.target_E
        weight_TE = np.exp((scores_TE - scores_TE.max(axis=1, keepdims=True)) / self.temperature)
        scaling_E = np.exp((bias_E - bias_E.mean()) / self.temperature)
        for _ in range(self.rounds):
            column_E = (seen.top_k / (weight_TE @ scaling_E)) @ weight_TE
            settled = np.abs(column_E * scaling_E - target_E).max() <= self.tolerance * target_E.mean()
            if settled:
                break
            scaling_E = np.divide(target_E, column_E, out=scaling_E, where=column_E > 0)
        return center(self.temperature * np.log(scaling_E)), state
