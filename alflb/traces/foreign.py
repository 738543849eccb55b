"""Arrays in files of other tools: tables (CSV, JSON, JSON lines, Parquet) and PyTorch files."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterable, Iterator, Mapping
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
    without a header line, a JSON list and JSON lines that are lists are one matrix without a name.

    Raises
    ------
    UnknownFormat
        If the suffix is not known or torch is missing.
    Exception
        Whatever the decoder raises on a damaged file.
    """
    suffix = path.suffix.lower()
    if is_torch_archive(path) or suffix in (".pt", ".pth"):
        return _read_torch(path)
    if suffix not in _READERS:
        raise UnknownFormat(
            _ADVICE.get(suffix)
            or f"it is none of .npz, .npy, .pt, {', '.join(_READERS)}; save the array with numpy.save or numpy.savez"
        )
    require_memory(_TEXT_OVERHEAD * path.stat().st_size, f"{path}: reading text")
    return _READERS[suffix](path)


def is_torch_archive(path: Path) -> bool:
    """Whether a file is a zip archive that torch.save wrote."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.rpartition("/")[2] == "data.pkl" for name in archive.namelist())


def _read_torch(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
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
    named = loaded if isinstance(loaded, dict) else {"": loaded}
    for name, value in named.items():
        if isinstance(value, torch.Tensor) and not value.is_complex():
            tensor = value.detach().to_dense()
            yield str(name), (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _read_json(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    with path.open(encoding="utf-8") as file:
        return _named_arrays(json.load(file))


def _read_json_lines(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    if not rows or not all(isinstance(row, dict) for row in rows):
        return _named_arrays(rows)
    for row in rows[1:]:
        if row.keys() != rows[0].keys():
            raise ValueError(f"its lines have different keys: {sorted(rows[0])} and {sorted(row)}")
    return _named_arrays({name: [row[name] for row in rows] for name in rows[0]})


def _read_parquet(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    import pyarrow.parquet as pq

    return _named_arrays(pq.read_table(path, memory_map=False).to_pydict())


def _read_csv(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
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
        return _named_arrays([list(row) for row in zip(*columns)])
    if len(set(table.column_names)) < len(table.column_names):
        raise ValueError("two of its columns have the same name")
    return _named_arrays(dict(zip(table.column_names, columns)))


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


_READERS = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
}

_ADVICE = {
    ".gz": "it is compressed; unpack it first",
    ".zst": "it is compressed; unpack it first",
    ".safetensors": "save its arrays with numpy.savez(path, **safetensors.numpy.load_file(file))",
    ".pkl": "pickles are never loaded, since they can run any code; save plain arrays with numpy.savez",
    ".pickle": "pickles are never loaded, since they can run any code; save plain arrays with numpy.savez",
}
"""What to do with files that people have and that are not read."""
