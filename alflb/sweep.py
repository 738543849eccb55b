"""Running many cells and keeping what they return: resume after an interruption, provenance in every row.

A cell is a plain dict of parameters; running it returns rows. Each finished cell is filed at once, atomically,
under a digest of its parameters and of this package's source, so a rerun computes exactly what is missing and
never takes up results of other code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from alflb.io import Row, provenance, read_rows, source_digest, write_rows

Cell = Mapping[str, Any]
Advance = Callable[[float], None]


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
    run: Callable[[Cell, Advance], Sequence[Row]],
    folder: Path,
    *,
    cost: Callable[[Cell], float],
    progress: Progress,
) -> list[Row]:
    """Run the cells that are not on file yet and return the rows of all, in the order of `cells`.

    Parameters
    ----------
    cells : sequence of mapping
        Parameters, JSON values only.
    run : callable
        ``run(cell, advance)`` returns the cell's rows and calls ``advance(units)`` as it goes.
    folder : Path
        Finished cells are filed here as ``<key>.parquet``.
    cost : callable
        Units of work in a cell, for the estimated time to go.
    progress : Progress

    Returns
    -------
    list of dict
        Each row carries its cell's parameters, then what `run` measured, then the provenance.
    """
    rows: list[Row] = []
    for cell in cells:
        path = folder / f"{cell_key(cell)}.parquet"
        if path.exists():
            progress.advance(cost(cell))
        else:
            done = _Counter(progress)
            measured = run(cell, done)
            write_rows(path, [{**cell, **row, **provenance()} for row in measured])
            progress.advance(cost(cell) - done.units)
        rows.extend(read_rows(path))
    return rows


class _Counter:
    """Forwards progress and remembers how much a cell has reported itself."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.units = 0.0

    def __call__(self, units: float) -> None:
        self.units += units
        self.progress.advance(units)
