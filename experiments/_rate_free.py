"""Step-size-free methods of the literature on the dual, as rivals of `self_tuning`; e is the relative shortfall."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alflb.rules import Observation, Rule, State, relative_shortfall

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class DistanceOverGradients(Rule):
    """DoG (Ivgi, Hinder & Carmon, arXiv 2302.12022): b += (largest distance from b_1) / sqrt(sum |e|^2) e."""

    start: float = 1e-6

    def init(self, num_experts: int) -> State:
        """No first bias yet; the first distance; no gradients."""
        return None, self.start, 0.0

    def step(self, bias_E: Vector, seen: Observation, state: State) -> tuple[Vector, State]:
        """One step of DoG without averaging."""
        shortfall_E = relative_shortfall(seen.load_E, seen.target_E)
        first_E, distance, squares = state
        first_E = bias_E if first_E is None else first_E
        distance = max(distance, float(np.linalg.norm(bias_E - first_E)))
        squares += float(shortfall_E @ shortfall_E)
        return bias_E + distance / np.sqrt(max(squares, 1e-300)) * shortfall_E, (first_E, distance, squares)


@dataclass(frozen=True)
class AdaGradNorm(Rule):
    """AdaGrad-norm (Ward, Wu & Bottou, arXiv 1806.01811): b += e / sqrt(sum |e|^2), its scale 1 as in the paper."""

    def init(self, num_experts: int) -> State:
        """No gradients."""
        return 0.0

    def step(self, bias_E: Vector, seen: Observation, state: State) -> tuple[Vector, State]:
        """One step of AdaGrad-norm."""
        shortfall_E = relative_shortfall(seen.load_E, seen.target_E)
        squares = state + float(shortfall_E @ shortfall_E)
        return bias_E + shortfall_E / np.sqrt(max(squares, 1e-300)), squares


@dataclass(frozen=True)
class CoinBetting(Rule):
    """Krichevsky-Trofimov betting per expert (Orabona & Pal, arXiv 1602.04128), shortfalls scaled by their largest."""

    wealth: float = 1e-3

    def init(self, num_experts: int) -> State:
        """No first bias yet; no largest, sum or winnings."""
        none_E = np.zeros(num_experts)
        return None, none_E, none_E, none_E

    def step(self, bias_E: Vector, seen: Observation, state: State) -> tuple[Vector, State]:
        """Bet the share (sum of outcomes) / t of the wealth."""
        shortfall_E = relative_shortfall(seen.load_E, seen.target_E)
        first_E, largest_E, sum_E, won_E = state
        first_E = bias_E if first_E is None else first_E
        largest_E = np.maximum(largest_E, np.abs(shortfall_E))
        outcome_E = np.divide(shortfall_E, largest_E, out=np.zeros_like(shortfall_E), where=largest_E > 0)
        sum_E = sum_E + outcome_E
        won_E = won_E + outcome_E * (bias_E - first_E)
        bet_E = sum_E / (seen.t + 1) * np.maximum(self.wealth + won_E, 0.0)
        return first_E + bet_E, (first_E, largest_E, sum_E, won_E)


@dataclass(frozen=True)
class Hypergradient(Rule):
    """Hypergradient descent (Baydin et al., arXiv 1703.04782): u += rate <e, last e>, then b += u e, from u = 1e-3."""

    rate: float = 1e-4

    def init(self, num_experts: int) -> State:
        """The first step size, and no shortfall."""
        return 1e-3, np.zeros(num_experts)

    def step(self, bias_E: Vector, seen: Observation, state: State) -> tuple[Vector, State]:
        """One step at the new step size, which stays positive."""
        shortfall_E = relative_shortfall(seen.load_E, seen.target_E)
        step_size = max(state[0] + self.rate * float(shortfall_E @ state[1]), 0.0)
        return bias_E + step_size * shortfall_E, (step_size, shortfall_E)


@dataclass(frozen=True)
class Whitened(Rule):
    """One step size steered to white shortfalls: log u += cos(e, last e) / 2, then b += u e, from u = 1e-3."""

    def init(self, num_experts: int) -> State:
        """The first step size, and no shortfall."""
        return 1e-3, np.zeros(num_experts)

    def step(self, bias_E: Vector, seen: Observation, state: State) -> tuple[Vector, State]:
        """One step at the new step size."""
        shortfall_E = relative_shortfall(seen.load_E, seen.target_E)
        sizes = float(np.linalg.norm(shortfall_E) * np.linalg.norm(state[1]))
        cosine = float(shortfall_E @ state[1]) / sizes if sizes > 0 else 0.0
        step_size = state[0] * float(np.exp(0.5 * cosine))
        return bias_E + step_size * shortfall_E, (step_size, shortfall_E)


RATE_FREE: dict[str, Rule] = {
    "DoG": DistanceOverGradients(),
    "AdaGrad-norm": AdaGradNorm(),
    "coin betting": CoinBetting(),
    "whitened step": Whitened(),
    **{f"hypergradient {rate:g}": Hypergradient(rate) for rate in (1e-5, 1e-4, 1e-3)},
}
