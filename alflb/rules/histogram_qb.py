"""Quantile balancing from histograms: counts of E x B bins in place of all scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alflb.problem import FloatArray, check_count
from alflb.rules._base import RULES, AfterBatchRule
from alflb.rules._quantiles import FloatMatrix, centred, excesses, keep_finite, ranks, thresholds


@RULES.register("histogram_qb")
@dataclass(frozen=True)
class HistogramQuantileBalancing(AfterBatchRule):
    """`qb` with r = alpha_i - s_ij counted in B equal bins for each expert: b_j is where the count passes q.

    Devices then exchange E x B counts, and the two ends of the range, instead of T x E scores.

    Parameters
    ----------
    bins : int
        B, 1000 in use.

    Notes
    -----
    The bins span all finite r of the batch, and b_j is the middle of the bin that holds the (q+1)-th smallest r_j,
    which is `qb`'s value before centring; so the error of each bias is at most half a bin, and so is that of the mean
    taken out (rules.md: one bin). At exact balance tokens within a bin of the boundary may move: it has no exact
    fixed point. Source: Kimi K3, known from rules.md; which range and which point of the bin is used there is not
    known to us.

    Examples
    --------
    >>> import numpy as np
    >>> scores_TE = np.array([[0.75, 0.25], [0.75, 0.5]])
    >>> HistogramQuantileBalancing(bins=4).learn_from(scores_TE, np.zeros(2), np.ones(2), top_k=1).tolist()
    [-0.0625, 0.0625]
    """

    bins: int = 1000

    def __post_init__(self) -> None:
        check_count(self.bins, "bins")

    def learn_from(
        self, scores_TE: FloatArray, bias_E: NDArray[np.float64], target_E: NDArray[np.float64], top_k: int
    ) -> NDArray[np.float64]:
        """The centred quantiles, each to within half a bin."""
        if top_k == len(bias_E):
            return centred(bias_E)
        lack_ET = -excesses(scores_TE, thresholds(scores_TE, bias_E, top_k))
        return centred(keep_finite(self.quantiles(lack_ET, ranks(target_E, len(scores_TE))), bias_E))

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
