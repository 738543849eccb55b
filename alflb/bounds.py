"""Right-hand sides of the claims: plain formulas of plain numbers, one function for each bound.

Nothing here measures anything; `alflb.duality` and the checks hold measurements against these.
"""

from __future__ import annotations


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


def _half_product(violation_l1: float, width: float) -> float:
    return 0.0 if violation_l1 == 0 else 0.5 * violation_l1 * width  # rho may be inf; 0 * inf is not 0
