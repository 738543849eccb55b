"""Quantile balancing from a histogram over the values of the batch itself; `binned_qb` is the published form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from alflb.duality import center
from alflb.problem import check_count
from alflb.rules.base import RULES, Observation, Rule, Sight, State
from alflb.rules.quantiles import FloatMatrix, excesses, keep_finite, ranks, thresholds


@RULES.register("histogram_qb")
@dataclass(frozen=True)
class HistogramQuantileBalancing(Rule):
    """`qb` with r = alpha_i - s_ij counted in B equal bins for each expert: b_j is where the count passes q.

    The bins span the batch's own values, so the error does not depend on the scale of the scores. The price is that
    all devices must agree on the two ends of the range before they count. Kimi K3 avoids that by a range made from
    the bias alone: `binned_qb`, which is the rule to train with.

    Parameters
    ----------
    bins : int
        B, 1000 in use.

    Notes
    -----
    The bins span all finite r of the batch, and b_j is the middle of the bin that holds the (q+1)-th smallest r_j,
    which is `qb`'s value before centering; so the error of each bias is at most half a bin, and so is that of the mean
    taken out. At exact balance tokens within a bin of the boundary may move: it has no exact fixed point.

    Source: ours, made before the form of the K3 report was known; `qb`'s bound in its simplest shape. B = 1000 is
    theirs.

    Examples
    --------
    >>> import numpy as np
    >>> scores_TE = np.array([[0.75, 0.25], [0.75, 0.5]])
    >>> seen = Observation(1, np.ones(2), scores_TE=scores_TE, top_k=1)
    >>> HistogramQuantileBalancing(bins=4).step(np.zeros(2), seen, ())[0].tolist()
    [-0.0625, 0.0625]
    """

    sees: ClassVar[Sight] = Sight.SCORES_AFTER_ROUTING

    exchanged: ClassVar[str | None] = "E B counts"

    bins: int = 1000

    def __post_init__(self) -> None:
        check_count(self.bins, "bins")

    def step(self, bias_E: NDArray[np.float64], seen: Observation, state: State) -> tuple[NDArray[np.float64], State]:
        """The centered quantiles, each to within half a bin."""
        if seen.top_k == len(bias_E):
            return center(bias_E), state
        scores_TE = seen.scores_TE
        lack_ET = -excesses(scores_TE, thresholds(scores_TE, bias_E, seen.top_k))
        quantile_E = self.quantiles(lack_ET, ranks(seen.target_E, len(scores_TE)))
        return center(keep_finite(quantile_E, bias_E)), state

    def quantiles(self, values_ET: FloatMatrix, rank_E: NDArray[np.int64]) -> NDArray[np.float64]:
        """Row j's rank_E[j]-th smallest value, to within half a bin; infinite where that value is."""
        finite_ET = np.isfinite(values_ET)
        if not finite_ET.any():
            return np.full(len(values_ET), np.inf)
        low, high = float(values_ET[finite_ET].min()), float(values_ET[finite_ET].max())
        width = (high - low) / self.bins
        # bin 0 is for -inf and the last for +inf; the B bins of the range lie between
        place_ET = np.full(values_ET.shape, 1, dtype=np.int64)
        if width > 0:
            clipped_ET = np.clip(values_ET, low, high)
            place_ET += np.minimum(((clipped_ET - low) / width).astype(np.int64), self.bins - 1)
        place_ET[np.isneginf(values_ET)] = 0
        place_ET[np.isposinf(values_ET)] = self.bins + 1
        experts = len(values_ET)
        flat = (place_ET + (self.bins + 2) * np.arange(experts)[:, None]).ravel()
        count_EB = np.bincount(flat, minlength=experts * (self.bins + 2)).reshape(experts, -1)
        first_E = np.argmax(np.cumsum(count_EB, axis=1) >= rank_E[:, None], axis=1)
        middle_E = low + (first_E - 0.5) * width
        return np.where(first_E == 0, -np.inf, np.where(first_E == self.bins + 1, np.inf, middle_E))
