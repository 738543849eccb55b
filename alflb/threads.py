"""How many threads the compiled kernels use: one answer for the kernels and for provenance."""

from __future__ import annotations

import os

from alflb.problem import check_count


def num_threads() -> int:
    """Threads in use: the environment variable ALFLB_NUM_THREADS, else the cores this process may use."""
    wanted = os.environ.get("ALFLB_NUM_THREADS")
    if wanted:
        return check_count(int(wanted) if wanted.isdigit() else wanted, "ALFLB_NUM_THREADS")
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
