"""What the README and CONTRIBUTING tell a newcomer to do works as written."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alflb.cli import app

ROOT = Path(__file__).parent.parent


def blocks(file, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(), flags=re.DOTALL)


def test_python_example_runs_and_balances():
    (code,) = blocks("README.md", "python")
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, last = map(float, re.search(r"MaxVio (\S+) -> (\S+)", done.stdout).groups())
    assert first > 2.9
    assert last < 0.05


def test_commands_exist_with_these_options():
    commands = [
        line
        for file in ("README.md", "docs/trace-format.md")
        for block in blocks(file, "sh")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("alflb ")
    ]
    assert len(commands) >= 10
    for line in commands:
        name, *arguments = shlex.split(line, comments=True)[1:]
        known = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "300"}).stdout
        for option in (argument for argument in arguments if argument.startswith("--")):
            assert f"{option} " in known, line


def test_links_and_pictures_exist():
    for file in ("README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/trace-format.md", "docs/findings.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / file).read_text()):
            assert ((ROOT / file).parent / target).exists(), f"{file} links to {target}"


def test_contributing_example_is_a_working_rule(tmp_path):
    """Drop the example in as one file: it registers itself and passes the generic suite."""
    (code,) = blocks("CONTRIBUTING.md", "python")
    script = (
        "import importlib.util, pytest, sys\n"
        "import alflb.rules\n"
        f"spec = importlib.util.spec_from_file_location('clipped', {str(tmp_path / 'clipped.py')!r})\n"
        "module = sys.modules['clipped'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert 'clipped' in alflb.rules.rule_names()\n"
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', {str(ROOT / 'tests' / 'test_every_rule.py')!r}]))\n"
    )
    (tmp_path / "clipped.py").write_text(code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) >= 20


@pytest.mark.parametrize("target", ["study", "test", "lint", "types", "help"])
def test_make_knows_its_targets(target):
    done = subprocess.run(["make", "-n", target], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
