"""LongCat's control: a proportional rule that leaves the biases of the zero-compute experts alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alflb.problem import check_count
from alflb.rules.base import RULES, DirectionRule, relative_shortfall


@RULES.register("longcat")
@dataclass(frozen=True)
class LongCat(DirectionRule):
    """b += u e for the experts that compute; the last Z, which return their input, keep their biases.

    For models with identity experts beside N experts that compute. Targets are unequal there: a token should use K_e
    computing experts of its K picks on average, so each of those wants the load T K_e / N, and the identity experts
    share what is left, T (K - K_e), as they like. With the biases of the identity experts fixed, balancing the others
    fixes that mean as well.

    Parameters
    ----------
    schedule : float or Schedule
        u, score units per step. The source decays it; its values are not known to us.
    num_zero : int
        Z, identity experts, the last ones. With 0 it is the proportional rule.

    Notes
    -----
    Nothing moves while the computing experts are on target, whatever the identity experts' loads are. In the source's
    letters b_i += mu (K_e / (K N) - T_i / (K T)), a step on fractions of all picks; here u = mu / E.

    Source: LongCat-Flash, arXiv 2509.01322, eq. 2, which the authors call a PID controller. The formula is known to us
    from a public summary and agrees with a second one; that identity experts are not updated, and that mu decays, from
    one only.

    Examples
    --------
    >>> import numpy as np
    >>> target_E = np.array([3.0, 3.0, 2.0])  # 6 tokens, K = 1: K_e = 1 and two of eight picks for the identity expert
    >>> LongCat(0.5, num_zero=1).direction(np.array([1, 3, 4]), target_E).tolist()
    [0.75, 0.0, 0.0]
    """

    num_zero: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.num_zero, "num_zero", minimum=0)

    def direction(self, load_E: NDArray[np.int64], target_E: NDArray[np.float64]) -> NDArray[np.float64]:
        """(target - load) / mean target, 0 for the last Z experts."""
        num_computing = len(target_E) - self.num_zero
        if num_computing < 1:
            raise ValueError(
                f"num_zero is {self.num_zero}, of {len(target_E)} experts; leave at least one that computes"
            )
        shortfall_E = relative_shortfall(load_E, target_E)
        shortfall_E[num_computing:] = 0.0
        return shortfall_E
