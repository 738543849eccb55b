"""How long the exact optimum takes: our solver against min-cost flow and a modeling layer, on the same instances.

Run as ``python -m experiments.benchmarks.exact`` (some minutes; ``--large`` adds sizes no peer can do). All
solvers run on one thread, interleaved instance by instance, and every time is from scores to answer. Times of
OR-Tools are those of building and solving the network, without our certificate. The floor is one read of the scores,
``scores.max()``, measured in the same run. The table goes to ``docs/benchmarks/exact.md``.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

from typing import Annotated

import numpy as np
import typer

from alflb.cli._console import run_program
from alflb.exact import solve_exact
from alflb.problem import AssignmentProblem, FloatArray
from experiments.benchmarks._bench import (
    MODELS,
    duration,
    machine,
    ratio,
    scaling_figure,
    table,
    take_turns,
    write_page,
)

FAMILIES = ("uniform", "skewed", "decimals")
SIZES = ((4096, 64, 6), (16384, 64, 8), (65536, 256, 8))
LARGE_SIZES = ((262144, 256, 8), (4194304, 64, 8))
FLOW_MOST_PAIRS = 2**24
"""Pairs up to which OR-Tools is run; it needs some 100 bytes and several microseconds for each."""
CVXPY_MOST_PAIRS = 2**18

SCALING = {
    "tokens T (E = 64, K = 8)": {tokens: (tokens, 64, 8) for tokens in (1024, 4096, 16384, 65536, 262144)},
    "experts E (T = 16,384, K = 8)": {experts: (16384, experts, 8) for experts in (16, 32, 64, 128, 256, 512)},
    "picks K (T = 16,384, E = 256)": {top_k: (16384, 256, top_k) for top_k in (1, 2, 4, 8, 16, 32)},
}
"""Sizes of the figure, by what is drawn along the axis."""
MODEL_TOKENS = 16384

OURS, FLOOR = "ours", "one read (floor)"

Timings = dict[str, list[float]]


def make_scores(family: str, num_tokens: int, num_experts: int) -> FloatArray:
    """Float32 scores: uniform; a sigmoid linear router with uneven experts; the same rounded to two decimals."""
    rng = np.random.default_rng(0)
    if family == "uniform":
        return rng.random((num_tokens, num_experts), dtype=np.float32)
    weights_HE = rng.standard_normal((64, num_experts), dtype=np.float32) / 8
    offset_E = rng.standard_normal(num_experts, dtype=np.float32)
    scores_TE = 1 / (1 + np.exp(-(rng.standard_normal((num_tokens, 64), dtype=np.float32) @ weights_HE + offset_E)))
    return np.round(scores_TE, 2) if family == "decimals" else scores_TE


def time_flow(problem: AssignmentProblem, value: float) -> list[float]:
    """OR-Tools' SimpleMinCostFlow on scores scaled by 2^24, checked against the value we found."""
    from ortools.graph.python.min_cost_flow import SimpleMinCostFlow

    num_tokens, num_experts = problem.scores_TE.shape
    costs_TE = np.rint(-problem.scores_TE.astype(np.float64) * 2.0**24).astype(np.int64)
    target_E = problem.target_E.astype(np.int64)
    rounding = num_tokens * problem.top_k * 2.0**-25
    seconds = []
    for _ in range(3 if problem.scores_TE.size <= 2**20 else 1):
        start = time.perf_counter()
        flow = SimpleMinCostFlow()
        tokens, experts = np.divmod(np.arange(costs_TE.size), num_experts)
        flow.add_arcs_with_capacity_and_unit_cost(
            tokens, num_tokens + experts, np.ones(costs_TE.size, dtype=np.int64), costs_TE.ravel()
        )
        supplies = np.concatenate([np.full(num_tokens, problem.top_k), -target_E])
        flow.set_nodes_supplies(np.arange(num_tokens + num_experts), supplies)
        status = flow.solve()
        seconds.append(time.perf_counter() - start)
        found = -flow.optimal_cost() / 2.0**24
        if status != flow.OPTIMAL or abs(found - value) > rounding:
            raise RuntimeError(f"OR-Tools ended with status {status.name} at {found}, we found {value}")
    return seconds


def time_cvxpy(problem: AssignmentProblem, value: float) -> list[float]:
    """Cvxpy with HiGHS and default settings, 0 <= x <= 1 written as constraints; one run, since it is slow."""
    import cvxpy as cp

    start = time.perf_counter()
    x = cp.Variable(problem.scores_TE.shape)
    constraints = [x >= 0, x <= 1, cp.sum(x, axis=1) == problem.top_k, cp.sum(x, axis=0) == problem.target_E]
    optimum = cp.Problem(cp.Maximize(cp.sum(cp.multiply(problem.scores_TE, x))), constraints).solve(solver=cp.HIGHS)
    seconds = time.perf_counter() - start
    if abs(optimum - value) > 1e-6 * abs(value):
        raise RuntimeError(f"cvxpy found {optimum}, we found {value}")
    return [seconds]


PEERS: list[tuple[str, str, int, Callable[[AssignmentProblem, float], list[float]]]] = [
    ("OR-Tools flow", "ortools", FLOW_MOST_PAIRS, time_flow),
    ("cvxpy + HiGHS", "cvxpy", CVXPY_MOST_PAIRS, time_cvxpy),
]


def time_ours(problem: AssignmentProblem) -> Timings:
    """Our solver and one read of the scores, in turns."""
    contenders = {OURS: lambda: solve_exact(problem, method="screen"), FLOOR: lambda: problem.scores_TE.max()}
    return take_turns(contenders, turns=9, seconds_each=5.0)


def bench_instance(family: str, size: tuple[int, int, int], with_peers: bool) -> list[str]:
    """One row of the table."""
    num_tokens, num_experts, top_k = size
    problem = AssignmentProblem(make_scores(family, num_tokens, num_experts), top_k)
    value, extra = solve_tracing_memory(problem)
    timings = time_ours(problem)
    pairs = num_tokens * num_experts
    for name, package, most_pairs, time_peer in PEERS:
        if with_peers and pairs <= most_pairs and importlib.util.find_spec(package) is not None:
            timings[name] = time_peer(problem, value)
    cells = [family, f"{size}", duration(timings[OURS]), ratio(timings[OURS], timings[FLOOR])]
    cells.append(f"{extra / problem.scores_TE.nbytes:.0%}")
    for name, *_ in PEERS:
        cells += [duration(timings[name]), ratio(timings[name], timings[OURS])] if name in timings else ["-", "-"]
    return cells


def bench_model(name: str) -> list[str]:
    """One row of the table of models: each family's median, and the floor."""
    num_experts, top_k = MODELS[name]
    cells = [name, f"{num_experts}, {top_k}"]
    for family in FAMILIES:
        timings = time_ours(AssignmentProblem(make_scores(family, MODEL_TOKENS, num_experts), top_k))
        cells += [duration(timings[OURS]), ratio(timings[OURS], timings[FLOOR])]
    return cells


def solve_tracing_memory(problem: AssignmentProblem) -> tuple[float, int]:
    """The optimal value, and the most memory allocated at any time while solving, bytes."""
    solve_exact(problem, method="screen")
    tracemalloc.start()
    value = solve_exact(problem, method="screen").value
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return value, peak


def curves(sizes: dict[int, tuple[int, int, int]]) -> dict[str, tuple[list[float], list[float]]]:
    """Medians against one of the sizes: ours for each family, and the floor."""
    found: dict[str, list[float]] = {}
    for num_tokens, num_experts, top_k in sizes.values():
        for family in FAMILIES:
            timings = time_ours(AssignmentProblem(make_scores(family, num_tokens, num_experts), top_k))
            found.setdefault(f"{OURS}, {family}", []).append(statistics.median(timings[OURS]))
        found.setdefault(FLOOR, []).append(statistics.median(timings[FLOOR]))
    return {name: ([float(size) for size in sizes], seconds) for name, seconds in found.items()}


def main(
    large: Annotated[bool, typer.Option("--large", help="Add sizes that no peer can solve.")] = False,
    peers: Annotated[bool, typer.Option(help="Time the peers as well as our solver.")] = True,
) -> None:
    """Time the exact solver against its peers; print the table and write it into the page."""
    rows = []
    for size in SIZES + (LARGE_SIZES if large else ()):
        for family in FAMILIES:
            rows.append(bench_instance(family, size, peers))
            print(*rows[-1], sep=" | ", flush=True)
    header = ["scores", "T, E, K", "ours", "x floor", "extra memory"]
    header += [words for name, *_ in PEERS for words in (name, "x ours")]
    model_header = ["model", "E, K", *(words for family in FAMILIES for words in (family, "x floor"))]
    sections = [
        "# Time to the certified optimum",
        "Written by `python -m experiments.benchmarks.exact`; its docstring says what is measured. Times are medians,\n"
        'with the range in parentheses. "x floor": multiples of one read of the scores. "extra memory": peak\n'
        'allocation while solving, against the size of the scores. "x ours": the peer\'s median over ours.',
        machine() + " One thread.",
        table(header, rows),
        f"## Real models, T = {MODEL_TOKENS:,}",
        table(model_header, [bench_model(name) for name in MODELS]),
        "## Scaling",
    ]
    write_page("exact", sections, scaling_figure({x: curves(sizes) for x, sizes in SCALING.items()}, FLOOR, "seconds"))


if __name__ == "__main__":
    run_program(main)
