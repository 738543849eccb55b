"""Running many cells and keeping what they return: resume after an interruption, provenance in every row.

A cell is a plain dict of parameters; running it returns rows. Each finished cell is filed at once, atomically,
under a digest of its parameters and of this package's source, so a rerun computes exactly what is missing and
never takes up results of other code. Cells run in this process or on any `concurrent.futures.Executor`; only this
process writes files, and rows are the same, bit for bit, whichever way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, as_completed
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from alflb.io import Row, atomic_write, provenance, read_rows, require_writable, source_digest, write_rows

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
        costliest start first. Where they run there must be this very source of the package.

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
    missing = {path: cell for path, cell in zip(paths, cells) if not path.exists()}
    progress.advance(sum(cost(cell) for path, cell in zip(paths, cells) if path not in missing))
    if executor is None:
        for path, cell in missing.items():
            done = _Counter(progress)
            _file(path, cell, run(cell, done))
            progress.advance(cost(cell) - done.units)
    else:
        _run_on(executor, missing, run, cost, progress)
    return [row for path in paths for row in read_rows(path)]


def _run_on(
    executor: Executor, missing: Mapping[Path, Cell], run: Measure, cost: Callable[[Cell], float], progress: Progress
) -> None:
    """Send the missing cells out and file each as it comes back; on any error nothing more is started."""
    costliest_first = sorted(missing.items(), key=lambda item: -cost(item[1]))
    digest = source_digest()
    pending = {executor.submit(_run_there, run, cell, digest): (path, cell) for path, cell in costliest_first}
    try:
        for future in as_completed(pending):
            path, cell = pending[future]
            _file(path, cell, future.result())
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


def _run_there(run: Measure, cell: Cell, digest: str) -> Outcome:
    """Run a cell in another process, if that has the same source as the process that asks."""
    if source_digest() != digest:
        raise ValueError(
            f"a worker runs alflb of source {source_digest()}, this process {digest}; install the same version on both"
        )
    return run(cell, _ignore)


def _file(path: Path, cell: Cell, outcome: Outcome) -> None:
    """Keep a finished cell: its rows last, since they are what says that it is finished."""
    for name, content in outcome.files.items():
        with atomic_write(path.parent / name) as file:
            file.write(content)
    write_rows(path, [{**cell, **row, **provenance()} for row in outcome.rows])


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
