"""The main job at smoke size: rows, resume, byte-identical reruns, and a report that says what the rows say."""

import json
import re

import numpy as np
import pytest

from alflb import io
from alflb.studies import report
from alflb.studies.claims import run_checks
from alflb.studies.study import DEFAULT_STEP_SIZES, SMOKE, Study, run_study, study_cells
from alflb.studies.sweep import Outcome, cell_key, run_cells
from alflb.traces import RouterTrace

ARMS = [("sign", "constant"), ("proportional", "inverse_sqrt")]


def small_study(**changes):
    return Study(**{"arms": ARMS, "step_sizes": (1e-3, 1e-2), "size": SMOKE, "num_steps": 12, **changes})


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run_study(small_study(), tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def written(result):
    return report.write_report(result)


def test_every_cell_has_a_row_with_provenance(result):
    rows = io.read_rows(result.folder / "rows.parquet")
    assert len(rows) == len(list(study_cells(result.study))) == 3 + (3 + 4) * 4 + 4 + 2 + 2
    for row in rows:
        assert {"commit", "versions", "threads", "machine", "seed", "source_digest"} <= set(row)
        assert row["seed"] == 0


def test_rows_quote_their_runs(result):
    row = result.select(kind="static", source="trace", rule="sign", step_size=1e-2)[0]
    run = result.trajectory(row)
    assert run.num_steps == row["num_steps"] == 12
    assert row["max_vio_final"] == run.load_NE[-1].max() / run.target_E[0] - 1
    assert row["dual_value_best"] == run.series["dual_value"].min()
    assert row["dual_value_best"] >= result.optimum("trace")["lp_value"]


def test_a_rerun_computes_nothing_and_gives_the_same_bytes(result, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in (result.folder / "cells").iterdir()}
    content = (result.folder / "rows.parquet").read_bytes()
    run_study(small_study(), result.folder)
    assert {path: path.stat().st_mtime_ns for path in (result.folder / "cells").iterdir()} == before
    assert (result.folder / "rows.parquet").read_bytes() == content
    run_study(small_study(), tmp_path)  # elsewhere, from nothing
    assert (tmp_path / "rows.parquet").read_bytes() == content


def test_another_seed_or_trace_is_another_cell():
    keys = {cell_key(cell) for cell in study_cells(small_study())}
    assert not keys & {cell_key(cell) for cell in study_cells(small_study(seed=1))}
    other = RouterTrace(np.random.default_rng(0).random((64, 8)), 2)
    assert not keys & {cell_key(cell) for cell in study_cells(small_study(trace=other))}


def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path):
    ran = []

    def run(cell, advance):
        if cell["k"] == 2 and len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(cell["k"])
        advance(0.5)
        return Outcome([{"square": cell["k"] ** 2}], {f"{cell['k']}.txt": b"kept"})

    class Progress:
        done = 0.0

        def begin(self, title, total): ...

        def advance(self, units):
            self.done += units

    cells = [{"k": k} for k in range(4)]
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, run, tmp_path, cost=lambda cell: 1.0, progress=Progress())
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".parquet"] * 2 + [".txt"] * 2
    progress = Progress()
    ran.append("second call")
    rows = run_cells(cells, run, tmp_path, cost=lambda cell: 1.0, progress=progress)
    assert [(row["k"], row["square"]) for row in rows] == [(0, 0), (1, 1), (2, 4), (3, 9)]
    assert ran == [0, 1, "second call", 2, 3]
    assert progress.done == 4.0


def test_report_is_one_file_without_network(written):
    html = written.path.read_text()
    assert html.count("data:image/png;base64,") == 10
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)
    assert "http" not in html
    assert "nan" not in re.sub(r"base64,[^\"]*", "", html).lower().replace("nano", "")
    for name in ("convergence", "heat_map", "bias_paths", "step_sizes_static", "stationarity"):
        for kind in ("png", "svg"):
            assert (written.path.parent / "figures" / f"{name}.{kind}").stat().st_size > 1000


def test_report_says_what_the_rows_say(result, written):
    optimum = result.optimum("trace")
    assert f"MaxVio {report.two_digits(optimum['greedy_max_vio'])}" in written.path.read_text()
    assert written.headline["lp_value"] == optimum["lp_value"]
    assert json.loads(written.as_json())["holds"] is True
    assert written.holds


def test_the_report_has_one_criterion_and_banners(result, written):
    """The best run of the summary is the best one of the table, and nobody takes a smoke report for a result."""
    runs = result.select(kind="static", source="trace")
    assert written.headline["best_max_vio"] == min(row["max_vio_tail"] for row in runs)
    html = written.path.read_text()
    assert html.count(report.SMOKE_BANNER.capitalize()) == 1 + 10
    assert "(end of the grid)" in html
    assert "real trace" not in html


def test_a_trace_is_called_by_its_name(tmp_path):
    trace = RouterTrace(10 * np.random.default_rng(0).random((64, 8)), 2)
    study = small_study(trace=trace, name="mine.npz", step_sizes=None, num_steps=4)
    html = report.write_report(run_study(study, tmp_path)).path.read_text()
    assert "near-optimal on mine.npz?" in html
    assert "shipped" not in html
    assert study.grid("trace") == (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
    assert study.grid("uniform") == DEFAULT_STEP_SIZES


def test_arms_without_a_grid_run_once_per_source(tmp_path):
    """A rule without a step size, and a schedule given as a callable, which is part of the cell."""
    study = small_study(arms=[("qb", "none"), ("sign", decaying)], num_steps=4, step_sizes=None)
    result = run_study(study, tmp_path)
    assert len(result.select(kind="static", source="trace")) == 2
    assert report.write_report(result).holds
    assert len(result.select(rule="sign", schedule="decaying", kind="static")) == 3
    keys = {cell_key(cell) for cell in study_cells(study)}
    other = small_study(
        arms=[("qb", "none"), ("sign", named("decaying", lambda t: 0.2 / t))], num_steps=4, step_sizes=None
    )
    assert {cell_key(cell) for cell in study_cells(other)} != keys
    with pytest.raises(ValueError, match="name each of them once"):
        small_study(arms=[("qb", "none"), ("qb", "constant")], step_sizes=None)


def decaying(t):
    return 0.1 / t


def named(name, function):
    function.__name__ = name
    return function


@pytest.mark.parametrize(
    ("column", "value", "claim"),
    [
        ("identity_residual", 1.0, "C1"),
        ("benefit_min", -1.0, "C1"),
        ("sandwich_margin", -1.0, "C2"),
        ("dual_value_best", 0.0, "weak duality"),
        ("gap_bound_n", [0.0] * 4, "C6"),
        ("affinity_excess_bound_n", [-1.0] * 4, "C6"),
        ("affinity_loss_bound_n", [-1e9] * 4, "C6"),
        ("identity_residual", float("nan"), "C1"),
    ],
)
def test_a_violated_claim_fails_its_check(result, column, value, claim):
    """The checks are not vacuous: spoil one number in one row, and exactly the claim it belongs to fails."""
    index = next(index for index, row in enumerate(result.rows) if row["kind"] == "static")
    rows = list(result.rows)
    points = len(rows[index]["certified_steps"])
    rows[index] = {**rows[index], column: value[:points] if isinstance(value, list) else value}
    failed = [check for check in run_checks(type(result)(result.study, rows, result.folder)) if not check.holds]
    assert [check.claim for check in failed] == [claim]


def test_a_wrong_optimum_fails_the_duality_check(result):
    """The dual value in the rows is measured, so a bias or plan that is not optimal would show."""
    rows = [
        {**row, "lp_upper_bound": row["lp_upper_bound"] + 1.0} if row["kind"] == "optimum" else row
        for row in result.rows
    ]
    failed = [check for check in run_checks(type(result)(result.study, rows, result.folder)) if not check.holds]
    assert [check.claim for check in failed] == ["LP duality"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": []}, "at least one rule"),
        ({"arms": [("sgin", "constant")]}, "did you mean 'sign'"),
        ({"arms": [("sign", "lniear")]}, "did you mean 'linear'"),
        ({"step_sizes": (0.0,)}, "step_sizes is 0.0"),
        ({"num_steps": 1}, "num_steps is 1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "below 2"),
        ({"trace": RouterTrace(np.zeros((1, 2)), 1)}, "at least two tokens"),
    ],
)
def test_bad_studies_are_refused_before_anything_runs(changes, words):
    with pytest.raises(ValueError, match=words):
        small_study(**changes)


@pytest.mark.parametrize(
    "trace",
    [
        RouterTrace(np.random.default_rng(0).random((37, 5)), 2),  # fractional targets, nothing divides anything
        RouterTrace(np.random.default_rng(0).random((40, 4)), 4),  # K = E: balanced whatever the bias
        RouterTrace(np.full((40, 4), 0.5), 1),  # all tied
        RouterTrace(np.random.default_rng(0).random((6, 1)), 1),
    ],
    ids=["fractional", "K = E", "tied", "one expert"],
)
@pytest.mark.filterwarnings("error")
def test_odd_traces_still_give_a_report(trace, tmp_path):
    written = report.write_report(run_study(small_study(trace=trace, num_steps=4), tmp_path))
    assert written.path.exists()
    assert written.holds
