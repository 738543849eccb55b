"""Logistic scores whose offsets move at a known speed: a router that keeps learning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from alflb.problem import check_number
from alflb.streams.base import STREAMS, DrawnStream


@STREAMS.register("drift")
@dataclass(frozen=True)
class Drift(DrawnStream):
    r"""gamma_ik = offset_k(t) + Logistic(0, 1), each offset on its own slow circle of period `period`.

    .. math:: o_k(t) = a_k \cos(2 \pi t / P) + b_k \sin(2 \pi t / P)

    a are the offsets of every synthetic stream, b is a second draw of the same root mean square. The optimal
    bias moves too, by about 2 pi rms(offsets) / P per step, while the spread of the offsets stays what it was.

    Parameters
    ----------
    period : float
        P, steps for a full turn.

    Examples
    --------
    >>> import numpy as np
    >>> stream = Drift(num_experts=3, offsets=(1.0, 0.0, -1.0), period=100)
    >>> bool(np.allclose(stream.offset_at(25), -stream.offset_at(75)))
    True
    """

    distribution = "logistic"
    period: float = 1000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.period, "period", positive=True)

    @cached_property
    def _axes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The vectors a and b."""
        start_E = self.offset_E()
        rms = math.sqrt(float(np.mean(start_E**2)))
        return start_E, rms * self.population_rng(1).standard_normal(self.num_experts)

    def offset_at(self, t: int) -> NDArray[np.float64]:
        """The offsets in force at step t, shape (E,)."""
        start_E, quarter_E = self._axes
        angle = 2.0 * math.pi * t / self.period
        turned: NDArray[np.float64] = start_E * math.cos(angle) + quarter_E * math.sin(angle)
        return turned
