"""What every command line here writes with: results on standard output, progress and errors on standard error.

Exit codes: 0 ok, 1 a check failed or no certified optimum, 2 bad input or an unusable file, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
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

P = ParamSpec("P")
R = TypeVar("R")

out = Console()
err = Console(stderr=True)


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn what users can cause into one line and an exit code; anything else is a bug and shows its traceback."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        from alflb.exact import SolverError

        try:
            return command(*args, **kwargs)
        except SolverError as error:
            fail(str(error), 1)
        except (ValueError, OverflowError) as error:
            fail(str(error), 2)
        except BrokenPipeError:  # the reader of our output went away; typer ends the program quietly
            raise
        except OSError as error:
            fail(f"{error.filename or 'file'}: {error.strerror or error}", 2)
        except MemoryError:
            fail("out of memory; use fewer tokens or steps", 2)
        except KeyboardInterrupt:
            fail("interrupted; finished work is kept where an output folder was given", 130)

    return guarded


def run_program(command: Callable[..., None]) -> None:
    """Run one function as a whole program: its arguments are the options, its docstring the help."""
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    program.command()(reports_errors(command))
    program()


def fail(message: str, code: int) -> NoReturn:
    """End the program with one line on standard error."""
    err.print(f"[bold red]error:[/] {plain(message)}", highlight=False, soft_wrap=True)
    raise SystemExit(code)


def print_facts(facts: dict[str, Any], as_json: bool, title: str) -> None:
    """Print named facts as a table, or as one JSON object; lists are for the JSON object only."""
    if as_json:
        print(json.dumps(facts))
        return
    table = Table(title=plain(title), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if not isinstance(value, list):
            table.add_row(name, plain(_words(value)))
    out.print(table)


def _words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.10g}"
    return str(value)


def plain(text: str) -> str:
    """Text that rich prints as it stands, square brackets included."""
    return escape(text)


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
def progress_bar(*, quiet: bool = False) -> Iterator[_Bar]:
    """A progress bar on standard error, with time to go, for work that reports units done; `quiet` hides it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=err, disable=quiet) as progress:
        yield _Bar(progress)


@contextlib.contextmanager
def spinner(title: str) -> Iterator[None]:
    """Show that work goes on whose length is not known."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        progress.add_task(title, total=None)
        yield
