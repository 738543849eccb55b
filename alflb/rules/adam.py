"""The Adam-like rule: the RMS rule with momentum, b1 = 0.6."""

from __future__ import annotations

from dataclasses import dataclass

from alflb.rules.base import RULES
from alflb.rules.rms import Rms


@RULES.register("adam")
@dataclass(frozen=True)
class Adam(Rms):
    """`Rms` with b1 = 0.6 in place of 0; nothing moves at exact balance once the momentum has faded.

    Source: `adaptive_per_expert_momentum` of the repository Leonyuann/Auxiliary-loss-free (src/alf/router.py and the
    configurations of its 300M and 1B runs as of July 2026, read); no paper.

    Examples
    --------
    >>> Adam().beta1, Adam().beta2
    (0.6, 0.9)
    """

    beta1: float = 0.6
