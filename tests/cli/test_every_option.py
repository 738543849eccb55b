"""Every option of every command either changes what comes out or is refused in one line: drawn in combination."""

import json
from unittest import mock

import numpy as np
import pytest
import typer
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import alflb
from alflb import plotting
from alflb.cli import training
from alflb.cli.app import app
from alflb.studies import executors, study
from alflb.traces import LoadTrace, write_trace

RNG = np.random.default_rng(0)
SCORES = RNG.random((512, 8)).astype(np.float32)
SCORES[:, 0] += 0.4

STREAM = {
    "--stream": ("gumbel", "drift"),
    "--order": ("shuffled", "batches"),
    "--batch-tokens": ("32",),
    "--num-experts": ("16",),
    "--top-k": ("3",),
    "--seed": ("7",),
}
RULE = {
    "--rule": ("proportional", "none", "self_tuning", "exact"),
    "--step-size": ("0.05",),
    "--schedule": ("linear", "inverse_sqrt"),
    "--warm-up": ("5",),
}
FOREIGN = {"TRACE": ("t.npz", "foreign.npz", "group.npz", "layers"), "--array": ("a", "scores"), "--top-k": ("3",)}
"""Options of each command, with values other than the defaults; TRACE stands for the argument."""
OPTIONS = {
    "simulate": {
        "TRACE": ("t.npz", "foreign.npz"),
        "--array": ("a", "scores"),
        "--static": ("",),
        "--out": ("run_out.npz",),
        **STREAM,
        **RULE,
    },
    "regret": {"TRACE": ("t.npz", "foreign.npz"), "--array": ("a", "scores"), "--figure": ("fig",), **STREAM, **RULE},
    "verify": {**FOREIGN, "--batch-tokens": ("64",), **RULE},
    "solve": {**FOREIGN, "--method": ("highs",), "--out": ("solved.npz",)},
    "inspect": {**FOREIGN, "TRACE": ("t.npz", "foreign.npz", "group.npz", "layers", "l.npz")},
    "advise": {
        **FOREIGN,
        "--batch-tokens": ("64",),
        "--num-steps": ("100", "100000"),
        "--excess": ("0.5",),
        "--log": ("log.npz",),
        "--loads": ("tokens",),
        "--bias": ("offset",),
    },
    "schedules": {"--step-size": ("0.05",), "--num-steps": ("50",), "--plot": ("plotted",)},
    "convert": {
        "--array": ("ids", "loads", "deep"),
        "--kind": ("loads", "experts"),
        "--bias-array": ("bias",),
        "--padding-array": ("padding",),
        "--layer": ("1",),
        "--num-experts": ("8",),
        "--batch-tokens": ("64",),
        "--ignore": ("7",),
        "--meta": ("model=toy",),
    },
    "diagnose": {
        "--batch-tokens": ("99",),
        "--top-k": ("3",),
        "--experts": ("5",),
        "--ranks": ("2",),
        "--loads": ("tokens",),
        "--bias": ("offset",),
    },
    "capture": {"--tokens": ("30",), "--length": ("8",)},
    "study": {
        "--trace": ("t.npz", "foreign.npz", "group.npz"),
        "--array": ("a", "scores"),
        "--top-k": ("3",),
        "--rules": ("sign,proportional:linear", "self_tuning", "none"),
        "--step-sizes": ("1e-3,1e-2",),
        "--num-steps": ("7",),
        "--seed": ("7",),
        "--smoke": ("",),
        "--jobs": ("2",),
        "--scheduler": ("tcp://nowhere:1",),
    },
    "doctor": {},
}
FIXED = {
    "simulate": ["--batch-tokens", "64", "--num-steps", "12", "--json"],
    "regret": ["--batch-tokens", "64", "--num-steps", "6", "--json"],
    "verify": ["--num-steps", "12", "--json"],
    "solve": ["--json"],
    "inspect": ["--json"],
    "advise": ["--batch-tokens", "32"],
    "schedules": ["--json"],
    "convert": ["foreign.npz", "converted.npz", "--array", "a", "--top-k", "2"],
    "diagnose": ["log.npz"],
    "capture": ["model", "--text", "text.txt", "--out", "captured"],
    "study": ["--out", "study"],
    "doctor": [],
}
SAME_NUMBERS = {"--backend", "--streaming", "--json"}
"""They change how a number is found or shown, not which."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of every kind that a command takes."""
    folder = tmp_path_factory.mktemp("options")
    write_trace(folder / "t.npz", alflb.RouterTrace(SCORES, 2))
    write_trace(folder / "group.npz", alflb.RouterTrace(SCORES, 2, metadata={"n_group": 4, "topk_group": 2}))
    write_trace(folder / "l.npz", LoadTrace(np.array([[3, 1], [2, 2]]), 1))
    (folder / "layers").mkdir()
    for layer in (1, 2):
        write_trace(folder / "layers" / f"{layer}.npz", alflb.RouterTrace(SCORES[: 256 * layer], 2))
    ids = np.argsort(SCORES, axis=1)[:, -2:]
    np.savez(
        folder / "foreign.npz",
        a=SCORES,
        scores=SCORES[:, ::-1],
        deep=np.stack([SCORES, SCORES + RNG.random(8)]),
        bias=RNG.random(8),
        padding=np.arange(512) % 3 == 0,
        ids=ids,
        loads=np.bincount(ids.ravel(), minlength=8)[None],
    )
    run = alflb.simulate(SCORES, "sign", top_k=2, num_steps=40)
    metadata = json.dumps({"format": "alflb-trace", "version": 1, "top_k": 2})
    np.savez(folder / "log.npz", metadata=np.array(metadata), loads=run.load_NE, bias=run.bias_NE)
    (folder / "text.txt").write_text("a" * 40)
    return folder


class Planned(Exception):
    """A study got as far as its first cell; carries what would be run, and where."""


def _plan(plan, folder, progress, executor):
    raise Planned(plan.name, list(study.study_cells(plan)), plan.trace.scores_TE.sum(), executor)


def _executor(jobs, scheduler, announce):
    if scheduler is not None and jobs > 1:
        raise ValueError("jobs and scheduler have no effect together")
    return mock.MagicMock(__enter__=lambda self: (jobs, scheduler))


def _save(figure, path):
    """Drawing takes seconds; that a figure is asked for is enough."""
    path.with_name(f"{path.name}.png").write_text(str(len(figure.axes)))
    return [path.with_name(f"{path.name}.png")]


def _captured(network, sequences):
    """Traces whose scores tell which sequences were run."""
    shown = [[float(ids.shape[1]), 1.0] for ids in sequences]
    return {"layer": alflb.RouterTrace(np.array(shown), 1, metadata={"score_function": "none"})}


def _tokenizer(text, add_special_tokens):
    return {"input_ids": list(range(len(text)))}


def outcome(folder, command, chosen):
    """Exit code, what was printed, and what was written by a command with these options."""
    positional = [chosen["TRACE"]] if "TRACE" in chosen else []
    options = [word for name, value in chosen.items() if name != "TRACE" for word in (name, value) if word]
    before = set(folder.rglob("*"))
    with (
        mock.patch("alflb.traces.load_router_trace", return_value=alflb.RouterTrace(SCORES[::-1] ** 2, 2)),
        mock.patch.object(plotting, "save_figure", _save),
        mock.patch.object(study, "run_study", _plan),
        mock.patch.object(executors, "open_executor", _executor),
        mock.patch.object(training, "_load", return_value=(None, _tokenizer)),
        mock.patch("alflb.training.capture", _captured, create=True),
    ):
        done = CliRunner().invoke(app, [command, *positional, *FIXED[command], *options])
    written = {}
    for path in sorted(set(folder.rglob("*")) - before, reverse=True):
        relative = path.relative_to(folder).as_posix()
        written[relative] = path.read_bytes() if path.is_file() else b""
        path.unlink() if path.is_file() else path.rmdir()
    return done, written


def printed(done):
    """What a command says, but for how it calls the rule it was asked for."""
    if isinstance(done.exception, Planned):
        return repr(done.exception.args)
    try:
        facts = json.loads(done.stdout)
    except ValueError:
        return done.stdout
    return {name: fact for name, fact in facts.items() if name != "rule"} if isinstance(facts, dict) else facts


def refusal(done):
    """The one line of a refusal; None if the command went through."""
    if isinstance(done.exception, Planned) or done.exit_code in (0, 1):
        return None
    assert done.exit_code == 2, (done.output, done.exception)
    assert "Traceback" not in done.output
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def test_all_options_are_drawn():
    """A new option cannot be forgotten here."""
    commands = typer.main.get_command(app).commands
    assert set(commands) == set(OPTIONS)
    for name, command in commands.items():
        drawn = {*OPTIONS[name], *FIXED[name], *SAME_NUMBERS, "--help"}
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert drawn & set(parameter.opts), f"{name}: {parameter.opts}"


@st.composite
def cases(draw):
    """A command, a combination of its options, and one option more."""
    command = draw(st.sampled_from(sorted(name for name in OPTIONS if OPTIONS[name])))
    names = draw(st.lists(st.sampled_from(sorted(OPTIONS[command])), min_size=1, max_size=5, unique=True))
    return command, {name: draw(st.sampled_from(OPTIONS[command][name])) for name in names}, names[-1]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_an_option_changes_something_or_is_refused(folder, monkeypatch, case):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(folder)
    command, chosen, probed = case
    without, written_without = outcome(folder, command, {n: v for n, v in chosen.items() if n != probed})
    assume(refusal(without) is None)
    done, written = outcome(folder, command, chosen)
    note(f"{command} {chosen}, probed {probed}: {done.output}")
    if refusal(done) is None:
        assert (printed(done), written) != (printed(without), written_without)
