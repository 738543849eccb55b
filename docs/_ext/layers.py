"""``{layers}``: the table of the package's layers, from docs/layers.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Layers(SphinxDirective):
    """One row per layer: its number, its modules, what they are for."""

    def run(self) -> list[nodes.Node]:
        """Write the table in Markdown, and let MyST render it."""
        source = Path(self.env.srcdir) / "layers.toml"
        self.env.note_dependency(str(source))
        lines = ["| layer | modules | what they are for |", "|---|---|---|"]
        for number, layer in enumerate(tomllib.loads(source.read_text(encoding="utf-8"))["layer"], start=1):
            modules = ", ".join(f"`{name}`" for name in layer["modules"])
            lines.append(f"| {number} | {modules} | {layer['job']} |")
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("layers", Layers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
