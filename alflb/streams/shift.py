"""Abrupt shifts: at known steps the experts change places, and the optimal bias jumps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alflb.problem import check_count
from alflb.streams.base import STREAMS, DrawnStream


@STREAMS.register("shift")
@dataclass(frozen=True)
class Shift(DrawnStream):
    """gamma_ik = offset_k + Logistic(0, 1); every `shift_every` steps the offsets are handed on to other experts.

    The experts stand in a circle (drawn by `population_seed`); at each shift every expert takes over the offset of
    its neighbor, so the optimal bias is permuted and everything that does not depend on names, such as the
    steady state of a rule, stays as it was. After E shifts the first population is back. What it models: a change of
    the data mixture (a new training stage, another language), or resuming on other data with an old bias.
    It breaks the fixed population of the regret claims: regret against one fixed bias stops meaning much, and what
    counts is how many steps a rule needs to recover.

    Parameters
    ----------
    shift_every : int
        Steps from one shift to the next: the first batch with new offsets is that of step shift_every + 1.

    Examples
    --------
    >>> stream = Shift(num_experts=3, offsets=(1.0, 0.0, -1.0), shift_every=10)
    >>> [stream.offset_at(t).tolist() for t in (1, 10, 11, 31)]
    [[1.0, 0.0, -1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0], [1.0, 0.0, -1.0]]
    """

    distribution = "logistic"
    shift_every: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.shift_every, "shift_every")

    def offset_at(self, t: int) -> NDArray[np.float64]:
        """The offsets in force at step t, shape (E,)."""
        circle = self.population_rng(1).permutation(self.num_experts)
        offset_E = self.offset_E()
        shifted_E = np.empty_like(offset_E)
        shifted_E[circle] = np.roll(offset_E[circle], (t - 1) // self.shift_every)
        return shifted_E
