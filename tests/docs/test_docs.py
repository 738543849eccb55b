"""Every code block of the documentation runs as it stands; those that cannot say why, and are counted."""

import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from _page import blocks_of
from typer.testing import CliRunner

from alflb.cli.app import app

ROOT = Path(__file__).parents[2]
RUNNER = Path(__file__).with_name("_page.py")

GENERATED = ("docs/_build/", "docs/reference/cli.md", "docs/reference/names.md")
"""Written by the site's build, which runs their cells itself."""

RUN_ELSEWHERE = {"docs/training.md": "tests/training/test_training_page.py"}
"""Pages whose packages not every environment has."""

NOT_RUN = {
    "README.md": 3,
    "CONTRIBUTING.md": 1,
    "docs/claims.md": 1,
    "docs/get_started.md": 1,
    "docs/index.md": 1,
    "docs/howto/cluster.md": 5,
    "docs/howto/gpu.md": 2,
    "docs/howto/logs.md": 1,
    "docs/howto/own_trace.md": 1,
    "docs/theory/formal.md": 1,
    "docs/trace-format.md": 1,
    "docs/validation/README.md": 2,
}
"""Blocks that are marked no-run="why"; a new one is a decision."""


def pages():
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    names = [page.relative_to(ROOT).as_posix() for page in found]
    return [name for name in names if not name.startswith(GENERATED)]


def pages_to_run():
    return [
        name
        for name in pages()
        if name not in RUN_ELSEWHERE and any(block.no_run is None for block in blocks_of(ROOT / name))
    ]


@pytest.mark.parametrize("name", pages_to_run())
def test_code_of_page_runs(name, tmp_path):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path, "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(RUNNER), str(ROOT / name)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_blocks_that_are_not_run_are_known():
    counts = Counter(name for name in pages() for block in blocks_of(ROOT / name) if block.no_run is not None)
    assert counts == NOT_RUN


def test_pages_that_run_elsewhere_do():
    for name, test in RUN_ELSEWHERE.items():
        assert Path(name).name in (ROOT / test).read_text()


def test_commands_have_the_options_that_pages_give_them():
    """Also of commands that are not run here."""
    commands = [
        line
        for name in pages()
        for block in blocks_of(ROOT / name)
        if block.language == "sh"
        for line in block.code.replace("\\\n", " ").splitlines()
        if line.startswith("alflb ")
    ]
    assert len(commands) >= 10
    for line in commands:
        name, *arguments = shlex.split(line, comments=True)[1:]
        known = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "300"}).stdout.replace(",", " ")
        for option in (argument for argument in arguments if argument.startswith("--")):
            assert f"{option} " in known, line


def test_links_and_pictures_exist():
    for name in pages():
        for target in re.findall(r"\]\((?!http|#)([^)#\s]+)(?:#[^)]*)?\)", (ROOT / name).read_text()):
            file = (ROOT / name).parent / target
            assert file.exists(), f"{name} links to {target}"


def test_output_that_is_not_printed_is_found_out(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n\n```text output\n2\n```\n")
    command = [sys.executable, str(RUNNER), str(page)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "page.md:6 promises another output" in done.stderr


def test_shell_that_fails_is_found_out(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```sh\nfalse\ntrue\n```\n")
    command = [sys.executable, str(RUNNER), str(page)]
    assert subprocess.run(command, capture_output=True).returncode == 1
