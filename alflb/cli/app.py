"""The command line. Results go to standard output, progress and errors to standard error.

Exit codes: 0 ok, 1 a check failed or no certified optimum, 2 bad input or an unusable file, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    import numpy as np

    from alflb.exact import AssignmentSolution
    from alflb.streams import Stream
    from alflb.traces import LoadTrace, RouterTrace

P = ParamSpec("P")
R = TypeVar("R")

out = Console()
err = Console(stderr=True)

app = typer.Typer(
    name="alflb",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="""Auxiliary-loss-free load balancing of Mixture-of-Experts routers, held against the exact optimum.

Start with `alflb study`: it needs no input and leaves a report. TRACE arguments are .npz files in alflb's trace
format, any .npz together with --array, or a .npy of shape (tokens, experts).

Exit codes: 0 ok, 1 a check failed, 2 bad input, 130 interrupted.""",
)

TraceArgument = Annotated[
    Path | None, typer.Argument(help="Trace file. Default: the real router trace that ships with alflb.")
]
JobsOption = Annotated[int, typer.Option(min=1, help="Run cells in so many processes (extra: cluster).")]
SchedulerOption = Annotated[
    str | None, typer.Option(help="Run cells on this Dask cluster, e.g. tcp://host:8786 (extra: cluster).")
]
ArrayOption = Annotated[str | None, typer.Option(help="Which array of a foreign .npz holds the scores.")]
TopKOption = Annotated[
    int | None, typer.Option(help="Experts per token. Default: what the trace says; 8 for synthetic streams.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Chooses the tokens of random streams.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


def main() -> None:
    """Entry point of the ``alflb`` command."""
    try:
        app()
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn what users can cause into one line and an exit code; anything else is a bug and shows its traceback."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        from alflb.exact import SolverError

        try:
            return command(*args, **kwargs)
        except SolverError as error:
            _fail(str(error), 1)
        except (ValueError, OverflowError) as error:
            _fail(str(error), 2)
        except BrokenPipeError:  # the reader of our output went away; typer ends the program quietly
            raise
        except OSError as error:
            _fail(f"{error.filename or 'file'}: {error.strerror or error}", 2)
        except MemoryError:
            _fail("out of memory; use fewer tokens or steps", 2)
        except KeyboardInterrupt:
            _fail("interrupted; finished work is kept where an output folder was given", 130)

    return guarded


def _fail(message: str, code: int) -> NoReturn:
    err.print(f"[bold red]error:[/] {_plain(message)}", highlight=False, soft_wrap=True)
    raise SystemExit(code)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Show the version when asked; the commands do the rest."""
    if version:
        from alflb import __version__

        print(__version__)
        raise typer.Exit


@app.command()
@reports_errors
def study(
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for rows, figures and report.html.")] = Path(
        "report"
    ),
    trace: Annotated[Path | None, typer.Option(help="Trace file. Default: the shipped real trace.")] = None,
    array: ArrayOption = None,
    top_k: TopKOption = None,
    rules: Annotated[
        str | None, typer.Option(help="Comma-separated rules, each RULE or RULE:SCHEDULE, e.g. sign,sign:inverse_sqrt.")
    ] = None,
    step_sizes: Annotated[str | None, typer.Option(help="Comma-separated step sizes, e.g. 1e-3,1e-2.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of every run, instead of the defaults.")] = None,
    seed: SeedOption = 0,
    smoke: Annotated[bool, typer.Option(help="Tiny sizes: every path in seconds, numbers without meaning.")] = False,
    jobs: JobsOption = 1,
    scheduler: SchedulerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Trace and synthetic streams x rules x step sizes, against the exact optimum: leaves a report.

    An interrupted study goes on where it stopped when the same command is given again.
    """
    from alflb.io import require_writable
    from alflb.studies.executors import open_executor
    from alflb.studies.study import DEFAULT_ARMS, DEFAULT_STEP_SIZES, FULL, SMOKE, Study, run_study

    plan = Study(
        trace=_open_trace(trace, array, top_k),
        arms=_parse_arms(rules) if rules else DEFAULT_ARMS,
        step_sizes=_parse_numbers(step_sizes) if step_sizes else DEFAULT_STEP_SIZES,
        size=SMOKE if smoke else FULL,
        num_steps=steps,
        seed=seed,
    )
    require_writable(out_folder)
    with open_executor(jobs, scheduler, err.print) as executor, progress_bar() as progress:
        result = run_study(plan, out_folder, progress, executor=executor)
    from alflb.studies.report import write_report  # matplotlib is not needed before

    with progress_bar() as progress:
        report = write_report(result, progress)
    if as_json:
        print(report.as_json())
    else:
        _print_checks(report.checks)
        out.print(f"report: {report.path}", soft_wrap=True, highlight=False)
    if not report.holds:
        raise SystemExit(1)


@app.command()
@reports_errors
def simulate(
    trace: TraceArgument = None,
    stream: Annotated[
        str, typer.Option(help="Score stream, e.g. trace, gumbel or drift; a wrong name lists all.")
    ] = "trace",
    order: Annotated[str, typer.Option(help="Order of a trace's tokens: text or shuffled.")] = "text",
    static: Annotated[bool, typer.Option("--static", help="Repeat the first batch at every step.")] = False,
    array: ArrayOption = None,
    tokens: Annotated[int, typer.Option(help="Tokens per batch.")] = 2048,
    experts: Annotated[int, typer.Option(help="Experts of a synthetic stream.")] = 64,
    top_k: TopKOption = None,
    rule: Annotated[
        str, typer.Option(help="Balancing rule, e.g. sign or proportional; a wrong name lists all.")
    ] = "sign",
    step_size: Annotated[float, typer.Option(help="Step size u, score units per step.")] = 1e-3,
    schedule: Annotated[
        str, typer.Option(help="Step-size schedule, e.g. constant or inverse_sqrt; a wrong name lists all.")
    ] = "constant",
    warm_up: Annotated[int, typer.Option(help="Steps of linear warm-up.")] = 0,
    steps: Annotated[int, typer.Option(help="Number of steps N.")] = 1000,
    seed: SeedOption = 0,
    backend: Annotated[str, typer.Option(help="Kernels: numba, torch, torch:cuda, or reference (slow).")] = "numba",
    out_file: Annotated[Path | None, typer.Option("--out", help="Save the run (.npz): biases, loads, series.")] = None,
    as_json: JsonOption = False,
) -> None:
    """One run of ALF-LB on a trace or a synthetic stream, summarised."""
    import alflb
    from alflb.io import require_writable
    from alflb.rules import RULES

    if out_file:
        require_writable(out_file.parent)
    source, picks = _make_stream(stream, trace, array, top_k, tokens, experts, order)
    if static:
        source = alflb.Static(next(source.batches(seed)))
    steps_by = alflb.make_schedule(schedule, step_size, steps, warm_up=warm_up)
    balancer = alflb.make_rule(rule, steps_by if RULES.get(rule).takes_schedule else None)
    with progress_bar() as progress:
        progress.begin("simulating", steps)
        run = alflb.simulate(
            source,
            balancer,
            top_k=picks,
            num_steps=steps,
            seed=seed,
            backend=backend,
            observers=alflb.make_observers("affinity"),
            on_step=lambda t: progress.advance(1),
        )
    facts = {"rule": repr(balancer), "stream": type(source).__name__, "top_k": picks, "num_tokens": source.num_tokens}
    facts |= {**alflb.summary(run, tail=max(1, steps // 5)), "affinity_final": float(run.series["affinity"][-1])}
    if run.meta["static"]:
        cycle = alflb.find_cycle(run)
        facts["cycle"] = cycle._asdict() if cycle else None
    if out_file:
        run.save(out_file)
    _print_facts(facts, as_json, "Run")


@app.command()
@reports_errors
def solve(
    trace: TraceArgument = None,
    top_k: TopKOption = None,
    array: ArrayOption = None,
    method: Annotated[str, typer.Option(help="Solver: auto, or one by name; a wrong name lists all.")] = "auto",
    out_file: Annotated[Path | None, typer.Option("--out", help="Save bias_E, value and the plan (.npz).")] = None,
    as_json: JsonOption = False,
) -> None:
    """The exact optimum of balanced top-K assignment, with the certificate that proves it."""
    from alflb.cli.describe import describe_solution
    from alflb.exact import recertify, solve_exact
    from alflb.io import require_writable
    from alflb.problem import AssignmentProblem

    if out_file:
        require_writable(out_file.parent)
    opened = _open_trace(trace, array, top_k)
    problem = AssignmentProblem(opened.scores_TE, opened.top_k)
    with _spinner(f"solving {problem.num_tokens} x {problem.num_experts}, top-{problem.top_k}"):
        solution = recertify(problem, solve_exact(problem, method=method))
    if out_file:
        _save_solution(out_file, solution)
    _print_facts(describe_solution(problem, solution), as_json, "Certified optimum")


@app.command()
@reports_errors
def advise(
    batch_tokens: Annotated[int, typer.Option(help="Tokens whose loads one bias update sees, all ranks together.")],
    trace: TraceArgument = None,
    array: ArrayOption = None,
    top_k: TopKOption = None,
    steps: Annotated[int | None, typer.Option(help="Length of the run, for a first phase where one is needed.")] = None,
    excess: Annotated[
        float, typer.Option(help="Accepted rise of MaxVio over the sampling floor, a share of it.")
    ] = 0.05,
    as_json: JsonOption = False,
) -> None:
    """Recommend a step size for the sign rule from a sample of a router's scores (default: the shipped trace)."""
    from alflb.advice import advise as recommend

    sample = _open_trace(trace, array, top_k)
    with _spinner("solving the sample exactly"):
        advice = recommend(sample.scores_TE, sample.top_k, batch_tokens=batch_tokens, num_steps=steps, excess=excess)
    facts: dict[str, Any] = {
        "step_size": advice.step_size,
        "max_vio": advice.max_vio,
        "max_vio_floor": advice.max_vio_floor,
        "arrival_steps": advice.arrival_steps,
        "first_step_size": advice.first_step_size,
        "first_steps": advice.first_steps,
        "bias_distance": advice.bias_distance,
        "stiffest_mode": float(advice.curvatures[-1]),
        "softest_mode": float(advice.curvatures[0]),
    }
    _print_facts(facts, as_json, f"sign rule, batches of {batch_tokens:,} tokens")


@app.command()
@reports_errors
def inspect(
    trace: TraceArgument = None, array: ArrayOption = None, top_k: TopKOption = None, as_json: JsonOption = False
) -> None:
    """What is in a trace: shapes, score histogram, ties at the top-K boundary, load at bias 0."""
    from alflb.cli.describe import describe_loads, describe_trace
    from alflb.traces import LoadTrace, read_trace
    from alflb.traces.format import read_arrays

    if trace is not None and array is None and "loads" in read_arrays(trace):
        opened = read_trace(trace)
        assert isinstance(opened, LoadTrace)
        _print_facts(describe_loads(opened), as_json, str(trace))
        return
    scores = _open_trace(trace, array, top_k)
    facts = describe_trace(scores)
    _print_facts(facts, as_json, str(trace or "shipped trace"))
    if not as_json:
        _print_histogram(scores.scores_TE)


@app.command()
@reports_errors
def convert(
    source: Annotated[Path, typer.Argument(help="A .npz or .npy file with router data.")],
    target: Annotated[Path, typer.Argument(help="The trace file to write (.npz).")],
    top_k: Annotated[int, typer.Option(help="Experts per token.")],
    array: Annotated[str | None, typer.Option(help="Array to convert: scores, load counts or chosen experts.")] = None,
    kind: Annotated[str, typer.Option(help="What the array holds: scores, loads or experts.")] = "scores",
    bias_array: Annotated[str | None, typer.Option(help="Array with the bias in force (scores only).")] = None,
    layer: Annotated[int | None, typer.Option(help="Layer: index on the middle axis of a 3-D array of loads.")] = None,
    experts: Annotated[int | None, typer.Option(help="Number of experts (needed for chosen experts).")] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens per batch, to count chosen experts.")] = None,
    meta: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for the metadata, repeatable: score_function=sigmoid")
    ] = None,
) -> None:
    """Turn foreign router data into a trace file."""
    from alflb.registry import unknown_name
    from alflb.traces import convert_loads, convert_scores, write_trace

    metadata = _parse_metadata(meta or [])
    made: RouterTrace | LoadTrace
    if kind == "scores":
        made = convert_scores(source, array=array, top_k=top_k, bias_array=bias_array, metadata=metadata)
    elif kind == "loads":
        made = convert_loads(source, array=array, top_k=top_k, layer=layer, metadata=metadata)
    elif kind == "experts":
        if experts is None:
            raise ValueError("kind 'experts' needs --experts, the number of experts of the model")
        made = convert_loads(
            source,
            array=array,
            top_k=top_k,
            layer=layer,
            num_experts=experts,
            batch_tokens=batch_tokens,
            metadata=metadata,
        )
    else:
        raise unknown_name("kind", kind, ("scores", "loads", "experts"))
    write_trace(target, made)
    out.print(f"wrote {target}", soft_wrap=True, highlight=False)


@app.command()
@reports_errors
def doctor(as_json: JsonOption = False) -> None:
    """What this installation is and what it lacks; exit code 1 if something that alflb needs is not in order."""
    from alflb.cli.doctor import examine

    found = examine()
    if as_json:
        print(json.dumps([item._asdict() for item in found]))
    else:
        _print_facts(
            {item.name: item.state if item.fit else f"NOT IN ORDER: {item.state}" for item in found}, False, ""
        )
    if not all(item.fit for item in found):
        raise SystemExit(1)


def _open_trace(path: Path | None, array: str | None, top_k: int | None) -> RouterTrace:
    from dataclasses import replace

    from alflb.traces import load_router_trace, open_scores

    if path is not None:
        return open_scores(path, array=array, top_k=top_k)
    if array is not None:
        raise ValueError("--array needs a file to look in; give a TRACE")
    shipped = load_router_trace()
    return shipped if top_k is None else replace(shipped, top_k=top_k)


def _make_stream(
    name: str, path: Path | None, array: str | None, top_k: int | None, tokens: int, experts: int, order: str
) -> tuple[Stream, int]:
    """The stream a command line describes, and its top-k."""
    from alflb.streams import make_stream

    if name == "trace":
        trace = _open_trace(path, array, top_k)
        return make_stream("trace", trace=trace, num_tokens=tokens, order=order), trace.top_k
    if path is not None:
        raise ValueError(f"stream {name!r} is synthetic; leave out the trace file, or use --stream trace")
    return make_stream(name, num_tokens=tokens, num_experts=experts), 8 if top_k is None else top_k


def _parse_arms(text: str) -> list[tuple[str, str]]:
    arms = []
    for item in text.split(","):
        rule, _, schedule = item.strip().partition(":")
        arms.append((rule, schedule or "constant"))
    return arms


def _parse_numbers(text: str) -> list[float]:
    try:
        return [float(item) for item in text.split(",")]
    except ValueError:
        raise ValueError(f"step sizes are {text!r}; give comma-separated numbers, e.g. 1e-3,1e-2") from None


def _parse_metadata(items: list[str]) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise ValueError(f"--meta is {item!r}; write KEY=VALUE")
        with contextlib.suppress(json.JSONDecodeError):
            metadata[key] = json.loads(value)
            continue
        metadata[key] = value
    return metadata


def _save_solution(path: Path, solution: AssignmentSolution) -> None:
    import numpy as np

    from alflb.io import atomic_write

    plan = solution.plan
    assert plan is not None  # only problems read in batches have none
    with atomic_write(path) as file:
        np.savez_compressed(
            file,
            value=solution.value,
            bias_E=solution.bias_E,
            plan_indptr=plan.indptr,
            plan_experts=plan.indices,
            plan_amounts=plan.data,
        )


def _print_facts(facts: dict[str, Any], as_json: bool, title: str) -> None:
    if as_json:
        print(json.dumps(facts))
        return
    table = Table(title=_plain(title), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if not isinstance(value, list):
            table.add_row(name, _plain(_words(value)))
    out.print(table)


def _words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.10g}"
    return str(value)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _print_histogram(scores_TE: np.ndarray[Any, Any]) -> None:
    import numpy as np

    values = scores_TE[np.isfinite(scores_TE)]
    counts, edges = np.histogram(values, bins=16)
    out.print("\nscores")
    for count, low in zip(counts, edges):
        bar = "█" * round(40 * int(count) / int(counts.max()))
        out.print(f"  {low:10.4g}  {bar} {count}", highlight=False)


def _print_checks(checks: list[Any]) -> None:
    table = Table(title="Checks", title_justify="left", box=None, pad_edge=False)
    table.add_column("claim", no_wrap=True)
    table.add_column("statement", overflow="fold")
    for name in ("instances", "worst excess", "allowed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for check in checks:
        verdict = "[green]holds[/]" if check.holds else "[bold red]FAILS[/]"
        table.add_row(
            check.claim,
            check.statement,
            str(check.instances),
            f"{check.worst + 0.0:.1e}",
            f"{check.limit:.0e}",
            verdict,
        )
    out.print(table)


class _Bar:
    """A rich progress bar with time to go, as `alflb.studies.sweep.Progress` wants it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def begin(self, title: str, total: float) -> None:
        self._progress.reset(self._task, total=total, description=title)

    def advance(self, units: float) -> None:
        self._progress.advance(self._task, units)


@contextlib.contextmanager
def progress_bar() -> Iterator[_Bar]:
    """A progress bar on standard error, with time to go, for work that reports units done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=err) as progress:
        yield _Bar(progress)


@contextlib.contextmanager
def _spinner(title: str) -> Iterator[None]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        progress.add_task(title, total=None)
        yield


if __name__ == "__main__":
    main()
