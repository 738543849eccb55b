"""Independent logistic scores with expert offsets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alflb.problem import FloatArray
from alflb.streams._base import STREAMS, SyntheticStream


@STREAMS.register("logistic")
@dataclass(frozen=True)
class Logistic(SyntheticStream):
    """gamma_ik = offset_k + Logistic(0, 1): the stream on which the steady-state law was first measured.

    Examples
    --------
    >>> next(Logistic(num_tokens=4, num_experts=3).batches(seed=0)).shape
    (4, 3)
    """

    def batch(self, t: int, rng: np.random.Generator) -> FloatArray:
        """Scores of step t."""
        return rng.logistic(size=(self.num_tokens, self.num_experts)) + self.offset_E()
