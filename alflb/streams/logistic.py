"""Independent logistic scores with expert offsets."""

from __future__ import annotations

from dataclasses import dataclass

from alflb.streams.base import STREAMS, DrawnStream


@STREAMS.register("logistic")
@dataclass(frozen=True)
class Logistic(DrawnStream):
    """gamma_ik = offset_k + Logistic(0, 1): the stream on which the steady-state law was first measured.

    Examples
    --------
    >>> next(Logistic(num_tokens=4, num_experts=3).batches(seed=0)).shape
    (4, 3)
    """

    distribution = "logistic"
