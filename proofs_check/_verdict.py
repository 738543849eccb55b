"""What a check says, and the one loop that measures instances against a bound."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from proofs_check._instances import Instance

Number = int | float | Fraction


@dataclass(frozen=True)
class Verdict:
    """The outcome of checking one claim on many instances."""

    claim: str
    kind: str
    """equality, upper, condition, statistical or law."""
    instances: int
    measured: Number
    """What the claim bounds, at the instance where measured / bound is worst."""
    bound: Number
    """What the claim allows at that instance."""
    holds: bool
    witness: dict[str, Any] = field(default_factory=dict)
    """A counterexample when it fails; the tightest instance otherwise."""

    @property
    def slack(self) -> Number:
        """Bound minus measured, at the worst instance."""
        return self.bound - self.measured

    @property
    def ratio(self) -> float:
        """Measured / bound at the worst instance; 1 is tight, above 1 refutes, 0 / 0 counts as 0."""
        if self.bound == 0:
            return 0.0 if self.measured <= 0 else float("inf")
        return float(self.measured / self.bound)


Measure = Callable[[Instance], tuple[Number, Number]]
"""(measured, bound) of one instance; the claim is measured <= bound."""


def worst_of(claim: str, kind: str, instances: Iterable[Instance], measure: Measure) -> Verdict:
    """Hold every instance against its bound, exactly, and keep the worst; stop at the first counterexample."""
    worst = Verdict(claim, kind, 0, 0, 0, True)
    count = 0
    for count, instance in enumerate(instances, start=1):
        measured, bound = measure(instance)
        seen = Verdict(claim, kind, count, measured, bound, measured <= bound, instance.as_dict())
        if not seen.holds:
            return seen
        if seen.ratio > worst.ratio or (count == 1):
            worst = seen
    return Verdict(claim, kind, count, worst.measured, worst.bound, count > 0, worst.witness)
