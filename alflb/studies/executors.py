"""Where cells run: in this process, on a local cluster of processes, or on a Dask cluster given by its address."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any

from alflb.problem import check_count

CONNECT_SECONDS = 20
"""How long a scheduler may take to answer."""


@contextlib.contextmanager
def open_executor(
    jobs: int = 1, scheduler: str | None = None, announce: Callable[[str], None] | None = None
) -> Iterator[Executor | None]:
    """An executor for `alflb.studies.sweep.run_cells`, closed at the end; None means this process.

    Parameters
    ----------
    jobs : int
        More than 1 starts a Dask cluster of that many processes on this machine, one thread each.
    scheduler : str, optional
        Address of a running Dask scheduler, e.g. ``tcp://host:8786``; then `jobs` must be 1. Its workers must have
        this very version of alflb: a cell of another source is refused.
    announce : callable, optional
        Called with one sentence that says where the cluster's dashboard is.

    Raises
    ------
    ValueError
        If both are given, ``distributed`` is not installed, or the address is not one.
    OSError
        If no scheduler answers there.

    Examples
    --------
    >>> with open_executor() as executor:
    ...     print(executor)
    None
    """
    if scheduler is not None and check_count(jobs, "jobs") > 1:
        raise ValueError(
            f"jobs is {jobs} and scheduler is {scheduler!r}; a running cluster has its own workers, pass one"
        )
    if scheduler is None and check_count(jobs, "jobs") == 1:
        yield None
        return
    distributed = _distributed()
    with contextlib.ExitStack() as stack:
        target = scheduler if scheduler is not None else stack.enter_context(_local(distributed, jobs))
        client = stack.enter_context(_connect(distributed, target))
        if announce is not None:
            announce(f"dashboard: {client.dashboard_link}")
        yield client.get_executor(pure=False)


def ordered_map(executor: Executor, in_flight: int) -> Callable[..., Iterator[Any]]:
    """Like the builtin `map`, on an executor: results in order, at most `in_flight` items sent ahead.

    `Executor.map` sends everything at once, which does not fit in memory when the items are the batches of a long run.
    With twice as many in flight as there are workers, no worker waits.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> with ThreadPoolExecutor(2) as executor:
    ...     print(list(ordered_map(executor, in_flight=4)(str, range(5))))
    ['0', '1', '2', '3', '4']
    """
    check_count(in_flight, "in_flight")

    def mapped(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        waiting: deque[Future[Any]] = deque()
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) >= in_flight:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    return mapped


def _distributed() -> Any:
    try:
        import distributed
    except ImportError:
        raise ValueError("jobs and scheduler need Dask; install it by: pip install 'alflb[cluster]'") from None
    return distributed


def _local(distributed: Any, jobs: int) -> Any:
    """Processes share the cores, so each has one thread; results do not depend on the number of threads."""
    with _children_ignore_interrupts():
        return distributed.LocalCluster(
            n_workers=jobs,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            env={"ALFLB_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            silence_logs=50,
        )


@contextlib.contextmanager
def _children_ignore_interrupts() -> Iterator[None]:
    """Processes started in here ignore Ctrl-C, which a terminal sends to all of them: this process shuts them down."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _connect(distributed: Any, target: Any) -> Any:
    if isinstance(target, str):
        _require_listener(distributed, target)
    with warnings.catch_warnings():
        # Cells check the source they run with; other differences between the two ends show in the rows' provenance.
        warnings.simplefilter("ignore", category=distributed.versions.VersionMismatchWarning)
        return distributed.Client(target, timeout=CONNECT_SECONDS, set_as_default=False)


def _require_listener(distributed: Any, address: str) -> None:
    """Raise an error of one line if no scheduler listens there; a client that cannot connect prints fifty."""
    try:
        host, port = distributed.comm.get_address_host_port(address)
        with socket.create_connection((host, port), timeout=CONNECT_SECONDS):
            pass
    except ValueError as error:
        raise ValueError(f"scheduler is {address!r} ({error}); pass an address like tcp://host:8786") from None
    except OSError as error:
        reason = f"no Dask scheduler answers there ({error.strerror or error}); start one by: dask scheduler"
        raise OSError(error.errno or 0, reason, address) from None
