"""Independent Gaussian scores with expert offsets."""

from __future__ import annotations

from dataclasses import dataclass

from alflb.streams.base import STREAMS, DrawnStream


@STREAMS.register("normal")
@dataclass(frozen=True)
class Normal(DrawnStream):
    """gamma_ik = offset_k + N(0, 1): the logits of a router on isotropic Gaussian tokens, experts independent.

    Examples
    --------
    >>> next(Normal(num_tokens=4, num_experts=3).batches(seed=0)).shape
    (4, 3)
    """

    distribution = "normal"
