"""Adaptive EMA by oscillation: shortfalls that persist shorten the memory, shortfalls that alternate lengthen it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alflb.rules.adaptive import check_beta_range, sampling_noise
from alflb.rules.base import RULES, Observation, ScheduledRule, State, check_fraction, relative_shortfall


@dataclass(frozen=True, eq=False)
class Memory:
    """What the rule keeps."""

    average_E: NDArray[np.float64]
    """The average shortfall, which is the direction of the step."""
    last_E: NDArray[np.float64] | None
    """The shortfall of the batch before; None before the first."""
    persistent: float
    oscillating: float
    """Running energies of what two shortfalls have in common and of what they differ by, noise taken off."""


@RULES.register("oscillation_ema")
@dataclass(frozen=True)
class OscillationEma(ScheduledRule):
    """`ema` with beta = (O + v) / (P + O + v), within bounds; v = (E - 1) / (K T), the sampling noise of equal loads.

    P and O are running averages, with `energy_decay`, of max(0, mean of ((e + e') / 2)^2 - v / 2) and
    max(0, mean of ((e - e') / 2)^2 - v / 2), with e' the shortfall of the batch before: the energies of what persists
    and of what alternates. The first batch counts as persistent, and starts both averages.

    Parameters
    ----------
    schedule : float or Schedule
        u, score units per step; in use 0.05 and 0.1 on load fractions, that is 0.05 / E and 0.1 / E here.
    beta_min, beta_max : float
        Bounds of beta, 0 <= beta_min <= beta_max < 1; 0.1 and 0.95 by default in the source, 0.25 and 0.75 in its runs.
    energy_decay : float
        Share of the old energies that is kept; 0.9 in use.

    Notes
    -----
    At exact balance the average fades, and nothing moves once it has.

    Source: `adaptive_ema_persistent_oscillation` of the repository Leonyuann/Auxiliary-loss-free
    (docs/router_variants.md and src/alf/router.py as of July 2026, read); no paper.

    Examples
    --------
    >>> import numpy as np
    >>> rule = OscillationEma(1.0, beta_min=0.0)
    >>> seen = Observation(1, np.full(2, 4.0), load_E=np.array([8, 0]))  # v = 1 / 8, P = 15 / 16: beta = 2 / 17
    >>> bias_E, _ = rule.step(np.zeros(2), seen, rule.init(2))
    >>> (17 * bias_E).round(9).tolist()
    [-15.0, 15.0]
    """

    beta_min: float = 0.1
    beta_max: float = 0.95
    energy_decay: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beta_range(self.beta_min, self.beta_max)
        check_fraction(self.energy_decay, "energy_decay")

    def init(self, num_experts: int) -> State:
        """An average of zero, no last shortfall, no energies."""
        return Memory(np.zeros(num_experts), None, 0.0, 0.0)

    def step(self, bias_E: NDArray[np.float64], seen: Observation, state: State) -> tuple[NDArray[np.float64], State]:
        """A step along the new average."""
        shortfall_E = relative_shortfall(seen.load_E, seen.target_E)
        noise = sampling_noise(seen.load_E)
        persistent, oscillating = self._energies(shortfall_E, noise, state)
        total = persistent + oscillating + noise
        beta = float(np.clip((oscillating + noise) / total, self.beta_min, self.beta_max))
        average_E = beta * state.average_E + (1.0 - beta) * shortfall_E
        memory = Memory(average_E, shortfall_E, persistent, oscillating)
        return bias_E + self.step_size(seen.t) * average_E, memory

    def _energies(self, shortfall_E: NDArray[np.float64], noise: float, state: Memory) -> tuple[float, float]:
        """P and O after this batch."""
        if state.last_E is None:
            return _energy(shortfall_E, noise), 0.0
        keep = self.energy_decay
        now_persistent = _energy(0.5 * (shortfall_E + state.last_E), noise)
        now_oscillating = _energy(0.5 * (shortfall_E - state.last_E), noise)
        return (
            keep * state.persistent + (1.0 - keep) * now_persistent,
            keep * state.oscillating + (1.0 - keep) * now_oscillating,
        )


def _energy(part_E: NDArray[np.float64], noise: float) -> float:
    return max(0.0, float((part_E**2).mean()) - 0.5 * noise)
