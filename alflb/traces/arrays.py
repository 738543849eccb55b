"""Arrays in files: what a file holds is listed from its headers, and each array is read only when it is asked for.

``.npy`` files are mapped into memory, members of ``.npz`` archives are read one by one; `alflb.traces.foreign` adds the
formats of other tools. A damaged file is a TraceError whatever is wrong with it; pickled objects are never loaded.
"""

from __future__ import annotations

import contextlib
import fnmatch
import math
import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from alflb.free_memory import require_memory
from alflb.traces import foreign


class TraceError(ValueError):
    """A file that is not a whole, valid trace; the message names the file and says how to fix it."""


@dataclass(frozen=True, eq=False)
class StoredArray:
    """An array in a file, not read yet."""

    shape: tuple[int, ...]
    read: Callable[[], NDArray[Any]]
    """Read it, in the byte order of this machine. TraceError if it is damaged; MemoryError if it does not fit."""


def open_arrays(path: str | os.PathLike[str]) -> dict[str, StoredArray]:
    """The arrays of a file by name; a file that holds one array without a name has it under "".

    Raises
    ------
    TraceError
        If the file is missing, damaged, or of a kind that is not known.
    """
    path = Path(path)
    with _reporting_damage(path):
        start = _first_bytes(path)
        if start.startswith(b"\x93NUMPY"):
            return {"": _in_npy(path)}
        if start.startswith(b"PK") and not foreign.is_torch_archive(path):
            return dict(_in_npz(path))
        found = {name: _held(path, name, values) for name, values in foreign.read(path)}
        if not found:
            raise foreign.UnknownFormat("it holds no arrays of numbers")
        return found


def read_arrays(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Every array of a file, read; see `open_arrays`."""
    return {name: stored.read() for name, stored in open_arrays(path).items()}


def read_value(path: str | os.PathLike[str]) -> Any:
    """What a file holds, in Python's own types and arrays: see `alflb.traces.foreign.parse`.

    An ``.npz`` archive is a mapping of its arrays by name, an ``.npy`` file one with the name "".

    Raises
    ------
    TraceError
        If the file is missing, damaged, or of a kind that is not known.
    """
    path = Path(path)
    with _reporting_damage(path):
        start = _first_bytes(path)
        if start.startswith(b"\x93NUMPY") or (start.startswith(b"PK") and not foreign.is_torch_archive(path)):
            return read_arrays(path)
        return foreign.parse(path)


def pick_array(path: str | os.PathLike[str], arrays: Mapping[str, StoredArray], name: str | None) -> NDArray[Any]:
    """The array called `name`, or the only one there is.

    A name with wildcards (``expert_*``) takes one-dimensional arrays, the columns of a table, and puts them side by
    side in the order of the file.

    Raises
    ------
    TraceError
        If there is no such array, or several and `name` is None; the message lists what can be chosen.
    """
    if name is None and len(arrays) == 1:
        return next(iter(arrays.values())).read()
    listing = ", ".join(f"{key} {stored.shape}" for key, stored in arrays.items() if key)
    if name is None:
        raise TraceError(
            f"{path} is not an alflb trace; name one of its arrays (or columns, like 'expert_*') "
            f"with array (--array): {listing}"
        )
    if name in arrays:
        return arrays[name].read()
    columns = [key for key in arrays if fnmatch.fnmatchcase(key, name)] if any(sign in name for sign in "*?[") else []
    if not columns:
        raise TraceError(f"{path} has no array {name!r}; it has {listing or 'a single array without a name'}")
    if len({arrays[key].shape for key in columns}) > 1 or len(arrays[columns[0]].shape) != 1:
        raise TraceError(f"{path}: {name!r} matches {', '.join(columns)}, which are not columns of equal length")
    return np.column_stack([arrays[key].read() for key in columns])


def _first_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise TraceError(f"{path} is a folder; give a file")
    if not stat.S_ISREG(path.stat().st_mode):
        raise TraceError(f"{path} is a device, pipe or socket; save its content to a file first")
    with path.open("rb") as file:
        return file.read(8)


def _in_npy(path: Path) -> StoredArray:
    with path.open("rb") as file:
        shape, dtype, _ = _header(file)
    if os.path.getsize(path) < math.prod(shape) * dtype.itemsize:
        raise ValueError("it is shorter than its header says")

    def read() -> NDArray[Any]:
        _refuse_objects(path, dtype)
        with _reporting_damage(path):
            if math.prod(shape) == 0:  # nothing to map
                return np.empty(shape, dtype)
            return _native(np.load(path, mmap_mode="r", allow_pickle=False))

    return StoredArray(shape, read)


def _in_npz(path: Path) -> Iterator[tuple[str, StoredArray]]:
    seen = set()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name, extension = os.path.splitext(info.filename)
            if extension != ".npy":
                continue
            if name in seen:
                raise ValueError(f"it holds {name!r} twice")
            seen.add(name)
            with archive.open(info) as file:
                shape, dtype, header_bytes = _header(file)
            if info.file_size < header_bytes + math.prod(shape) * dtype.itemsize:
                raise ValueError(f"its array {name!r} is shorter than its header says")
            yield name, StoredArray(shape, _member_reader(path, info.filename, shape, dtype))


def _member_reader(path: Path, member: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Callable[[], NDArray[Any]]:
    def read() -> NDArray[Any]:
        _refuse_objects(path, dtype)
        require_memory(math.prod(shape) * dtype.itemsize, f"{path}: reading {member.removesuffix('.npy')!r}")
        with _reporting_damage(path), zipfile.ZipFile(path) as archive, archive.open(member) as file:
            values: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):  # up to the end, where the checksum is compared
                raise ValueError(f"its array {member!r} is longer than its header says")
            return _native(values)

    return read


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and length of the header of an array in numpy's format."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format version {version} is not supported")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if any(size < 0 for size in shape):
        raise ValueError(f"its header says shape {shape}")
    return shape, dtype, file.tell()


def _native(values: NDArray[Any]) -> NDArray[Any]:
    """The same numbers in the byte order of this machine and aligned, copied only where they were not."""
    array: NDArray[Any] = np.asarray(values, dtype=values.dtype.newbyteorder("="))
    return array if array.flags.aligned else array.copy()


def _held(path: Path, name: str, values: NDArray[Any]) -> StoredArray:
    """An array of a format that can only be read as a whole."""

    def read() -> NDArray[Any]:
        if values.dtype.hasobject:
            raise TraceError(
                f"{path}: {repr(name) if name else 'it'} has missing entries, entries that are no numbers, or rows of "
                "different length"
            )
        return values

    return StoredArray(values.shape, read)


def _refuse_objects(path: Path, dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise TraceError(
            f"{path} cannot be read: it holds pickled Python objects, which are never loaded; "
            "save plain numeric arrays instead"
        )


@contextlib.contextmanager
def _reporting_damage(path: Path) -> Iterator[None]:
    """Turn whatever decoders raise on the bytes of a file into one TraceError."""
    try:
        yield
    except (TraceError, MemoryError):
        raise
    except FileNotFoundError:
        raise TraceError(f"{path} does not exist; check the path") from None
    except PermissionError:
        raise TraceError(f"{path} may not be read; check its permissions") from None
    except foreign.UnknownFormat as error:
        raise TraceError(f"{path} cannot be read: {error}") from None
    except Exception as error:  # numpy, zip, Parquet and torch decoders raise some twenty types between them
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TraceError(
            f"{path} cannot be read: it is damaged or not what its name says ({reason}); copy or download it again"
        ) from None
