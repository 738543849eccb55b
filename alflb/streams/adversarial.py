"""Near-copies of one token in every batch: a step wider than their spread moves them all at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from alflb.problem import FloatArray, check_count, check_number
from alflb.streams.base import STREAMS, SyntheticStream, seeded


@STREAMS.register("adversarial")
@dataclass(frozen=True)
class Adversarial(SyntheticStream):
    """Designed against the sign rule: a planted share of the tokens crosses every pair of experts in one step.

    Planted tokens score gamma_ik = offset_k + width U(0, 1), the others offset_k + Logistic(0, 1); both are balanced
    by p* = -offsets. The crossing values of a pair lie within 2 width of each other for all planted tokens, so
    m(2u) >= planted T as soon as u >= width. The band of claim C4 then says nothing, and the rule leaves even p*
    itself: steps hand the planted tokens over as a block, MaxVio jumps to about planted (E / K - 1), and D rises every
    other step, as in the counterexample of claim C2. Steps well below width see a smooth problem and settle, so an
    annealed step does once it is that small. The proportional rule fares no better when its u is above width. What it
    models: padding, boilerplate or repeated tokens that reach the router, and a router so young that it hardly looks
    at its token.

    Parameters
    ----------
    planted : float
        Share of the tokens that are near-copies, 0 to 1.
    width : float
        Spread of their scores, > 0. Score units; compare it with the step size.

    Examples
    --------
    >>> from alflb.bounds import crossing_multiplicity
    >>> scores_TE = next(Adversarial(num_tokens=100, num_experts=4, planted=0.5, width=0.01).batches(seed=0))
    >>> crossing_multiplicity(scores_TE, 2 * 0.01) >= 50, crossing_multiplicity(scores_TE, 2 * 1e-5) < 10
    (True, True)
    """

    planted: float = 0.5
    width: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if check_number(self.planted, "planted") > 1:
            raise ValueError(f"planted is {self.planted}; pass a share of the tokens, 0 to 1")
        check_number(self.width, "width", positive=True)

    def batches(self, seed: int) -> Iterator[FloatArray]:
        """Batches for t = 1, 2, ... without end; the planted tokens come first."""
        check_count(seed, "seed", minimum=0)
        num_planted = round(self.planted * self.num_tokens)
        for t in itertools.count(1):
            rng = seeded(self.name, seed, t)
            noise_TE = np.empty((self.num_tokens, self.num_experts))
            noise_TE[:num_planted] = self.width * rng.random((num_planted, self.num_experts))
            noise_TE[num_planted:] = rng.logistic(size=(self.num_tokens - num_planted, self.num_experts))
            yield self.offset_E() + noise_TE
