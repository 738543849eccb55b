"""Without the extras there is one clear line; this file itself needs none of them."""

import subprocess
import sys

import pytest

from tests._extras import require


@pytest.mark.parametrize(
    ("statement", "package", "line"),
    [
        ("from alflb.training import LoadBalancer", "torch", "LoadBalancer needs PyTorch: pip install 'alflb[torch]'"),
        ("import alflb.training.trainer", "transformers", "needs transformers: pip install 'alflb[models]'"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(statement, package, line):
    if package == "transformers":
        require("torch")
    code = f"import sys; sys.modules[{package!r}] = None; {statement}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ModuleNotFoundError: ")
    assert line in done.stderr.splitlines()[-1]
    assert "During handling" not in done.stderr
    assert "direct cause" not in done.stderr


def test_a_broken_installation_is_not_called_a_missing_one(tmp_path):
    (tmp_path / "torch.py").write_text("import no_such_part_of_torch")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from alflb.training import LoadBalancer"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'no_such_part_of_torch'"
