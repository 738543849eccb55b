"""Drawn scores in compiled code (see `alflb.kernels.laws`): a block can be made where it is used."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray

from alflb.kernels import laws
from alflb.kernels._jit import jit_borrowing
from alflb.kernels._simd import bits_to_float, float_to_bits
from alflb.kernels._splitmix import hash_words

for _formula in laws.FORMULAS:
    register_jitable(_formula)


class DrawSource(NamedTuple):
    """What a row of drawn scores depends on, and room for its random bits."""

    distribution: int
    """Index into `alflb.kernels.laws.DISTRIBUTIONS`."""
    key: np.uint64
    offset_E: NDArray[np.float32]
    words: NDArray[np.uint64]
    """Random bits of one row, two experts per word, padded to whole registers; overwritten."""
    halves: NDArray[np.uint32]
    """The same memory, one expert per element."""


def make_source(distribution: str, key: int, offset_E: NDArray[np.float32]) -> DrawSource:
    """What one thread draws from."""
    words = np.empty(-(-offset_E.size // 16) * 8, dtype=np.uint64)
    index = laws.DISTRIBUTIONS.index(distribution)
    return DrawSource(index, np.uint64(key), offset_E, words, words.view(np.uint32))


@jit_borrowing
def draw_rows(source, token, rows, target, stride):
    """Write the scores of tokens token..token + rows - 1 to the flat float32 array `target`, rows `stride` apart."""
    num_experts = source.offset_E.size
    for row in range(rows):
        hash_words(source.key, np.uint64(token + row) * np.uint64(source.words.size), source.words)
        scores_E = target[row * stride : row * stride + num_experts]
        if source.distribution == 0:
            _uniform(source.halves, source.offset_E, scores_E)
        elif source.distribution == 1:
            _logistic(source.halves, source.offset_E, scores_E)
        elif source.distribution == 2:
            _gumbel(source.halves, source.offset_E, scores_E)
        else:
            _normal(source.halves, source.offset_E, scores_E)


@jit_borrowing
def _uniform(halves, offset_E, scores_E):
    """Multiples of 2^-24 in [0, 1)."""
    for k in range(offset_E.size):
        scores_E[k] = np.float32(np.int32(halves[k] >> np.uint32(8))) * laws.TWO_TO_MINUS_24 + offset_E[k]


@jit_borrowing
def _logistic(halves, offset_E, scores_E):
    """+-log((1 - v) / v), v the probability beyond the score."""
    for k in range(offset_E.size):
        distance = _log(laws.odds(_tail(halves[k])))
        scores_E[k] = (distance if _is_upper(halves[k]) else -distance) + offset_E[k]


@jit_borrowing
def _gumbel(halves, offset_E, scores_E):
    """-log(-log(u)), with u = 1 - v in the upper tail, where u itself would be rounded to 1."""
    for k in range(offset_E.size):
        v = _tail(halves[k])
        upper = _is_upper(halves[k])
        near_one = -laws.log_of_one_plus(-v)
        elsewhere = -_log(laws.ONE - v if upper else v)
        scores_E[k] = offset_E[k] - _log(near_one if upper and v < laws.QUARTER else elsewhere)


@jit_borrowing
def _normal(halves, offset_E, scores_E):
    """The quantile of the normal law: odd about the median, so (1 - 2v) times a function of w = -log(4v(1 - v))."""
    for k in range(offset_E.size):
        v = _tail(halves[k])
        w = -_log(laws.four_v_times_one_minus_v(v))
        center = laws.normal_center(w)
        tail = laws.normal_tail(np.float32(math.sqrt(w)))
        distance = laws.normal_distance(v, center if w < laws.SIX else tail)
        scores_E[k] = (distance if _is_upper(halves[k]) else -distance) + offset_E[k]


@register_jitable
def _is_upper(half):
    return (half & np.uint32(1)) != 0


@register_jitable
def _tail(half):
    return laws.tail_probability(np.float32(np.int32(half >> np.uint32(1))))


@register_jitable
def _log(x):
    """Natural logarithm of a positive normal number, to about one unit in the last place."""
    bits = float_to_bits(x)
    exponent = np.int32(np.int32(bits - laws.SQRT_HALF_BITS) >> 23)
    mantissa = bits_to_float(np.int32(bits - np.int32(exponent << 23)))
    return laws.log_of_parts(mantissa, np.float32(exponent))
