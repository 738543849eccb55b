"""Math as MathML, which browsers render by themselves: no script, no network, no fonts to load."""

from __future__ import annotations

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.writers.html5 import HTML5Translator

_ALPHABET_OF_ONE_LETTER = re.compile(r"(\\math(?:bb|bf|cal|frak|scr|sf|tt))\s*([A-Za-z0-9])")
_BOLD_DIGIT = re.compile(r'<mn mathvariant="bold">(\d)</mn>')
_BOLD_DIGITS = "𝟎𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖𝟗"


def _mathml(latex: str, display: str) -> str:
    r"""MathML in Unicode letters: browsers ignore the attribute that the converter writes for ``\mathbb E``."""
    latex = _ALPHABET_OF_ONE_LETTER.sub(r"\1{\2}", latex.strip())
    try:
        written = convert(latex, display=display)
    except Exception as error:  # the converter raises what it likes
        raise SphinxError(f"cannot convert the formula {latex!r}: {error!r}") from error
    return _BOLD_DIGIT.sub(lambda digit: f"<mn>{_BOLD_DIGITS[int(digit[1])]}</mn>", written)


def visit_inline(translator: HTML5Translator, node: nodes.math) -> None:
    """Write an inline formula."""
    translator.body.append(f'<span class="formula">{_mathml(node.astext(), "inline")}</span>')
    raise nodes.SkipNode


def visit_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Write a displayed formula; wide ones scroll inside their own box."""
    formula = node.astext()
    if "\\\\" in formula and "\\begin" not in formula:
        formula = rf"\begin{{aligned}}{formula}\end{{aligned}}"
    translator.body.append(f'<div class="formula">{_mathml(formula, "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer under the name that ``html_math_renderer`` asks for."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
