"""Sigmoid scores as a bf16 or fp16 router hands them over: few distinct values, and ties at the top-K boundary."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from alflb.precision import PRECISIONS, round_to
from alflb.problem import FloatArray, check_count
from alflb.registry import unknown_name
from alflb.streams.base import STREAMS, SyntheticStream, seeded
from alflb.streams.linear_router import sigmoid


@STREAMS.register("low_precision")
@dataclass(frozen=True)
class LowPrecision(SyntheticStream):
    """gamma_ik = sigmoid(offset_k + N(0, 1)) rounded to bf16 or fp16, in float32 arrays that hold it exactly.

    Between 0.5 and 1 bf16 numbers are 2^-8 = 0.0039 apart, four steps of u = 1e-3: a step of the bias either moves no
    token of a pair or all those of one grid point. The bias itself is not rounded (in `experiments.faults` it is).
    What it models: a gate computed under automatic mixed precision. It breaks the assumption that crossing values are
    distinct: m(2u) grows with T however small u is, so no step size makes the band of claim C4 narrow, ties
    go to the lowest expert index, and an exactly balanced bias need not exist.

    Parameters
    ----------
    precision : {"bf16", "fp16"}

    Examples
    --------
    >>> import numpy as np
    >>> scores_TE = next(LowPrecision(num_tokens=4096, precision="bf16").batches(seed=0))
    >>> scores_TE.dtype, len(np.unique(scores_TE)) < 1500
    (dtype('float32'), True)
    """

    scores_are_gates: ClassVar[bool] = True

    precision: str = "bf16"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)

    def batches(self, seed: int) -> Iterator[FloatArray]:
        """Batches for t = 1, 2, ... without end."""
        check_count(seed, "seed", minimum=0)
        for t in itertools.count(1):
            noise_TE = seeded(self.name, seed, t).standard_normal((self.num_tokens, self.num_experts))
            yield round_to(sigmoid(self.offset_E() + noise_TE), self.precision)
