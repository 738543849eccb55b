"""What a user and a packager get: the wheel holds the library, the sdist all that its tests and docs need."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import alflb

ROOT = Path(alflb.__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Names of the files in the wheel and in the sdist, without the sdist's folder."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    code = "import sys; from hatchling import build; build.build_wheel(sys.argv[1]); build.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel, tarfile.open(next(folder.glob("*.tar.gz"))) as sdist:
        return set(wheel.namelist()), {name.partition("/")[2] for name in sdist.getnames()}


def test_the_wheel_holds_the_library_only(built):
    wheel, _ = built
    assert {"alflb/py.typed", "alflb/traces/data/dsv3tiny_l2.npz", "alflb/cli/app.py"} <= wheel
    assert {name.partition("/")[0].partition("-")[0] for name in wheel} == {"alflb"}
    assert not [name for name in wheel if name.endswith((".pyc", ".nbi", ".nbc"))]


def test_the_sdist_holds_all_that_is_tracked(built):
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
    _, sdist = built
    assert {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()} <= sdist


def alflb_command(*arguments, stdout=subprocess.PIPE, **environment):
    return subprocess.run(
        [sys.executable, "-m", "alflb.cli.app", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
        cwd=ROOT,
    )


@pytest.mark.parametrize("columns", ["0", "00", "1", "x", ""])
def test_a_terminal_without_a_width_still_shows_results(columns):
    done = alflb_command("inspect", COLUMNS=columns)
    assert done.returncode == 0, done.stderr
    assert b"6" in done.stdout
    if columns != "1":
        assert b"num_tokens" in done.stdout
        assert b"solve" in alflb_command("--help", COLUMNS=columns).stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_output_encoding_will_do(encoding):
    done = alflb_command("inspect", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert "16384" in done.stdout.decode(encoding)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--version"], ["inspect"], ["inspect", "--json"], ["--help"]])
def test_an_output_that_is_full_is_one_line(arguments):
    with open("/dev/full", "wb") as full:
        done = alflb_command(*arguments, stdout=full)
    assert done.returncode == 2
    assert done.stderr.decode().splitlines()[-1].startswith("error: ")
    assert b"No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
