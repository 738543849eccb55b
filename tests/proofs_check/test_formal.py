"""Proofs for every size: no theorem rests on an axiom, and the definitions are the library's. Most of it needs Coq."""

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array
from typer.testing import CliRunner

from alflb.verdict import Verdict
from proofs_check import _page, _runner, formal
from proofs_check.__main__ import app, claims
from proofs_check.formal import correspondence

ROOT = Path(__file__).parents[2]
SOURCES = sorted(formal.FOLDER.glob("*.v"))

needs_coq = pytest.mark.usefixtures("coq")


@pytest.fixture
def coq():
    """Minutes of Coq, so only where everything is installed on purpose (`.ci/run`)."""
    if os.environ.get("ALFLB_REQUIRE_EXTRAS") != "1":
        pytest.skip("takes minutes of Coq: set ALFLB_REQUIRE_EXTRAS=1 (`make proofs` checks the theorems)")


@pytest.fixture
def changed_sources(tmp_path, monkeypatch):
    """A function that changes texts in a copy of the sources, which is compiled instead of them."""

    def change(edits):
        folder = shutil.copytree(formal.FOLDER, tmp_path / "formal")
        for name, old, new in edits:
            file = folder / f"{name}.v"
            assert old in file.read_text(), f"{name}.v no longer says {old}"
            file.write_text(file.read_text().replace(old, new))
        monkeypatch.setattr(formal, "FOLDER", folder)
        forget_compiled()

    yield change
    monkeypatch.undo()
    forget_compiled()


def forget_compiled():
    formal.compiled.cache_clear()
    formal._scratch.cache_clear()


# ---- the theorems ----


@needs_coq
def test_every_theorem_is_proved_without_axioms_and_leaves_no_file():
    before = set(formal.FOLDER.rglob("*"))
    proofs = formal.prove(formal.THEOREMS)
    assert [one.theorem for one in proofs] == list(formal.THEOREMS)
    assert not [(one.theorem.name, one.assumptions) for one in proofs if not one.holds]
    assert {file for file in set(formal.FOLDER.rglob("*")) - before if file.suffix != ".pyc"} <= {
        formal.FOLDER / "__pycache__"
    }


@needs_coq
def test_an_unfinished_proof_is_found(changed_sources):
    changed_sources([("c1_lagrangian_identity", "by rewrite subr_ge0 top_sum_max // card_topk. Qed.", "Admitted.")])
    proofs = formal.prove(one for one in formal.THEOREMS if one.file == "c1_lagrangian_identity")
    assert {one.theorem.name: one.holds for one in proofs} == {
        "lagrangian_identity": True,
        "benefit_ge0": False,
        "lagrangian_identity_of_steps": True,
    }


@needs_coq
def test_a_false_statement_is_refused(changed_sources, capsys):
    changed_sources([("c1_lagrangian_identity", "0 <= benefit p q i", "0 < benefit p q i")])
    (row,) = _runner.formal_rows(["C1"])
    assert (row.passed, row.words) == (False, "REFUSED")
    assert "c1_lagrangian_identity.v" in row.found.witness["error"]


def test_theorems_are_named_once_and_stand_in_their_files():
    assert len({one.name for one in formal.THEOREMS}) == len(formal.THEOREMS)
    for one in formal.THEOREMS:
        text = (formal.FOLDER / f"{one.file}.v").read_text()
        assert re.search(rf"^(Theorem|Corollary|Lemma) {one.name}\b", text, re.MULTILINE), one


def test_every_theorem_of_the_files_is_checked():
    stated = {
        name
        for source in SOURCES
        for name in re.findall(r"^(?:Theorem|Corollary) (\w+)", source.read_text(), re.MULTILINE)
    }
    assert stated <= {one.name for one in formal.THEOREMS}


def test_the_claims_are_known():
    known = {module.CLAIM for module in claims()} | set(formal.OTHER_CLAIMS)
    assert {one.claim for one in formal.THEOREMS} <= known


def test_sources_begin_with_their_claim_in_words_and_leave_nothing_open():
    for source in SOURCES:
        text = source.read_text()
        assert text.startswith("(* "), source.name
        assert not re.search(r"\b(Admitted|Axiom|Parameter|Conjecture|Abort|admit)\b", text), source.name
        assert max(map(len, text.splitlines())) <= 120, source.name


# ---- the definitions ----


@needs_coq
def test_the_definitions_are_those_of_the_library():
    assert correspondence.disagreements(seed=1, count=10) == []


DEFINITIONS = {
    "targets squared": ("L k * p k", "L k * (L k * p k)", "D(p)"),
    "a step the wrong way": ("p k + eps * (L k", "p k - eps * (L k", "proportional step"),
    "open windows": ("<= a + w", "< a + w", "multiplicity"),
}


@needs_coq
@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_wrong_definition_is_found(name, changed_sources):
    """Wrong in the definition and in its program, so that the two still agree and all proofs pass."""
    old, new, quantity = DEFINITIONS[name]
    changed_sources([(file, old, new) for file in ("definitions", "executable")])
    found = correspondence.disagreements(seed=1, count=5)
    assert any(line.startswith(quantity) for line in found), found


@needs_coq
def test_optima_of_the_exact_solver_are_optimal():
    assert correspondence.refused_optima(seed=2, count=6) == []


@needs_coq
def test_a_plan_that_is_not_optimal_is_refused(monkeypatch):
    """Two tokens exchange their experts: loads stay right, the value falls."""
    honest = correspondence.solve_exact

    def swapped(problem):
        solution = honest(problem)
        plan = solution.plan.toarray()
        other = int(np.argmax((plan != plan[0]).any(axis=1)))
        plan[[0, other]] = plan[[other, 0]]
        return replace(solution, plan=csr_array(plan))

    monkeypatch.setattr(correspondence, "solve_exact", swapped)
    assert correspondence.refused_optima(seed=2, count=6)


def test_instances_have_ties_and_fractional_targets_and_every_kind_of_k():
    drawn = correspondence.instances(seed=1, count=10)
    assert any(not one.problem.is_integral for one in drawn)
    assert any(one.top_k > 1 for one in drawn)
    assert any(len(set(row)) < len(row) for one in drawn for row in one.scores.tolist())


# ---- what people see ----


def test_coq_without_its_libraries_is_not_available(monkeypatch):
    def refused(name, text):
        raise formal.CoqError("Cannot find a physical path bound to logical path mathcomp.")

    monkeypatch.setattr(formal.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(formal, "run_coq", refused)
    assert not formal.available.__wrapped__()


def test_without_coq_rows_say_so_and_nothing_fails(monkeypatch):
    monkeypatch.setattr(formal, "available", lambda: False)
    monkeypatch.setattr(_runner, "QUICK_PROOF_SECONDS", 1.0)
    (row,) = _runner.formal_rows(["C4"])
    assert row.passed
    assert row.words == f"skipped: {formal.INSTALL}"
    assert _page._formal_table([row]) == "Coq was not installed for this run."
    done = CliRunner().invoke(app, ["--claim", "C1", "--instances", "20", "--json"])
    assert done.exit_code == 0
    assert '"skipped: apt-get install coq' in done.stdout


def test_without_coq_make_proofs_says_what_to_install(monkeypatch, capsys):
    from proofs_check.formal.__main__ import main as make_proofs

    monkeypatch.setattr(formal, "available", lambda: False)
    assert make_proofs() == 1
    assert formal.INSTALL in capsys.readouterr().err


def test_the_page_of_claims_lists_what_was_proved():
    theorem = formal.THEOREMS[0]
    detail = {"theorems": [{"file": f"{theorem.file}.v", "name": theorem.name, "s": 1.25}]}
    row = _runner.Row("all sizes", Verdict(theorem.claim, "Coq", 1, 0, 0, True, detail), "proved", 1.3)
    assert f"| `{theorem.name}` | `{theorem.file}.v` | 1.2 |" in _page._formal_table([row])


def test_statements_on_the_page_are_those_of_the_files():
    page = (ROOT / "docs" / "theory" / "formal.md").read_text()
    quoted = re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    sources = [" ".join(source.read_text().split()) for source in SOURCES]
    assert len(quoted) >= 10
    for block in quoted:
        for statement in block.strip().split("\n\n"):
            words = " ".join(statement.split())
            assert any(words in text for text in sources), statement


def test_every_main_theorem_is_named_on_the_page():
    page = (ROOT / "docs" / "theory" / "formal.md").read_text()
    missing = [one.name for one in formal.THEOREMS if one.name not in page and one.claim != "C0"]
    assert not missing


def test_ci_and_the_message_install_the_same_packages():
    script = (ROOT / ".ci" / "run").read_text().replace("\\\n", " ")
    packages = formal.INSTALL.removeprefix("apt-get install ").split()
    (line,) = [line for line in script.splitlines() if "coq libcoq" in line]
    assert line.split()[-len(packages) :] == packages
