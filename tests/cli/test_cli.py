"""The command line as a user meets it: what it prints, its exit codes, and every error in one line."""

import json
import os
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import pytest
import typer
from _processes import restore_interrupts
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from typer.testing import CliRunner

import alflb
from alflb.cli import describe
from alflb.cli.app import app
from alflb.exact import method_names
from alflb.traces import LoadTrace, RouterTrace, write_trace

SCORES = np.random.default_rng(0).random((16, 4))
SMALL_STUDY = ["study", "--smoke", "--steps", "3", "--rules", "sign", "--step-sizes", "1e-2"]


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "trace.npz"
    write_trace(path, RouterTrace(SCORES, 2, np.array([0.1, 0.0, -0.1, 0.0]), {"model": "toy"}))
    return path


def only_error(result, code=2):
    """The single line an error must be."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def test_version(run):
    assert run("--version").stdout.strip() == alflb.__version__


@pytest.mark.parametrize("command", sorted(typer.main.get_command(app).commands))
def test_help_explains_every_option(run, command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert command in run("--help").stdout


def test_help_lists_what_can_be_chosen(run):
    words = " ".join(run("simulate", "--help").stdout.replace("│", " ").split())
    for names in (alflb.rule_names(), alflb.stream_names(), alflb.schedule_names(), alflb.backend_names()):
        assert ", ".join(names) in words
    assert "{" not in words
    assert ", ".join(method_names()) in " ".join(run("solve", "--help").stdout.replace("│", " ").split())


CONCLUSIONS = [
    (["simulate", "--stream", "gumbel", "--tokens", "256", "--experts", "4", "--top-k", "1"], "of which 0.1"),
    (["simulate", "--static", "--tokens", "64", "--step-size", "0.5"], "none of it is sampling"),
    (["solve"], "Certified: there is a balanced plan worth 69692.9134 score units"),
    (["advise", "--batch-tokens", "2048"], "Use the sign rule with u = 0.00097"),
    (["verify", "--tokens", "64", "--steps", "50"], "All bounds hold, but C4, C5"),
    (["regret", "--stream", "gumbel", "--tokens", "32", "--experts", "8", "--steps", "9"], "In 9 steps the rule lost"),
    (["schedules"], "Use one by --schedule NAME"),
    (["inspect"], "Without a bias the busiest expert takes 3.95 times its share, with the bias in force 2.41 times."),
    (["doctor"], "Everything that alflb needs is in order."),
]


@pytest.mark.parametrize(
    ("arguments", "sentence"), CONCLUSIONS, ids=lambda value: value[0] if isinstance(value, list) else ""
)
def test_a_command_ends_with_a_sentence_to_act_on(run, arguments, sentence):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert sentence in " ".join(result.stdout.split("\n\n")[-1].split())


def test_verify_marks_what_is_vacuous_and_fails_with_exit_code_1(run, monkeypatch):
    rows = json.loads(run("verify", "--tokens", "64", "--steps", "50", "--json").stdout)
    assert [row["claim"] for row in rows] == ["C1", "C2", "C4", "C5", "C6"]
    assert all(row["holds"] for row in rows)
    assert "wider than L" in rows[2]["vacuous"]
    monkeypatch.setattr(alflb.bounds, "gap_bound", lambda *widths: 0.0)
    failed = run("verify", "--tokens", "64", "--steps", "50")
    assert failed.exit_code == 1
    assert "C6 FAILED" in failed.stdout


def test_regret_and_schedules_draw_figures(run, tmp_path):
    done = run(
        "regret", "--stream", "gumbel", "--tokens", 32, "--experts", 8, "--steps", 9, "--figure", tmp_path / "r.png"
    )
    assert done.exit_code == 0, done.output
    assert run("schedules", "--plot", tmp_path / "s").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.png", "r.svg", "s.png", "s.svg"]


UNUSED = [
    (["simulate", "--experts", "8"], "--num-experts"),
    (["simulate", "--seed", "1"], "--seed"),
    (["simulate", "--stream", "gumbel", "--order", "text"], "--order"),
    (["simulate", "--stream", "gumbel", "--array", "a"], "--array"),
    (["simulate", "--rule", "qb", "--step-size", "1"], "--step-size"),
    (["simulate", "--rule", "none", "--schedule", "linear"], "--schedule"),
    (["simulate", "--rule", "exact", "--warm-up", "3"], "--warm-up"),
    (["regret", "--experts", "8"], "--num-experts"),
    (["verify", "--rule", "bip", "--step-size", "1"], "--step-size"),
]


@pytest.mark.parametrize(("arguments", "option"), UNUSED, ids=lambda value: " ".join(value))
def test_an_option_without_an_effect_is_an_error(run, arguments, option):
    assert f"{option} has no effect" in only_error(run(*arguments))


def test_solve_prints_the_certificate(run, trace):
    solution = alflb.solve_exact(alflb.AssignmentProblem(SCORES, 2))
    facts = json.loads(run("solve", trace, "--json").stdout)
    assert facts["value"] == pytest.approx(solution.value)
    assert facts["gap"] == pytest.approx(0.0, abs=1e-9)
    assert facts["residual_load"] == 0.0
    table = run("solve", trace).stdout
    assert "Certified optimum" in table
    assert f"{solution.value:.6f}"[:6] in table


def test_solve_saves_bias_and_plan(run, trace, tmp_path):
    assert run("solve", trace, "--method", "highs", "--out", tmp_path / "s.npz").exit_code == 0
    with np.load(tmp_path / "s.npz") as archive:
        saved = dict(archive)
    assert saved["bias_E"].shape == (4,)
    assert saved["plan_experts"].size == 32
    assert alflb.dual_value(alflb.AssignmentProblem(SCORES, 2), saved["bias_E"]) == pytest.approx(float(saved["value"]))


def test_solve_takes_foreign_files(run, tmp_path):
    np.savez(tmp_path / "foreign.npz", a=SCORES, b=np.zeros(3))
    facts = json.loads(run("solve", tmp_path / "foreign.npz", "--array", "a", "--top-k", "1", "--json").stdout)
    assert facts["num_tokens"] == 16


def test_inspect_trace_and_loads(run, trace, tmp_path):
    facts = json.loads(run("inspect", trace, "--json").stdout)
    assert (facts["num_tokens"], facts["num_experts"], facts["top_k"], facts["model"]) == (16, 4, 2, "toy")
    assert sum(facts["load_bias_0"]) == 32
    assert facts["boundary_ties"] == 0
    assert "scores" in run("inspect", trace).stdout
    write_trace(tmp_path / "loads.npz", LoadTrace(np.array([[3, 1], [2, 2]]), 1))
    facts = json.loads(run("inspect", tmp_path / "loads.npz", "--json").stdout)
    assert facts["max_vio_batch_mean"] == 0.25
    assert facts["max_vio_global"] == 0.25


def test_a_folder_of_layers_is_described_layer_by_layer(run, tmp_path):
    """Layers in the order of their numbers; the one that stands out is named, by each command in its own terms."""
    for layer in (10, 2, 1):
        scores = np.random.default_rng(layer).random((400, 4))
        scores[:, 0] += 1.0 if layer == 10 else 0.0
        write_trace(tmp_path / f"layer{layer}.npz", RouterTrace(scores, 2, metadata={"layer": layer}))
    (tmp_path / "notes.txt").write_text("not a trace")
    for command in (["inspect"], ["solve"], ["advise", "--batch-tokens", 64]):
        facts = json.loads(run(*command, tmp_path, "--json").stdout)
        assert list(facts["layers"]) == ["layer1.npz", "layer2.npz", "layer10.npz"]
        shown = run(*command, tmp_path).stdout
        assert f"worst layer: {facts['worst']}" in shown
        if command[0] != "advise":
            assert facts["worst"] == "layer10.npz"
        alone = json.loads(run(*command, tmp_path / "layer2.npz", "--json").stdout)
        assert facts["layers"]["layer2.npz"] == alone
    steps = {name: one["step_size"] for name, one in facts["layers"].items()}
    assert facts["worst"] == min(steps, key=steps.get)
    assert "not a folder" in only_error(run("solve", tmp_path, "--out", tmp_path / "o.npz"))


def test_inspect_counts_ties_at_the_boundary(run, tmp_path):
    np.save(tmp_path / "tied.npy", np.array([[1.0, 1.0, 0.0], [1.0, 0.5, 0.5], [1.0, 1.0, 1.0]]))
    ties = [
        json.loads(run("inspect", tmp_path / "tied.npy", "--top-k", k, "--json").stdout)["boundary_ties"]
        for k in (1, 2, 3)
    ]
    assert ties == [2, 2, 0]


def test_simulate_reports_and_saves_the_run(run, tmp_path):
    path = tmp_path / "run.npz"
    result = run(
        "simulate",
        "--stream",
        "gumbel",
        "--tokens",
        64,
        "--experts",
        4,
        "--top-k",
        1,
        "--steps",
        5,
        "--out",
        path,
        "--json",
    )
    facts = json.loads(result.stdout)
    saved = alflb.Trajectory.load(path)
    assert facts["num_steps"] == saved.num_steps == 5
    assert facts["max_vio_final"] == pytest.approx(saved.load_NE[-1].max() / 16 - 1)
    static = json.loads(run("simulate", "--tokens", 64, "--static", "--step-size", 0.5, "--steps", 80, "--json").stdout)
    assert static["cycle"] is None or static["cycle"]["period"] >= 1


def test_convert_then_inspect(run, tmp_path):
    np.savez(tmp_path / "raw.npz", s=SCORES.astype(np.float16), p=np.zeros(4))
    done = run(
        "convert", tmp_path / "raw.npz", tmp_path / "t.npz", "--array", "s", "--bias-array", "p", "--top-k", 2,
        "--meta", "score_function=sigmoid", "--meta", "layer=3",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    facts = json.loads(run("inspect", tmp_path / "t.npz", "--json").stdout)
    assert (facts["score_function"], facts["layer"]) == ("sigmoid", 3)


def test_study_leaves_a_report_and_resumes(run, tmp_path):
    first = run(*SMALL_STUDY, "--out", tmp_path / "r", "--json")
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["holds"] is True
    assert (tmp_path / "r" / "report.html").exists()
    second = run(*SMALL_STUDY, "--out", tmp_path / "r")
    assert second.exit_code == 0
    assert "report.html" in second.stdout


def test_study_exits_1_when_a_check_fails(run, tmp_path, monkeypatch):
    from alflb.studies import report
    from alflb.verdict import Verdict

    failing = Verdict.of("C1", "spoiled", measured=1.0, bound=0.0)
    monkeypatch.setattr(report, "run_checks", lambda result: [failing])
    result = run(*SMALL_STUDY, "--out", tmp_path / "r")
    assert result.exit_code == 1
    assert "FAILS" in result.stdout


BAD = [
    (["solve", "missing.npz"], "does not exist"),
    (["solve", "ints.npy", "--top-k", "1"], "dtype int64"),
    (["solve", "nan.npy", "--top-k", "1"], "holds nan at token 0, expert 1"),
    (["solve", "ok.npy"], "--top-k"),
    (["solve", "ok.npy", "--top-k", "9"], "top_k is 9 but there are 4 experts"),
    (["solve", "ok.npy", "--top-k", "0"], "top_k is 0"),
    (["solve", "ok.npy", "--top-k", "1", "--method", "higs"], "did you mean 'highs'"),
    (["solve", "object.npy", "--top-k", "1"], "pickled"),
    (["solve", "truncated.npz"], "cannot be read"),
    (["solve", "foreign.npz"], "name one of its arrays"),
    (["solve", "foreign.npz", "--array", "c", "--top-k", "1"], "no array 'c'"),
    (["solve", "--array", "c"], "give a TRACE"),
    (["solve", "empty"], "holds no .npz or .npy files"),
    (["inspect", "empty"], "holds no .npz or .npy files"),
    (["simulate", "empty"], "is a folder"),
    (["solve", "ok.npy", "--top-k", "1", "--out", "ok.npy/x.npz"], "Not a directory"),
    (["inspect", "text.npz"], "cannot be read"),
    (["simulate", "--rule", "sing"], "did you mean 'sign'"),
    (["simulate", "--stream", "gumble"], "did you mean 'gumbel'"),
    (["simulate", "--schedule", "constnat"], "did you mean 'constant'"),
    (["simulate", "--backend", "cuda"], "unknown backend"),
    (["simulate", "--order", "txt"], "did you mean 'text'"),
    (["simulate", "--step-size", "nan"], "step_size is nan"),
    (["simulate", "--step-size", "-1"], "step_size is -1"),
    (["simulate", "--steps", "0"], "num_steps is 0"),
    (["simulate", "--tokens", "99999"], "the trace has 16384 tokens"),
    (["simulate", "ok.npy", "--stream", "gumbel"], "leave out the trace file"),
    (["simulate", "--steps", "2", "--out", "ok.npy/x.npz"], "Not a directory"),
    (["convert", "foreign.npz", "o.npz", "--array", "b", "--top-k", "1"], "2-D"),
    (["convert", "foreign.npz", "o.npz", "--array", "a", "--top-k", "1", "--kind", "scroes"], "did you mean 'scores'"),
    (["convert", "foreign.npz", "o.npz", "--array", "a", "--top-k", "1", "--kind", "experts"], "--experts"),
    (["convert", "foreign.npz", "o.npz", "--array", "a", "--top-k", "1", "--meta", "x"], "KEY=VALUE"),
    (["study", "--out", "ok.npy/r"], "Not a directory"),
    (["study", "--rules", "sing"], "did you mean 'sign'"),
    (["study", "--rules", "sign:linaer"], "did you mean 'linear'"),
    (["study", "--step-sizes", "1e-3;1e-2"], "comma-separated"),
    (["study", "--step-sizes", "-1"], "step_sizes is -1"),
    (["study", "--steps", "1"], "num_steps is 1"),
    (["study", "--seed", str(10**25)], "below 2"),
    (["simulate", "--steps", str(10**14)], "out of memory"),
]


@pytest.mark.parametrize(
    ("arguments", "words"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_gets_one_line_and_exit_code_2(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    np.save("ok.npy", SCORES)
    np.save("ints.npy", np.arange(12).reshape(3, 4))
    np.save("nan.npy", np.array([[1.0, np.nan]]))
    np.save("object.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez("foreign.npz", a=SCORES, b=np.zeros(3))
    (tmp_path / "truncated.npz").write_bytes((tmp_path / "foreign.npz").read_bytes()[:200])
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    assert words in only_error(run(*arguments))
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_infeasible_is_exit_code_1(run, tmp_path):
    scores = SCORES.copy()
    scores[:, 0] = -np.inf
    np.save(tmp_path / "s.npy", scores)
    assert "balanced assignment" in only_error(run("solve", tmp_path / "s.npy", "--top-k", 1), code=1)


def command(*arguments):
    return [sys.executable, "-m", "alflb.cli.app", *map(str, arguments)]


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT and limits file sizes, as POSIX systems can")
class TestInterruptions:
    """Real processes, really interrupted."""

    def test_ctrl_c_leaves_whole_files_and_the_study_goes_on(self, tmp_path):
        arguments = command("study", "--smoke", "--out", tmp_path / "r", "--steps", "150")
        cells = tmp_path / "r" / "cells"
        with subprocess.Popen(
            arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, preexec_fn=restore_interrupts
        ) as process:
            for _ in range(3600):  # compiling for the first time takes a while
                if cells.exists() and len(list(cells.glob("*.parquet"))) >= 4:
                    break
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        assert "error: interrupted" in errors
        assert "Traceback" not in errors
        assert not list(tmp_path.rglob("*.tmp"))
        finished = {path: path.stat().st_mtime_ns for path in cells.glob("*.parquet")}
        assert len(finished) >= 4
        assert not (tmp_path / "r" / "report.html").exists()
        subprocess.run(arguments, check=True, capture_output=True)
        assert {path: path.stat().st_mtime_ns for path in finished} == finished
        assert (tmp_path / "r" / "report.html").exists()

    def test_a_full_disk_is_one_line_and_no_half_file(self, tmp_path):
        """A limit on file sizes stands in for a full disk: the system refuses the write in the same way."""
        arguments = ["alflb", *SMALL_STUDY, "--out", str(tmp_path / "r")]
        limited = (
            "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
            f"sys.argv = {arguments!r}; runpy.run_module('alflb.cli.app', run_name='__main__')"
        )
        done = subprocess.run([sys.executable, "-B", "-c", limited], capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert "error: " in done.stderr
        assert "File too large" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(tmp_path.rglob("*.tmp"))
        assert not (tmp_path / "r" / "report.html").exists()


@settings(max_examples=60, deadline=None)
@given(
    scores=hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        st.tuples(st.integers(1, 12), st.integers(1, 5)),
        elements=st.one_of(st.floats(-4, 4, width=32), st.sampled_from([0.0, 0.5, -1e30, 1e30, -np.inf])),
    )
)
def test_score_facts_are_those_of_all_finite_scores(scores):
    """Whatever chunks the scores are looked at in, the facts are those that numpy finds in one go."""
    finite = scores[scores > -np.inf].astype(np.float64)
    assume(finite.size > 0)
    with mock.patch.object(describe, "_CHUNK", 7):
        facts = describe._score_facts(scores)
    assert facts["score_min"] == finite.min()
    assert facts["score_max"] == finite.max()
    assert facts["score_median"] == np.median(finite)
    assert facts["forbidden_pairs"] == scores.size - finite.size


def test_advise_from_a_log_says_that_the_step_was_too_large(run, tmp_path):
    log = tmp_path / "run.npz"
    size = ["--stream", "logistic", "--batch-tokens", "1024", "--num-experts", "8", "--top-k", "2", "--steps", "200"]
    assert run("simulate", *size, "--step-size", "0.2", "--out", str(log)).exit_code == 0
    advised = run("advise", "--log", str(log))
    assert advised.exit_code == 0
    assert "The steps were too large" in " ".join(advised.stdout.split())
    (facts,) = json.loads(run("advise", "--log", str(log), "--json").stdout).values()
    value, low, high = facts["factor_for_sign_step_size"]
    assert 0 <= low <= value <= high < 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "--batch-tokens is missing"),
        (["--log", "run.npz", "--excess", "0.1"], "--excess has no effect with --log"),
        (["--log", "run.npz", "--array", "scores"], "--array has no effect with --log"),
        (["--batch-tokens", "64", "--loads", "*tokens*"], "--loads has no effect without --log"),
        (["--log", "no_such_run.npz"], "no_such_run.npz"),
    ],
)
def test_advise_refuses_what_it_cannot_use(run, arguments, line):
    refused = run("advise", *arguments)
    assert refused.exit_code == 2
    assert line in refused.stderr
