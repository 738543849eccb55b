"""docs/rules.md lists exactly the registered rules, and says of each what the code says."""

import dataclasses
from pathlib import Path

import pytest

from alflb.rules import make_rule, rule_names
from alflb.schedules import Constant

PAGE = Path(__file__).parents[2] / "docs" / "rules.md"
HEADER = "| name | update | sees | constants (default) | memory | rests at exact balance | source, constants in use |"


def table():
    """Cells of the rules' table by name."""
    _, found, rest = PAGE.read_text().partition(HEADER + "\n")
    assert found
    rows = [line for line in rest.split("\n\n")[0].splitlines() if not line.startswith("|-")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert all(len(row) == HEADER.count("|") - 1 for row in cells)
    return {row[0].strip("`"): row[1:] for row in cells}


def test_the_page_lists_the_registered_rules():
    rows = table()
    assert sorted(rows) == rule_names()
    assert all(cell for row in rows.values() for cell in row)


@pytest.mark.parametrize("name", rule_names())
def test_a_row_says_what_the_code_says(name):
    _, seen, constants, memory, *_ = table()[name]
    rule = make_rule(name)
    assert seen == rule.sees
    defaults = []
    for field in dataclasses.fields(rule):
        value = getattr(rule, field.name)
        defaults.append(f"{field.name}={value.step_size if isinstance(value, Constant) else value}")
    assert constants == (", ".join(defaults) or "-")
    state = rule.init(3)
    assert (memory == "none") == (isinstance(state, tuple) and not state)
