"""Balancing rules: how a bias moves after the loads of a batch are known. One rule a file, found by name."""

from __future__ import annotations

from typing import Any

from alflb.registry import import_siblings
from alflb.rules._base import RULES, DirectionRule, Rule, ScoreRule, State
from alflb.rules.projected import Projected
from alflb.schedules import Schedule

import_siblings(__name__, __path__)

__all__ = ["DirectionRule", "Projected", "Rule", "ScoreRule", "State", "make_rule", "rule_names"]


def rule_names() -> list[str]:
    """Names of all registered rules."""
    return RULES.names()


def make_rule(name: str, schedule: Schedule | float = 1e-3) -> Rule:
    """A rule by name; `schedule` is a step size or a function of the step number, for rules that have one.

    Examples
    --------
    >>> make_rule("sign", 1e-3)
    Sign(schedule=Constant(step_size=0.001))
    """
    cls: Any = RULES.get(name)
    rule: Rule = cls(schedule) if "schedule" in cls.__dataclass_fields__ else cls()
    return rule
