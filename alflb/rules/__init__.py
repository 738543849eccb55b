"""Balancing rules: how a bias moves after the loads of a batch are known. One rule per file, found by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from alflb.registry import import_siblings, unknown_name
from alflb.rules.base import (
    RULES,
    SHARES,
    STEP_SIZES,
    DirectionRule,
    Observation,
    Rule,
    ScheduledRule,
    Sight,
    State,
    Tuned,
    check_fraction,
    library_of,
    relative_shortfall,
)
from alflb.rules.projected import Projected
from alflb.schedules import Schedule

import_siblings(__name__, __path__)

__all__ = [
    "RULES",
    "SHARES",
    "STEP_SIZES",
    "DirectionRule",
    "Observation",
    "Projected",
    "Rule",
    "ScheduledRule",
    "Sight",
    "State",
    "Tuned",
    "as_rule",
    "check_fraction",
    "library_of",
    "make_rule",
    "relative_shortfall",
    "rule_names",
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
        A step size in score units per step, or a function of the step number t = 1, 2, ...; the rule's own default if
        not given. Only for a rule with a step size: ``RULES.get(name).takes_schedule``.
    **constants
        The rule's other constants by name.

    Raises
    ------
    ValueError
        For a name or a constant that does not exist, a value out of range, or a schedule for a rule without a step
        size.

    Examples
    --------
    >>> make_rule("sign", 1e-3)
    Sign(schedule=Constant(step_size=0.001))
    >>> make_rule("ema", 1e-3, beta=0.9).beta
    0.9
    """
    cls = RULES.get(name)
    known = {field.name for field in fields(cls)} - {"schedule"}  # type: ignore[arg-type]  # rules are dataclasses
    for constant in constants:
        if constant == "step_size" and cls.takes_schedule:
            raise ValueError(f"make_rule has no step_size; pass the step size second: make_rule({name!r}, 1e-3)")
        if constant not in known:
            raise unknown_name(f"constant of rule {name!r}", constant, known)
    if schedule is None:
        return cls(**constants)
    if not cls.takes_schedule:
        raise ValueError(f"schedule is {schedule!r}, but the rule {name!r} has no step size; leave the schedule out")
    return cls(schedule=schedule, **constants)  # type: ignore[call-arg]  # it takes one


def as_rule(rule: Rule | str) -> Rule:
    """A name becomes that rule at its default step size; a rule is returned as it is.

    Raises
    ------
    ValueError
        For anything else.

    Examples
    --------
    >>> as_rule("sign")
    Sign(schedule=Constant(step_size=0.001))
    """
    if isinstance(rule, str):
        return make_rule(rule)
    if not isinstance(rule, Rule):
        raise ValueError(f"rule is {rule!r}; pass a name (alflb.rule_names()) or a rule (alflb.make_rule)")
    return rule
