"""Running claims: every part of a claim becomes one row of the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from proofs_check import _smt, formal
from proofs_check._verdict import Verdict
from proofs_check._witnesses import WITNESSES

QUICK_PROOF_SECONDS, QUICK_SEARCH_SECONDS = 20.0, 2.0
QUICK_CELLS, DEEP_CELLS = 9, 16
"""Largest T E tried by the SMT proofs."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    claim: str
    part: str
    """check, control, sharper, witnesses, proof, all sizes or search."""
    kind: str
    instances: int
    measured: float | None
    bound: float | None
    passed: bool
    verdict: str
    seconds: float
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def slack(self) -> float | None:
        """Bound minus measured."""
        return None if self.measured is None or self.bound is None else self.bound - self.measured


@dataclass(frozen=True)
class Effort:
    """How much to do: a seed, instances of each check (None: the claim's own default), and seconds for one claim."""

    seed: int = 0
    instances: int | None = None
    seconds: float | None = None
    """None is the quick run: defaults once, short proofs and searches."""


def run_claim(module: ModuleType, effort: Effort) -> Iterator[Row]:
    """All rows of one claim; with `seconds`, a third each for checks on fresh seeds, the proof and the search."""
    share = None if effort.seconds is None else effort.seconds / 3
    sizes = {"instances": effort.instances} if effort.instances else {}
    yield _verdict_row(module.CLAIM, "check", lambda: _repeated(module.check, effort, sizes, share))
    yield _verdict_row(module.CLAIM, "control", lambda: module.BROKEN(seed=effort.seed, **sizes), must_fail=True)
    if hasattr(module, "sharper"):
        yield _verdict_row(module.CLAIM, "sharper", lambda: _repeated(module.sharper, effort, sizes, share))
    if any(one.claim == module.CLAIM for one in WITNESSES):
        yield _witness_row(module.CLAIM)
    if hasattr(module, "PROOF"):
        yield _proof_row(module, share)
    yield from formal_rows([module.CLAIM])
    if hasattr(module, "tightest"):
        yield _verdict_row(module.CLAIM, "search", lambda: module.tightest(effort.seed, share or QUICK_SEARCH_SECONDS))


def _repeated(check: Callable[..., Verdict], effort: Effort, sizes: dict[str, int], seconds: float | None) -> Verdict:
    """The check once, then on fresh seeds while time is left; a failure or the worst ratio is kept."""
    start = time.perf_counter()
    worst = check(seed=effort.seed, **sizes)
    total, rounds = worst.instances, 1
    while worst.holds and seconds is not None:
        spent = time.perf_counter() - start
        if spent * (rounds + 1) / rounds > seconds:
            break
        latest = check(seed=effort.seed + rounds, **sizes)
        total, rounds = total + latest.instances, rounds + 1
        if not latest.holds or latest.ratio > worst.ratio:
            worst = latest
    return Verdict(worst.claim, worst.statement, total, worst.measured, worst.bound, worst.holds, worst.witness)


def _verdict_row(claim: str, part: str, run: Callable[[], Verdict], *, must_fail: bool = False) -> Row:
    start = time.perf_counter()
    found = run()
    if must_fail:
        words = "NOT REFUTED" if found.holds else "refuted, as it must be"
    else:
        words = ("attained" if found.ratio == 1 else "holds") if found.holds else "REFUTED"
    seconds = time.perf_counter() - start
    passed = found.holds != must_fail
    return Row(
        claim,
        part,
        found.statement,
        found.instances,
        float(found.measured),
        float(found.bound),
        passed,
        words,
        seconds,
        dict(found.witness),
    )


def _witness_row(claim: str) -> Row:
    start = time.perf_counter()
    own = [one for one in WITNESSES if one.claim == claim]
    changed = [one.name for one in own if not one.holds]
    words = f"CHANGED: {', '.join(changed)}" if changed else "as recorded"
    seconds = time.perf_counter() - start
    return Row(
        claim, "witnesses", "equality", len(own), len(changed), 0.0, not changed, words, seconds, {"changed": changed}
    )


def _proof_row(module: ModuleType, seconds: float | None) -> Row:
    """The SMT proof; passes over it, saying so, where z3 is not installed."""
    if not _smt.available():
        words = "skipped: pip install 'alflb[proofs]'"
        return Row(module.CLAIM, "proof", "SMT", 0, None, None, True, words, 0.0)
    cells = QUICK_CELLS if seconds is None else DEEP_CELLS
    found = _smt.prove(module.CLAIM, module.PROOF, cells=cells, seconds=seconds or QUICK_PROOF_SECONDS)
    passed = bool(found.proved) and not found.refuted and found.control_refuted
    if found.refuted:
        words = f"REFUTED at T, E, K = {found.refuted[0]}"
    elif not found.control_refuted:
        words = "CONTROL NOT REFUTED"
    else:
        words = f"all reals, {len(found.proved)} shapes up to T, E, K = {found.largest}"
        words += f"; {len(found.undecided)} left" if found.undecided else ""
    detail = {"proved": found.proved, "undecided": found.undecided, "refuted": found.refuted}
    return Row(module.CLAIM, "proof", "SMT", len(found.proved), None, None, passed, words, found.seconds, detail)


def formal_rows(claims: Sequence[str]) -> Iterator[Row]:
    """What Coq has proved of these claims for all sizes, one row per claim; says so where Coq is not installed."""
    for claim in claims:
        theorems = [one for one in formal.THEOREMS if one.claim == claim]
        if theorems and formal.available():
            yield _formal_row(claim, theorems)
        elif theorems:
            yield Row(claim, "all sizes", "Coq", 0, None, None, True, f"skipped: {formal.INSTALL}", 0.0)


def _formal_row(claim: str, theorems: list[formal.Theorem]) -> Row:
    start = time.perf_counter()
    try:
        proofs = formal.prove(theorems)
    except formal.CoqError as error:
        seconds = time.perf_counter() - start
        return Row(claim, "all sizes", "Coq", 0, None, None, False, "REFUSED", seconds, {"error": str(error)})
    open_ones = [one.theorem.name for one in proofs if not one.holds]
    words = f"RESTS ON AXIOMS: {', '.join(open_ones)}" if open_ones else f"{_theorem_words(theorems)}, no axioms"
    detail = {
        "theorems": [{"file": f"{one.theorem.file}.v", "name": one.theorem.name, "s": one.seconds} for one in proofs]
    }
    seconds = time.perf_counter() - start
    return Row(claim, "all sizes", "Coq", len(proofs), None, None, not open_ones, words, seconds, detail)


def _theorem_words(theorems: list[formal.Theorem]) -> str:
    """The main theorem, its file, and how many more there are."""
    main, *others = theorems
    more = f" and {len(others)} more" if others else ""
    return f"{main.name} ({main.file}.v){more}"
