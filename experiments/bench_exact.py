"""How long the exact optimum takes: our solver against min-cost flow and a modelling layer, on the same instances.

Run as ``python experiments/bench_exact.py`` (some minutes; ``--large`` adds sizes no peer can do). All
solvers run on one thread, interleaved instance by instance, and every time is from scores to answer. Times of
OR-Tools are those of building and solving the network inside a process of its own (its wheel and highspy's cannot
be loaded together), without starting the process and without our certificate. The floor is one read of the
scores, ``scores.max()``, measured in the same run. The table goes to ``docs/benchmarks/exact.md``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from alflb.exact import solve_exact
from alflb.problem import AssignmentProblem, FloatArray

REPORT = Path(__file__).parent.parent / "docs" / "benchmarks" / "exact.md"
FAMILIES = ("uniform", "skewed", "decimals")
SIZES = ((4096, 64, 6), (16384, 64, 8), (65536, 256, 8))
LARGE_SIZES = ((262144, 256, 8), (4194304, 64, 8))
FLOW_MOST_PAIRS = 2**24
"""Pairs up to which OR-Tools is run; it needs some 100 bytes and several microseconds for each."""
CVXPY_MOST_PAIRS = 2**18

_FLOW_PEER = """
import sys, time
import numpy as np
from ortools.graph.python.min_cost_flow import SimpleMinCostFlow
costs, targets, top_k, repeats = (np.load(sys.argv[1])[name] for name in ("costs", "targets", "top_k", "repeats"))
num_tokens, num_experts = costs.shape
for _ in range(repeats):
    start = time.perf_counter()
    flow = SimpleMinCostFlow()
    tokens, experts = np.divmod(np.arange(costs.size), num_experts)
    arcs = flow.add_arcs_with_capacity_and_unit_cost(
        tokens, num_tokens + experts, np.ones(costs.size, dtype=np.int64), costs.ravel()
    )
    supplies = np.concatenate([np.full(num_tokens, top_k), -targets])
    flow.set_nodes_supplies(np.arange(num_tokens + num_experts), supplies)
    assert flow.solve() == flow.OPTIMAL
    print(time.perf_counter() - start, flow.optimal_cost())
"""


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle run."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        """Median (min-max) in milliseconds."""
        low, high = min(self.seconds), max(self.seconds)
        return f"{1e3 * self.median:.4g} ({1e3 * low:.4g}-{1e3 * high:.4g})"


def make_scores(family: str, num_tokens: int, num_experts: int) -> FloatArray:
    """Float32 scores: uniform; a sigmoid linear router with uneven experts; the same rounded to two decimals."""
    rng = np.random.default_rng(0)
    if family == "uniform":
        return rng.random((num_tokens, num_experts), dtype=np.float32)
    weights_HE = rng.standard_normal((64, num_experts), dtype=np.float32) / 8
    offset_E = rng.standard_normal(num_experts, dtype=np.float32)
    scores_TE = 1 / (1 + np.exp(-(rng.standard_normal((num_tokens, 64), dtype=np.float32) @ weights_HE + offset_E)))
    return np.round(scores_TE, 2) if family == "decimals" else scores_TE


def time_interleaved(tasks: dict[str, Callable[[], object]], repeats: int) -> dict[str, Timing]:
    """Run the tasks in turn, `repeats` rounds after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for count in range(repeats + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if count > 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(times)) for name, times in seconds.items()}


def time_flow(problem: AssignmentProblem, value: float) -> Timing:
    """OR-Tools' SimpleMinCostFlow on scores scaled by 2^24, checked against the value we found."""
    repeats = 3 if problem.scores_TE.size <= 2**20 else 1
    costs = np.rint(-problem.scores_TE.astype(np.float64) * 2.0**24).astype(np.int64)
    targets = problem.target_E.astype(np.int64)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instance.npz"
        np.savez(path, costs=costs, targets=targets, top_k=problem.top_k, repeats=repeats)
        child = subprocess.run(
            [sys.executable, "-c", _FLOW_PEER, str(path)], capture_output=True, text=True, check=True
        )
    rows = [tuple(map(float, line.split())) for line in child.stdout.splitlines()]
    rounding = problem.num_tokens * problem.top_k * 2.0**-25
    if any(abs(-cost / 2.0**24 - value) > rounding for _, cost in rows):
        raise RuntimeError(f"OR-Tools found {-rows[0][1] / 2.0**24}, we found {value}")
    return Timing(tuple(seconds for seconds, _ in rows))


def time_cvxpy(problem: AssignmentProblem, value: float) -> Timing:
    """Cvxpy with HiGHS and default settings, 0 <= x <= 1 written as constraints; one run, since it is slow."""
    import cvxpy as cp

    start = time.perf_counter()
    x = cp.Variable(problem.scores_TE.shape)
    constraints = [x >= 0, x <= 1, cp.sum(x, axis=1) == problem.top_k, cp.sum(x, axis=0) == problem.target_E]
    optimum = cp.Problem(cp.Maximize(cp.sum(cp.multiply(problem.scores_TE, x))), constraints).solve(solver=cp.HIGHS)
    seconds = time.perf_counter() - start
    if abs(optimum - value) > 1e-6 * abs(value):
        raise RuntimeError(f"cvxpy found {optimum}, we found {value}")
    return Timing((seconds,))


def bench_instance(family: str, size: tuple[int, int, int], repeats: int, with_peers: bool) -> str:
    """One row of the table."""
    num_tokens, num_experts, top_k = size
    problem = AssignmentProblem(make_scores(family, num_tokens, num_experts), top_k)
    value, extra = solve_tracing_memory(problem)
    ours = time_interleaved(
        {"solve": lambda: solve_exact(problem, method="screen"), "floor": lambda: problem.scores_TE.max()}, repeats
    )
    solve, floor = ours["solve"], ours["floor"]
    cells = [
        family,
        f"{size}",
        str(solve),
        f"{solve.median / floor.median:.0f}",
        f"{extra / problem.scores_TE.nbytes:.0%}",
    ]
    pairs = num_tokens * num_experts
    for name, most_pairs, time_peer in (
        ("ortools", FLOW_MOST_PAIRS, time_flow),
        ("cvxpy", CVXPY_MOST_PAIRS, time_cvxpy),
    ):
        if with_peers and pairs <= most_pairs and importlib.util.find_spec(name) is not None:
            peer = time_peer(problem, value)
            cells += [str(peer), f"{peer.median / solve.median:.0f}"]
        else:
            cells += ["-", "-"]
    return "| " + " | ".join(cells) + " |"


def solve_tracing_memory(problem: AssignmentProblem) -> tuple[float, int]:
    """The optimal value, and the most memory allocated at any time while solving, bytes."""
    solve_exact(problem, method="screen")
    tracemalloc.start()
    value = solve_exact(problem, method="screen").value
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return value, peak


def provenance() -> str:
    """Machine and versions, one line."""
    packages = [name for name in ("numpy", "numba", "ortools", "cvxpy", "highspy") if importlib.util.find_spec(name)]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return f"{processor_name()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}; one thread"


def processor_name() -> str:
    """What the system calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description="Time the exact solver against its peers.")
    parser.add_argument("--large", action="store_true", help="add sizes that no peer can do")
    parser.add_argument("--no-peers", action="store_true", help="time our solver alone")
    parser.add_argument("--repeats", type=int, default=9, help="timed runs of our solver on each instance")
    options = parser.parse_args()
    lines = [
        "# Time to the certified optimum",
        "",
        "Written by `python experiments/bench_exact.py`; its docstring says what is measured. Times are milliseconds,",
        'median (min-max). "x floor": multiples of one read of the scores. "extra memory": peak allocation while',
        'solving, against the size of the scores. "x ours": the peer\'s median over ours.',
        "",
        f"{provenance()}.",
        "",
        "| scores | T, E, K | ours | x floor | extra memory | OR-Tools flow | x ours | cvxpy + HiGHS | x ours |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))  # noqa: T201
    for size in SIZES + (LARGE_SIZES if options.large else ()):
        for family in FAMILIES:
            lines.append(bench_instance(family, size, options.repeats, not options.no_peers))
            print(lines[-1], flush=True)  # noqa: T201
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
