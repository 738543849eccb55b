"""``{experiments}``: one card per experiment page, with figure, claim and verdict; and the code, below each page."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FOLDER = "experiments"
"""Where the pages are, below docs/, and where the code is, below the root."""

_CARD = """\
:::{{grid-item-card}} {name}
{picture}:link: {name}
:link-type: doc

{question}

{claim}

{verdict}
:::
"""

_CODE = """

:::{{dropdown}} The code, `experiments/{name}.py`
```{{literalinclude}} ../../experiments/{name}.py
:language: python
```
:::
"""


class Page(NamedTuple):
    """How the page of an experiment begins."""

    name: str
    question: str
    claim: str
    verdict: str

    @classmethod
    def read(cls, path: Path) -> Page:
        """Take the title, ``# name: question``, and the first two paragraphs, the claim and the verdict."""
        title, claim, verdict, *_ = path.read_text(encoding="utf-8").split("\n\n", 3)
        return cls(path.stem, title.partition(": ")[2], claim, verdict)


def read_pages(folder: Path) -> list[Page]:
    """All experiment pages of a folder, by name."""
    return [Page.read(path) for path in sorted(folder.glob("*.md")) if path.stem != "index"]


class Experiments(SphinxDirective):
    """The cards."""

    def run(self) -> list[nodes.Node]:
        """Write the grid in Markdown, and let MyST render it."""
        folder = Path(self.env.srcdir) / FOLDER
        cards = []
        for page in read_pages(folder):
            self.env.note_dependency(str(folder / f"{page.name}.md"))
            picture = f"figures/{page.name}.png"
            shown = f":img-top: {picture}\n:img-alt: Figure of {page.name}\n" if (folder / picture).exists() else ""
            cards.append(_CARD.format(picture=shown, **page._asdict()))
        return self.parse_text_to_nodes("::::{grid} 1 1 2 2\n" + "\n".join(cards) + "\n::::")


def append_code(app: Sphinx, docname: str, text: list[str]) -> None:
    """Put the experiment's source below its page."""
    folder, _, name = docname.rpartition("/")
    if folder == FOLDER and (Path(app.srcdir).parent / FOLDER / f"{name}.py").exists():
        text[0] += _CODE.format(name=name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive, and the code below each page."""
    app.add_directive("experiments", Experiments)
    app.connect("source-read", append_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
