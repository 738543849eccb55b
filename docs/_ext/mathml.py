"""Math as MathML, which browsers render by themselves: no script, no network, no fonts to load."""

from __future__ import annotations

import re
import unicodedata

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.writers.html5 import HTML5Translator

_STYLED = re.compile(r'<(mi|mn) mathvariant="(double-struck|bold)">(\w)</\1>')


def _letter(match: re.Match[str]) -> str:
    """A styled letter as the Unicode character of its own that it is: browsers ignore ``mathvariant``."""
    tag, style, sign = match.groups()
    kind = "DIGIT" if sign.isdigit() else "CAPITAL" if sign.isupper() else "SMALL"
    word = unicodedata.name(sign).split()[-1]
    name = f"{style.upper()} {kind} {word}"
    try:
        letter = unicodedata.lookup(f"MATHEMATICAL {name}")
    except KeyError:  # R, C, N and a few more were there before the others
        letter = unicodedata.lookup(name)
    return f"<{tag}>{letter}</{tag}>"


def _mathml(latex: str, display: str) -> str:
    try:
        return _STYLED.sub(_letter, convert(latex.strip(), display=display))
    except Exception as error:  # the converter raises what it likes
        raise SphinxError(f"cannot convert the formula {latex!r}: {error!r}") from error


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
