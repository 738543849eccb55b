"""Discovery and running of experiments: the runner owns seeds, resume, provenance, files, and where cells run.

An experiment is a module of this package with

* ``CLAIM``: what it puts to the test, in one sentence;
* ``VERDICT``: what the full size found of that claim, in one sentence; it stands wherever the claim stands;
* ``GRID`` and ``SMOKE``: lists of cells (dicts of JSON values), full size and seconds;
* ``SEEDS``: how many repetitions the full size takes by default;
* ``run(cell, seed) -> rows``: measure one cell; a row is a flat dict;
* ``findings(rows) -> [Finding]``: the numbers that support or refute the claim, from saved rows only;
* ``figure(rows) -> Figure``: drawn from saved rows only; the first sentence of its docstring is its caption;
* ``cost(cell) -> float``, optional: relative work, for the estimated time to go;
* ``NEEDS``, optional: packages beyond the library's own.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from functools import cache
from pathlib import Path
from types import ModuleType

import experiments
from alflb import plotting
from alflb.io import Row, read_rows, write_rows
from alflb.problem import check_count
from alflb.registry import unknown_name
from alflb.studies.sweep import Advance, Cell, Outcome, Progress, run_cells
from alflb.verdict import Finding

SMOKE_SEEDS = 2
"""Repetitions at smoke size: the fewest that have an interval."""

_OWN = ("experiment", "code", "seed")
"""Columns of a cell that the runner adds."""


def experiment_names() -> list[str]:
    """Every experiment: the public modules of this package."""
    modules = pkgutil.iter_modules(experiments.__path__)
    return sorted(module.name for module in modules if not module.ispkg and not module.name.startswith("_"))


def load(name: str) -> ModuleType:
    """An experiment by name, or ValueError with the nearest one."""
    if name not in experiment_names():
        raise unknown_name("experiment", name, experiment_names())
    return importlib.import_module(f"experiments.{name}")


def missing_packages(name: str) -> list[str]:
    """What an experiment needs, by its ``NEEDS``, and is not installed."""
    return [package for package in getattr(load(name), "NEEDS", ()) if importlib.util.find_spec(package) is None]


def cells_of(name: str, *, smoke: bool = False, seeds: int | None = None) -> list[Cell]:
    """The cells of an experiment, once for each seed 0, 1, ..."""
    module = load(name)
    if seeds is None:
        seeds = SMOKE_SEEDS if smoke else module.SEEDS
    code = _code_digest(name)
    return [
        {"experiment": name, "code": code, **cell, "seed": seed}
        for cell in (module.SMOKE if smoke else module.GRID)
        for seed in range(check_count(seeds, "seeds"))
    ]


def run(
    name: str,
    folder: Path,
    progress: Progress,
    *,
    smoke: bool = False,
    seeds: int | None = None,
    executor: Executor | None = None,
) -> list[Row]:
    """Run the cells of an experiment that are not on file yet and write ``rows.parquet``."""
    cells = cells_of(name, smoke=smoke, seeds=seeds)
    progress.begin(name, sum(map(_cost, cells)))
    rows = run_cells(cells, _measure, folder / "cells", cost=_cost, progress=progress, executor=executor)
    write_rows(folder / "rows.parquet", rows)
    return rows


def saved_rows(name: str, folder: Path) -> list[Row]:
    """The rows of the last run, or ValueError if there was none."""
    path = folder / "rows.parquet"
    if not path.exists():
        raise ValueError(f"{path} does not exist; run the experiment first: python -m experiments run {name}")
    return read_rows(path)


def plot(name: str, folder: Path) -> tuple[Path, Path]:
    """Draw an experiment's figure from its saved rows; returns the PNG and the SVG."""
    return plotting.save_figure(load(name).figure(saved_rows(name, folder)), folder / name)


def caption(name: str) -> str:
    """What an experiment's figure shows, in one sentence: the first one of its docstring."""
    return (load(name).figure.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")


def findings(name: str, folder: Path) -> Sequence[Finding]:
    """What an experiment's saved rows say about its claim."""
    found: Sequence[Finding] = load(name).findings(saved_rows(name, folder))
    return found


def _measure(cell: Cell, advance: Advance) -> Outcome:
    name = cell["experiment"]
    if _code_digest(name) != cell["code"]:
        raise ValueError(f"a worker has another version of experiment {name}; give it the same checkout")
    module = load(name)
    return Outcome(module.run({key: value for key, value in cell.items() if key not in _OWN}, cell["seed"]))


def _cost(cell: Cell) -> float:
    cost = getattr(load(cell["experiment"]), "cost", None)
    return float(cost(cell)) if cost else 1.0


@cache
def _code_digest(name: str) -> str:
    """Digest of an experiment and of the private modules it imports: results of other code are not taken up."""
    root = Path(experiments.__path__[0])
    seen: dict[str, bytes] = {}
    queue = [name]
    while queue:
        module = queue.pop()
        if module not in seen:
            seen[module] = (root / f"{module}.py").read_bytes()
            queue.extend(_siblings(seen[module].decode()))
    digest = hashlib.sha256()
    for module in sorted(seen):
        digest.update(module.encode() + b"\0" + seen[module])
    return digest.hexdigest()[:16]


def _siblings(source: str) -> Iterator[str]:
    """Modules of this package that a source text imports, but for what only words findings."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "experiments":
            inner = node.module.split(".")[1:]
            names = inner[:1] if inner else [alias.name for alias in node.names]
            yield from (other for other in names if other != "_statistics")
