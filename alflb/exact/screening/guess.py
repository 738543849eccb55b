"""Stage 1: guess the optimal bias from a sample, by damped quantile steps.

Given the other biases, the exact minimizer of D in p_k alone is p_k minus the L_k-th largest margin of expert k
(see `row_kernels` for margins). All experts take that step at once, damped, since they answer one another. The
first steps use a few hundred rows and a window as wide as the scores; then rows are added by factors of four, and
the windows shrink to what the sampling error leaves open.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb.exact.screening.row_kernels import BINS, count_margins, make_scan
from alflb.exact.screening.sources import ScoreSource
from alflb.problem import FloatArray

_DAMPING = 0.85
"""1 oscillates between two experts, 0.5 is slow."""
_FIRST_ROWS = 256
_GROWTH = 4
_MOST_STEPS = 12
_WIDEN = 4.0
"""Growth of a window that missed its quantile."""
_STEP_WIDTH = 2.0
"""Window of the next step, in sampling errors of its own and the typical expert's bias; to miss costs one more."""
_FINAL_WIDTH = 3.5
"""The same for the window that is handed over; a margin moves with the biases of two experts."""
_SETTLED = 0.4
"""Mean step, in windows of the next one, after which the next steps are not worth their time."""
_LEAST_SHRINK = 0.4
"""Part of the window kept when the sample is everything, for what the steps themselves left open."""
_STEP_LEFT = 2.0
"""Half-width of that window, at most, in steps of its own and the typical expert's bias."""
_THINNED = 0.5
"""Part of the entries in the windows that such a step must leave at most, to be worth another one."""
_CROWD = 3.0
"""Entries per row in the windows from which another step over the whole sample is cheaper than to settle them."""


class BiasGuess(NamedTuple):
    """A bias, and how far from it the optimum may be."""

    bias_E: NDArray[np.float64]
    width_E: NDArray[np.float64]
    """Half-width of the window around each bias that should hold the optimal one."""


class QuantileStep(NamedTuple):
    """What one look at the sample says about each expert's bias."""

    shift_E: NDArray[np.float64]
    """The wanted quantile of the margins, by which the bias should fall."""
    noise_E: NDArray[np.float64]
    """Sampling error of that quantile."""
    missed_E: NDArray[np.bool_]
    """The quantile is outside the window, and `shift_E` only its nearer end."""
    counts_EB: NDArray[np.int64]
    """Histogram of the margins in the window, and above it."""

    def num_within(self, part_E: NDArray[np.float64]) -> int:
        """How many margins are, by size, within these parts of the window."""
        size_B = np.abs(np.arange(1 - BINS, BINS, 2)) / BINS
        return int(np.sum(self.counts_EB[:, :BINS], where=size_B <= part_E[:, None]))


def guess_bias(
    source: ScoreSource, top_k: int, target_E: NDArray[np.float64], bias_E: NDArray[np.float64]
) -> BiasGuess:
    """Quantile steps from `bias_E` on growing parts of a sample."""
    scores_TE, rows_M = source.sample()
    num_rows = len(rows_M)
    share_E = target_E / source.num_tokens
    precision = np.finfo(source.dtype)
    span = max(2.0 * source.largest, 2.0**40 * precision.tiny)
    narrowest = precision.eps * span
    bias_E = np.maximum(bias_E - bias_E.max(), -span)  # some optimal bias spreads no wider, bar forbidden pairs
    width_E = np.full(len(bias_E), span)
    levels = max(0, math.ceil(math.log(num_rows / _FIRST_ROWS, _GROWTH)))
    crowd = math.inf
    for rows in (max(1, num_rows // _GROWTH**level) for level in range(levels, -1, -1)):
        part_M = rows_M[np.arange(rows) * num_rows // rows]
        for _ in range(_MOST_STEPS):
            step = quantile_step(scores_TE, part_M, top_k, share_E * rows, bias_E, width_E)
            bias_E = bias_E - _DAMPING * step.shift_E
            bias_E = bias_E - bias_E.mean()
            noise_E = np.maximum(step.noise_E, narrowest)
            step_width_E = _with_usual(_STEP_WIDTH * noise_E)
            final_E = np.maximum(_final_width(step, noise_E, num_rows, source.num_tokens), _FINAL_WIDTH * narrowest)
            is_settled = bool(np.mean(np.abs(step.shift_E) / step_width_E) < _SETTLED)
            if rows == num_rows:
                last_crowd, crowd = crowd, step.num_within(final_E / width_E)
                is_settled = crowd > _THINNED * last_crowd or (is_settled and crowd <= _CROWD * rows)
            width_E = np.clip(np.where(step.missed_E, _WIDEN * width_E, step_width_E), narrowest, span)
            if not step.missed_E.any() and (is_settled or noise_E.max() == narrowest):
                break
    return BiasGuess(bias_E, np.where(step.missed_E, width_E, final_E))


def _with_usual(noise_E: NDArray[np.float64]) -> NDArray[np.float64]:
    """Errors of an expert's bias, plus those usual for the other experts': nine tenths of them have no larger one."""
    return noise_E + np.sort(noise_E)[len(noise_E) * 9 // 10]


def _final_width(
    step: QuantileStep, noise_E: NDArray[np.float64], num_rows: int, num_tokens: int
) -> NDArray[np.float64]:
    """Half-widths of the windows that should hold the optimal biases after this step."""
    unseen = math.sqrt(1.0 - num_rows / num_tokens)
    width_E = _FINAL_WIDTH * max(_LEAST_SHRINK, unseen) * _with_usual(noise_E)
    if num_rows < num_tokens:
        return width_E
    return np.minimum(width_E, _STEP_LEFT * _with_usual(np.abs(step.shift_E)))


def quantile_step(
    scores_TE: FloatArray,
    rows_M: NDArray[np.int64],
    top_k: int,
    rank_E: NDArray[np.float64],
    bias_E: NDArray[np.float64],
    width_E: NDArray[np.float64],
) -> QuantileStep:
    """Read the rank-th largest margin of each expert, and its confidence interval, off a histogram."""
    counts_EB = np.zeros((len(bias_E), BINS + 1), dtype=np.int64)
    count_margins(scores_TE, rows_M, make_scan(scores_TE.dtype, bias_E, width_E, top_k), counts_EB)
    rank_E = np.maximum(rank_E, 0.5)
    spread_E = 2.0 * np.sqrt(rank_E)
    ranks_QE = np.stack([rank_E, rank_E - spread_E, rank_E + spread_E])
    (shift_E, high_E, low_E), missed_QE = _margins_of_ranks(counts_EB, width_E, ranks_QE)
    return QuantileStep(shift_E, (high_E - low_E) / 4.0, missed_QE[0], counts_EB)


def _margins_of_ranks(
    counts_EB: NDArray[np.int64], width_E: NDArray[np.float64], ranks_QE: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The margins of these ranks from above, by interpolation inside their bins; the window's end and True outside."""
    from_top_EB = counts_EB[:, BINS::-1]
    reached_EB = np.cumsum(from_top_EB, axis=1)  # column b: margins above the window or in its b highest bins
    column_QE = np.sum(reached_EB < ranks_QE[:, :, None], axis=2)
    missed_QE = (column_QE == 0) | (column_QE > BINS)
    expert_E, column_QE = np.arange(len(counts_EB)), np.clip(column_QE, 1, BINS)
    into_bin_QE = (ranks_QE - reached_EB[expert_E, column_QE - 1]) / np.maximum(from_top_EB[expert_E, column_QE], 1)
    bins_down_QE = column_QE - 1 + np.clip(into_bin_QE, 0.0, 1.0)
    return width_E * (1.0 - 2.0 * bins_down_QE / BINS), missed_QE
