"""Independent uniform scores with expert offsets."""

from __future__ import annotations

from dataclasses import dataclass

from alflb.streams.base import STREAMS, DrawnStream


@STREAMS.register("uniform")
@dataclass(frozen=True)
class Uniform(DrawnStream):
    """gamma_ik = offset_k + U(0, 1): bounded scores, so experts more than 1 apart never compete.

    Examples
    --------
    >>> scores_TE = next(Uniform(num_tokens=4, num_experts=3, offsets=(0.0, 1.0, 2.0)).batches(seed=0))
    >>> scores_TE.shape, bool(scores_TE[:, 2].min() >= 2)
    ((4, 3), True)
    """

    distribution = "uniform"
