"""C14, whiteness (one mode of curvature h > 0; surplus g = h x + noise of variance R > 0; x -> x - eta g + walk of
variance Q > 0; all draws independent; 0 < eta h < 2; stationary variance P of x).

Cov(g_(n+1), g_n) = -(h/2) eta h (2 - eta h) dP/d eta, and Cov(g_(n+k), g_n) = (1 - eta h)^(k-1) Cov(g_(n+1), g_n). So
surpluses are white exactly where the gain minimizes the variance, that is at the Kalman gain eta = h P / (h^2 P + R),
which is unique and below 1/h; successive surpluses agree below it and alternate above it. (Whiteness: Mehra 1970; the
identity is ours, proof in docs/theory/self_tuning.md.)

Checked exactly, in fractions, with the derivative from dual numbers. *Sharper*: the library's proportional rule on
Gumbel scores at Q = 0, where the identity says that the correlation of successive shortfalls is -eta h / 2.

BROKEN leaves out the factor 2 - eta h, which is 2 for small gains only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from scipy import stats

from alflb.rules import make_rule
from alflb.simulation import simulate
from alflb.streams import make_stream
from proofs_check._random import FALSE_ALARM
from proofs_check._verdict import Verdict

CLAIM = "C14"
TITLE = "white shortfalls"
NUM_TOKENS, STEP_SIZE = 1024, 0.5


class Mode(NamedTuple):
    """A mode and a gain, as fractions."""

    curvature: Fraction
    noise: Fraction
    walk: Fraction
    gain: Fraction

    @property
    def share(self) -> Fraction:
        """Eta h: the share of the error that a step takes away."""
        return self.gain * self.curvature


class Dual(NamedTuple):
    """A number and its derivative."""

    value: Fraction
    slope: Fraction


def check(seed: int = 0, instances: int = 300) -> Verdict:
    """Largest difference between the two sides of the identity; the gain is on the side that the sign says."""
    return _compare(seed, instances, lambda mode: mode.share * (2 - mode.share))


def BROKEN(seed: int = 0, instances: int = 300) -> Verdict:
    """The control: the identity for small gains, taken for all."""
    return _compare(seed, instances, lambda mode: 2 * mode.share)


def sharper(seed: int = 0, instances: int = 4000) -> Verdict:
    """Correlation of successive shortfalls of the library's loop over `instances` steps, against -eta h / 2."""
    stream = make_stream("gumbel", num_tokens=NUM_TOKENS, num_experts=2, offsets=(0.0, 0.0))
    # Two experts: the bias difference d moves by 2 u e, and e = -d / 2, so eta h = u.
    run = simulate(stream, make_rule("proportional", STEP_SIZE), top_k=1, num_steps=instances, seed=seed)
    surplus_N = run.load_NE[20:, 0] / NUM_TOKENS - 0.5
    correlation = float(np.corrcoef(surplus_N[1:], surplus_N[:-1])[0, 1])
    expected = -STEP_SIZE / 2
    tolerance = float(stats.norm.isf(FALSE_ALARM / 2) / np.sqrt(len(surplus_N)))
    words = {"correlation": correlation, "expected": expected, "seed": seed}
    error = abs(correlation - expected)
    return Verdict(CLAIM, "statistical", instances, error, tolerance, bool(error <= tolerance), words)


def variance(mode: Mode) -> Dual:
    """P(eta) = (eta^2 R + Q) / (eta h (2 - eta h)) and its derivative."""
    top = Dual(mode.gain**2 * mode.noise + mode.walk, 2 * mode.gain * mode.noise)
    bottom = Dual(mode.share * (2 - mode.share), mode.curvature * (2 - 2 * mode.share))
    value = top.value / bottom.value
    return Dual(value, (top.slope - value * bottom.slope) / bottom.value)


def covariance(mode: Mode) -> Fraction:
    """Cov(g_(n+1), g_n), from E x_(n+1) x_n = (1 - eta h) P and E x_(n+1) noise_n = -eta R."""
    return mode.curvature**2 * (1 - mode.share) * variance(mode).value - mode.curvature * mode.gain * mode.noise


def kalman_excess(mode: Mode) -> Fraction:
    """Eta (h^2 P + R) - h P: negative below the Kalman gain of the variance P(eta)."""
    spread = variance(mode).value
    return mode.gain * (mode.curvature**2 * spread + mode.noise) - mode.curvature * spread


def _compare(seed: int, instances: int, factor: Callable[[Mode], Fraction]) -> Verdict:
    for count, mode in enumerate(_modes(seed, instances), start=1):
        spread = variance(mode)
        stationary = (1 - mode.share) ** 2 * spread.value + mode.gain**2 * mode.noise + mode.walk
        identity = covariance(mode) + mode.curvature / 2 * factor(mode) * spread.slope
        sides_agree = _sign(covariance(mode)) == -_sign(kalman_excess(mode)) == -_sign(spread.slope)
        error = abs(identity) + abs(stationary - spread.value)
        if error or not sides_agree:
            return Verdict(CLAIM, "equality", count, max(error, Fraction(1)), 0, False, _words(mode))
    return Verdict(CLAIM, "equality", instances, 0, 0, True, _words(mode))


def _sign(number: Fraction) -> int:
    return (number > 0) - (number < 0)


def _words(mode: Mode) -> dict[str, str]:
    return {name: str(value) for name, value in mode._asdict().items()}


def _modes(seed: int, instances: int) -> Iterator[Mode]:
    rng = np.random.default_rng(seed)
    for _ in range(instances):
        curvature, noise, walk = (Fraction(int(n), int(d)) for n, d in rng.integers(1, 40, (3, 2)))
        share = Fraction(int(rng.integers(1, 200)), 100)
        yield Mode(curvature, noise, walk, share / curvature)
