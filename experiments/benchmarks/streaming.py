"""The pooled problem of many batches: bounds of `solve_streaming` against the exact optimum, passes, time and memory.

Run as ``python -m experiments.benchmarks.streaming`` (some ten minutes; ``--tokens`` makes it smaller). The scores lie
in a temporary file, float32, and are read from it batch by batch in each pass, so that the time is the solvers' and not
the generators'. "exact" is `solve_exact` on the same `BatchedProblem` in the same run: exact, but it keeps undecided
tokens in memory. Memory is the peak of what Python and numpy allocate while solving (tracemalloc), a batch of scores
included. Compilation is done beforehand on a small problem. The page goes to ``docs/benchmarks/streaming.md``.
"""

from __future__ import annotations

import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import typer

from alflb.cli._console import run_program
from alflb.exact import BatchedProblem, solve_exact, solve_streaming
from alflb.problem import FloatArray
from alflb.streams import make_stream
from alflb.traces import load_router_trace
from experiments.benchmarks._bench import duration, machine, table, write_page
from experiments.benchmarks.exact import make_scores

TOKENS = 10_000_000
BATCH = 100_000
NUM_EXPERTS, TOP_K = 64, 8
TOLERANCE = 1e-6

Answer = TypeVar("Answer")


def family_batches(family: str, num_batches: int) -> Iterator[FloatArray]:
    """Batches of one population.

    "uniform": uniform numbers plus offsets between 0 and 0.5; "skewed" and "decimals": a sigmoid linear router with
    uneven experts, as in `bench_exact`, and the same rounded to two decimals; "router": the stream `linear_router`.
    """
    if family == "router":
        stream = make_stream("linear_router", num_tokens=BATCH, num_experts=NUM_EXPERTS)
        yield from (batch.astype(np.float32) for batch in islice(stream.batches(seed=0), num_batches))
        return
    if family == "uniform":
        offset_E = np.linspace(0.0, 0.5, NUM_EXPERTS, dtype=np.float32)
        for t in range(num_batches):
            yield np.random.default_rng((0, t)).random((BATCH, NUM_EXPERTS), dtype=np.float32) + offset_E
        return
    rng = np.random.default_rng(0)
    weights_HE = rng.standard_normal((64, NUM_EXPERTS), dtype=np.float32) / 8
    offset_E = rng.standard_normal(NUM_EXPERTS, dtype=np.float32)
    for _ in range(num_batches):
        logits_TE = rng.standard_normal((BATCH, 64), dtype=np.float32) @ weights_HE + offset_E
        scores_TE = 1 / (1 + np.exp(-logits_TE))
        yield np.round(scores_TE, 2) if family == "decimals" else scores_TE


def write_batches(path: Path, batches: Iterator[FloatArray]) -> None:
    """Replace the contents of a file by these batches."""
    with path.open("wb") as file:
        for batch in batches:
            batch.tofile(file)


def read_batches(path: Path) -> Iterator[FloatArray]:
    """The batches of a file in order."""
    with path.open("rb") as file:
        while len(batch := np.fromfile(file, np.float32, BATCH * NUM_EXPERTS).reshape(-1, NUM_EXPERTS)):
            yield batch


@dataclass(frozen=True)
class Cost:
    """What one solve took."""

    cpu: float
    wall: float
    peak: int
    """Bytes."""

    def __str__(self) -> str:
        return f"{duration([self.cpu])} / {duration([self.wall])}, {self.peak / 1e6:.0f} MB"


def costly(run: Callable[[], Answer]) -> tuple[Answer, Cost]:
    """An answer and what it cost."""
    tracemalloc.start()
    cpu, wall = time.process_time(), time.perf_counter()
    answer = run()
    cost = Cost(time.process_time() - cpu, time.perf_counter() - wall, tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    return answer, cost


def bench_problem(name: str, problem: BatchedProblem) -> list[str]:
    """One row of the table."""
    bounds, cost = costly(lambda: solve_streaming(problem, tolerance=TOLERANCE))
    exact, exact_cost = costly(lambda: solve_exact(problem))
    above, below = bounds.upper_bound - exact.value, exact.value - bounds.lower_bound
    return [
        name,
        f"{bounds.num_tokens:,} x {len(bounds.bias_E)}, K = {problem.top_k}",
        f"{bounds.passes}",
        f"{bounds.relative_gap:.1e}",
        f"{above / abs(exact.value):.1e}",
        f"{below / abs(exact.value):.1e}",
        str(cost),
        str(exact_cost),
    ]


def main(tokens: Annotated[int, typer.Option(min=1, help="Tokens per instance.")] = TOKENS) -> None:
    """Hold the bounds of the pooled problem against its exact optimum; print the table and write the page."""
    num_batches = max(1, tokens // BATCH)
    warm_up = BatchedProblem(lambda: [make_scores("skewed", 20_000, NUM_EXPERTS)], TOP_K)
    solve_streaming(warm_up, sample_rows=5000)
    solve_exact(warm_up)
    trace = load_router_trace()
    trace_problem = BatchedProblem(lambda: np.split(trace.scores_TE, 4), trace.top_k)
    rows = [bench_problem("shipped trace", trace_problem)]
    print(*rows[-1], sep=" | ", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores"
        problem = BatchedProblem(lambda: read_batches(path), TOP_K)
        for family in ("uniform", "skewed", "router", "decimals"):
            write_batches(path, family_batches(family, num_batches))
            rows.append(bench_problem(family, problem))
            print(*rows[-1], sep=" | ", flush=True)
    header = ["scores", "tokens x experts", "passes", "relative gap", "upper bound above LP*", "lower bound below LP*"]
    header += ["streaming: cpu / wall, peak memory", "exact: cpu / wall, peak memory"]
    sections = [
        "# Bounds of the pooled problem",
        "Written by `python -m experiments.benchmarks.streaming`; its docstring says what is measured. The solver\n"
        f"stops at a relative gap of {TOLERANCE:g}. Distances from LP* are relative to LP*, which `solve_exact`\n"
        "found in the same run; both bounds allow for rounding. Passes count the\n"
        "survey.",
        machine() + " One thread.",
        table(header, rows),
    ]
    write_page("streaming", sections)


if __name__ == "__main__":
    run_program(main)
