"""What the README and CONTRIBUTING tell a newcomer to do works as written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def blocks(file, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(), flags=re.DOTALL)


def test_python_example_runs_and_balances():
    (code,) = blocks("README.md", "python")
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, last = map(float, re.search(r"MaxVio (\S+) -> (\S+)", done.stdout).groups())
    assert first > 2.9
    assert last < 0.05


def test_contributing_example_is_a_working_rule(tmp_path):
    """Drop the example in as one file: it registers itself and passes the generic suite."""
    (code,) = blocks("CONTRIBUTING.md", "python")
    test = ROOT / "tests" / "rules" / "test_every_rule.py"
    script = (
        "import importlib.util, pytest, sys\n"
        "import alflb.rules\n"
        f"spec = importlib.util.spec_from_file_location('clipped', {str(tmp_path / 'clipped.py')!r})\n"
        "module = sys.modules['clipped'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert 'clipped' in alflb.rules.rule_names()\n"
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', {str(test)!r}]))\n"
    )
    (tmp_path / "clipped.py").write_text(code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) >= 20


@pytest.mark.parametrize("target", ["study", "test", "lint", "types", "docs", "help"])
def test_make_knows_its_targets(target):
    done = subprocess.run(["make", "-n", target], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
