"""``python -m experiments list | run NAME | plot NAME``; results go to ``report/NAME/`` unless told otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alflb.cli import progress_bar, reports_errors
from experiments import _runner

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

FolderOption = Annotated[Path, typer.Option("--out", help="Results go to a folder NAME in here.")]


@app.command("list")
def show() -> None:
    """List all experiments and what they put to the test."""
    for name in _runner.experiment_names():
        print(f"{name}: {_runner.load(name).CLAIM}")


@app.command()
@reports_errors
def run(
    name: str,
    out: FolderOption = Path("report"),
    smoke: Annotated[bool, typer.Option(help="The small grid, in seconds.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions, seeds 0, 1, ...")] = 3,
) -> None:
    """Run an experiment, or what an interruption left of it, and draw its figure."""
    _runner.load(name)
    with progress_bar() as progress:
        _runner.run(name, out / name, progress, smoke=smoke, seeds=seeds)
    print(_runner.plot(name, out / name)[0])


@app.command()
@reports_errors
def plot(name: str, out: FolderOption = Path("report")) -> None:
    """Draw an experiment's figure again from its saved rows."""
    print(_runner.plot(name, out / name)[0])


if __name__ == "__main__":
    app()
