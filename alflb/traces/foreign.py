"""Arrays in files of other tools: tables (CSV, JSON, JSON lines, Parquet) and PyTorch files."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alflb.free_memory import require_memory

_TEXT_OVERHEAD = 12
"""Memory that parsing takes for each byte of a text file, about: a number of three characters becomes an object."""


class UnknownFormat(ValueError):
    """A file in a format that is not read; the message says what to do."""


def read(path: Path) -> Iterable[tuple[str, NDArray[Any]]]:
    """The numeric arrays of a file by name; one array without a name is called "".

    A table has one array for each column; a column of lists of equal length is a two-dimensional array. A CSV file
    without a header line, a JSON list and JSON lines that are lists are one matrix without a name. Of a PyTorch file,
    only tensors are taken.

    Raises
    ------
    UnknownFormat
        If the suffix is not known or torch is missing.
    Exception
        Whatever the decoder raises on a damaged file.
    """
    value = parse(path)
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return _named_arrays(_columns(value))
    if isinstance(value, dict) and any(isinstance(entry, np.ndarray) for entry in value.values()):
        return [(name, entry) for name, entry in value.items() if isinstance(entry, np.ndarray)]
    return _named_arrays(value)


def parse(path: Path) -> Any:
    """What a file holds, in Python's own types and arrays.

    JSON is what it says, JSON lines are a list, a table (CSV, Parquet) is a mapping of its columns' names to lists, or
    a list of rows if it has no names. Of a PyTorch file, tensors are arrays wherever they are nested.

    Raises
    ------
    UnknownFormat
        If the suffix is not known or torch is missing.
    Exception
        Whatever the decoder raises on a damaged file.
    """
    suffix = path.suffix.lower()
    if is_torch_archive(path) or suffix in (".pt", ".pth"):
        return _parse_torch(path)
    if suffix not in _PARSERS:
        raise UnknownFormat(
            _ADVICE.get(suffix)
            or f"it is none of .npz, .npy, .pt, {', '.join(_PARSERS)}; save the array with numpy.save or numpy.savez"
        )
    require_memory(_TEXT_OVERHEAD * path.stat().st_size, f"{path}: reading text")
    return _PARSERS[suffix](path)


def is_torch_archive(path: Path) -> bool:
    """Whether a file is a zip archive that torch.save wrote."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.rpartition("/")[2] == "data.pkl" for name in archive.namelist())


def _parse_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise UnknownFormat(
            "it is a PyTorch file and torch is not installed: pip install 'alflb[torch]', "
            "or save it with numpy.save(path, tensor.float().numpy())"
        ) from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UnknownFormat(
            "it is damaged, or holds Python objects beside tensors, which are never loaded; save the tensors alone"
        ) from None
    return _without_tensors(loaded) if isinstance(loaded, dict) else {"": _without_tensors(loaded)}


def _without_tensors(value: Any) -> Any:
    """The same with arrays for tensors, also those in lists and mappings."""
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(key): _without_tensors(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(entry) for entry in value]
    if not hasattr(value, "detach") or value.is_complex():
        return value
    tensor = value.detach().to_dense()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def _parse_json(path: Path) -> Any:
    with path.open(encoding="utf-8") as file:
        return json.load(file)


def _parse_json_lines(path: Path) -> list[Any]:
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise ValueError(f"line {number} is not JSON: {error}") from None
    return rows


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows with the same keys as columns."""
    for row in rows[1:]:
        if row.keys() != rows[0].keys():
            raise ValueError(f"its lines have different keys: {sorted(rows[0])} and {sorted(row)}")
    return {name: [row[name] for row in rows] for name in rows[0]}


def _parse_parquet(path: Path) -> dict[str, list[Any]]:
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = pq.read_table(path, memory_map=False).to_pydict()
    return columns


def _parse_csv(path: Path) -> dict[str, list[Any]] | list[list[Any]]:
    import pyarrow.csv

    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig") as file:
        has_header = not all(_is_number(cell) for cell in file.readline().strip().split(delimiter))
    table = pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(autogenerate_column_names=not has_header),
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
    )
    columns = [column.to_pylist() for column in table.columns]
    if not has_header:
        return [list(row) for row in zip(*columns)]
    if len(set(table.column_names)) < len(table.column_names):
        raise ValueError("two of its columns have the same name")
    return dict(zip(table.column_names, columns))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _named_arrays(values: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    """Lists as arrays, of dtype object where entries are missing, are no numbers, or rows differ in length."""
    named: Mapping[str, Any] = values if isinstance(values, dict) else {"": values}
    for name, value in named.items():
        if isinstance(value, list):
            try:
                array = np.array(value)
            except ValueError:  # rows of different length
                array = np.array([], dtype=object)
            yield name, array if array.dtype.kind in "iuf" else array.astype(object)


_PARSERS: dict[str, Callable[[Path], Any]] = {
    ".csv": _parse_csv,
    ".tsv": _parse_csv,
    ".json": _parse_json,
    ".jsonl": _parse_json_lines,
    ".ndjson": _parse_json_lines,
    ".parquet": _parse_parquet,
}

_ADVICE = {
    ".gz": "it is compressed; unpack it first",
    ".zst": "it is compressed; unpack it first",
    ".safetensors": "save its arrays with numpy.savez(path, **safetensors.numpy.load_file(file))",
    ".pkl": "pickles are never loaded, since they can run any code; save plain arrays with numpy.savez",
    ".pickle": "pickles are never loaded, since they can run any code; save plain arrays with numpy.savez",
}
"""What to do with files that people have and that are not read."""
