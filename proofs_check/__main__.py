"""Run the claims, their controls, proofs and searches: ``python -m proofs_check``.

Exit code 0 when every claim holds and every control is refuted; 1 otherwise; 2 for a bad command line; 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import re
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import proofs_check
from proofs_check import formal
from proofs_check._runner import Effort, Row, formal_rows, run_claim

DEEP_SECONDS = 60.0
"""What `--claim` spends without `--budget`."""


def claims() -> list[ModuleType]:
    """Every claim file, C0 to C10 and the law last: public modules of this package, folders left out."""
    found = pkgutil.iter_modules(proofs_check.__path__)
    names = [module.name for module in found if not module.ispkg and not module.name.startswith("_")]
    modules = [importlib.import_module(f"proofs_check.{name}") for name in names]
    return sorted(modules, key=lambda module: int(module.CLAIM[1:]) if module.CLAIM[1:].isdigit() else 99)


def main(arguments: list[str] | None = None) -> int:
    """Print one table; see ``--help``."""
    modules = {module.CLAIM: module for module in claims()}
    options = _parser(list(modules)).parse_args(arguments)
    chosen = [modules[options.claim]] if options.claim else list(modules.values())
    seconds = options.budget / len(chosen) if options.budget else DEEP_SECONDS if options.claim else None
    if options.instances and not options.budget:
        seconds = None
    effort = Effort(options.seed, options.instances, seconds)
    try:
        rows = _run(chosen, effort, quiet=options.json)
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    if options.json:
        for row in rows:
            print(json.dumps({**asdict(row), "slack": row.slack}))
    else:
        _print(rows, chosen if options.claim else [])
    if options.page:
        from proofs_check._page import write_page

        write_page(options.page, chosen, rows, _command(options))
    return 0 if all(row.passed for row in rows) else 1


def _parser(names: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m proofs_check", description=proofs_check.__doc__)
    parser.add_argument(
        "--claim",
        type=str.upper,
        choices=names,
        help=f"only this claim, for {DEEP_SECONDS:.0f} s unless --budget says otherwise",
    )
    parser.add_argument("--budget", type=_duration, help="time for the whole run, such as 90s, 10m or 1h")
    parser.add_argument(
        "--instances", type=_positive, help="instances of each check instead of each claim's own number"
    )
    parser.add_argument("--seed", type=_natural, default=0, help="chooses the instances")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    parser.add_argument(
        "--page", type=Path, metavar="DOCS", help="also write DOCS/claims.md and its figures from this run"
    )
    return parser


def _command(options: argparse.Namespace) -> str:
    budget = f" --budget {options.budget:.0f}s" if options.budget else ""
    return f"python -m proofs_check{budget} --seed {options.seed} --page docs"


def _run(chosen: list[ModuleType], effort: Effort, *, quiet: bool) -> list[Row]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    rows: list[Row] = []
    with Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True) as progress:
        task = progress.add_task("checking", total=len(chosen))
        for module in chosen:
            progress.update(task, description=f"{module.CLAIM} {module.TITLE}")
            rows.extend(run_claim(module, effort))
            progress.advance(task)
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
            row.claim,
            row.part,
            row.kind,
            str(row.instances),
            *(number(value) for value in (row.measured, row.bound, row.slack)),
            row.verdict,
            f"{row.seconds:.1f}",
        )
    console.print(table)
    for row in rows:
        if row.detail and (not row.passed or (deep and row.part in ("check", "sharper", "search"))):
            label = "counterexample" if not row.passed else "worst instance"
            console.print(f"{row.claim} {row.part}, {label}: {json.dumps(row.detail)}", markup=False, soft_wrap=True)


def number(value: float | None) -> str:
    """A short number, or nothing."""
    return "" if value is None else f"{value:.4g}"


def _duration(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)?", text.strip())
    if not match or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration; write 90s, 10m or 1h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, None: 1}[match[2]]


def _positive(text: str) -> int:
    return _whole(text, 1)


def _natural(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= {least}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
