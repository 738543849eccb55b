"""Run the checks and their controls: ``python -m proofs_check [--claim C1] [--instances N] [--seed S] [--json]``.

Exit code 0 when every claim holds and every control fails, as it must; 1 otherwise; 2 for a bad command line.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
import time
from dataclasses import asdict
from types import ModuleType

from rich.console import Console
from rich.progress import track
from rich.table import Table

import proofs_check
from proofs_check._verdict import Verdict


def claims() -> list[ModuleType]:
    """Every claim file: public modules of this package but this one."""
    names = [module.name for module in pkgutil.iter_modules(proofs_check.__path__) if not module.name.startswith("_")]
    return [importlib.import_module(f"proofs_check.{name}") for name in sorted(names)]


def main(arguments: list[str] | None = None) -> int:
    """Print one table of verdicts."""
    modules = {module.CLAIM: module for module in claims()}
    parser = argparse.ArgumentParser(prog="python -m proofs_check", description=proofs_check.__doc__)
    parser.add_argument("--claim", choices=sorted(modules), help="only this claim")
    parser.add_argument("--instances", type=_positive, help="instances of each claim")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    options = parser.parse_args(arguments)
    sizes = {"instances": options.instances} if options.instances else {}
    chosen = [modules[options.claim]] if options.claim else list(modules.values())
    rows = []
    for module in track(chosen, description="checking", console=Console(stderr=True), disable=options.json):
        start = time.perf_counter()
        verdict, control = module.check(seed=options.seed, **sizes), module.BROKEN(seed=options.seed, **sizes)
        rows.append((verdict, control, time.perf_counter() - start))
    if options.json:
        for verdict, control, _ in rows:
            print(json.dumps({**asdict(verdict), "slack": verdict.slack, "control_refuted": not control.holds}))
    else:
        _print_table(rows)
    return 0 if all(verdict.holds and not control.holds for verdict, control, _ in rows) else 1


def _print_table(rows: list[tuple[Verdict, Verdict, float]]) -> None:
    table = Table("claim", "kind", "instances", "measured", "bound", "verdict", "control", "seconds", box=None)
    for verdict, control, seconds in rows:
        table.add_row(
            verdict.claim,
            verdict.kind,
            str(verdict.instances),
            f"{verdict.measured:.6g}",
            f"{verdict.bound:.6g}",
            "holds" if verdict.holds else "REFUTED",
            "NOT REFUTED" if control.holds else "refuted",
            f"{seconds:.1f}",
        )
    console = Console()
    console.print(table)
    for verdict, _, _ in rows:
        if not verdict.holds:
            console.print(f"{verdict.claim} counterexample (units of 1/64): {verdict.witness}")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
