"""Every experiment runs at smoke size, draws from its saved rows, resumes, and says what it puts to the test."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from alflb.io import read_rows
from alflb.studies.sweep import Silent
from alflb.verdict import Finding
from experiments import _pages, _runner
from experiments.__main__ import app
from experiments._marks import marks
from experiments._statistics import mean_interval
from tests._extras import require

ROOT = Path(_runner.__file__).parent.parent


@pytest.mark.parametrize("name", _runner.experiment_names())
def test_experiment_at_smoke_size(name, tmp_path):
    module = _runner.load(name)
    assert module.CLAIM.endswith(".")
    assert module.VERDICT.startswith(("Supported", "Refuted", "Open"))
    for package in getattr(module, "NEEDS", ()):
        require(package)
    rows = _runner.run(name, tmp_path, Silent(), smoke=True, seeds=2)
    assert len(rows) >= 2 * len(module.SMOKE)
    assert {row["seed"] for row in rows} == {0, 1}
    assert all(row["commit"] and row["versions"] for row in rows)
    content = (tmp_path / "rows.parquet").read_bytes()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert _runner.run(name, tmp_path, Silent(), smoke=True, seeds=2) == rows
    assert (tmp_path / "rows.parquet").read_bytes() == content
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == stamps
    found = _runner.findings(name, tmp_path)
    assert found
    assert all(isinstance(finding, Finding) for finding in found)
    png, svg = _runner.plot(name, tmp_path)
    assert png.stat().st_size > 1000
    first = png.read_bytes(), svg.read_bytes()
    assert first == tuple(path.read_bytes() for path in _runner.plot(name, tmp_path))


def test_command_line(tmp_path):
    run = CliRunner().invoke
    listed = " ".join(run(app, ["list"]).stdout.split())
    for name in _runner.experiment_names():
        module = _runner.load(name)
        assert f"{name} claim {module.CLAIM} verdict {module.VERDICT}" in listed
    done = run(app, ["run", "transfer", "--smoke", "--seeds", "1", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "transfer" / "transfer.png").exists()
    missing = run(app, ["plot", "transfer", "--out", str(tmp_path / "nowhere")])
    assert missing.exit_code == 2
    assert "run the experiment first" in missing.stderr
    unknown = run(app, ["run", "transfre", "--out", str(tmp_path)])
    assert unknown.exit_code == 2
    assert "did you mean 'transfer'" in unknown.stderr


def test_text_transfers_worse_than_shuffled_text(tmp_path):
    """The claim of `transfer` at its smoke size."""
    rows = read_after_run("transfer", tmp_path)
    far = {
        order: [r["max_vio_later"] for r in rows if r["order"] == order and r["distance"]]
        for order in ("text", "shuffled")
    }
    assert min(far["text"]) > max(far["shuffled"])


def read_after_run(name, folder):
    _runner.run(name, folder, Silent(), smoke=True, seeds=2)
    return read_rows(folder / "rows.parquet")


def test_report_and_pages(tmp_path):
    with pytest.raises(ValueError, match="holds no results"):
        _pages.write_report(tmp_path)
    read_after_run("transfer", tmp_path / "transfer")
    html = _pages.write_report(tmp_path).read_text()
    assert html.count("data:image/png;base64,") == 1
    assert "the fitted piece itself" in html
    pages = tmp_path / "pages"
    pages.mkdir()
    page = pages / "transfer.md"
    begin, end = marks(_pages.MEASURED)
    page.write_text(f"# before\n{begin}\nold\n{end}\n# after\n")
    assert list(_pages.update_pages(tmp_path, pages)) == [page]
    text = page.read_text()
    assert text.startswith("# before\n")
    assert text.endswith("# after\n")
    assert "old" not in text
    assert "| the fitted piece itself |" in text
    assert (pages / "figures" / "transfer.png").exists()
    page.write_text("no marks")
    with pytest.raises(ValueError, match="must hold the lines"):
        list(_pages.update_pages(tmp_path, pages))


@pytest.mark.parametrize("name", _runner.experiment_names())
def test_every_experiment_has_its_page(name):
    text = (ROOT / "docs" / "experiments" / f"{name}.md").read_text()
    for heading in ("What was asked", "What the theory says", "What was measured", "What to take from it"):
        assert f"## {heading}" in text
    assert [text.count(mark) for mark in marks(_pages.MEASURED)] == [1, 1]


def test_intervals():
    assert str(mean_interval([2.0])) == "2 (one seed)"
    assert str(mean_interval([3.0, 3.0])) == "3"
    estimate = mean_interval([0.9, 1.0, 1.1])
    assert estimate.high - estimate.mean == pytest.approx(4.302653 * 0.1 / 3**0.5)  # t(0.975, 2) = 4.302653
    with pytest.raises(ValueError, match="finite"):
        mean_interval([1.0, float("nan")])
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])
