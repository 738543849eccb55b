"""What experiments found, as pages: one HTML report of a results folder, and the measured part of each docs page."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from alflb import __version__
from alflb.io import atomic_write, write_text
from alflb.verdict import Finding
from experiments import _runner
from experiments._marks import write_between

MEASURED = "measured"
"""Name of the marks between which a page holds its table and figure."""


def measured_names(folder: Path) -> list[str]:
    """Experiments with rows in a results folder."""
    names = [name for name in _runner.experiment_names() if (folder / name / "rows.parquet").exists()]
    if not names:
        raise ValueError(f"{folder} holds no results of experiments; run one first: python -m experiments run NAME")
    return names


def write_report(folder: Path) -> Path:
    """Write ``experiments.html``: claims, findings and figures of everything measured, in one file."""
    sections = []
    for name in measured_names(folder):
        rows = _runner.saved_rows(name, folder / name)
        picture, _ = _runner.plot(name, folder / name)
        sections.append(
            {
                "name": name,
                "claim": _runner.load(name).CLAIM,
                "verdict": _runner.load(name).VERDICT,
                "caption": _runner.caption(name),
                "findings": _runner.findings(name, folder / name),
                "figure": base64.b64encode(picture.read_bytes()).decode(),
                "provenance": _provenance_words(rows),
            }
        )
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=select_autoescape(["j2"]))
    page = folder / "experiments.html"
    write_text(page, environment.get_template("_report.html.j2").render(sections=sections, version=__version__))
    return page


def update_pages(folder: Path, pages: Path) -> Iterator[Path]:
    """Write table and figure of each measured experiment between the two marks of its page ``NAME.md``."""
    for name in measured_names(folder):
        page = pages / f"{name}.md"
        if not page.exists():
            continue
        picture, _ = _runner.plot(name, folder / name)
        _copy(picture, pages / "figures" / f"{name}.png")
        write_between(page, MEASURED, _measured_block(name, folder / name))
        yield page


def _measured_block(name: str, folder: Path) -> str:
    rows = _runner.saved_rows(name, folder)
    module = _runner.load(name)
    lines = [
        f"![Figure of the experiment {name}. {module.VERDICT}](figures/{name}.png)",
        "",
        *_markdown_table(_runner.findings(name, folder)),
        "",
        f"*{_provenance_words(rows)}*",
    ]
    return "\n".join(lines)


def _markdown_table(findings: Sequence[Finding]) -> Iterator[str]:
    yield "| looked at | expected | measured [95% interval over seeds] | supported |"
    yield "|---|---|---|---|"
    for finding in findings:
        cells = (*finding[:3], finding.supported)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _provenance_words(rows: Sequence[dict[str, object]]) -> str:
    row = rows[0]
    seeds = len({row["seed"] for row in rows})
    packages = ", ".join(f"{name} {version}" for name, version in json.loads(str(row["versions"])).items())
    return f"{len(rows)} rows, {seeds} seeds; source {row['source_digest']}; Python {row['python']}, {packages}."


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, atomic_write(target) as writer:
        shutil.copyfileobj(reader, writer)
