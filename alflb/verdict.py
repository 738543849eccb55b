"""What a check says: one type for numbers held against a bound, one for findings put in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

Number = int | float | Fraction


@dataclass(frozen=True)
class Verdict:
    """A claim, what was measured of it, what it allows, and whether it holds.

    Examples
    --------
    >>> seen = Verdict.of("C6", "dual gap", measured=0.5, bound=2.0)
    >>> seen.holds, seen.ratio, seen.slack
    (True, 0.25, 1.5)
    >>> Verdict.of("C6", "dual gap", measured=float("nan"), bound=2.0).holds
    False
    """

    claim: str
    """Name of the claim, for example C6."""
    statement: str
    """What was held against the bound, in words."""
    instances: int
    """How many instances were looked at."""
    measured: Number
    """The quantity that the claim bounds, at the instance where measured / bound is worst."""
    bound: Number
    """What the claim allows at that instance."""
    holds: bool
    witness: Mapping[str, Any] = field(default_factory=dict)
    """A counterexample if the claim fails, the tightest instance otherwise; may be empty."""
    vacuous: str = ""
    """Why the bound says nothing about this instance; empty if it says something."""

    @classmethod
    def of(
        cls,
        claim: str,
        statement: str,
        *,
        measured: Number,
        bound: Number,
        instances: int = 1,
        witness: Mapping[str, Any] | None = None,
        vacuous: str = "",
    ) -> Verdict:
        """Hold a number against its bound; NaN on either side fails."""
        return cls(claim, statement, instances, measured, bound, bool(measured <= bound), witness or {}, vacuous)

    @property
    def slack(self) -> Number:
        """Bound minus measured, at the worst instance."""
        return self.bound - self.measured

    @property
    def ratio(self) -> float:
        """Measured / bound at the worst instance: 1 is tight, above 1 refutes, and 0 / 0 counts as 0."""
        if self.bound == 0:
            return 0.0 if self.measured <= 0 else float("inf")
        return float(self.measured / self.bound)


class Finding(NamedTuple):
    """One thing looked at: what was expected of it, what it is, and whether that is as expected."""

    statement: str
    """What was looked at, in words."""
    expected: str
    """What it should be; "-" if nothing was predicted."""
    measured: str
    """What it is."""
    holds: bool | None
    """Whether it is as expected; None if nothing was predicted."""

    @property
    def supported(self) -> str:
        """The answer in one word: yes, no, or - if nothing was predicted."""
        return {True: "yes", False: "no", None: "-"}[self.holds]
