"""Figures open in full size on a click or tap: Sphinx links an image to its file if the image has a width."""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx


def widen(app: Sphinx, document: nodes.document) -> None:
    """Give every image that is no link yet the width of its column."""
    for image in document.findall(nodes.image):
        if not isinstance(image.parent, nodes.reference) and "sd-card-img-top" not in image["classes"]:
            image.setdefault("width", "100%")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the step."""
    app.connect("doctree-read", widen)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
