"""Compiled code on disk: kept where it can be, done without where not, and never older than its sources."""

import os
import subprocess
import sys

import pytest

from alflb.kernels import _jit

pytestmark = pytest.mark.jit


@_jit.jit
def successor(n):
    return n + 1


@_jit.jit
def three_successors(n):
    count = 0
    for _ in range(3):  # the counter is a number of the code at first
        count = successor(count)
    return count + successor(n) + successor(1)


USE_TWO_TYPES = """
import numpy as np
from alflb.kernels._blocks import copy_rows
for dtype in (np.float32, np.float64):
    tile = np.zeros(4, dtype)
    copy_rows(np.arange(4).astype(dtype), 0, 2, 2, 2, tile)
    assert tile.tolist() == [0, 1, 2, 3]
print(sum(copy_rows.stats.cache_misses.values()))
"""
NOTHING_CAN_BE_WRITTEN = """
import tempfile
def refuse(*args, **kwargs):
    raise PermissionError(13, "Permission denied")
tempfile.TemporaryFile = refuse
"""
FULL_DISK = """
from numba.core.caching import IndexDataCacheFile
def refuse(*args, **kwargs):
    raise OSError(28, "No space left on device")
IndexDataCacheFile._save_index = refuse
"""


def run(code, folder):
    """Compilations and standard error of a fresh process."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout), done.stderr


def test_numbers_of_the_code_are_no_types_of_their_own():
    assert three_successors(2) == 8
    assert len(successor.signatures) == 1


@pytest.mark.parametrize("obstacle", [NOTHING_CAN_BE_WRITTEN, FULL_DISK])
def test_without_a_cache_results_are_right_and_one_line_says_so(obstacle, tmp_path):
    compiled, said = run(obstacle + USE_TWO_TYPES, tmp_path)
    assert compiled == 2
    assert said.count("\n") == 1
    assert "Set NUMBA_CACHE_DIR to a folder that can be written" in said


def test_a_cache_folder_that_is_a_file_is_passed_over(tmp_path):
    (tmp_path / "file").touch()
    assert run(USE_TWO_TYPES, tmp_path / "file")[1] == ""


def test_a_damaged_cache_is_filled_again(tmp_path):
    assert run(USE_TWO_TYPES, tmp_path) == (2, "")
    for pattern, damage in [("*.nbi", b"damaged"), ("*.nbi", b""), ("*.nbc", b"damaged")]:
        for file in tmp_path.rglob(pattern):
            file.write_bytes(damage)
        assert run(USE_TWO_TYPES, tmp_path) == (2, "")
        assert run(USE_TWO_TYPES, tmp_path) == (0, "")


def test_code_is_compiled_anew_when_any_of_its_sources_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(_jit, "_PACKAGE", tmp_path / "alflb")
    (tmp_path / "alflb" / "room").mkdir(parents=True)
    for name, text in {
        "loops.py": "from alflb.room import vectors\nfrom numpy import array\n",
        "vectors.py": "from alflb.room.laws import (\n    HALF,\n)\n",
        "laws.py": "HALF = 0.5\n",
        "elsewhere.py": "from alflb.room.loops import nothing\n",
    }.items():
        (tmp_path / "alflb" / "room" / name).write_text(text)

    def stamp():
        _jit.source_stamp.cache_clear()
        return _jit.source_stamp(tmp_path / "alflb" / "room" / "loops.py")

    stamps = [stamp()]
    for name in ("loops.py", "vectors.py", "laws.py"):
        with (tmp_path / "alflb" / "room" / name).open("a") as file:
            file.write("# changed\n")
        stamps.append(stamp())
    assert len(set(stamps)) == 4
    (tmp_path / "alflb" / "room" / "elsewhere.py").write_text("")
    assert stamp() == stamps[-1]
    _jit.source_stamp.cache_clear()
