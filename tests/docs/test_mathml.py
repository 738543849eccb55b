"""Formulas keep their alphabets in browsers, which know letters but not the attribute ``mathvariant``."""

import html
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$([^$]+)\$(?!\$)", re.DOTALL)


@pytest.fixture(scope="module")
def mathml():
    pytest.importorskip("latex2mathml")
    pytest.importorskip("sphinx")
    sys.path.insert(0, str(ROOT / "docs" / "_ext"))
    try:
        import mathml
    finally:
        sys.path.pop(0)
    return mathml._mathml


@pytest.mark.parametrize("latex", [r"\mathbb E[x]", r"\mathbb{E}[x]", r"\mathbb  E [x]"])
def test_expectation_is_not_the_number_of_experts(mathml, latex):
    assert "𝔼" in html.unescape(mathml(latex, "inline"))


def test_no_formula_of_the_pages_needs_the_attribute(mathml):
    formulas = [
        match[0] or match[1]
        for page in (ROOT / "docs").rglob("*.md")
        for match in FORMULA.findall(
            re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        )
    ]
    assert len(formulas) > 300
    for formula in formulas:
        variants = set(re.findall(r'mathvariant="([^"]+)"', mathml(formula, "block")))
        assert variants <= {"normal"}, formula
