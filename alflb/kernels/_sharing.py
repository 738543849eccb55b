"""How threads share chunks of tokens: who computes a chunk never changes a result.

Threads are plain Python threads around code that releases the GIL: numba's default threading layer may not be entered
from two threads at once, which callers of a library do.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

from alflb.threads import num_threads


def share_out(num_chunks: int, work: Callable[[int, int], None]) -> None:
    """Cover the chunks by work(first, last) calls, one in this thread and one in each of the others."""
    num_spans = min(num_threads(), num_chunks)
    if num_spans == 1:
        work(0, num_chunks)
        return
    edges = [num_chunks * span // num_spans for span in range(num_spans + 1)]
    others = [_pool(num_spans - 1).submit(work, first, last) for first, last in pairwise(edges[1:])]
    work(edges[0], edges[1])
    for other in others:
        other.result()


@lru_cache(maxsize=1)
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, thread_name_prefix="alflb")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
