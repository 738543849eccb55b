"""Writing what was measured into a page, between two marks that the page holds."""

from __future__ import annotations

from pathlib import Path

from alflb.io import write_text


def marks(name: str) -> tuple[str, str]:
    """The lines between which a page's part of this name stands.

    Examples
    --------
    >>> marks("measured")
    ('<!-- measured: begin -->', '<!-- measured: end -->')
    """
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def write_between(page: Path, name: str, text: str) -> None:
    """Replace what stands between the marks of a page.

    Raises
    ------
    ValueError
        If the page does not hold both marks exactly once, in this order.
    """
    begin, end = marks(name)
    before, found_begin, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end or begin in rest or end in after:
        raise ValueError(f"{page} must hold the lines {begin} and {end} once each; add them where the text goes")
    write_text(page, f"{before}{begin}\n\n{text}\n\n{end}{after}")
