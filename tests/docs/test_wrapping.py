"""Markdown is wrapped at 100 columns and code in it at 88, the width of a code block on the site."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROSE_COLUMNS, CODE_COLUMNS = 100, 88

WRITTEN_BY_PROGRAMS = (
    "docs/_build/",
    "docs/claims.md",
    "docs/benchmarks/",
    "docs/reference/cli.md",
    "docs/reference/names.md",
)


def pages():
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "proofs_check").rglob("*.md")]
    names = sorted(page.relative_to(ROOT).as_posix() for page in found)
    return [name for name in names if not name.startswith(WRITTEN_BY_PROGRAMS)]


def too_wide(text):
    """The numbers of lines that are too wide; tables, headings, pictures, formulas and marked parts may be wide."""
    text = re.sub(r"(<!-- (\w+): begin -->).*?(<!-- \2: end -->)", _blank, text, flags=re.DOTALL)
    text = re.sub(r"^\$\$.*?\$\$$", _blank, text, flags=re.DOTALL | re.MULTILINE)
    fence, quoted = None, False
    for number, line in enumerate(text.splitlines(), start=1):
        mark = re.match(r"\s*(`{3,})(.*)", line)
        if mark and fence in (None, mark.group(1)):
            fence = None if fence else mark.group(1)
            quoted = mark.group(2) == "text"  # theorems, as they stand in their files
            continue
        free = quoted if fence else (line.startswith(("|", "#", "![")) or " " not in line.strip())
        if len(line) > (CODE_COLUMNS if fence else PROSE_COLUMNS) and not free:
            yield number


def _blank(match):
    return "\n" * match.group().count("\n")


@pytest.mark.parametrize("name", pages())
def test_lines_are_wrapped(name):
    wide = list(too_wide((ROOT / name).read_text(encoding="utf-8")))
    assert not wide, f"{name}: lines {wide} are wider than {PROSE_COLUMNS} columns ({CODE_COLUMNS} in code)"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("word " * 21, [1]),
        ("short\n\n- " + "word " * 21, [3]),
        ("```python\n" + "x" * 89 + "\n```\n", [2]),
        ("````md\n```\n" + "word " * 18 + "\n```\n````\n", [3]),
        ("```python\n```\n" + "word " * 21, [3]),
        ("<!-- measured: begin -->\n" + "word " * 21 + "\n<!-- measured: end -->\n" + "word " * 21, [4]),
        ("| " + "cell | " * 20 + "\n# " + "word " * 21 + "\n![" + "word " * 21 + "](a.png)\n" + "x" * 120, []),
        ("```text\n" + "x " * 60 + "\n```\n" + "word " * 21, [4]),
        ("$$ x = " + "y + " * 30 + "z $$\n", []),
    ],
)
def test_wide_lines_are_found(text, lines):
    assert list(too_wide(text)) == lines
