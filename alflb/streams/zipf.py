"""Heavy-tailed popularity: without a bias, the experts' loads follow Zipf's law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alflb.problem import check_number
from alflb.streams.base import STREAMS, DrawnStream


@STREAMS.register("zipf")
@dataclass(frozen=True)
class Zipf(DrawnStream):
    """gamma_ik = offset_k - exponent log(rank_k) + Gumbel(0, 1): popularity proportional to rank^(-exponent).

    For K = 1 and bias 0 the expected load of the expert of rank r is exactly T r^(-exponent) / sum (claim C8), and
    the population optimum is p* = exponent log(rank) up to a shift, of spread exponent log(E). Ranks are dealt to
    the experts by `population_seed`. What it models: a few generalists and a long tail of specialists, as
    vocabularies and domains have them. It keeps every assumption of the theory but starts far from p*: settling takes
    about exponent log(E) / u steps, and the expected batches of the tail experts hold few tokens, where the
    steady-state law is least accurate.

    Parameters
    ----------
    exponent : float
        Zipf exponent; 0 makes all experts equal.
    offsets : float or sequence of float
        As for every synthetic stream, on top of the popularity; 0 by default.

    Examples
    --------
    >>> import numpy as np
    >>> popularity = np.exp(Zipf(num_experts=4, exponent=1.0).offset_E())
    >>> (np.sort(popularity)[::-1] * 12).round(6).tolist()
    [12.0, 6.0, 4.0, 3.0]
    """

    distribution = "gumbel"
    offsets: float | tuple[float, ...] = 0.0
    exponent: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.exponent, "exponent")

    def offset_E(self) -> NDArray[np.float64]:
        """Offsets and log popularity together."""
        rank_E = 1 + self.population_rng(1).permutation(self.num_experts)
        return super().offset_E() - self.exponent * np.log(rank_E)
