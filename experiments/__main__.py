"""``python -m experiments list | run NAME | plot NAME | report``; results go to ``report/NAME/`` by default."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from alflb.cli._arguments import JobsOption, SchedulerOption
from alflb.cli._console import err, plain, progress_bar, reports_errors
from alflb.cli._console import out as console
from alflb.studies.executors import open_executor
from alflb.verdict import Finding
from experiments import _pages, _runner

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

FolderOption = Annotated[Path, typer.Option("--out", help="Results go to a folder NAME in here.")]


@app.command("list")
def show() -> None:
    """List all experiments: what each puts to the test, and what came of it."""
    for name in _runner.experiment_names():
        module = _runner.load(name)
        console.print(
            f"[bold]{name}[/]\n  claim    {plain(module.CLAIM)}\n  verdict  {plain(module.VERDICT)}", highlight=False
        )


@app.command()
@reports_errors
def run(
    names: Annotated[list[str], typer.Argument(help="Names from the list, or 'all'.")],
    out: FolderOption = Path("report"),
    smoke: Annotated[bool, typer.Option(help="The small grid, in seconds.")] = False,
    seeds: Annotated[int | None, typer.Option(min=1, help="Repetitions, seeds 0, 1, ...; default: its own.")] = None,
    jobs: JobsOption = 1,
    scheduler: SchedulerOption = None,
) -> None:
    """Run experiments, or what an interruption left of them; print what they found and draw their figures."""
    chosen = _runnable() if names == ["all"] else names
    for name in chosen:
        _runner.load(name)
    with open_executor(jobs, scheduler, err.print) as executor:
        for name in chosen:
            with progress_bar() as progress:
                _runner.run(name, out / name, progress, smoke=smoke, seeds=seeds, executor=executor)
            _print_findings(name, _runner.findings(name, out / name))
            if smoke:
                console.print("(smoke size: it shows that everything runs; its few repetitions judge nothing)")
            print(_runner.plot(name, out / name)[0])


@app.command()
@reports_errors
def plot(name: str, out: FolderOption = Path("report")) -> None:
    """Draw an experiment's figure again from its saved rows, and print what they say."""
    picture, _ = _runner.plot(name, out / name)
    _print_findings(name, _runner.findings(name, out / name))
    print(picture)


@app.command()
@reports_errors
def report(
    out: FolderOption = Path("report"),
    pages: Annotated[
        Path | None, typer.Option(help="Also write the measured tables and figures into the pages of this folder.")
    ] = None,
) -> None:
    """One page, ``experiments.html``, with every experiment that has rows on file."""
    print(_pages.write_report(out))
    if pages is not None:
        for page in _pages.update_pages(out, pages):
            print(page)


def _runnable() -> list[str]:
    """All experiments but those whose packages are not installed; says which it leaves out."""
    lacking = {name: _runner.missing_packages(name) for name in _runner.experiment_names()}
    for name, packages in lacking.items():
        if packages:
            err.print(f"{name} is left out: it needs {', '.join(packages)}", markup=False)
    return [name for name, packages in lacking.items() if not packages]


def _print_findings(name: str, findings: Sequence[Finding]) -> None:
    module = _runner.load(name)
    table = Table(title=f"{name}: {module.CLAIM}", caption=f"At full size: {module.VERDICT}", title_justify="left")
    for heading in ("looked at", "expected", "measured [95% interval over seeds]", "supported"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        table.add_row(finding.statement, finding.expected, finding.measured, finding.supported)
    console.print(table, markup=False)


if __name__ == "__main__":
    app()
