"""Run the claims, their controls, proofs and searches: ``python -m proofs_check``.

Exit code 0 when every claim holds and every control is refuted; 1 otherwise; 2 for a bad command line; 130 interrupted.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import proofs_check
from alflb.cli._console import progress_bar, reports_errors
from alflb.registry import unknown_name
from proofs_check import formal
from proofs_check._runner import Effort, Row, formal_rows, run_claim

DEEP_SECONDS = 60.0
"""What `--claim` spends without `--budget`."""


def claims() -> list[ModuleType]:
    """Every claim file, C0, C1, ... in order and the law last: public modules of this package, folders left out."""
    found = pkgutil.iter_modules(proofs_check.__path__)
    names = [module.name for module in found if not module.ispkg and not module.name.startswith("_")]
    modules = [importlib.import_module(f"proofs_check.{name}") for name in names]
    return sorted(modules, key=lambda module: int(module.CLAIM[1:]) if module.CLAIM[1:].isdigit() else 99)


_CHOICES = ", ".join(module.CLAIM for module in claims())

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@reports_errors
def main(
    claim: Annotated[
        str | None,
        typer.Option(help=f"Only this claim, for {DEEP_SECONDS:.0f} s unless --budget says otherwise: {_CHOICES}."),
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Time for the whole run, such as 90s, 10m or 1h.")] = None,
    instances: Annotated[
        int | None, typer.Option(min=1, help="Instances of each check, instead of each claim's own number.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the instances.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line instead of a table.")] = False,
    page: Annotated[
        Path | None, typer.Option(metavar="DOCS", help="Also write DOCS/claims.md and its figures from this run.")
    ] = None,
) -> None:
    """Run the claims of the theory, their controls, proofs and searches; exit code 1 unless all is as it must be."""
    chosen = claims() if claim is None else [_claim(claim)]
    spent = None if budget is None else _duration(budget)
    rows = _run(chosen, _effort(seed, instances, spent, len(chosen), deep=claim is not None), quiet=as_json)
    if as_json:
        for row in rows:
            print(json.dumps(row.as_dict()))
    else:
        _print(rows, chosen if claim else [])
    if page:
        from proofs_check._page import write_page

        write_page(page, chosen, rows, _command(spent, seed))
    if not all(row.passed for row in rows):
        raise SystemExit(1)


def _claim(name: str) -> ModuleType:
    """The claim of this name, in whatever case it is written."""
    modules = {module.CLAIM: module for module in claims()}
    if name.upper() not in modules:
        raise unknown_name("claim", name, modules)
    return modules[name.upper()]


def _effort(seed: int, instances: int | None, budget: float | None, count: int, *, deep: bool) -> Effort:
    """Share a budget among the claims; a single claim has one of its own unless its instances are counted."""
    if budget is not None:
        return Effort(seed, instances, budget / count)
    return Effort(seed, instances, DEEP_SECONDS if deep and instances is None else None)


def _command(budget: float | None, seed: int) -> str:
    words = "" if budget is None else f" --budget {budget:.0f}s"
    return f"python -m proofs_check{words} --seed {seed} --page docs"


def _run(chosen: list[ModuleType], effort: Effort, *, quiet: bool) -> list[Row]:
    rows: list[Row] = []
    with progress_bar(quiet=quiet) as progress:
        progress.begin("checking", len(chosen))
        for module in chosen:
            rows.extend(run_claim(module, effort))
            progress.advance(1)
        if len(chosen) > 1:
            rows.extend(formal_rows(formal.OTHER_CLAIMS))
    return rows


def _print(rows: list[Row], deep: list[ModuleType]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 150)
    for module in deep:
        console.print((module.__doc__ or "").strip(), markup=False, highlight=False)
        console.print()
    table = Table("claim", "part", "kind", "instances", "measured", "bound", "slack", "verdict", "seconds", box=None)
    for row in rows:
        table.add_row(
            row.found.claim,
            row.part,
            row.found.statement,
            str(row.found.instances),
            *(number(value) for value in row.numbers),
            row.words,
            f"{row.seconds:.1f}",
        )
    console.print(table)
    for row in rows:
        if row.found.witness and (not row.passed or (deep and row.part in ("check", "sharper", "search"))):
            label = "counterexample" if not row.passed else "worst instance"
            witness = json.dumps(dict(row.found.witness))
            console.print(f"{row.found.claim} {row.part}, {label}: {witness}", markup=False, soft_wrap=True)


def number(value: float | None) -> str:
    """A short number, or nothing."""
    return "" if value is None else f"{value:.4g}"


def _duration(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)?", text.strip())
    if not match or float(match[1]) == 0:
        raise ValueError(f"--budget is {text!r}, which is not a duration; write 90s, 10m or 1h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, None: 1}[match[2]]


if __name__ == "__main__":
    app()
