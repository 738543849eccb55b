"""Files: atomic writing, Parquet rows, provenance. The only place that knows how results reach the disk."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from alflb.threads import num_threads

Row = dict[str, Any]

_VERSIONED = ("alflb", "numpy", "scipy", "numba", "cvxpy", "highspy", "ortools", "pyarrow", "matplotlib")

_LABEL, _DIGEST = "alflb label", "alflb digest"
"""Where a Parquet file of ours keeps what is known of its rows, and the digest of both."""


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a binary file that appears under `path` only once it is complete, replacing what was there.

    On any error, Ctrl-C included, the temporary file is removed and `path` is untouched. A symbolic link is followed,
    and the permissions of a file that is replaced are kept.

    Raises
    ------
    OSError
        If `path` names anything but a regular file (a folder, a device, a pipe), or cannot be written.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "note.txt"
    >>> with atomic_write(path) as file:
    ...     _ = file.write(b"whole or not at all")
    >>> path.read_text()
    'whole or not at all'
    """
    path = Path(path)
    with _naming(path):
        target, permissions = _target(path)
        _make_folder(target.parent)
        temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with _naming(path), os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(handle)
            if permissions is not None:
                os.chmod(temporary, permissions)
            os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def require_writable(folder: str | os.PathLike[str]) -> None:
    """Create `folder` if need be and raise OSError now, not after an hour's work, if nothing can be written there."""
    folder = Path(folder)
    with _naming(folder):
        _make_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass


def require_writable_file(path: str | os.PathLike[str]) -> None:
    """Raise OSError now, not after an hour's work, if `atomic_write` could not write `path`; creates its folder."""
    path = Path(path)
    with _naming(path):
        target, _ = _target(path)
    require_writable(target.parent)


def _target(path: Path) -> tuple[Path, int | None]:
    """The file behind `path`, links followed, and its permissions if it exists; OSError unless it is regular."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return Path(os.path.realpath(path)), None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "is a device, pipe or socket; name a regular file")
    return Path(os.path.realpath(path)), stat.S_IMODE(status.st_mode)


def _make_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():  # mkdir would only say that the file exists
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an OSError name the file the user asked for, not the temporary one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_rows(
    path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], label: Mapping[str, Any] | None = None
) -> None:
    """Write rows as one Parquet file, atomically; the same rows give the same bytes.

    Parameters
    ----------
    path : path
    rows : sequence of mapping
        Columns are the union of their keys; a row without a column has None there.
    label : mapping, optional
        JSON values to keep beside the rows (`read_labeled_rows`).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    text = json.dumps(dict(label or {}), sort_keys=True)
    table = table.replace_schema_metadata({_LABEL: text, _DIGEST: _rows_digest(table.to_pylist(), text)})
    with atomic_write(path) as file:
        pq.write_table(table, file, compression="zstd")


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Read the rows that `write_rows` wrote; ValueError when the file is not exactly what was written."""
    return read_labeled_rows(path)[0]


def read_labeled_rows(path: str | os.PathLike[str]) -> tuple[list[Row], Row]:
    """Read the rows that `write_rows` wrote and their label.

    Raises
    ------
    ValueError
        If the file is not Parquet, was not written by `write_rows`, or has changed since: a digest of the rows and
        the label is kept in the file.
    OSError
        If the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = Path(path).read_bytes()
    try:
        table = pq.read_table(pa.BufferReader(content))
        notes = table.schema.metadata or {}
        text = notes.get(_LABEL.encode(), b"").decode()
        rows: list[Row] = table.to_pylist()
        intact = notes.get(_DIGEST.encode(), b"").decode() == _rows_digest(rows, text)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise ValueError(f"{path} is not a readable Parquet file ({error}); delete it and run again") from None
    if not intact:
        raise ValueError(f"{path} has been changed, or was written by an older alflb; delete it and run again")
    return rows, json.loads(text)


def _rows_digest(rows: Sequence[Row], label: str) -> str:
    return hashlib.sha256(f"{json.dumps(rows)}\n{label}".encode()).hexdigest()


@functools.cache
def software() -> dict[str, str]:
    """What rows depend on: the source of this package, package versions and Python."""
    return {
        "source_digest": source_digest(),
        "versions": json.dumps({name: version for name in _VERSIONED if (version := _version(name))}),
        "python": platform.python_version(),
    }


@functools.cache
def provenance() -> dict[str, str]:
    """Where a row comes from: commit, package versions, Python and machine, the same for a whole process."""
    return {
        "commit": _commit(),
        **software(),
        "threads": str(num_threads()),
        "machine": f"{platform.system()} {platform.machine()}, {_cpu_model()}, {os.cpu_count()} cores",
    }


@functools.cache
def source_digest() -> str:
    """Digest of this package's own source files: results computed by other code are never taken for ours."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _commit() -> str:
    """Commit of the checkout this package runs from, with -dirty for local changes; "none" when installed."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return "none"
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return described.stdout.strip() or "unknown"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"
