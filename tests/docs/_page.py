"""Runs the code blocks of one page of documentation, in order: ``python tests/docs/_page.py PAGE``.

Python blocks share one namespace, shell blocks run under ``bash -eu -o pipefail``, all in the current folder. What
stands in a block of text marked ``output`` must be what the Python block before it printed.
"""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

_FENCE = re.compile(r"^```(?:\{code-cell\} )?(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: python, sh, or text marked as output."""

    language: str
    code: str
    line: int
    no_run: str | None
    """Why it is not run, from its fence: no-run="the reason"."""


def blocks_of(page: Path) -> list[Block]:
    """All blocks of a page that could be run, and the outputs that are promised."""
    text = page.read_text(encoding="utf-8")
    blocks = []
    for match in _FENCE.finditer(text):
        language, info, code = match.groups()
        if language in ("python", "sh") or (language == "text" and info.strip() == "output"):
            reason = re.search(r'no-run="([^"]+)"', info)
            line = text.count("\n", 0, match.start(3)) + 1
            blocks.append(Block(language, _without_options(code), line, reason and reason.group(1)))
    return blocks


def _without_options(code: str) -> str:
    """Options of a notebook cell are no code; keep their lines, so that line numbers stay."""
    return re.sub(r"\A(?::[^\n]*\n)+", lambda options: "\n" * options.group().count("\n"), code)


def run(page: Path) -> None:
    """Run every block that is not marked."""
    namespace = {"__name__": "__main__"}
    printed = ""
    for block in blocks_of(page):
        if block.no_run is not None:
            continue
        if block.language == "text":
            assert printed.strip() == block.code.strip(), f"{page}:{block.line} promises another output:\n{printed}"
        elif block.language == "sh":
            subprocess.run(["bash", "-eu", "-o", "pipefail", "-c", block.code], check=True)
        else:
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), namespace)
            printed = output.getvalue()


if __name__ == "__main__":
    run(Path(sys.argv[1]))
