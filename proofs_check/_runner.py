"""Running claims: every part of a claim becomes one row of the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
    """One line of the table: what one part of a claim found, in numbers and in words."""

    part: str
    """check, control, sharper, witnesses, proof, all sizes or search."""
    found: Verdict
    """Of proofs and witnesses it counts those that fail, against a bound of 0; without instances it was skipped."""
    words: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether it is as it must be: a control has to fail, everything else to hold."""
        return self.found.holds != (self.part == "control")

    @property
    def numbers(self) -> tuple[float | None, float | None, float | None]:
        """Measured, bound and slack; None each if the part was skipped."""
        if not self.found.instances:
            return None, None, None
        return float(self.found.measured), float(self.found.bound), float(self.found.slack)

    def as_dict(self) -> dict[str, Any]:
        """The row in types that JSON knows."""
        measured, bound, slack = self.numbers
        return {
            "claim": self.found.claim,
            "part": self.part,
            "kind": self.found.statement,
            "instances": self.found.instances,
            "measured": measured,
            "bound": bound,
            "slack": slack,
            "passed": self.passed,
            "verdict": self.words,
            "seconds": self.seconds,
            "witness": dict(self.found.witness),
        }


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
    yield _verdict_row("check", lambda: _repeated(module.check, effort, sizes, share))
    yield _verdict_row("control", lambda: module.BROKEN(seed=effort.seed, **sizes))
    if hasattr(module, "sharper"):
        yield _verdict_row("sharper", lambda: _repeated(module.sharper, effort, sizes, share))
    if any(one.claim == module.CLAIM for one in WITNESSES):
        yield _witness_row(module.CLAIM)
    if hasattr(module, "PROOF"):
        yield _proof_row(module, share)
    yield from formal_rows([module.CLAIM])
    if hasattr(module, "tightest"):
        yield _verdict_row("search", lambda: module.tightest(effort.seed, share or QUICK_SEARCH_SECONDS))


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
    return replace(worst, instances=total)


def _verdict_row(part: str, run: Callable[[], Verdict]) -> Row:
    start = time.perf_counter()
    found = run()
    if part == "control":
        words = "NOT REFUTED" if found.holds else "refuted, as it must be"
    else:
        words = ("attained" if found.ratio == 1 else "holds") if found.holds else "REFUTED"
    return Row(part, found, words, time.perf_counter() - start)


def _witness_row(claim: str) -> Row:
    start = time.perf_counter()
    own = [one for one in WITNESSES if one.claim == claim]
    changed = [one.name for one in own if not one.holds]
    found = Verdict(claim, "equality", len(own), len(changed), 0, not changed, {"changed": changed})
    words = f"CHANGED: {', '.join(changed)}" if changed else "as recorded"
    return Row("witnesses", found, words, time.perf_counter() - start)


def _proof_row(module: ModuleType, seconds: float | None) -> Row:
    """The SMT proof; passes over it, saying so, where z3 is not installed."""
    if not _smt.available():
        return _skipped("proof", module.CLAIM, "SMT", "pip install 'alflb[proofs]'")
    cells = QUICK_CELLS if seconds is None else DEEP_CELLS
    smt = _smt.prove(module.CLAIM, module.PROOF, cells=cells, seconds=seconds or QUICK_PROOF_SECONDS)
    if smt.refuted:
        words = f"REFUTED at T, E, K = {smt.refuted[0]}"
    elif not smt.control_refuted:
        words = "CONTROL NOT REFUTED"
    else:
        words = f"all reals, {len(smt.proved)} shapes up to T, E, K = {smt.largest}"
        words += f"; {len(smt.undecided)} left" if smt.undecided else ""
    found = Verdict(
        module.CLAIM,
        "SMT",
        instances=len(smt.proved) + len(smt.refuted),
        measured=len(smt.refuted),
        bound=0,
        holds=bool(smt.proved) and not smt.refuted and smt.control_refuted,
        witness={"proved": smt.proved, "undecided": smt.undecided, "refuted": smt.refuted},
    )
    return Row("proof", found, words, smt.seconds)


def _skipped(part: str, claim: str, kind: str, install: str) -> Row:
    """A part whose prover is not installed."""
    return Row(part, Verdict(claim, kind, 0, 0, 0, True), f"skipped: {install}", 0.0)


def formal_rows(claims: Sequence[str]) -> Iterator[Row]:
    """What Coq has proved of these claims for all sizes, one row per claim; says so where Coq is not installed."""
    for claim in claims:
        theorems = [one for one in formal.THEOREMS if one.claim == claim]
        if theorems and formal.available():
            yield _formal_row(claim, theorems)
        elif theorems:
            yield _skipped("all sizes", claim, "Coq", formal.INSTALL)


def _formal_row(claim: str, theorems: list[formal.Theorem]) -> Row:
    start = time.perf_counter()
    try:
        proofs = formal.prove(theorems)
    except formal.CoqError as error:
        none = Verdict(claim, "Coq", len(theorems), len(theorems), 0, False, {"error": str(error)})
        return Row("all sizes", none, "REFUSED", time.perf_counter() - start)
    open_ones = [one.theorem.name for one in proofs if not one.holds]
    words = f"RESTS ON AXIOMS: {', '.join(open_ones)}" if open_ones else f"{_theorem_words(theorems)}, no axioms"
    files = [{"file": f"{one.theorem.file}.v", "name": one.theorem.name, "s": one.seconds} for one in proofs]
    found = Verdict(claim, "Coq", len(proofs), len(open_ones), 0, not open_ones, {"theorems": files})
    return Row("all sizes", found, words, time.perf_counter() - start)


def _theorem_words(theorems: list[formal.Theorem]) -> str:
    """The main theorem, its file, and how many more there are."""
    main, *others = theorems
    more = f" and {len(others)} more" if others else ""
    return f"{main.name} ({main.file}.v){more}"
