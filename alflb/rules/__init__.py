"""Balancing rules: how a bias moves after the loads of a batch are known. One rule a file, found by name."""

from __future__ import annotations

from typing import Any

from alflb.registry import import_siblings, unknown_name
from alflb.rules._base import (
    RULES,
    DirectionRule,
    HindsightRule,
    MemoryRule,
    Rule,
    ScheduledRule,
    ScoreRule,
    State,
    sees,
    sees_scores,
)
from alflb.rules.projected import Projected
from alflb.schedules import Schedule

import_siblings(__name__, __path__)

__all__ = [
    "DirectionRule",
    "HindsightRule",
    "MemoryRule",
    "Projected",
    "Rule",
    "ScheduledRule",
    "ScoreRule",
    "State",
    "make_rule",
    "rule_names",
    "sees",
    "sees_scores",
]


def rule_names() -> list[str]:
    """Names of all registered rules."""
    return RULES.names()


def make_rule(name: str, schedule: Schedule | float | None = None, **constants: Any) -> Rule:
    """A rule by name.

    Parameters
    ----------
    name : str
        One of `rule_names()`.
    schedule : float or Schedule, optional
        A step size or a function of the step number; the rule's own default if not given. Rules that have no
        step size take no notice of it, so that one call serves a list of rules.
    **constants
        The rule's other constants by name.

    Raises
    ------
    ValueError
        For a name or a constant that does not exist, or a value out of range.

    Examples
    --------
    >>> make_rule("sign", 1e-3)
    Sign(schedule=Constant(step_size=0.001))
    >>> make_rule("ema", 1e-3, beta=0.9).beta
    0.9
    """
    cls: Any = RULES.get(name)
    known = set(cls.__dataclass_fields__)
    for constant in constants:
        if constant not in known - {"schedule"}:
            raise unknown_name(f"constant of rule {name!r}", constant, known - {"schedule"})
    if schedule is not None and "schedule" in known:
        constants["schedule"] = schedule
    rule: Rule = cls(**constants)
    return rule
