"""docs/schedules.md lists exactly the registered schedules, and says of each what the code says."""

import dataclasses
from pathlib import Path

import pytest

from alflb.schedules import SCHEDULES, schedule_names

PAGE = Path(__file__).parents[1] / "docs" / "schedules.md"
HEADER = "| name | step size at step t | horizon | class (constants) | source, use |"


def table():
    """Cells of the table by name."""
    _, found, rest = PAGE.read_text().partition(HEADER + "\n")
    assert found
    rows = [line for line in rest.split("\n\n")[0].splitlines() if not line.startswith("|-")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_the_page_lists_the_registered_schedules():
    assert sorted(table()) == schedule_names()


@pytest.mark.parametrize("name", schedule_names())
def test_a_row_says_what_the_code_says(name):
    _, horizon, described, _ = table()[name]
    cls = SCHEDULES.get(name)
    assert horizon == ("yes" if cls.has_horizon() else "no")
    constants = [f"{f.name}={f.default}" for f in dataclasses.fields(cls) if f.name not in ("step_size", "num_steps")]
    assert described == f"`{cls.__name__}`" + (f" ({', '.join(constants)})" if constants else "")
