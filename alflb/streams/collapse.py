"""An expert-collapse start: one expert is far ahead of all others when balancing begins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alflb.problem import check_number
from alflb.streams.base import STREAMS, DrawnStream


@STREAMS.register("collapse")
@dataclass(frozen=True)
class Collapse(DrawnStream):
    """gamma_ik = offset_k + Logistic(0, 1), one expert lifted by `dominance`, constant or fading with a half-life.

    What it models: the self-reinforcing collapse of a router in early training, or a checkpoint trained without
    balancing to which a bias is added later (bias 0 at the start, a population that has collapsed already). A half-life
    stands for a router that unlearns its favorite meanwhile. It breaks the domain of the regret claims: far from p*
    the dual is flat (almost every token takes the dominant expert whatever the bias does; its curvature there falls
    exponentially with `dominance`), so steps proportional to the gradient do not grow with the distance. The sign rule
    needs dominance / (2u) to dominance / u steps.

    Parameters
    ----------
    dominance : float
        Lift of the dominant expert, which `population_seed` chooses, at step 1. Score units.
    half_life : float, optional
        Steps after which the lift is halved; None: it never fades.

    Examples
    --------
    >>> stream = Collapse(num_experts=3, offsets=0.0, dominance=4.0, half_life=10)
    >>> [float(stream.offset_at(t).max()) for t in (1, 11, 21)]
    [4.0, 2.0, 1.0]
    """

    distribution = "logistic"
    dominance: float = 5.0
    half_life: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.dominance, "dominance")
        if self.half_life is not None:
            check_number(self.half_life, "half_life", positive=True)

    @property
    def dominant_expert(self) -> int:
        """Index of the lifted expert."""
        return int(self.population_rng(1).integers(self.num_experts))

    def offset_at(self, t: int) -> NDArray[np.float64]:
        """The offsets in force at step t, shape (E,)."""
        fading = 1.0 if self.half_life is None else 0.5 ** ((t - 1) / self.half_life)
        offset_E = self.offset_E()
        offset_E[self.dominant_expert] += self.dominance * fading
        return offset_E
