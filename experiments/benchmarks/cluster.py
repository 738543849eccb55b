"""The pooled problem of 10^8 tokens x 64 experts over a local cluster of two workers: bounds, passes, time, memory.

Run as ``python -m experiments.benchmarks.cluster`` (some minutes; ``--tokens`` makes it smaller; ``--scheduler``
takes a running cluster). Batches are handles (`alflb.kernels.draws.Draw`): a worker draws the scores of one batch,
leaves a summary, and forgets them. The page goes to ``docs/benchmarks/cluster.md``.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from itertools import islice
from typing import Annotated

import typer

os.environ.setdefault("OMP_NUM_THREADS", "1")

from alflb.cli._console import run_program
from alflb.exact import BatchedProblem, StreamingSolution, solve_streaming
from alflb.kernels.draws import Draw
from alflb.streams import DrawnStream, make_stream
from alflb.studies.executors import open_executor, ordered_map
from experiments.benchmarks._bench import machine, table, write_page

TOKENS, BATCH = 100_000_000, 1_000_000
NUM_EXPERTS, TOP_K = 64, 8
SAMPLE_ROWS = 32768
"""Fewer than by default: the sample of every batch travels."""


def handles(num_batches: int) -> Iterator[Draw]:
    """Batches of the stream `logistic`, not yet drawn: some hundred bytes each."""
    stream = make_stream("logistic", num_tokens=BATCH, num_experts=NUM_EXPERTS)
    assert isinstance(stream, DrawnStream)
    return islice(stream.draws(seed=0), num_batches)


def solve(executor: Executor, num_batches: int, workers: int) -> tuple[StreamingSolution, float]:
    """Bounds, and seconds on the clock."""
    problem = BatchedProblem(lambda: handles(num_batches), TOP_K)
    start = time.perf_counter()
    solution = solve_streaming(
        problem, evaluate_batches=ordered_map(executor, 2 * workers), sample_rows=SAMPLE_ROWS, must_converge=False
    )
    return solution, time.perf_counter() - start


def peak_memory(_: int) -> tuple[int, float]:
    """Number of the process that runs it, and the most memory that ever had, MB."""
    return os.getpid(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(
    tokens: Annotated[int, typer.Option(min=1, help="Rounded up to whole batches.")] = TOKENS,
    workers: Annotated[int, typer.Option(min=2, help="Workers of the cluster.")] = 2,
    scheduler: Annotated[str | None, typer.Option(help="Address of a running cluster of that many workers.")] = None,
) -> None:
    """Solve a small problem to compile, then a large one over a cluster; write the page."""
    num_batches = -(-tokens // BATCH)
    jobs = 1 if scheduler else workers
    with open_executor(jobs, scheduler, print) as executor:
        assert executor is not None
        solve(executor, 1, workers)
        before = dict(executor.map(peak_memory, range(20)))
        solution, seconds = solve(executor, num_batches, workers)
        after = dict(executor.map(peak_memory, range(20)))
    bounds = (solution.lower_bound, solution.upper_bound)
    rows = [
        ("tokens x experts, top-K", f"{solution.num_tokens:,} x {NUM_EXPERTS}, {TOP_K}"),
        ("passes", str(solution.passes)),
        ("relative gap", f"{solution.relative_gap:.2e} (asked for {solution.tolerance:g})"),
        ("bounds per token", " .. ".join(f"{x / solution.num_tokens:.9f}" for x in bounds)),
        ("seconds on the clock", f"{seconds:.0f}"),
        ("million tokens per second and pass", f"{solution.num_tokens * solution.passes / seconds / 1e6:.2f}"),
        ("scores of one batch, MB", f"{BATCH * NUM_EXPERTS * 4 / 2**20:.0f}"),
        ("most memory of a worker, MB, after one batch", ", ".join(f"{mb:.0f}" for mb in sorted(before.values()))),
        ("most memory of a worker, MB, at the end", ", ".join(f"{mb:.0f}" for mb in sorted(after.values()))),
        ("most memory of this process, MB", f"{peak_memory(0)[1]:.0f}"),
        ("all scores together, MB", f"{solution.num_tokens * NUM_EXPERTS * 4 / 2**20:,.0f}"),
    ]
    summary = table(["", f"{workers} workers"], rows)
    print(summary)
    write_page("cluster", ["# A pooled optimum over a cluster", str(__doc__).strip(), summary, machine("distributed")])


if __name__ == "__main__":
    run_program(main)
