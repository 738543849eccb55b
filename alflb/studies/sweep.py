"""Running many cells and keeping what they return: resume after an interruption, provenance in every row.

A cell is a plain dict of parameters; running it returns rows. Each finished cell is filed at once, atomically, under
a digest of its parameters and of this package's source. Its file also holds the parameters themselves, the software
that computed it and digests of all that belongs to it. A rerun computes exactly what is missing; a stored cell that
is damaged, belongs to other parameters or was computed by other software counts as missing. Cells run in this process
or on any `concurrent.futures.Executor`; only this process writes files, and rows are the same, bit for bit, either way.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, as_completed
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from alflb.io import (
    Row,
    atomic_write,
    provenance,
    read_labeled_rows,
    require_writable,
    software,
    source_digest,
    write_rows,
)

Cell = Mapping[str, Any]
Advance = Callable[[float], None]


class Outcome(NamedTuple):
    """What a cell leaves behind."""

    rows: Sequence[Row]
    files: Mapping[str, bytes] = {}
    """Whole files to keep beside the rows, by name: the cell may run where our folder is not."""


Measure = Callable[[Cell, Advance], Outcome]


class Progress(Protocol):
    """Where a sweep says how far it is; the command line draws it."""

    def begin(self, title: str, total: float) -> None:
        """A piece of work of `total` units starts."""

    def advance(self, units: float) -> None:
        """So much more of it is done."""


class Silent:
    """Progress that nobody watches."""

    def begin(self, title: str, total: float) -> None:
        """Ignore."""

    def advance(self, units: float) -> None:
        """Ignore."""


def cell_key(cell: Cell) -> str:
    """Name under which a cell's rows are filed: a digest of its parameters and of the package's source."""
    text = json.dumps(dict(cell), sort_keys=True) + source_digest()
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_cells(
    cells: Sequence[Cell],
    run: Measure,
    folder: Path,
    *,
    cost: Callable[[Cell], float],
    progress: Progress,
    executor: Executor | None = None,
) -> list[Row]:
    """Run the cells that are not on file yet and return the rows of all, in the order of `cells`.

    Parameters
    ----------
    cells : sequence of mapping
        Parameters, JSON values only.
    run : callable
        ``run(cell, advance)`` returns the cell's outcome and calls ``advance(units)`` as it goes. For an executor of
        other processes it must be picklable; progress then moves cell by cell.
    folder : Path
        Finished cells are filed here as ``<key>.parquet``.
    cost : callable
        Units of work in a cell, for the estimated time to go.
    progress : Progress
    executor : concurrent.futures.Executor, optional
        Where cells run (`alflb.studies.executors.open_executor`); in this process, one after the other, by default. The
        costliest start first. The workers need the same source of this package, package versions and Python.

    Returns
    -------
    list of dict
        Each row carries its cell's parameters, then what `run` measured, then the provenance.

    Raises
    ------
    OSError
        If the executor is lost on the way. What was finished is on file.
    """
    require_writable(folder)
    paths = [folder / f"{cell_key(cell)}.parquet" for cell in cells]
    stored = {path: _stored_rows(path, cell) for path, cell in zip(paths, cells)}
    missing = {path: cell for path, cell in zip(paths, cells) if stored[path] is None}
    progress.advance(sum(cost(cell) for path, cell in zip(paths, cells) if path not in missing))
    with contextlib.closing(
        _run_here(missing, run, cost, progress) if executor is None else _run_on(executor, missing, run, cost, progress)
    ) as finished:
        for path, outcome in finished:
            stored[path] = _file(path, missing[path], outcome)
    return [row for path in paths for row in stored[path] or ()]


def _run_here(
    missing: Mapping[Path, Cell], run: Measure, cost: Callable[[Cell], float], progress: Progress
) -> Generator[tuple[Path, Outcome], None, None]:
    """Run the missing cells one after the other."""
    for path, cell in missing.items():
        done = _Counter(progress)
        yield path, run(cell, done)
        progress.advance(cost(cell) - done.units)


def _run_on(
    executor: Executor, missing: Mapping[Path, Cell], run: Measure, cost: Callable[[Cell], float], progress: Progress
) -> Generator[tuple[Path, Outcome], None, None]:
    """Send the missing cells out and yield each as it comes back; on any error nothing more is started."""
    costliest_first = sorted(missing.items(), key=lambda item: -cost(item[1]))
    pending = {executor.submit(_run_there, run, cell, software()): (path, cell) for path, cell in costliest_first}
    try:
        for future in as_completed(pending):
            path, cell = pending[future]
            yield path, future.result()
            progress.advance(cost(cell))
    except CancelledError:
        raise OSError(0, "the cluster was lost; what was finished is kept, run again to go on", "scheduler") from None
    except RuntimeError as error:
        if not str(error).startswith("Error during deserialization"):
            raise
        raise ValueError(
            "a worker could not load a cell; install there what is installed here, alflb included"
        ) from None
    finally:
        for future in pending:
            future.cancel()


def _run_there(run: Measure, cell: Cell, wanted: Mapping[str, str]) -> Outcome:
    """Run a cell in another process, if that has the same software as the process that asks."""
    for name, here in software().items():
        if here != wanted[name]:
            raise ValueError(
                f"a worker runs another version ({name}: {here}) than this process ({wanted[name]}); "
                "install the same version on both"
            )
    return run(cell, _ignore)


def _stored_rows(path: Path, cell: Cell) -> list[Row] | None:
    """The rows filed for a cell, or None unless all that belongs to them is exactly as it was written."""
    try:
        rows, label = read_labeled_rows(path)
        files = {name: (path.parent / name).read_bytes() for name in label.get("files", ())}
    except (OSError, ValueError):
        return None
    return rows if json.dumps(label, sort_keys=True) == json.dumps(_label(cell, files), sort_keys=True) else None


def _label(cell: Cell, files: Mapping[str, bytes]) -> Row:
    """What is filed with a cell's rows to recognize them: parameters, software, and digests of the files beside."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return {"cell": dict(cell), "software": software(), "files": digests}


def _file(path: Path, cell: Cell, outcome: Outcome) -> list[Row]:
    """Keep a finished cell: its rows last, since they are what says that it is finished. Returns them as stored."""
    for name, content in outcome.files.items():
        _clear(path.parent / name)
        with atomic_write(path.parent / name) as file:
            file.write(content)
    _clear(path)
    write_rows(path, [{**cell, **row, **provenance()} for row in outcome.rows], _label(cell, outcome.files))
    return read_labeled_rows(path)[0]


def _clear(path: Path) -> None:
    """An empty folder in the place of a file goes; OSError names one that is not empty."""
    if path.is_dir():
        path.rmdir()


def _ignore(units: float) -> None:
    """Progress inside a cell that runs elsewhere."""


class _Counter:
    """Forwards progress and remembers how much a cell has reported itself."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.units = 0.0

    def __call__(self, units: float) -> None:
        self.units += units
        self.progress.advance(units)
