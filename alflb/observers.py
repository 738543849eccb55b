"""Per-step numbers that need the scores. What can be had from loads and biases alone is in `alflb.metrics`.

An observer is a callable with a `name`; `simulate` calls it once per step with everything known of that step, and
stores the number it returns under that name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from alflb.kernels import Allocation, Kernels
from alflb.problem import FloatArray
from alflb.registry import Registry


@dataclass(eq=False)
class Step:
    """One step of ALF-LB as observers see it: bias_E produced allocation, then moved to next_bias_E."""

    t: int
    scores_TE: FloatArray
    top_k: int
    target_E: NDArray[np.float64]
    bias_E: NDArray[np.float64]
    next_bias_E: NDArray[np.float64]
    kernels: Kernels = field(repr=False)

    @cached_property
    def allocation(self) -> Allocation:
        """Top-K of this batch at bias_E."""
        return self.kernels.allocate(self.scores_TE, self.bias_E, self.top_k)

    @cached_property
    def next_allocation(self) -> Allocation:
        """Top-K of the *same* batch at next_bias_E."""
        return self.kernels.allocate(self.scores_TE, self.next_bias_E, self.top_k)

    @cached_property
    def affinity(self) -> float:
        """<gamma, x(p)> of this batch."""
        picked_TK = np.take_along_axis(self.scores_TE, self.allocation.experts_TK, axis=1)
        return float(picked_TK.sum(dtype=np.float64))

    @cached_property
    def benefit(self) -> float:
        """Total switching benefit sum_i b_i of claim C1, from p to next p on this batch."""
        kept = self.affinity + float(self.allocation.load_E @ self.next_bias_E)
        return self.next_allocation.dual_sum - kept


class Observer(Protocol):
    """A named number per step."""

    @property
    def name(self) -> str:
        """Key in `Trajectory.series`."""

    def __call__(self, step: Step) -> float:
        """The number for this step."""


OBSERVERS: Registry[Observer] = Registry("observer")


@OBSERVERS.register("dual_value")
@dataclass(frozen=True)
class DualValue:
    """D(p_t) on the batch of step t, score units summed over its tokens."""

    name: ClassVar[str] = "dual_value"

    def __call__(self, step: Step) -> float:
        """D(p) = sum_i S_K(gamma_i + p) - <target, p>."""
        return step.allocation.dual_sum - float(step.target_E @ step.bias_E)


@OBSERVERS.register("affinity")
@dataclass(frozen=True)
class Affinity:
    """<gamma, x(p_t)>, the summed scores of the experts chosen at step t."""

    name: ClassVar[str] = "affinity"

    def __call__(self, step: Step) -> float:
        """Summed scores of the chosen experts."""
        return step.affinity


@OBSERVERS.register("switched_tokens")
@dataclass(frozen=True)
class SwitchedTokens:
    """Tokens of batch t whose set of experts changes when the bias moves from p_t to p_(t+1)."""

    name: ClassVar[str] = "switched_tokens"

    def __call__(self, step: Step) -> float:
        """Number of tokens that switch."""
        return float(np.any(step.allocation.experts_TK != step.next_allocation.experts_TK, axis=1).sum())


@OBSERVERS.register("benefit")
@dataclass(frozen=True)
class Benefit:
    """Total switching benefit of the step p_t -> p_(t+1) on batch t (claim C1); >= 0 up to rounding."""

    name: ClassVar[str] = "benefit"

    def __call__(self, step: Step) -> float:
        """sum_i b_i."""
        return step.benefit


@OBSERVERS.register("monotonicity_slack")
@dataclass(frozen=True)
class MonotonicitySlack:
    """<L - A, delta> - benefit: by claim C1 the fall of D on batch t; negative where C2's condition fails."""

    name: ClassVar[str] = "monotonicity_slack"

    def __call__(self, step: Step) -> float:
        """sum_k eps_k (A_k - L_k)^2 minus the total benefit."""
        descent = float((step.target_E - step.allocation.load_E) @ (step.next_bias_E - step.bias_E))
        return descent - step.benefit


def observer_names() -> list[str]:
    """Names of all observers."""
    return OBSERVERS.names()


def make_observers(*names: str) -> tuple[Observer, ...]:
    """Observers by name; all of them when no name is given.

    Examples
    --------
    >>> [observer.name for observer in make_observers("affinity", "benefit")]
    ['affinity', 'benefit']
    """
    return tuple(OBSERVERS.get(name)() for name in names or OBSERVERS.names())
