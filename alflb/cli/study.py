"""``alflb study``: the main job, which leaves a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from alflb.cli._arguments import (
    ArrayOption,
    JobsOption,
    JsonOption,
    SchedulerOption,
    SeedOption,
    TopKOption,
    open_trace,
)
from alflb.cli._console import announce_compilation, conclude, err, out, plain, progress_bar, reports_errors

if TYPE_CHECKING:
    from alflb.verdict import Verdict


@reports_errors
def study(
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for rows, figures and report.html.")] = Path(
        "report"
    ),
    trace: Annotated[Path | None, typer.Option(help="Trace file. Default: the shipped trace.")] = None,
    array: ArrayOption = None,
    top_k: TopKOption = None,
    rules: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated, each RULE or RULE:SCHEDULE, e.g. sign,sign:inverse_sqrt. Rules: {rules}. "
            "Schedules: {schedules}."
        ),
    ] = None,
    step_sizes: Annotated[str | None, typer.Option(help="Comma-separated step sizes, e.g. 1e-3,1e-2.")] = None,
    steps: Annotated[
        int | None, typer.Option("--num-steps", "--steps", help="Steps of every run, instead of the defaults.")
    ] = None,
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
    from alflb.studies.study import DEFAULT_ARMS, FULL, SMOKE, Study, run_study

    plan = Study(
        trace=open_trace(trace, array, top_k),
        arms=_parse_arms(rules) if rules else DEFAULT_ARMS,
        step_sizes=_parse_numbers(step_sizes) if step_sizes else None,
        size=SMOKE if smoke else FULL,
        num_steps=steps,
        seed=seed,
        **({} if trace is None else {"name": trace.name}),
    )
    require_writable(out_folder)
    announce_compilation()
    with open_executor(jobs, scheduler, err.print) as executor, progress_bar() as progress:
        result = run_study(plan, out_folder, progress, executor=executor)
    from alflb.studies.report import write_report  # matplotlib is not needed before

    with progress_bar() as progress:
        report = write_report(result, progress)
    if as_json:
        print(report.as_json())
    else:
        _print_checks(report.checks)
        conclude(report.conclusion)
        out.print(f"report: {plain(str(report.path))}", soft_wrap=True, highlight=False)
    if not report.holds:
        raise SystemExit(1)


def _parse_arms(text: str) -> list[tuple[str, str]]:
    """RULE:SCHEDULE, commas between; constant steps where no schedule is named."""
    from alflb.studies.study import default_schedule

    arms = []
    for item in text.split(","):
        rule, _, schedule = item.strip().partition(":")
        arms.append((rule, schedule or default_schedule(rule)))
    return arms


def _parse_numbers(text: str) -> list[float]:
    try:
        return [float(item) for item in text.split(",")]
    except ValueError:
        raise ValueError(f"step sizes are {text!r}; give comma-separated numbers, e.g. 1e-3,1e-2") from None


def _print_checks(checks: list[Verdict]) -> None:
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
            f"{check.measured + 0.0:.1e}",
            f"{check.bound:.0e}",
            verdict,
        )
    out.print(table)
