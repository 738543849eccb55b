"""Discovery and running of experiments: the runner owns seeds, resume, provenance and files.

An experiment is a module of this package with

* ``CLAIM``: what it puts to the test, in one sentence;
* ``GRID`` and ``SMOKE``: lists of cells (dicts of JSON values), full size and seconds;
* ``run(cell, seed) -> rows``: measure one cell; a row is a flat dict;
* ``figure(rows) -> Figure``: draw from saved rows only.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import experiments
from alflb import plotting
from alflb.io import Row, read_rows, write_rows
from alflb.registry import unknown_name
from alflb.sweep import Advance, Progress, run_cells


def experiment_names() -> list[str]:
    """Every experiment: the public modules of this package."""
    modules = [module.name for module in pkgutil.iter_modules(experiments.__path__) if not module.name.startswith("_")]
    return sorted(name for name in modules if not name.startswith("bench_"))


def load(name: str) -> ModuleType:
    """An experiment by name, or ValueError with the nearest one."""
    if name not in experiment_names():
        raise unknown_name("experiment", name, experiment_names())
    return importlib.import_module(f"experiments.{name}")


def run(name: str, folder: Path, progress: Progress, *, smoke: bool = False, seeds: int = 3) -> list[Row]:
    """Run the cells of an experiment that are not on file yet, for seeds 0, 1, ..., and write ``rows.parquet``."""
    module = load(name)
    code = hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()[:16]  # other code, other results
    cells = [
        {"experiment": name, "code": code, **cell, "seed": seed}
        for cell in (module.SMOKE if smoke else module.GRID)
        for seed in range(seeds)
    ]
    progress.begin(name, len(cells))

    def measure(cell: Mapping[str, Any], advance: Advance) -> Sequence[Row]:
        own = {key: value for key, value in cell.items() if key not in {"experiment", "code", "seed"}}
        rows: Sequence[Row] = module.run(own, cell["seed"])
        return rows

    rows = run_cells(cells, measure, folder / "cells", cost=lambda cell: 1.0, progress=progress)
    write_rows(folder / "rows.parquet", rows)
    return rows


def plot(name: str, folder: Path) -> tuple[Path, Path]:
    """Draw an experiment's figure from its saved rows; returns the PNG and the SVG."""
    rows = folder / "rows.parquet"
    if not rows.exists():
        raise ValueError(f"{rows} does not exist; run the experiment first: python -m experiments run {name}")
    return plotting.save_figure(load(name).figure(read_rows(rows)), folder / name)
