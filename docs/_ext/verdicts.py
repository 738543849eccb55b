"""``{verdicts} C4``: what the last published run of `proofs_check` says about a claim, and its formal statements."""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import proofs_check
from proofs_check.formal import THEOREMS


class Verdicts(SphinxDirective):
    """The rows of the published table that belong to one claim, and where its check stands."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Take the table's head and the claim's rows, and let MyST render them."""
        claim = self.arguments[0]
        page = Path(self.env.srcdir) / "claims.md"
        self.env.note_dependency(str(page))
        rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
        head = next(row for row in rows if row.startswith("| claim | part"))
        own = [row for row in rows if row.startswith(f"| {claim} |") and row.count("|") == head.count("|")]
        if not own:
            raise self.error(f"docs/claims.md has no verdicts on {claim}")
        table = [_without_ends(head), "|---" * (head.count("|") - 3) + "|", *map(_without_ends, own)]
        text = f"Check: `proofs_check/{_file_of(claim)}`, run by `python -m proofs_check --claim {claim}`."
        if any(theorem.claim == claim for theorem in THEOREMS):
            text += f" [Formal statements](#formal-{claim})."
        return self.parse_text_to_nodes(text + "\n\n" + "\n".join(table))


def _without_ends(row: str) -> str:
    """Leave out the first column, which repeats the claim, and the last, seconds."""
    return "|" + "|".join(row.split("|")[2:-2]) + "|"


def _file_of(claim: str) -> str:
    folder = Path(proofs_check.__path__[0])
    (path,) = folder.glob(f"{claim.lower()}_*.py")
    return path.name


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("verdicts", Verdicts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
