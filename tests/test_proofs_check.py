"""Every claim's check holds, its control fails, and a planted mutation in the library is caught."""

import json

import numpy as np
import pytest

from alflb import duality
from alflb.kernels import reference
from proofs_check.__main__ import claims, main

CLAIMS = claims()


@pytest.mark.parametrize("module", CLAIMS, ids=lambda module: module.CLAIM)
def test_claim_holds_and_its_control_is_refuted(module):
    verdict, control = module.check(seed=1, instances=150), module.BROKEN(seed=1, instances=150)
    assert verdict.holds, verdict.witness
    assert not control.holds


def test_the_table_exits_0_and_json_names_every_claim(capsys):
    assert main(["--instances", "60", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["claim"] for line in lines] == [module.CLAIM for module in CLAIMS]
    assert main(["--instances", "60", "--claim", "C1"]) == 0
    assert "C2" not in capsys.readouterr().out


def off_by_one_load(scores_TE, bias_E, top_k):
    allocation = reference.allocate(scores_TE, bias_E, top_k)
    return allocation._replace(load_E=np.roll(allocation.load_E, 1))


def worst_k(scores_TE, bias_E, top_k):
    return reference.allocate(-scores_TE, -bias_E, top_k)


@pytest.mark.parametrize(
    ("claim", "mutant"),
    [("C1", off_by_one_load), ("C1", worst_k), ("C2", off_by_one_load), ("C2", worst_k), ("C6", worst_k)],
)
def test_mutated_allocations_are_caught(claim, mutant, monkeypatch):
    """An allocator that counts for the wrong expert, or picks the worst experts (C6 sees only norms of the loads)."""
    module = next(module for module in CLAIMS if claim == module.CLAIM)

    def allocate(problem, bias):
        return mutant(problem.scores_TE, np.asarray(bias, dtype=np.float64), problem.top_k)

    monkeypatch.setattr(duality, "allocate", allocate)
    assert not module.check(seed=2, instances=150).holds


def test_a_refuted_claim_is_exit_code_1_with_its_counterexample(monkeypatch, capsys):
    module = next(module for module in CLAIMS if module.CLAIM == "C2")
    monkeypatch.setattr(module, "check", module.BROKEN)
    assert main(["--claim", "C2", "--instances", "150"]) == 1
    assert "counterexample" in capsys.readouterr().out
