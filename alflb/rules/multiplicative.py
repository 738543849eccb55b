"""The multiplicative rule: select on s * b, b += u sign(target - load); in logarithms, a rule with an additive bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from alflb.rules.base import RULES, Observation, ScheduledRule, State


@RULES.register("multiplicative")
@dataclass(frozen=True)
class Multiplicative(ScheduledRule):
    """Factors m = exp(bias) on positive scores, m += u sign(target - load): p += log(1 + u sign(target - load) / m).

    For s > 0 and m > 0 the top-K of s * m is the top-K of log s + log m, so this is an additive rule **on the
    logarithms of the scores**, and p = log m: give it a stream of logarithms (`alflb.streams.logarithm.LogScores`).
    On the scores themselves it is another rule: an additive one whose steps shrink as the bias grows. No
    vector over experts does s * m on plain scores: what it must add to a score, s (m - 1), differs from token to token.

    Limits: scores <= 0 have no logarithm (a score of exactly 0 is -inf, never chosen). A step at most halves a factor
    (ours; the published rule would let it turn negative, which reverses an expert's order of tokens). Affinity and
    dual value measured on logarithms are in log units, and not comparable with those of the other rules.

    Source: a variant in Wang et al., arXiv 2408.15664, table 4 (selection by s * b, from b = 1, u = 1e-2 ... 1e-4); the
    formula of its update could not be confirmed, and the sign step on m is our reading. Nothing moves at exact balance.

    Examples
    --------
    >>> import numpy as np
    >>> seen = Observation(1, np.full(3, 2.0), load_E=np.array([3, 1, 2]))
    >>> bias_E, _ = Multiplicative(0.25).step(np.zeros(3), seen, ())
    >>> np.exp(bias_E).round(12).tolist()
    [0.75, 1.25, 1.0]
    """

    works_on_logarithms: ClassVar[bool] = True

    def step(self, bias_E: NDArray[np.float64], seen: Observation, state: State) -> tuple[NDArray[np.float64], State]:
        """The logarithm of the factors after their sign step."""
        relative_step_E = self.step_size(seen.t) * np.sign(seen.target_E - seen.load_E) * np.exp(-bias_E)
        return bias_E + np.log1p(np.maximum(relative_step_E, -0.5)), state
