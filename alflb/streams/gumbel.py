"""Independent Gumbel scores with expert offsets: the stream whose optimum is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass

from alflb.streams.base import STREAMS, DrawnStream


@STREAMS.register("gumbel")
@dataclass(frozen=True)
class Gumbel(DrawnStream):
    """gamma_ik = offset_k + Gumbel(0, 1). For K = 1 the expected load is softmax(offset + p) T (claim C8).

    Hence the population optimum is p* = mean(offset) - offset: the golden test stream.

    Examples
    --------
    >>> next(Gumbel(num_tokens=4, num_experts=3).batches(seed=0)).shape
    (4, 3)
    """

    distribution = "gumbel"
