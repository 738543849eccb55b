"""Every experiment runs at smoke size, draws from its saved rows, resumes, and says what it puts to the test."""

import pytest
from typer.testing import CliRunner

from alflb.io import read_rows
from alflb.sweep import Silent
from experiments import _runner
from experiments.__main__ import app


@pytest.mark.parametrize("name", _runner.experiment_names())
def test_experiment_at_smoke_size(name, tmp_path):
    module = _runner.load(name)
    assert module.CLAIM.endswith(".")
    rows = _runner.run(name, tmp_path, Silent(), smoke=True, seeds=2)
    assert len(rows) >= 2 * len(module.SMOKE)
    assert {row["seed"] for row in rows} == {0, 1}
    assert all(row["commit"] and row["versions"] for row in rows)
    content = (tmp_path / "rows.parquet").read_bytes()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert _runner.run(name, tmp_path, Silent(), smoke=True, seeds=2) == rows
    assert (tmp_path / "rows.parquet").read_bytes() == content
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == stamps
    png, svg = _runner.plot(name, tmp_path)
    assert png.stat().st_size > 1000
    first = png.read_bytes(), svg.read_bytes()
    assert first == tuple(path.read_bytes() for path in _runner.plot(name, tmp_path))


def test_command_line(tmp_path):
    run = CliRunner().invoke
    assert "transfer: " in run(app, ["list"]).stdout
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
