"""Planted faults: one that a test notices, one that none does, and the table of both."""

import random
import subprocess
from pathlib import Path

import pytest

from proofs_check import mutants
from tests._extras import require

require("cosmic_ray")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of two functions, of which one is tested."""
    (tmp_path / "tested.py").write_text("def larger(a: int, b: int | None) -> int:\n    return a + b\n")
    (tmp_path / "untested.py").write_text("def smaller(a: int, b: int | None) -> int:\n    return a - b\n")
    (tmp_path / "test_all.py").write_text(
        "import tested, untested\n\ndef test_sum():\n    assert tested.larger(3, 2) == 5\n    assert untested.smaller\n"
    )
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    monkeypatch.setattr(mutants, "PROJECT", tmp_path)
    rooms = {name: mutants.Room((f"{name}.py",), ("test_all.py",)) for name in ("tested", "untested")}
    monkeypatch.setattr(mutants, "ROOMS", rooms)
    return tmp_path


@pytest.mark.parametrize(("room", "status"), [("tested", "killed"), ("untested", "survived")])
def test_a_fault_survives_only_where_no_test_looks(project, tmp_path_factory, room, status):
    copy = mutants.Copy(tmp_path_factory.mktemp("copy"))
    outcomes = list(mutants.try_out(room, copy, mutants.draw_sample(room, 2, seed=0)))
    assert [outcome.status for outcome in outcomes] == [status, status]
    assert (copy.folder / f"{room}.py").read_text() == (project / f"{room}.py").read_text()


def test_annotations_are_no_place_for_a_fault(project):
    rng = random.Random(0)
    assert {mutants.draw(Path("tested.py"), rng).line for _ in range(30)} == {2}


def test_tests_that_fail_already_are_an_error(project, tmp_path_factory):
    (project / "test_all.py").write_text("def test_nothing():\n    assert False\n")
    copy = mutants.Copy(tmp_path_factory.mktemp("copy"))
    with pytest.raises(ValueError, match="tests of tested do not pass as they stand"):
        next(mutants.try_out("tested", copy, []))


def test_a_survivor_with_a_reason_is_equivalent(monkeypatch):
    outcome = {"room": "rules", "file": "a.py", "operator": "o", "occurrence": 0, "line": 1, "after": "y"}
    outcomes = [
        {**outcome, "before": "x", "status": "survived"},
        {**outcome, "before": "z", "status": "survived"},
        {**outcome, "before": "w", "status": "killed"},
        {**outcome, "before": "v", "status": "out of time"},
    ]
    monkeypatch.setattr(mutants, "equivalents", lambda: {"a.py: x -> y": "the same number"})
    (line,) = mutants.summary(outcomes)
    assert line == mutants.Line("rules", planted=4, noticed=2, equivalent=1, survived=1)
    assert line.share == 1 / 3
