"""Quantile balancing from counts in bins around the bias, as published for Kimi K3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from alflb.duality import center
from alflb.problem import FloatArray, check_count
from alflb.rules.base import RULES, Observation, Rule, Sight, State, check_fraction
from alflb.rules.quantiles import excesses, keep_finite, thresholds


@RULES.register("binned_qb")
@dataclass(frozen=True)
class BinnedQuantileBalancing(Rule):
    """`qb` from B equal bins of r = alpha_i - s_ij over [min b - 1, max b + 1], with interpolation inside the bin.

    The range follows from the bias alone, so ranks and micro-batches count apart and add up: E x B integers, one
    all-reduce. Expert j wants the bias at which q tokens have r_j below it; r_ij is the bias it needs to win token i.

    Parameters
    ----------
    bins : int
        B, 1000 in use.
    decay : float
        Weight of the old bias in the next one, 0 <= decay < 1.

    Notes
    -----
    Scores between 0 and 1 are in range always. Others are counted in the end bins: the bias then moves by about 1 per
    step towards its quantile. At exact balance the interpolated quantile lies up to a bin off: there is no exact fixed
    point. `histogram_qb` spans the values of the batch instead, which all devices have to agree on first.

    Source: Kimi K3 report, arXiv 2607.24653, 2.3.3: range set anew at every step, bins, counts added over micro-batches
    and ranks, interpolation, recentering, use on the next batch; an average over steps (`decay`) is optional there.

    Examples
    --------
    >>> scores_TE = np.array([[0.75, 0.25], [0.75, 0.5]])
    >>> seen = Observation(1, np.ones(2), scores_TE=scores_TE, top_k=1)
    >>> BinnedQuantileBalancing(bins=8).step(np.zeros(2), seen, ())[0].tolist()
    [-0.1875, 0.1875]
    """

    sees: ClassVar[Sight] = Sight.SCORES_AFTER_ROUTING
    exchanged: ClassVar[str | None] = "E B counts"

    bins: int = 1000
    decay: float = 0.0

    def __post_init__(self) -> None:
        check_count(self.bins, "bins")
        check_fraction(self.decay, "decay")

    def bin_range(self, bias_E: NDArray[np.float64]) -> tuple[float, float]:
        """Lower end of the first bin and width of each, score units."""
        low, high = float(bias_E.min()) - 1.0, float(bias_E.max()) + 1.0
        return low, (high - low) / self.bins

    def count(self, scores_TE: FloatArray, bias_E: NDArray[np.float64], top_k: int) -> NDArray[np.int64]:
        """Tokens per expert and bin, shape (E, B); forbidden pairs are in none. For K = E there is nothing to count."""
        counts_EB = np.zeros((len(bias_E), self.bins), dtype=np.int64)
        if top_k == len(bias_E):
            return counts_EB
        lack_ET = -excesses(scores_TE, thresholds(scores_TE, bias_E, top_k))
        expert, token = np.nonzero(np.isfinite(lack_ET))
        low, width = self.bin_range(bias_E)
        place = np.clip((lack_ET[expert, token] - low) // width, 0, self.bins - 1).astype(np.int64)
        np.add.at(counts_EB, (expert, place), 1)
        return counts_EB

    def bias_of_counts(
        self, counts_EB: NDArray[np.int64], bias_E: NDArray[np.float64], target_E: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The next bias from the counts that this bias gave, of all ranks and micro-batches.

        An expert that fewer tokens may use than its target keeps its bias.
        """
        low, width = self.bin_range(bias_E)
        below_EB = np.cumsum(counts_EB, axis=1)
        bin_E = np.argmax(below_EB >= target_E[:, None], axis=1)
        experts = np.arange(len(bias_E))
        within_E = counts_EB[experts, bin_E]
        with np.errstate(invalid="ignore", divide="ignore"):
            part_E = (target_E - (below_EB[experts, bin_E] - within_E)) / within_E
        quantile_E = np.where(below_EB[:, -1] >= target_E, low + (bin_E + part_E) * width, np.inf)
        return center(self.decay * bias_E + (1 - self.decay) * keep_finite(quantile_E, bias_E))

    def step(self, bias_E: NDArray[np.float64], seen: Observation, state: State) -> tuple[NDArray[np.float64], State]:
        """The centered quantiles of one batch."""
        return self.bias_of_counts(self.count(seen.scores_TE, bias_E, seen.top_k), bias_E, seen.target_E), state
