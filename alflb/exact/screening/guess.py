"""Stage 1: guess the optimal bias from a sample, by damped quantile steps.

Given the other biases, the exact minimiser of D in p_k alone is p_k minus the L_k-th largest margin of expert k
(see `row_kernels` for margins). All experts take that step at once, damped, since they answer one another. The
first steps use a few hundred rows and a window as wide as the scores; then rows are added by factors of four, and
the windows shrink to what the sampling error leaves open.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb.exact.screening.row_kernels import BINS, count_margins
from alflb.problem import FloatArray

_DAMPING = 0.85
"""1 oscillates between two experts, 0.5 is slow."""
_FIRST_ROWS = 512
_GROWTH = 4
_MOST_STEPS = 20
_WIDEN = 4.0
"""Growth of a window that missed its quantile."""
_SETTLED = 1.5
"""Mean step, in sampling errors, after which the next steps are not worth their time."""


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


def guess_bias(
    sample_ME: FloatArray, top_k: int, share_E: NDArray[np.float64], bias_E: NDArray[np.float64], span: float
) -> BiasGuess:
    """Quantile steps on growing parts of the sample.

    Parameters
    ----------
    sample_ME : array, shape (M, E)
        Rows that represent all rows.
    top_k : int
    share_E : array, shape (E,)
        Target loads as fractions of the rows.
    bias_E : array, shape (E,)
        Where to start.
    span : float
        Upper bound of the score differences inside a row; the first window.
    """
    num_rows = len(sample_ME)
    width_E = np.full(len(bias_E), span)
    rows = min(num_rows, _FIRST_ROWS)
    while True:
        part = sample_ME if rows == num_rows else sample_ME[np.arange(rows) * num_rows // rows]
        for _ in range(_MOST_STEPS):
            step = quantile_step(part, top_k, share_E * rows, bias_E, width_E)
            bias_E = bias_E - _DAMPING * step.shift_E
            bias_E = bias_E - bias_E.mean()
            usual_E = 4.0 * step.noise_E + 2.5 * np.median(step.noise_E)
            width_E = np.where(step.missed_E, _WIDEN * width_E, usual_E)
            if not step.missed_E.any() and np.mean(np.abs(step.shift_E) / step.noise_E) < _SETTLED:
                break
        if rows == num_rows:
            return BiasGuess(bias_E, width_E)
        rows = min(num_rows, rows * _GROWTH)


def quantile_step(
    scores_ME: FloatArray,
    top_k: int,
    rank_E: NDArray[np.float64],
    bias_E: NDArray[np.float64],
    width_E: NDArray[np.float64],
) -> QuantileStep:
    """Read the rank-th largest margin of each expert off a histogram on [-width, width]."""
    counts_EB = np.zeros((len(bias_E), BINS + 1), dtype=np.int64)
    dtype = scores_ME.dtype
    count_margins(scores_ME, bias_E.astype(dtype), width_E.astype(dtype), top_k, counts_EB)
    above_EB = np.cumsum(counts_EB[:, ::-1], axis=1)  # column b: margins above bin BINS - b's lower edge
    wanted_E1 = np.maximum(rank_E, 0.5)[:, None]
    column_E = np.sum(above_EB < wanted_E1, axis=1)
    missed_E = (column_E == 0) | (column_E > BINS)
    column_E = np.clip(column_E, 1, BINS)
    expert_E = np.arange(len(bias_E))
    before_E = above_EB[expert_E, column_E - 1]
    inside_E = counts_EB[expert_E, BINS - column_E]
    bin_E = 2.0 * width_E / BINS
    part_E = np.clip((wanted_E1[:, 0] - before_E) / np.maximum(inside_E, 1), 0.0, 1.0)
    shift_E = width_E - bin_E * (column_E - 1 + part_E)
    around_E = np.stack([counts_EB[expert_E, np.clip(BINS - column_E + d, 0, BINS - 1)] for d in (-1, 0, 1)]).mean(0)
    density_E = np.maximum(around_E, 0.5) / bin_E
    return QuantileStep(shift_E, np.sqrt(wanted_E1[:, 0]) / density_E, missed_E)
