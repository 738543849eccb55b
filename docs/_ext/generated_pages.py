"""Pages written at every build from the code itself: the references of the command line and of the names."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path

import typer
from sphinx.application import Sphinx
from typer.cli import get_docs_for_click
from typer.core import TyperGroup

import alflb
from alflb.cli.app import app as alflb_app
from alflb.io import write_text
from experiments.__main__ import app as experiments_app
from proofs_check.__main__ import app as proofs_app

os.environ["COLUMNS"] = "100"  # the width typer writes help for

_COMMAND_LINE_HEAD = """\
# Command line

Generated from the programs' own help. Exit codes and environment variables are on [their own page](environment.md).
"""

_NAMES_HEAD = """\
# Names in `alflb`

`import alflb` is quick: these are imported on first use. They are what most work needs; the modules have more.

| name | what it is |
|---|---|
"""


def write_pages(app: Sphinx) -> None:
    """Write what is generated, where it changed."""
    source = Path(app.srcdir)
    _write(source / "reference" / "cli.md", _command_line())
    _write(source / "reference" / "names.md", _names())


def _command_line() -> str:
    parts = [_COMMAND_LINE_HEAD]
    programs = {"alflb": alflb_app, "python -m experiments": experiments_app, "python -m proofs_check": proofs_app}
    for name, program in programs.items():
        command = typer.main.get_command(program)
        text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name=name), name=name)
        parts.append(_whole_summaries(re.sub(r"^#", "##", text, flags=re.MULTILINE), command))
    return "\n".join(parts)


def _whole_summaries(text: str, command: object) -> str:
    """The list of commands with their whole first lines, which typer cuts off."""
    if not isinstance(command, TyperGroup):
        return text
    for name, one in command.commands.items():
        summary = (one.help or "").strip().splitlines()[0]
        text = re.sub(
            rf"^\* `{name}`: .*$", lambda _, words=summary, of=name: f"* `{of}`: {words}", text, flags=re.MULTILINE
        )
    return text


def _names() -> str:
    """Every public name, where it is described, and the first line of that."""
    rows = []
    for name in alflb.__all__:
        if name != "__version__":
            thing = getattr(alflb, name)
            summary = (inspect.getdoc(thing) or "").splitlines()[0].replace("|", "\\|")
            rows.append(f"| {{py:obj}}`~alflb.{alflb._HOME[name]}.{name}` | {summary} |")
    return _NAMES_HEAD + "\n".join(rows) + "\n"


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(exist_ok=True)
        write_text(path, text)


def link_contributing(app: Sphinx, docname: str, text: list[str]) -> None:
    """CONTRIBUTING.md stands outside this folder; lead its links to the page that includes it."""
    here = "../" * docname.count("/")
    text[0] = text[0].replace(f"]({here}../CONTRIBUTING.md)", f"]({here}howto/extend.md)")


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages before Sphinx looks for sources."""
    app.connect("builder-inited", write_pages)
    app.connect("source-read", link_contributing)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
