"""The one loop that holds instances against a bound."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from alflb.verdict import Number, Verdict
from proofs_check._instances import Instance

__all__ = ["Measure", "Number", "Verdict", "worst_of"]

AnyInstance = TypeVar("AnyInstance", bound=Instance)
Measure = Callable[[Instance], tuple[Number, Number]]
"""(measured, bound) of one instance; the claim is measured <= bound."""


def worst_of(
    claim: str, kind: str, instances: Iterable[AnyInstance], measure: Callable[[AnyInstance], tuple[Number, Number]]
) -> Verdict:
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
