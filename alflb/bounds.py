"""Right-hand sides of the claims: plain functions of plain numbers or arrays, one per bound.

Nothing here measures anything; `alflb.duality` and the checks hold measurements against these. What counts tokens or
steps is computed in exact rationals from the floats it is given, so that a check needs no tolerance.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import scipy  # its parts, a second to load, come when they are first used
from numpy.typing import ArrayLike, NDArray

from alflb.problem import check_count, check_number, check_scores
from alflb.registry import unknown_name


def gap_bound(violation_l1: float, bias_spread: float, score_range: float) -> float:
    r"""Claim C6: how far a dual value can be above the optimum, given how unbalanced the loads are.

    .. math:: D(p) - LP^* \le \tfrac12 \lVert A(p) - L \rVert_1 (\mathrm{spread}(p) + \rho).

    Parameters
    ----------
    violation_l1 : float
        ||A(p) - L||_1 in tokens.
    bias_spread, score_range : float
        max(p) - min(p), and rho, both in score units.

    Returns
    -------
    float
        The bound in score units (summed over tokens); 0 at exact balance.

    Examples
    --------
    >>> gap_bound(violation_l1=4.0, bias_spread=0.5, score_range=1.0)
    3.0
    """
    return _half_product(violation_l1, bias_spread + score_range)


def affinity_excess_bound(violation_l1: float, score_range: float) -> float:
    r"""Claim C6, upper side: affinity - LP* <= ||A - L||_1 rho / 2 (an unbalanced allocation may exceed LP*)."""
    return _half_product(violation_l1, score_range)


def affinity_loss_bound(violation_l1: float, bias_spread: float) -> float:
    r"""Claim C6, lower side: LP* - affinity <= ||A - L||_1 spread(p) / 2."""
    return _half_product(violation_l1, bias_spread)


def optimal_spread(score_range: float, num_experts: int, top_k: int, *, equal_targets: bool = True) -> float:
    r"""Claims C6 and C16: some optimal bias has at most this spread: rho, or 2 rho where targets differ.

    With unequal targets rho is enough for K = 1 and for K >= E - 1. In C5 and C6 this takes the place of rho.

    Parameters
    ----------
    score_range : float
        rho, score units.
    num_experts, top_k : int
        E and K.
    equal_targets : bool
        Whether every expert has the target K T / E.

    Returns
    -------
    float
        The bound, score units.

    Examples
    --------
    >>> optimal_spread(1.5, num_experts=4, top_k=2)
    1.5
    >>> optimal_spread(1.5, num_experts=4, top_k=2, equal_targets=False)
    3.0
    """
    narrow = equal_targets or check_count(top_k, "top_k") == 1 or top_k >= num_experts - 1
    return score_range if narrow else 2.0 * score_range


def _half_product(violation_l1: float, width: float) -> float:
    return 0.0 if violation_l1 == 0 else 0.5 * violation_l1 * width  # rho may be inf; 0 * inf is not 0


def crossing_multiplicity(scores: ArrayLike, width: float) -> int:
    r"""m(w) of claim C4: the most tokens whose crossing value of one expert pair fits in a closed window of length w.

    The crossing value of token i for the pair (k, j) is gamma_ik - gamma_ij: where p_j - p_k has to be for the token to
    be indifferent. A step of the sign rule moves p_j - p_k by at most 2u, so at most m(2u) tokens cross a pair.

    Parameters
    ----------
    scores : array_like of float, shape (T, E)
        Pairs with a forbidden (-inf) expert never cross and are not counted.
    width : float
        w >= 0 in score units.

    Returns
    -------
    int
        At least 1, at most T.

    Examples
    --------
    >>> crossing_multiplicity([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]], width=1.0)
    2
    """
    scores_TE = check_scores(scores).astype(np.float64)
    width = check_number(width, "width")
    whole_TE, whole_width = _as_integers(scores_TE, width)
    most = 1
    for k, j in itertools.combinations(range(scores_TE.shape[1]), 2):
        allowed_T = np.isfinite(scores_TE[:, k]) & np.isfinite(scores_TE[:, j])
        low, high = _multiplicity_in_floats(scores_TE[allowed_T, k], scores_TE[allowed_T, j], width)
        if low < high and high > most:
            low = _most_in_window(np.sort(whole_TE[allowed_T, k] - whole_TE[allowed_T, j]), whole_width)
        most = max(most, low)
    return most


def _multiplicity_in_floats(
    first_T: NDArray[np.float64], second_T: NDArray[np.float64], width: float
) -> tuple[int, int]:
    """Bounds on the multiplicity of one pair that rounding cannot break; they differ if a value lies at an edge."""
    with np.errstate(over="ignore"):
        crossing_T = np.sort(first_T - second_T)
        rounding = 2 * np.finfo(np.float64).eps * (np.abs(crossing_T).max(initial=0.0) + width)
    if not np.isfinite(rounding):
        return 0, len(crossing_T)
    return _most_in_window(crossing_T, width - rounding), _most_in_window(crossing_T, width + rounding)


def _most_in_window(ascending_T: NDArray[Any], width: Any) -> int:
    """The most values within `width` of one of them, that one and larger ones."""
    last_T = np.searchsorted(ascending_T, ascending_T + width, side="right")
    return int((last_T - np.arange(len(ascending_T))).max(initial=0))


def _as_integers(scores_TE: NDArray[np.float64], width: float) -> tuple[NDArray[np.object_], int]:
    """Scores and width as Python integers in one unit, a power of two; 0 for a forbidden pair."""
    values = np.append(np.where(np.isfinite(scores_TE), scores_TE, 0.0).ravel(), width)
    fraction, exponent = np.frexp(values)
    whole = np.ldexp(fraction, 53).astype(np.int64).astype(object)
    shift = np.where(values == 0, 0, exponent - exponent[values != 0].min(initial=0)).astype(object)
    scaled = whole << shift
    return scaled[:-1].reshape(scores_TE.shape), scaled[-1]


def absorbing_band(multiplicity: int, num_experts: int) -> int:
    """Claim C4 as first stated: once |A_k - L_k| <= m (E - 1) tokens, always so, under the sign rule.

    This holds for any targets (C16). With m = m(2u (d + 1)) it holds where loads arrive d steps late (C17), once
    d + 1 successive loads are inside.

    Examples
    --------
    >>> absorbing_band(multiplicity=2, num_experts=4)
    6
    """
    return check_count(multiplicity, "multiplicity") * (check_count(num_experts, "num_experts") - 1)


def sharp_band(multiplicity: int, num_experts: int) -> Fraction:
    """Claim C4 sharpened: m (E - 1) - (1 - 1/E) tokens is absorbing as well, and no smaller function of m and E is.

    Proof: docs/theory/balancing.md; the instances that attain it for every m and E: docs/claims.md.

    Examples
    --------
    >>> sharp_band(multiplicity=1, num_experts=2)
    Fraction(1, 2)
    """
    num_experts = check_count(num_experts, "num_experts")
    return absorbing_band(multiplicity, num_experts) - 1 + Fraction(1, num_experts)


def entry_time(num_experts: int, score_range: float, step_size: float) -> int:
    """Claim C5 as first stated: from p = 0 the sign rule is in the band from step N0 = ceil((E-1)(rho+2u)/(2u)) on.

    Steps are counted by biases: p_0 = 0 is step 0, p_n is the bias after n updates.

    Examples
    --------
    >>> entry_time(num_experts=3, score_range=1.0, step_size=0.25)
    6
    """
    _, steps = _range_and_double_step(score_range, step_size)
    return math.ceil((check_count(num_experts, "num_experts") - 1) * (steps + 1))


def sharp_entry_time(num_experts: int, score_range: float, step_size: float) -> int:
    """Claim C5 sharpened: floor(E R / 2) steps with R = floor(rho / 2u) + 1; R itself for E <= 3. Proof in
    docs/theory/balancing.md.

    Examples
    --------
    >>> sharp_entry_time(num_experts=3, score_range=1.0, step_size=0.25)
    3
    >>> sharp_entry_time(num_experts=8, score_range=1.0, step_size=0.25)
    12
    """
    whole, _ = _range_and_double_step(score_range, step_size)
    reach = whole + 1
    return reach if check_count(num_experts, "num_experts") <= 3 else num_experts * reach // 2


def _range_and_double_step(score_range: float, step_size: float) -> tuple[int, Fraction]:
    """floor(rho / 2u), and rho / 2u as a rational."""
    check_number(score_range, "score_range")
    check_number(step_size, "step_size", positive=True)
    ratio = Fraction(score_range) / (2 * Fraction(step_size))
    return math.floor(ratio), ratio


def gradient_second_moment(pick_probability_E: ArrayLike, num_tokens: int) -> float:
    r"""E||g||^2 of claim C9 for g = A/T - K/E, from pi_k = P(k in top-K) of independent tokens.

    .. math:: E\lVert g\rVert^2 = \frac1T\sum_k \pi_k(1-\pi_k) + \lVert \pi - K/E \rVert^2 .

    Examples
    --------
    >>> gradient_second_moment([0.5, 0.5], num_tokens=10)  # (K - K^2/E) / T at pi = K/E
    0.05
    """
    pi_E = np.asarray(pick_probability_E, dtype=np.float64)
    noise = float(pi_E @ (1 - pi_E)) / check_count(num_tokens, "num_tokens")
    return noise + float(np.sum((pi_E - pi_E.mean()) ** 2))


def gradient_second_moment_bound(highest_pick: float, num_experts: int, top_k: int, num_tokens: int) -> float:
    r"""G^2 of claim C9 wherever no pick probability exceeds `highest_pick`.

    E||g||^2 = (1 - 1/T) ||pi||^2 + K/T - K^2/E, and ||pi||^2 <= max(pi) K.

    Examples
    --------
    >>> round(gradient_second_moment_bound(0.5, num_experts=2, top_k=1, num_tokens=10), 12)
    0.05
    """
    largest = (1 - 1 / check_count(num_tokens, "num_tokens")) * min(highest_pick, 1.0) * top_k
    return largest + top_k / num_tokens - top_k**2 / num_experts


def logarithmic_regret(num_steps: int, curvature: float, second_moment: float) -> float:
    r"""Claim C9: E R_N <= G^2/(2 mu) (1 + ln N) for eta_n = 1/(mu n) with projection onto the domain.

    Parameters
    ----------
    num_steps : int
        N.
    curvature : float
        mu > 0: f is mu-strongly convex along the domain (mean-zero biases).
    second_moment : float
        G^2, a bound on E||g||^2 on the domain.

    Examples
    --------
    >>> logarithmic_regret(1, curvature=0.5, second_moment=1.0)
    1.0
    """
    return second_moment / (2 * check_number(curvature, "curvature", positive=True)) * (1 + math.log(num_steps))


def constant_step_gap(distance_squared: float, num_steps: int, step_size: float, second_moment: float) -> float:
    r"""Claim C10: the mean of f(p_n) - f(p*) over N constant steps eta is at most |p_0-p*|^2/(2 eta N) + eta G^2/2.

    Examples
    --------
    >>> constant_step_gap(distance_squared=1.0, num_steps=10, step_size=0.1, second_moment=2.0)
    0.6
    """
    return distance_squared / (2 * step_size * num_steps) + step_size * second_moment / 2


def bias_spread_bound(start_spread: float, score_range: float, step_size: float, *, delay: int = 0) -> float:
    r"""Claims C11 and C17: the largest spread of a bias under the sign rule with equal targets, whatever the batches.

    .. math:: \mathrm{spread}(p_n) \le \max(\mathrm{spread}(p_0),\, \rho + 2u(d + 1)) \quad \text{for every } n.

    Parameters
    ----------
    start_spread, score_range, step_size : float
        spread(p_0), rho (the largest range of one token's scores in any batch) and u, in score units.
    delay : int
        d >= 0: the bias moves by the load of d steps ago, and rests until there is one.

    Returns
    -------
    float
        The bound, score units.

    Examples
    --------
    >>> bias_spread_bound(start_spread=0.0, score_range=1.0, step_size=0.25)
    1.5
    >>> bias_spread_bound(start_spread=0.0, score_range=1.0, step_size=0.25, delay=2)
    2.5
    """
    return max(start_spread, score_range + 2.0 * step_size * (delay + 1))


def adversarial_step(score_range: float, num_steps: int, num_experts: int, top_k: int, *, delay: int = 0) -> float:
    r"""Claims C12 and C17: the step of p <- p - eta (A / T - K / E) that has the regret of `adversarial_regret`.

    .. math:: \eta = \frac\rho2 \sqrt{\frac{E}{(2d + 1) N K (1 - K/E)}}.

    Parameters
    ----------
    score_range : float
        rho, the largest range of one token's scores in any batch, score units.
    num_steps, num_experts, top_k : int
        N, E and K.
    delay : int
        d >= 0: the bias moves by the load of d steps ago.

    Returns
    -------
    float
        eta, score units.

    Examples
    --------
    >>> adversarial_step(score_range=1.0, num_steps=4, num_experts=2, top_k=1)
    0.5
    """
    moment = (2 * delay + 1) * num_steps * top_k * (1.0 - top_k / num_experts)
    return 0.5 * score_range * math.sqrt(num_experts / moment)


def adversarial_regret(score_range: float, num_steps: int, num_experts: int, top_k: int, *, delay: int = 0) -> float:
    r"""Claims C12 and C17: regret per token of the proportional rule on any N batches, against the best fixed bias.

    .. math:: \sum_n D_n(p_n)/T - \min_p \sum_n D_n(p)/T \le \tfrac{\rho}{2} \sqrt{(2d + 1) N K (E - K)}.

    Parameters
    ----------
    score_range : float
        rho, the largest range of one token's scores in any batch, score units.
    num_steps, num_experts, top_k : int
        N, E and K. The step is `adversarial_step`, the first bias 0, the targets equal.
    delay : int
        d >= 0: the bias moves by the load of d steps ago, and rests until there is one.

    Returns
    -------
    float
        The bound in score units; divided by N it vanishes as 1 / sqrt(N).

    Examples
    --------
    >>> adversarial_regret(score_range=1.0, num_steps=4, num_experts=2, top_k=1)
    1.0
    >>> adversarial_regret(score_range=1.0, num_steps=4, num_experts=2, top_k=1, delay=4)
    3.0
    """
    return 0.5 * score_range * math.sqrt((2 * delay + 1) * num_steps * top_k * (num_experts - top_k))


def dynamic_step(score_range: float, num_steps: int, num_experts: int, top_k: int, path_length: float) -> float:
    r"""Claim C18: the step of p <- p - eta (A / T - K / E) that has the regret of `dynamic_regret`.

    .. math:: \eta = \sqrt{\frac{E\rho^2/4 + \rho V}{N K (1 - K/E)}}.

    Parameters
    ----------
    score_range : float
        rho, the largest range of one token's scores in any batch, score units.
    num_steps, num_experts, top_k : int
        N, E and K.
    path_length : float
        V, the sum over steps of ||q_n - q_(n-1)||_1 along the comparators, score units.

    Returns
    -------
    float
        eta, score units.

    Examples
    --------
    >>> dynamic_step(1.0, num_steps=4, num_experts=2, top_k=1, path_length=0.0)  # that of adversarial_step
    0.5
    """
    reach = num_experts * score_range**2 / 4 + score_range * path_length
    return math.sqrt(reach / (num_steps * top_k * (1.0 - top_k / num_experts)))


def dynamic_regret(score_range: float, num_steps: int, num_experts: int, top_k: int, path_length: float) -> float:
    r"""Claim C18: regret per token of the proportional rule on any N batches, against a moving bias.

    .. math:: \sum_n \frac{D_n(p_n) - D_n(q_n)}T
              \le \sqrt{N K (1 - \tfrac KE)\,(\tfrac E4\rho^2 + \rho V)} + \frac V2.

    Parameters
    ----------
    score_range : float
        rho, the largest range of one token's scores in any batch, score units.
    num_steps, num_experts, top_k : int
        N, E and K. The step is `dynamic_step`, the first bias 0, the targets equal.
    path_length : float
        V, the sum over steps of ||q_n - q_(n-1)||_1 along the comparators, score units. Comparators have mean zero,
        and the last one has a spread of at most rho.

    Returns
    -------
    float
        The bound in score units, summed over steps.

    Examples
    --------
    >>> dynamic_regret(1.0, num_steps=4, num_experts=2, top_k=1, path_length=0.0)  # that of adversarial_regret
    1.0
    """
    step = dynamic_step(score_range, num_steps, num_experts, top_k, path_length)
    return step * num_steps * top_k * (1.0 - top_k / num_experts) + path_length / 2


def max_vio_bound(num_tokens: int, top_k: int, num_experts: int, *, failure: float) -> float:
    r"""Claim C19: what MaxVio of one batch at p* exceeds with probability `failure` at most.

    .. math:: \sqrt{a^2 + 2\,\frac{(1 - K/E)\,\ell}{L}} + a, \qquad
              a = \frac{(1 - K/E)\,\ell}{3 L}, \qquad \ell = \ln \frac E\delta .

    Bernstein's inequality for the load of one expert, which is binomial, and a union over experts. Tokens must be
    independent: those of one text are not.

    Parameters
    ----------
    num_tokens, top_k, num_experts : int
        T, K and E; the target is L = K T / E.
    failure : float
        delta, 0 < delta < 1.

    Returns
    -------
    float
        The bound on max_k A_k / L - 1.

    Raises
    ------
    ValueError
        If `failure` is not a probability between 0 and 1.

    Examples
    --------
    >>> round(max_vio_bound(num_tokens=2048, top_k=6, num_experts=64, failure=0.01), 3)
    0.302
    """
    if not 0 < check_number(failure, "failure") < 1:
        raise ValueError(f"failure is {failure!r}; pass a probability with 0 < failure < 1")
    share = check_count(top_k, "top_k") / check_count(num_experts, "num_experts")
    scale = (1 - share) * math.log(num_experts / failure) / (share * check_count(num_tokens, "num_tokens"))
    return scale / 3 + math.sqrt((scale / 3) ** 2 + 2 * scale)


def sign_pull(num_tokens: int, num_experts: int, radius: float) -> float:
    r"""Claim C13: how strongly the sign rule pulls towards p* on Gumbel scores, K = 1, inside a ball of radius R.

    .. math:: m = \frac{4}{E^2} \inf_{0 < w \le 2\sqrt2 R} \frac{h(w)}{w}, \qquad
              h(w) = \inf \{\psi(a e^w) - \psi(a) : a \le 1/E \le a e^w\},

    with :math:`\psi(x) = P(\mathrm{Bin}(T, x) > L) - P(\mathrm{Bin}(T, x) < L)`. The infima are taken over a grid of
    400 widths and 200 positions.

    Parameters
    ----------
    num_tokens, num_experts : int
        T and E; L = T / E must be whole.
    radius : float
        R > 0, score units.

    Returns
    -------
    float
        m, per score unit.

    Raises
    ------
    ValueError
        If T is not a multiple of E.

    Examples
    --------
    >>> round(sign_pull(num_tokens=16, num_experts=4, radius=0.5), 4)
    0.1678
    """
    target, rest = divmod(num_tokens, num_experts)
    if rest:
        raise ValueError(f"num_tokens is {num_tokens}, not a multiple of num_experts = {num_experts}; L must be whole")
    width_W = 2.0 * math.sqrt(2.0) * radius * np.linspace(0.0, 1.0, 401)[1:, None]
    low_WA = np.exp(-width_W * np.linspace(0.0, 1.0, 200)) / num_experts
    high_WA = np.minimum(low_WA * np.exp(width_W), 1.0)

    def psi(pick_WA: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(
            scipy.stats.binom.sf(target, num_tokens, pick_WA) - scipy.stats.binom.cdf(target - 1, num_tokens, pick_WA)
        )

    return float(4.0 / num_experts**2 * ((psi(high_WA) - psi(low_WA)) / width_W).min())


def sign_pull_of_ties(num_tokens: int, num_experts: int, top_k: int, radius: float, tie_density: float) -> float:
    r"""Claim C20: how strongly the sign rule pulls towards p* where experts differ by an offset only, any K.

    .. math:: m = \frac{4c}{E} \inf_{0 < y \le Y} \frac{h(y)}{y}, \qquad
              h(y) = \inf \{\psi(a + y) - \psi(a) : a \le K/E \le a + y\}, \qquad Y = \min(1,\, 2\sqrt2\, R E c),

    with :math:`\psi(x) = P(\mathrm{Bin}(T, x) > L) - P(\mathrm{Bin}(T, x) < L)`. The infima are taken over a grid of
    400 widths and 200 positions.

    Parameters
    ----------
    num_tokens, num_experts, top_k : int
        T, E and K < E.
    radius : float
        R > 0, score units: biases are projected onto mean 0 and ||p|| <= R.
    tie_density : float
        c > 0: a lower bound, within 2R of p*, on the density with which any two experts tie at the top-K boundary,
        per score unit (`alflb.population.Population.tie_density`).

    Returns
    -------
    float
        m, per score unit.

    Examples
    --------
    >>> round(sign_pull_of_ties(num_tokens=16, num_experts=4, top_k=1, radius=0.5, tie_density=0.05), 4)
    0.1784
    """
    share, target = top_k / num_experts, Fraction(top_k * num_tokens, num_experts)
    longest = min(1.0, 2.0 * math.sqrt(2.0) * radius * num_experts * tie_density)
    width_W = longest * np.linspace(0.0, 1.0, 401)[1:, None]
    lowest_W, highest_W = np.maximum(share - width_W, 0.0), np.minimum(share, 1.0 - width_W)
    low_WA = lowest_W + (highest_W - lowest_W) * np.linspace(0.0, 1.0, 200)

    def psi(pick_WA: NDArray[np.float64]) -> NDArray[np.float64]:
        above = scipy.stats.binom.sf(math.floor(target), num_tokens, pick_WA)
        return np.asarray(above - scipy.stats.binom.cdf(math.ceil(target) - 1, num_tokens, pick_WA))

    slopes_WA = (psi(low_WA + width_W) - psi(low_WA)) / width_W
    return float(4.0 * tie_density / num_experts * slopes_WA.min())


class SignRuleLaw(NamedTuple):
    """What the law of the sign rule's steady state under sampling noise predicts."""

    bias_sd: float
    """Root mean square over experts of the centered bias around p*, score units."""
    load_sd: float
    """Root mean square over experts of A_k/T - K/E."""
    max_vio: float
    """Expected max_k A_k / L - 1."""


def sign_rule_law(step_size: float, num_tokens: int, top_k: int, eigenvalues: ArrayLike) -> SignRuleLaw:
    r"""The law of the sign rule's steady state under sampling noise (measured, not proved; any u).

    With :math:`\sigma^2 = (K/E)(1-K/E)/T` the variance of one expert's load fraction under a fixed bias, h the modes
    of the Hessian at p*, and s the standard deviation of a load fraction,

    .. math::
       s = \tfrac b2 + \sqrt{\tfrac{b^2}4 + \sigma^2},\qquad
       b = c\,u\,\sqrt{\pi/8}\;\tfrac1E \sum h,\qquad
       \mathrm{Var}(\text{bias mode } h) = c\,u\,s\,\sqrt{\pi/8}\,/\,h,

    because a Gaussian load surplus of standard deviation s has :math:`E[x\,\mathrm{sign}(g)] =
    \sqrt{2/\pi}\,h\,E[x^2]/s`, and sign^2 = 1 exactly. Loads sum to K T, so two experts' signs have correlation
    (2/pi) arcsin(-1/(E-1)), hence :math:`c = 1 + \tfrac2\pi\arcsin\tfrac1{E-1}` on mean-zero directions; where L is
    whole, an expert is balanced and does not move with probability :math:`1/(\sqrt{2\pi}\,\sigma T)`, which takes
    that share off c. For small u it agrees with the first-order law in docs/theory, which takes c as 1.

    Parameters
    ----------
    step_size : float
        u, score units.
    num_tokens, top_k : int
        T and K.
    eigenvalues : array_like, shape (E - 1,)
        Positive eigenvalues h of the Hessian of f at p*, the gauge's zero left out.

    Examples
    --------
    >>> law = sign_rule_law(1e-3, num_tokens=1024, top_k=2, eigenvalues=[0.06] * 7)
    >>> round(law.load_sd, 4), round(law.max_vio, 3)
    (0.0135, 0.082)
    """
    still = sign_tracking_cost(step_size, TargetMotion(), num_tokens, top_k, eigenvalues)
    return SignRuleLaw(still.bias_sd, still.load_sd, still.max_vio)


def skewness_factor(num_tokens: int, top_k: int, num_experts: int) -> float:
    r"""How much larger the mean of the largest of E loads is than a normal law has it: loads are skewed.

    Cornish and Fisher's first correction, :math:`1 + s (M^2 - 1) / (6 M)` with the skewness s of a load and the mean M
    of the largest of E standard normals.

    Examples
    --------
    >>> round(skewness_factor(num_tokens=1024, top_k=2, num_experts=16), 3)
    1.014
    """
    share = top_k / num_experts
    skewness = (1 - 2 * share) / math.sqrt(num_tokens * share * (1 - share))
    largest = mean_normal_maximum(num_experts)
    return 1 + skewness * (largest**2 - 1) / (6 * largest)


def sampling_max_vio(num_tokens: int, top_k: int, num_experts: int) -> float:
    """Mean MaxVio of a batch that sampling alone leaves: independent tokens, routed with the best fixed bias.

    No step size and no rule that sees loads only goes below it on fresh batches.

    Examples
    --------
    >>> round(sampling_max_vio(num_tokens=2048, top_k=6, num_experts=64), 3)
    0.165
    >>> sampling_max_vio(num_tokens=2048, top_k=4, num_experts=4)
    0.0
    """
    if top_k >= num_experts:
        return 0.0
    law = sign_rule_law(0.0, num_tokens, top_k, np.ones(num_experts - 1))
    return law.max_vio * skewness_factor(num_tokens, top_k, num_experts)


class TargetMotion(NamedTuple):
    """How the optimal bias p* of a stream moves from batch to batch, and how noisy its batches are."""

    speed: float = 0.0
    """Steady motion: root mean square over experts of the change of the centered p* per step, score units."""
    diffusion: float = 0.0
    """Random walk: variance per expert of that change, score units squared; independent from step to step."""
    overdispersion: float = 1.0
    """Variance of an expert's load in a batch over that of T independent tokens: texts make it larger than 1."""

    @property
    def stands_still(self) -> bool:
        """Whether p* does not move."""
        return self.speed == self.diffusion == 0


class TrackingCost(NamedTuple):
    """What a rule costs in its steady state while it follows a moving p*."""

    regret: float
    """Expected f_t(p_t) - f_t(p*_t), score units per token, to second order in p_t - p*_t."""
    bias_sd: float
    """Root mean square over experts of the centered p_t - p*_t, the lag included, score units."""
    load_sd: float
    """Root mean square over experts of A_k/T - K/E."""
    max_vio: float
    """Expected max_k A_k / L - 1."""


TrackingCostOf = Callable[[float, TargetMotion, int, int, ArrayLike], TrackingCost]
"""`sign_tracking_cost` or `proportional_tracking_cost`."""

_LOST = TrackingCost(math.inf, math.inf, math.inf, math.inf)


def sign_tracking_cost(
    step_size: float, motion: TargetMotion, num_tokens: int, top_k: int, eigenvalues: ArrayLike
) -> TrackingCost:
    r"""Lag and noise of the sign rule with a constant step that follows a moving p* (measured, not proved).

    With :math:`\sigma^2 = o (K/E)(1-K/E)/T` (o the overdispersion), speed v, diffusion q, the E - 1 modes h of the
    Hessian, all modes moving alike (:math:`v_m^2 = v^2 E/(E-1)`, :math:`q_m = q E/(E-1)`), and c as in
    `sign_rule_law`,

    .. math::
       h\,\mathrm{lag} = s\sqrt2\,\mathrm{erf}^{-1}(r),\qquad
       \mathrm{Var}_m = \frac{(c u^2 (1 - r^2) + q_m)\, s \sqrt{\pi/8}\; e^{\,\mathrm{erf}^{-1}(r)^2}}{u h},\qquad
       s^2 = \sigma^2 + \tfrac1E \sum_m h^2 \mathrm{Var}_m,\qquad r = v/u,

    and regret is :math:`\tfrac12 \sum_m h (\mathrm{Var}_m + \mathrm{lag}_m^2)`. The rule follows at most at u per
    step. A lagging rule has the mean sign r: its signs vary by 1 - r^2 only, and pull back more weakly, as the density
    of the surplus at zero is lower by the exponential. The derivation is in docs/experiments/tracking.md.

    Parameters
    ----------
    step_size : float
        u >= 0, score units per step.
    motion : TargetMotion
        How p* moves, and how noisy batches are.
    num_tokens, top_k : int
        T and K.
    eigenvalues : array_like, shape (E - 1,)
        Positive eigenvalues h of the Hessian of f at p*, the gauge's zero left out.

    Returns
    -------
    TrackingCost
        All infinite where the rule cannot follow: u <= v, or u = 0 and a p* that moves.

    Raises
    ------
    ValueError
        For eigenvalues that are not positive, K >= E, or negative numbers.

    Examples
    --------
    >>> cost = sign_tracking_cost(1e-3, TargetMotion(speed=1e-4), 1024, 2, [0.06] * 7)
    >>> round(cost.load_sd, 4), round(cost.max_vio, 3)
    (0.0137, 0.083)
    >>> sign_tracking_cost(1e-4, TargetMotion(speed=1e-3), 1024, 2, [0.06] * 7).regret
    inf
    """
    facts = _tracked(step_size, motion, num_tokens, top_k, eigenvalues)
    if step_size == 0 and motion.stands_still:
        return _steady_cost(facts, np.zeros_like(facts.mode_M), facts.noise_sd, 0.0)
    if step_size <= motion.speed:
        return _LOST
    moving = _signs_that_move(facts.noise_sd, num_tokens, facts.num_experts, top_k)
    variance_M, load_sd = _sign_noise(step_size, motion, facts.noise_sd, moving, facts.mode_M)
    lag = load_sd * math.sqrt(2) * float(scipy.special.erfinv(motion.speed / step_size))
    return _steady_cost(facts, variance_M, load_sd, lag)


def proportional_tracking_cost(
    step_size: float, motion: TargetMotion, num_tokens: int, top_k: int, eigenvalues: ArrayLike
) -> TrackingCost:
    r"""Lag and noise of the proportional rule with a constant step that follows a moving p* (claim C18 for one mode).

    With :math:`\sigma^2 = o (K/E)(1-K/E)/T` (o the overdispersion), speed v, diffusion q, the E - 1 modes h of the
    Hessian, all modes moving alike (:math:`v_m^2 = v^2 E/(E-1)`, :math:`q_m = q E/(E-1)`), and the step as gradient
    descent on load fractions, :math:`\eta = u E/K`:

    .. math::
       \mathrm{lag}_m = \frac{v_m}{\eta h},\qquad
       \mathrm{Var}_m = \frac{q_m + \eta^2 \sigma^2 E/(E-1)}{\eta h (2 - \eta h)},\qquad
       \mathrm{regret} = \tfrac12 \sum_m h (\mathrm{Var}_m + \mathrm{lag}_m^2).

    The derivation is in docs/experiments/tracking.md, the proof for one mode in docs/theory/regret.md.

    Parameters
    ----------
    step_size : float
        u >= 0, score units per step.
    motion : TargetMotion
        How p* moves, and how noisy batches are.
    num_tokens, top_k : int
        T and K.
    eigenvalues : array_like, shape (E - 1,)
        Positive eigenvalues h of the Hessian of f at p*, the gauge's zero left out.

    Returns
    -------
    TrackingCost
        All infinite where the rule cannot follow: eta h >= 2, or u = 0 and a p* that moves.

    Raises
    ------
    ValueError
        For eigenvalues that are not positive, K >= E, or negative numbers.

    Examples
    --------
    >>> cost = proportional_tracking_cost(1e-2, TargetMotion(speed=1e-4), 1024, 2, [0.06] * 7)
    >>> round(cost.load_sd, 4), round(cost.max_vio, 3)
    (0.0138, 0.084)
    >>> proportional_tracking_cost(10.0, TargetMotion(), 1024, 2, [0.06] * 7).regret
    inf
    """
    facts = _tracked(step_size, motion, num_tokens, top_k, eigenvalues)
    if step_size == 0 and motion.stands_still:
        return _steady_cost(facts, np.zeros_like(facts.mode_M), facts.noise_sd, 0.0)
    gain = step_size / facts.share
    if gain == 0 or gain * float(facts.mode_M.max()) >= 2:
        return _LOST
    variance_M, load_sd = _proportional_noise(gain, motion, facts.noise_sd, facts.mode_M)
    return _steady_cost(facts, variance_M, load_sd, motion.speed / gain)


class _Tracked(NamedTuple):
    """What is tracked: the modes, the share K / E, and the standard deviation of a load fraction by sampling alone."""

    mode_M: NDArray[np.float64]
    num_experts: int
    share: float
    noise_sd: float


def _tracked(step_size: float, motion: TargetMotion, num_tokens: int, top_k: int, eigenvalues: ArrayLike) -> _Tracked:
    """The checked arguments of a tracking cost."""
    mode_M = np.asarray(eigenvalues, dtype=np.float64)
    if mode_M.ndim != 1 or len(mode_M) == 0 or not mode_M.min() > 0:
        raise ValueError("eigenvalues must be E - 1 positive numbers: leave out the zero of the gauge")
    num_experts = len(mode_M) + 1
    if check_count(top_k, "top_k") >= num_experts:
        raise ValueError(f"top_k is {top_k} and there are {num_experts} experts; with K = E nothing is random")
    check_count(num_tokens, "num_tokens")
    check_number(step_size, "step_size")
    for name, value in motion._asdict().items():
        check_number(value, name, positive=name == "overdispersion")
    share = top_k / num_experts
    return _Tracked(mode_M, num_experts, share, math.sqrt(motion.overdispersion * share * (1 - share) / num_tokens))


def _steady_cost(facts: _Tracked, variance_M: NDArray[np.float64], load_sd: float, lag: float) -> TrackingCost:
    """The cost of noise and lag; every mode lags alike in load, so in bias by 1/h of that."""
    ratio = facts.num_experts / (facts.num_experts - 1)
    square_M = variance_M + lag**2 * ratio / facts.mode_M**2
    total_sd = math.hypot(load_sd, lag)
    excess = total_sd * math.sqrt(ratio) * mean_normal_maximum(facts.num_experts)
    bias_sd = math.sqrt(float(square_M.sum()) / facts.num_experts)
    return TrackingCost(0.5 * float(facts.mode_M @ square_M), bias_sd, total_sd, excess / facts.share)


def best_tracking_step(
    cost_of: TrackingCostOf,
    motion: TargetMotion,
    num_tokens: int,
    top_k: int,
    eigenvalues: ArrayLike,
    *,
    measure: str = "regret",
) -> float:
    r"""The step size that costs least while p* moves: the bottom of the U of a rule's tracking cost.

    While the noise of the bias adds little to that of the loads (s near sigma) and :math:`\eta h \ll 1`, a steadily
    moving p* asks for

    .. math::
       u^3_{\mathrm{sign}} = \frac{\sqrt{8\pi}\,\sigma v^2}{c\,\bar h}\frac{E}{E-1},\qquad
       \eta^3_{\mathrm{prop}} = \frac{4 v^2}{\sigma^2 \bar h},

    :math:`\bar h` the harmonic mean of the modes, and a random walk for :math:`u^2 = q_m/c` and
    :math:`\eta^2 = q/\sigma^2`. This function minimizes the full formula.

    Parameters
    ----------
    cost_of : callable
        `sign_tracking_cost` or `proportional_tracking_cost`: the rule's cost at a step size.
    motion : TargetMotion
        How p* moves; it must move.
    num_tokens, top_k : int
        T and K.
    eigenvalues : array_like, shape (E - 1,)
        Positive eigenvalues h of the Hessian of f at p*, the gauge's zero left out.
    measure : {"regret", "bias_sd", "load_sd", "max_vio"}
        What to make least.

    Returns
    -------
    float
        u, score units per step.

    Raises
    ------
    ValueError
        For an unknown measure or a p* that stands still.

    Examples
    --------
    >>> u = best_tracking_step(proportional_tracking_cost, TargetMotion(speed=1e-3), 1000, 1, [0.1] * 9)
    >>> eta = u * 10
    >>> round(eta, 2), round((4 * 1e-3**2 / (0.09 / 1000 * 0.1)) ** (1 / 3), 2)
    (0.74, 0.76)
    """
    if measure not in TrackingCost._fields:
        raise unknown_name("measure", measure, TrackingCost._fields)
    if motion.stands_still:
        raise ValueError("motion has speed 0 and diffusion 0; where p* stands still the best constant step is 0")

    def logarithm(log_step: float) -> float:
        cost = cost_of(math.exp(log_step), motion, num_tokens, top_k, eigenvalues)
        return min(math.log(getattr(cost, measure)), 1e3)

    # A coarse scan first: where the cost is infinite a minimizer has nothing to go by.
    start = math.log(motion.speed + math.sqrt(motion.diffusion))
    scan = start + np.linspace(-12.0, 12.0, 97)
    lowest = int(np.argmin([logarithm(x) for x in scan]))
    found = scipy.optimize.minimize_scalar(
        logarithm, bounds=(scan[max(lowest - 1, 0)], scan[min(lowest + 1, 96)]), method="bounded"
    )
    return math.exp(float(found.x))


def _signs_that_move(noise_sd: float, num_tokens: int, num_experts: int, top_k: int) -> float:
    """c: variance of a mean-zero combination of the signs, of unit length."""
    correlated = 1 + 2 / math.pi * math.asin(1 / (num_experts - 1))
    if top_k * num_tokens % num_experts:
        return correlated
    return correlated * max(0.0, 1 - 1 / (math.sqrt(2 * math.pi) * noise_sd * num_tokens))


def _sign_noise(
    step_size: float, motion: TargetMotion, noise_sd: float, moving: float, mode: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Variance of each bias mode and standard deviation of a load fraction, sign rule."""
    num_experts = len(mode) + 1
    walk = motion.diffusion * num_experts / (num_experts - 1)
    drift = motion.speed / step_size
    pull = math.exp(-(float(scipy.special.erfinv(drift)) ** 2))
    kick = (moving * step_size * (1 - drift**2) + walk / step_size) * math.sqrt(math.pi / 8) / pull
    half = kick * float(mode.sum()) / num_experts / 2
    load_sd = half + math.sqrt(half**2 + noise_sd**2)
    return kick * load_sd / mode, load_sd


def _proportional_noise(
    gain: float, motion: TargetMotion, noise_sd: float, mode: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """The same for the proportional rule."""
    num_experts = len(mode) + 1
    kick = (motion.diffusion + (gain * noise_sd) ** 2) * num_experts / (num_experts - 1)
    variance_M = kick / (gain * mode * (2 - gain * mode))
    return variance_M, math.sqrt(noise_sd**2 + float(mode**2 @ variance_M) / num_experts)


@lru_cache
def mean_normal_maximum(count: int) -> float:
    """E[max of `count` independent standard normals]."""
    mean, _ = scipy.integrate.quad(
        lambda x: x * count * scipy.stats.norm.pdf(x) * scipy.stats.norm.cdf(x) ** (count - 1), -12, 12
    )
    return float(mean)
