"""The laws that scores are drawn from: constants and formulas, which every backend computes in the same steps.

Everything is float32 and made of exactly rounded operations only, so that the same bits come out wherever it runs. A
formula here takes numpy scalars, arrays or torch tensors; what needs a choice or a look at the bits of a number is
written once per backend, around these formulas. Two neighboring experts share one 64-bit output of splitmix64
(Steele, Lea and Flood, OOPSLA 2014), 32 random bits each: the lowest says on which side of the median the score lies,
the other 31 give the probability v in (0, 1/2] beyond it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

DISTRIBUTIONS = ("uniform", "logistic", "gumbel", "normal")
"""Standard laws that scores can be drawn from: U(0, 1), Logistic(0, 1), Gumbel(0, 1), N(0, 1)."""

GOLDEN, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""Increment and factors of splitmix64."""
SHIFTS = (30, 27, 31)
"""Its shifts."""

HALF, QUARTER, ONE, FOUR, SIX = (np.float32(x) for x in (0.5, 0.25, 1, 4, 6))
TWO_TO_MINUS_24 = np.float32(2.0**-24)
SQRT_HALF_BITS = np.int32(0x3F3504F3)
"""The bits of the float32 next to sqrt(1/2)."""

_THREE, _THREE_AND_HALF, _TWO_TO_MINUS_32 = np.float32(3), np.float32(3.5), np.float32(2.0**-32)
_LN_2_HIGH = np.float32(0.693359375)  # few bits, so that its product with an exponent is exact
_LN_2_LOW = np.float32(math.log(2.0) - 0.693359375)


def _float32(*numbers: float) -> tuple[np.float32, ...]:
    return tuple(np.float32(number) for number in numbers)


# Minimax polynomials of degree 8, fitted in float64. Relative error below 1e-7 for (log(1 + f) - f + f^2/2) / f^3,
# 4e-7 for the normal quantile over 1 - 2v: in w - 3 for w <= 6, in sqrt(w) - 3.5 beyond.
_LOG = _float32(
    0.3333331048,
    -0.2499998659,
    0.2000215203,
    -0.1666919590,
    0.1421989799,
    -0.1238581091,
    0.1186618209,
    -0.1177964434,
    0.06917648017,
)
_NORMAL_CENTER = _float32(
    2.296035528,
    0.3417185545,
    -0.008116988465,
    -0.001184988301,
    2.772347943e-4,
    -1.696207619e-5,
    -2.807346164e-6,
    4.804090850e-7,
    1.736122357e-9,
)
_NORMAL_TAIL = _float32(
    4.717089176,
    1.424632788,
    0.004640130792,
    -0.002897806937,
    0.001513415249,
    -0.001013339846,
    6.807355094e-4,
    -2.794867614e-4,
    4.428939428e-5,
)


def tail_probability(whole: Any) -> Any:
    """The probability v beyond the score, of the 31 random bits as a float32."""
    return (whole + HALF) * _TWO_TO_MINUS_32


def odds(v: Any) -> Any:
    """(1 - v) / v, whose logarithm is the distance of a logistic score from the median."""
    return (ONE - v) / v


def four_v_times_one_minus_v(v: Any) -> Any:
    """4 v (1 - v), whose logarithm is minus the w of the normal quantile."""
    return FOUR * v * (ONE - v)


def normal_center(w: Any) -> Any:
    """The normal quantile over 1 - 2v, for w < 6."""
    return _polynomial(_NORMAL_CENTER, w - _THREE)


def normal_tail(root_w: Any) -> Any:
    """The normal quantile over 1 - 2v, for w >= 6."""
    return _polynomial(_NORMAL_TAIL, root_w - _THREE_AND_HALF)


def normal_distance(v: Any, quotient: Any) -> Any:
    """Distance of a normal score from the median, `quotient` being the quantile over 1 - 2v."""
    return (ONE - v - v) * quotient


def log_of_parts(mantissa: Any, exponent: Any) -> Any:
    """log(mantissa 2^exponent), mantissa in [sqrt(1/2), sqrt(2)); both float32."""
    return log_of_one_plus(mantissa - ONE) + exponent * _LN_2_LOW + exponent * _LN_2_HIGH


def log_of_one_plus(f: Any) -> Any:
    """log(1 + f) for f in [sqrt(1/2) - 1, sqrt(2) - 1], accurate also near 0."""
    return f - HALF * f * f + f * f * f * _polynomial(_LOG, f)


def _polynomial(c: tuple[np.float32, ...], x: Any) -> Any:
    """c[0] + c[1] x + ... + c[8] x^8, bracketed for short chains of dependent operations."""
    x2 = x * x
    x4 = x2 * x2
    low = (c[0] + c[1] * x) + (c[2] + c[3] * x) * x2
    high = (c[4] + c[5] * x) + (c[6] + c[7] * x) * x2
    return low + (high + c[8] * x4) * x4


FORMULAS = (
    tail_probability,
    odds,
    four_v_times_one_minus_v,
    normal_center,
    normal_tail,
    normal_distance,
    log_of_parts,
    log_of_one_plus,
    _polynomial,
)
"""All of the above, for backends that must compile them."""
