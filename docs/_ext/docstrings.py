"""Lets docstrings write norms and starred names as people do: |x|, p*; escaped outside literals and formulas."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

_KEPT = re.compile(r"(``.+?``|`[^`]+`|:\w+:`[^`]+`|\*\*[^*]+\*\*|(?<![\w*])\*[^\s*][^*]*\*(?![\w*]))")
_DIRECTIVE = re.compile(r"\s*\.\. |\s*>>> |\s*\.\.\. ")


def escape(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Escape bars and lone stars in place, paragraph by paragraph; leave directives, doctests and literal blocks."""
    literal_indent = None
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if line.strip() and literal_indent is not None and indent <= literal_indent:
            literal_indent = None
        if literal_indent is not None or _DIRECTIVE.match(line):
            if line.lstrip().startswith(".. math"):
                literal_indent = indent
            continue
        lines[number] = _escape_line(line)
        if line.rstrip().endswith("::"):
            literal_indent = indent


def _escape_line(line: str) -> str:
    pieces = _KEPT.split(line)
    bullet = re.match(r"\s*\* ", line)
    escaped = [piece if index % 2 else re.sub(r"[|*]", r"\\\g<0>", piece) for index, piece in enumerate(pieces)]
    text = "".join(escaped)
    return text.replace("\\*", "*", 1) if bullet else text


def setup(app: Sphinx) -> dict[str, bool]:
    """Run before numpydoc sections are parsed."""
    app.connect("autodoc-process-docstring", escape, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
