"""A folder of traces, one file per layer: the same facts of each, and which layer is the worst."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from alflb.cli._console import in_words, out, plain, print_json
from alflb.io import Row

_SUFFIXES = (".npz", ".npy")


def describe_layers(
    folder: Path,
    measure: Callable[[Path], Row],
    badness: Callable[[Row], float],
    columns: Sequence[str],
    *,
    as_json: bool,
) -> None:
    """Measure every trace of a folder and print a table, or one JSON object ``{"layers": ..., "worst": ...}``.

    Parameters
    ----------
    folder : Path
    measure : callable
        Facts of one trace file.
    badness : callable
        A number of these facts; the layer where it is largest is named as the worst.
    columns : sequence of str
        Facts to show in the table; the JSON object has all.
    as_json : bool

    Raises
    ------
    ValueError
        If the folder holds no traces, or one of them cannot be used.
    """
    layers = {path.name: measure(path) for path in _trace_files(folder)}
    worst = max(layers, key=lambda name: badness(layers[name]))
    if as_json:
        print_json({"layers": layers, "worst": worst})
        return
    print_layers(str(folder), layers, columns)
    out.print(f"worst layer: {plain(worst)}", soft_wrap=True, highlight=False)


def print_layers(title: str, layers: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> None:
    """A table with one row per layer; a fact that a layer lacks is left empty."""
    table = Table(title=plain(title), title_justify="left", box=None, pad_edge=False)
    for name in ("layer", *columns):
        table.add_column(name, justify="left" if name == "layer" else "right", no_wrap=True)
    for name, facts in layers.items():
        table.add_row(plain(name), *(plain(in_words(facts.get(column))) for column in columns))
    out.print(table)


def _trace_files(folder: Path) -> list[Path]:
    """Trace files in the order of their names, numbers in a name compared as numbers."""
    found = [path for path in folder.iterdir() if path.suffix in _SUFFIXES and not path.name.startswith(".")]
    if not found:
        raise ValueError(f"{folder} holds no {' or '.join(_SUFFIXES)} files; give a trace, or a folder of traces")
    return sorted(found, key=lambda path: [(len(part), part) if part.isdigit() else (0, part) for part in _parts(path)])


def _parts(path: Path) -> list[str]:
    return re.split(r"(\d+)", path.name)
