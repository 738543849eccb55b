"""What every command line here writes with: results on standard output, progress and errors on standard error.

Exit codes: 0 ok, 1 a check failed or no certified optimum, 2 bad input or an unusable file, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
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

if not os.environ.get("COLUMNS", "80").strip("0"):  # what a terminal without a size says
    del os.environ["COLUMNS"]

out = Console(emoji=False)
err = Console(stderr=True, emoji=False)


def run_app(app: Callable[[], None]) -> NoReturn:
    """Run a typer app as the whole program, on whatever standard output there is.

    Characters that the output cannot encode are written as escapes; an output that cannot be written, a full disk for
    example, is one line of error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _exit_code(app)
        sys.stdout.flush()
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer has nowhere to go
        if isinstance(error, BrokenPipeError):  # the reader of our output went away
            raise SystemExit(1) from None
        fail(f"standard output: {error.strerror or error}", 2)
    raise SystemExit(code)


def _exit_code(app: Callable[[], None]) -> Any:
    try:
        app()
    except SystemExit as ending:
        return ending.code
    return 0


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
        except MemoryError as error:
            fail(f"out of memory ({error}); use fewer tokens or steps", 2)
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


def print_facts(
    facts: dict[str, Any], as_json: bool, title: str, units: Mapping[str, str] | None = None, conclusion: str = ""
) -> None:
    """Print named facts as a table with units, and what follows from them; or as one JSON object.

    Lists are for the JSON object only. The table rounds to four digits, the JSON object does not.
    """
    if as_json:
        print_json(facts)
        return
    table = Table(title=plain(title), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if not isinstance(value, list):
            unit = f" {units[name]}" if units and name in units and value is not None else ""
            table.add_row(plain(name), plain(in_words(value)) + unit)
    out.print(table)
    conclude(conclusion)


def conclude(sentence: str) -> None:
    """Print the sentence that a reader can act on, below what it follows from."""
    if sentence:
        out.print(f"\n[bold]{plain(sentence)}[/]", highlight=False)


def print_json(value: Any) -> None:
    """Print a value as one line of JSON; numbers that JSON does not have, infinities and NaN, become null."""
    print(json.dumps(_finite(value), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def in_words(value: Any) -> str:
    """A fact as a table shows it."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:,.1f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
    return str(value)


def plain(text: str) -> str:
    """Text on one line that rich prints as it stands: no markup, and control characters as escapes."""
    return escape("".join(sign if sign.isprintable() else _escaped(sign) for sign in text))


def _escaped(sign: str) -> str:
    return " " if sign.isspace() else sign.encode("unicode_escape").decode()


class _Bar:
    """A rich progress bar with time to go, as `alflb.studies.sweep.Progress` wants it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def begin(self, title: str, total: float) -> None:
        self._progress.reset(self._task, total=total, description=title)

    def advance(self, units: float) -> None:
        self._progress.advance(self._task, units)


def announce_compilation() -> None:
    """Say once, on standard error, why the first run on a machine takes longer."""
    from alflb.cli.doctor import compiled_kernels

    if compiled_kernels() == 0:
        err.print("compiling the kernels, once per machine and version: 15 to 60 seconds", highlight=False)


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
