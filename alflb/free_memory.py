"""How much memory this process may still take: a large job is refused before the machine starts to swap."""

from __future__ import annotations

import contextlib
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping, or None where the system does not say.

    The smaller of what the machine has left and what a container's limit leaves.
    """
    found = [amount for amount in (_machine_memory(), _container_memory()) if amount is not None]
    return min(found, default=None)


def require_memory(num_bytes: int, purpose: str) -> None:
    """Refuse work that needs more memory than there is.

    Parameters
    ----------
    num_bytes : int
        What the work will allocate.
    purpose : str
        What it is for, as the subject of the message.

    Raises
    ------
    MemoryError
        If `num_bytes` exceeds `available_memory`.

    Examples
    --------
    >>> require_memory(1000, "one small array")
    """
    available = available_memory()
    if available is not None and num_bytes > available:
        raise MemoryError(
            f"{purpose} needs {_gigabytes(num_bytes)} of memory but {_gigabytes(available)} are free; "
            "use fewer tokens or a larger machine"
        )


def _machine_memory() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return None


def _container_memory() -> int | None:
    """What is left below the limit of a container (cgroup version 2); page cache counts as free."""
    with contextlib.suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())  # "max" where there is no limit
        used = int((_CGROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(statistics.get("inactive_file", 0)))
    return None


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.3g} GB"
