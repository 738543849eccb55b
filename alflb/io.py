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
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from alflb.threads import num_threads

Row = dict[str, Any]

_VERSIONED = ("alflb", "numpy", "scipy", "numba", "cvxpy", "highspy", "ortools", "pyarrow", "matplotlib")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a binary file that appears under `path` only once it is complete, replacing what was there.

    On any error, Ctrl-C included, the temporary file is removed and `path` is untouched.

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
    with _blaming(path):
        _make_folder(path.parent)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with _blaming(path), os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(handle)
            os.chmod(temporary, 0o666 & ~_umask())  # temporary files are private; results are ordinary files
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def require_writable(folder: str | os.PathLike[str]) -> None:
    """Create `folder` if need be and raise OSError now, not after an hour's work, if nothing can be written there."""
    folder = Path(folder)
    with _blaming(folder):
        _make_folder(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass


def _make_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():  # mkdir would only say that the file exists
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Let an OSError name the file the user asked for, not the temporary one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_rows(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as one Parquet file, atomically; the same rows give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    with atomic_write(path) as file:
        pq.write_table(table, file, compression="zstd")


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Read the rows `write_rows` wrote; ValueError when the file is not whole Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[Row] = pq.read_table(path).to_pylist()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a readable Parquet file ({error}); delete it and run again") from None
    return rows


@functools.cache
def provenance() -> dict[str, str]:
    """Where a row comes from: commit, package versions, Python and machine, the same for a whole process."""
    return {
        "commit": _commit(),
        "source_digest": source_digest(),
        "versions": json.dumps({name: version for name in _VERSIONED if (version := _version(name))}),
        "python": platform.python_version(),
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
