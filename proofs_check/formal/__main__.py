"""Every theorem, and whether its definitions are the library's: ``make proofs``, or ``python -m proofs_check.formal``.

Exit code 0 when every theorem is proved without axioms, no definition differs from the library and no optimum of the
exact solver is refused; 1 otherwise.
"""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from proofs_check import formal
from proofs_check.formal import correspondence

INSTANCES, OPTIMA = 20, 8


def main() -> int:
    """Print one line per theorem."""
    if not formal.available():
        print(f"Coq is not installed; on Debian: {formal.INSTALL}", file=sys.stderr)
        return 1
    try:
        proofs = formal.prove(formal.THEOREMS)
        differences = correspondence.disagreements(seed=0, count=INSTANCES)
        refused = correspondence.refused_optima(seed=0, count=OPTIMA)
    except formal.CoqError as error:
        print(error, file=sys.stderr)
        return 1
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(_table(proofs))
    console.print(f"{INSTANCES} instances evaluated by Coq and by the library: {len(differences)} differences")
    console.print(f"{OPTIMA} optima of the exact solver put to Coq: {len(refused)} refused")
    for line in [*differences, *(f"refused: {one.as_dict()}" for one in refused)]:
        console.print(line, markup=False, soft_wrap=True)
    return 0 if all(one.holds for one in proofs) and not differences and not refused else 1


def _table(proofs: list[formal.Proof]) -> Table:
    table = Table("claim", "proved for all sizes", "theorem", "file", "seconds", "assumptions", box=None)
    for one in proofs:
        theorem = one.theorem
        answer = "none" if one.holds else one.assumptions
        table.add_row(theorem.claim, theorem.says, theorem.name, f"{theorem.file}.v", f"{one.seconds:.1f}", answer)
    return table


if __name__ == "__main__":
    sys.exit(main())
