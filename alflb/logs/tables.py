"""Tables of scalars as W&B, TensorBoard and people export them: CSV, JSON lines, Parquet.

=========  ====================================================  ==================================================
form       columns                                               comes from
=========  ====================================================  ==================================================
wide       a step, and one column per series                     W&B's CSV and history, pandas
long       a step, the name of a series (``tag``), its value     TensorBoard's data frames, tbparse
tidy       ``layer``, ``expert``, counts, and mostly a step      hand-written loggers, SGLang's early CSV
one tag    ``Wall time``, ``Step``, ``Value``                    TensorBoard's download, one file per series
=========  ====================================================  ==================================================

What a series is, a load or a bias, and of which layer and expert, is read from its name: `alflb.logs.series`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alflb.logs.hints import Hints
from alflb.logs.record import Record
from alflb.logs.series import Points, records_of

Columns = dict[str, list[Any]]

_STEPS = (
    "global_step", "trainer/global_step", "train/global_step", "iteration", "iter", "step", "_step", "batch",
)  # fmt: skip
"""Names of a column of steps; the first one found counts, since W&B's own ``_step`` counts calls of ``log``."""
_NAMES = ("tag", "name", "metric", "key", "series", "variable")
_LAYERS = ("layer", "layer_id", "layer_idx", "layer_index", "layer_name")
_EXPERTS = ("expert", "expert_id", "expert_idx", "expert_index")
_ONE_TAG = {"wall time", "step", "value"}
_CLOCKS = {"_runtime", "_timestamp", "wall time", "wall_time", "walltime", "time", "timestamp"}
_EXTREMES = ("__MIN", "__MAX")
"""W&B's CSV has these next to every series."""


def recognizes(value: Any) -> bool:
    """Whether a parsed file is a table with named columns."""
    if isinstance(value, dict):
        return bool(value) and all(isinstance(column, list) for column in value.values())
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def read(files: Mapping[Path, Any], hints: Hints) -> dict[str, Record]:
    """The records of one table, or of a folder of files with one series each."""
    if len(files) == 1:
        ((path, value),) = files.items()
        return records_of(_points(_as_columns(value), path), hints)
    points: Points = {}
    for path, value in files.items():
        columns = _as_columns(value)
        if {name.lower() for name in columns} != _ONE_TAG:
            raise ValueError(
                f"{path.name} is a table of its own, and there are {len(files)} in the folder; pass one of the files"
            )
        points.update(_points(columns, path))
    return records_of(points, hints)


def _points(columns: Columns, path: Path) -> Points:
    """Every series of a table: its values by step."""
    by_name = {name.lower(): name for name in columns}
    _refuse_several_runs(columns, by_name)
    expert = _first(by_name, _EXPERTS)
    if expert is not None:
        return _tidy(columns, by_name, expert)
    step = _first(by_name, _STEPS)
    if step is None:
        raise ValueError(f"it has no column of steps; one should be called {', '.join(_STEPS)}")
    steps = _whole(columns[step], step)
    if set(by_name) == _ONE_TAG:
        return {path.stem: _values(path.stem, steps, columns[by_name["value"]])}
    name = _first(by_name, _NAMES)
    if name is not None and "value" in by_name:
        return _long(columns[name], steps, columns[by_name["value"]])
    return _wide(columns, steps)


def _wide(columns: Columns, steps: Sequence[int | None]) -> Points:
    """One column per series."""
    series = {
        name: values
        for name, values in columns.items()
        if name.lower() not in (*_STEPS, *_CLOCKS) and not name.endswith(_EXTREMES)
    }
    return {_without_run(name): _values(name, steps, values) for name, values in series.items()}


def _long(names: Sequence[Any], steps: Sequence[int | None], values: Sequence[Any]) -> Points:
    """One row per series and step."""
    rows: dict[str, tuple[list[int | None], list[Any]]] = {}
    for name, step, value in zip(names, steps, values):
        kept = rows.setdefault(str(name), ([], []))
        kept[0].append(step)
        kept[1].append(value)
    return {name: _values(name, *kept) for name, kept in rows.items()}


def _tidy(columns: Columns, by_name: Mapping[str, str], expert: str) -> Points:
    """One row per layer, expert and mostly step; experts without a row have no tokens."""
    step, layer = _first(by_name, _STEPS), _first(by_name, _LAYERS)
    experts = _whole(columns[expert], expert)
    steps = _whole(columns[step], step) if step is not None else [1] * len(experts)
    layers = columns[layer] if layer is not None else [0] * len(experts)
    given = {expert, step, layer}
    points: Points = {}
    for column, values in columns.items():
        if column in given or column.lower() in _CLOCKS:
            continue
        for at, of, number, value in zip(steps, layers, experts, values):
            name = f"{f'layer_{of}' if isinstance(of, int) else of}/{column}/expert_{number}"
            points.setdefault(name, []).extend(_values(name, [at], [value]))
    _fill_with_zero(points)
    return points


def _fill_with_zero(points: Points) -> None:
    """Zeros where other experts of a layer have a count and one has none; biases are never left out."""
    steps: dict[str, set[int]] = {}
    largest = -1
    for name, values in points.items():
        layer, _, number = name.rpartition("/expert_")
        if "bias" not in layer.lower() and number.isdecimal():
            steps.setdefault(layer, set()).update(step for step, _ in values)
            largest = max(largest, int(number))
    for layer, of_layer in steps.items():
        for expert in range(largest + 1):
            values = points.setdefault(f"{layer}/expert_{expert}", [])
            values += [(step, 0) for step in sorted(of_layer - {step for step, _ in values})]


def _values(name: str, steps: Sequence[int | None], values: Sequence[Any]) -> list[tuple[int, Any]]:
    """The values of one series that are not missing, with their steps."""
    found = []
    for step, value in zip(steps, values):
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        if step is None:
            raise ValueError(f"{name!r} has a value in a row without a step")
        found.append((step, value))
    return found


def _as_columns(value: Any) -> Columns:
    """Columns of a table, also of one that came as rows with unlike keys; nested mappings are joined by "/"."""
    if isinstance(value, dict):
        return value
    rows = [dict(_flat(row)) for row in value]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _flat(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _whole(values: Sequence[Any], column: str) -> list[int | None]:
    """A column of whole numbers; W&B writes them as floats, too."""
    found: list[int | None] = []
    for value in values:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            found.append(None)
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and value == math.floor(value):
            found.append(int(value))
        else:
            raise ValueError(f"column {column!r} holds {value!r}; whole numbers are needed there")
    return found


def _refuse_several_runs(columns: Columns, by_name: Mapping[str, str]) -> None:
    runs = set(map(str, columns[by_name["run"]])) if "run" in by_name else set()
    prefixes = {name.split(" - ")[0] for name in columns if " - " in name}
    for found in (runs, prefixes):
        if len(found) > 1:
            raise ValueError(f"it holds several runs ({', '.join(sorted(found)[:3])}, ...); keep one of them")


def _without_run(name: str) -> str:
    """A series' own name: W&B puts "RUN - " before it."""
    return name.split(" - ", maxsplit=1)[-1]


def _first(by_name: Mapping[str, str], candidates: Sequence[str]) -> str | None:
    return next((by_name[name] for name in candidates if name in by_name), None)
