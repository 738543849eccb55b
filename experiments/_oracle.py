r"""f(p_n) along a whole path of biases at once, exact to rounding; `alflb.population` judges it in the tests.

With N(t) the number of biased scores above t,

.. math:: E[S_K] = \int \big( E\min(K, N(t)) - K\,\varsigma(-t) \big)\,dt, \qquad \varsigma(x) = 1/(1 + e^{-x}),

since :math:`\int (\varsigma(-t) - 1[t<0])\,dt = 0`. For logistic scores the integrand is analytic in a strip of
half-width pi and decays exponentially, so the trapezoid rule with step h is off by about exp(-2 pi^2 / h).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logsumexp

FloatArray = NDArray[np.float64]

_STEP = 0.5
"""exp(-2 pi^2 / 0.5) = 7e-18."""

_TAIL = 42.0
"""exp(-42) = 6e-19: what lies farther out does not count."""

_BLOCK = 4096
"""Biases worked on at once, to stay in cache."""


def gumbel_values(bias_NE: ArrayLike, offset_E: ArrayLike) -> FloatArray:
    """Values f(p) of Gumbel scores with offsets, K = 1 (claim C8), at each bias; shape (N,)."""
    bias = np.asarray(bias_NE, dtype=np.float64)
    values: FloatArray = logsumexp(bias + np.asarray(offset_E), axis=1) + np.euler_gamma - bias.mean(axis=1)
    return values


def logistic_values(bias_NE: ArrayLike, offset_E: ArrayLike, top_k: int) -> FloatArray:
    """Values f(p) of independent logistic scores with offsets (claim C7) at each bias; shape (N,)."""
    bias = np.asarray(bias_NE, dtype=np.float64)
    shift_NE = bias + np.asarray(offset_E)
    reach = float(np.abs(shift_NE).max()) + _TAIL
    grid = _STEP * np.arange(-np.ceil(reach / _STEP), np.ceil(reach / _STEP) + 1)
    blocks = [_mean_top_sum(shift_NE[i : i + _BLOCK], grid, top_k) for i in range(0, len(bias), _BLOCK)]
    values: FloatArray = np.concatenate(blocks) - top_k * bias.mean(axis=1)
    return values


def _mean_top_sum(shift_NE: FloatArray, grid: FloatArray, top_k: int) -> FloatArray:
    """E[S_K] for each row of shifts: the Poisson-binomial law of N(t), capped at K, one expert after the other."""
    count_KNt = np.zeros((top_k, len(shift_NE), len(grid)))  # P(N(t) = m) for m < K
    count_KNt[0] = 1.0
    for shift_N in shift_NE.T:
        above_Nt = expit(shift_N[:, None] - grid)
        for m in range(top_k - 1, 0, -1):
            count_KNt[m] += above_Nt * (count_KNt[m - 1] - count_KNt[m])
        count_KNt[0] *= 1.0 - above_Nt
    missing_K = top_k - np.arange(top_k)
    capped_mean_Nt = top_k - np.tensordot(missing_K, count_KNt, axes=1)
    total: FloatArray = _STEP * (capped_mean_Nt - top_k * expit(-grid)).sum(axis=1)
    return total
