"""Biased top-K in torch: the same integers as the reference? and how long beside torch.topk and one read of the scores?

Every contender starts from scores and a bias on the device and leaves the K experts of each token and the load of
each expert there. The floor is the time to read the scores once, at the bandwidth of a copy in the same run: half the
time in which ``tensor.copy_`` reads them and writes as much. Contenders take turns; figures are medians with minimum
and maximum. On a GPU the clock is that of the device (events), calls go round enough different scores that none is
still in cache, and what can be captured in a CUDA graph is timed so as well, since at small sizes most of the time is
Python's. On the CPU it is processor time of one thread.

Run ``python -m experiments.benchmarks.torch``; it writes docs/benchmarks/torch.md, for the GPU if torch sees one and
for the CPU, with one thread, at smaller sizes and in processor time, otherwise.
"""

from __future__ import annotations

import os

for _variable in ("ALFLB_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"  # read once, when the libraries below are imported

import importlib.util
import itertools
import math
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from alflb.cli._console import run_program
from alflb.kernels import numba_, reference
from alflb.kernels.draws import DISTRIBUTIONS, Draw
from alflb.kernels.torch_ import TorchKernels, route, route_by_torch, suits_triton
from experiments.benchmarks import _triton_facts
from experiments.benchmarks._bench import Contender, clock, duration, machine, ratio, table, write_page

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
SIZES = [(65536, 64, 8), (65536, 256, 8), (1048576, 256, 8)] if ON_GPU else [(16384, 64, 8), (16384, 256, 8)]
DTYPES = [torch.float32, torch.bfloat16]
ROWS_TO_CHECK = 2_000_000 if ON_GPU else 100_000
"""Rows of each kind compared with the reference, for each number of experts and dtype."""
TURNS = 30 if ON_GPU else 9
CACHE_BYTES = 1 << 28
"""More than any cache of the device holds."""
FLOOR = "one read (floor)"

Timings = dict[str, list[float]]


def main() -> None:
    """Measure everything and write the page."""
    torch.set_num_threads(1)
    sections = ["# The allocator in torch", __doc__.split("\n\n")[1], machine("torch", "triton"), device_line()]
    if not ON_GPU:
        sections.append(
            "**No GPU was at hand: nothing on this page is a time on a GPU.** The Triton kernel has been run by "
            "Triton's interpreter, on the CPU, against the reference, and compiled for one; its speed is not known. "
            "On the CPU the backend to use is numba."
        )
    sections += [correctness_section(), *(times_section(dtype) for dtype in DTYPES), draws_section()]
    if importlib.util.find_spec("triton") is not None:
        sections.append(compiled_section())
    write_page("torch", sections)


def device_line() -> str:
    """The device, its driver, and what torch was built for."""
    if not ON_GPU:
        return "Device: the CPU, one thread."
    driver = "unknown"
    if tool := shutil.which("nvidia-smi"):
        query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    return f"Device: {torch.cuda.get_device_name()}, driver {driver}, CUDA {torch.version.cuda}."


# --------------------------------------------------------------------------------------------- correctness


def correctness_section() -> str:
    """Experts and loads against the reference, integer by integer."""
    rows = []
    for num_experts, dtype, kind in itertools.product((64, 256), DTYPES, ("random", "tied")):
        checked = wrong = 0
        for seed in itertools.count():
            scores, bias = tied(seed, num_experts, dtype) if kind == "tied" else normal(seed, num_experts, dtype)
            wrong += wrong_rows(scores, bias, top_k=8)
            checked += len(scores)
            if checked >= ROWS_TO_CHECK:
                break
        rows.append([f"{num_experts}", name_of(dtype), kind, f"{checked:,}", f"{wrong}"])
    header = ["E (K = 8)", "scores", "rows", "number of rows", "rows with other experts than the reference"]
    return "## The same integers\n\n" + table(header, rows)


def normal(seed: int, num_experts: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian scores and bias; in bfloat16 ties are many."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(25_000, num_experts, generator=generator)
    return scores.to(dtype), torch.randn(num_experts, generator=generator).to(dtype) / 8


def tied(seed: int, num_experts: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Sixteen levels, so that nearly every row has a tie at the bar."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 16, (25_000, num_experts), generator=generator)
    return scores.to(dtype) / 64, torch.randint(0, 3, (num_experts,), generator=generator).to(dtype) / 64


def wrong_rows(scores: torch.Tensor, bias: torch.Tensor, top_k: int) -> int:
    """Rows whose experts differ; numpy has no bfloat16, so the reference is given the rounded sums."""
    biased_TE = (scores + bias).float().numpy()
    expected = reference.allocate(biased_TE, np.zeros(biased_TE.shape[1]), top_k)
    experts_TK, load_E, _ = (part.cpu().numpy() for part in route(scores.to(DEVICE), bias.to(DEVICE), top_k))
    wrong = int((experts_TK != expected.experts_TK).any(axis=1).sum())
    if not np.array_equal(load_E, np.bincount(experts_TK.ravel(), minlength=len(load_E))):
        raise AssertionError("loads are not those of the experts")
    return wrong


# --------------------------------------------------------------------------------------------- times


def times_section(dtype: torch.dtype) -> str:
    """All contenders at all sizes."""
    rows = []
    for size in SIZES:
        timings = time_all(*size, dtype)
        floor = timings.pop("copy")
        timings = {FLOOR: [seconds / 2 for seconds in floor], **timings}
        rows += [
            [
                f"{size}",
                name,
                duration(times),
                ratio(times, timings[FLOOR]),
                ratio(times, timings["torch.topk + bincount"]),
            ]
            for name, times in timings.items()
        ]
    header = ["T, E, K", "contender", "ms, median (min - max)", "of one read", "of topk + bincount"]
    return f"## Times, {name_of(dtype)}\n\n" + table(header, rows)


def time_all(num_tokens: int, num_experts: int, top_k: int, dtype: torch.dtype) -> Timings:
    """Seconds of each contender in each turn."""
    generator = torch.Generator().manual_seed(num_tokens + num_experts)
    scores = torch.sigmoid(torch.randn(num_tokens, num_experts, generator=generator)).to(DEVICE, dtype)
    bias = (0.01 * torch.randn(num_experts, generator=generator)).to(DEVICE, dtype)
    copies = math.ceil(CACHE_BYTES / (scores.numel() * scores.element_size())) if ON_GPU else 1
    turns = itertools.cycle([scores.clone() for _ in range(copies)])
    contenders = make_contenders(turns, bias, top_k, torch.empty_like(scores))
    if ON_GPU:
        fixed = make_contenders(itertools.repeat(scores), bias, top_k, torch.empty_like(scores))
        graphs = {name: run for name, run in fixed.items() if "bincount" not in name and name != "copy"}
        contenders |= {f"{name}, CUDA graph": captured(run) for name, run in graphs.items()}
    elif dtype == torch.float32:
        arrays = scores.numpy(), bias.numpy()
        contenders["alflb numba"] = lambda: numba_.allocate(*arrays, top_k)
    clock_of = device_clock if ON_GPU else processor_clock
    timings: Timings = {name: [] for name in contenders}
    for turn in range(-2, TURNS):  # two to warm up
        for name, run in contenders.items():
            seconds = clock_of(run)
            if turn >= 0:
                timings[name].append(seconds)
    return timings


def make_contenders(
    scores: Iterator[torch.Tensor], bias: torch.Tensor, top_k: int, target: torch.Tensor
) -> dict[str, Contender]:
    """What takes turns; each call takes the next scores."""

    def peer() -> object:
        biased_TE = next(scores) + bias
        experts_TK = torch.topk(biased_TE, top_k, dim=1, sorted=False).indices
        return experts_TK, torch.bincount(experts_TK.flatten(), minlength=len(bias))

    return {
        "copy": lambda: target.copy_(next(scores)),
        "torch.topk + bincount": peer,
        "torch.topk": lambda: torch.topk(next(scores) + bias, top_k, dim=1, sorted=False).indices,
        "alflb torch": lambda: route_by_torch(next(scores), bias, top_k),
    } | ({"alflb Triton": lambda: route(next(scores), bias, top_k)} if suits_triton(target, top_k) else {})


def device_clock(run: Contender) -> float:
    """Seconds of one call on the GPU's own clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def processor_clock(run: Contender) -> float:
    """Seconds of processor time of one call, which other programs disturb less than they do a wall clock."""
    start = time.process_time()
    run()
    return time.process_time() - start


def captured(run: Contender) -> Callable[[], object]:
    """The call as a CUDA graph: the same kernels without Python between them; the scores may stay in cache."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def draws_section() -> str:
    """Scores made on the device and routed there, as `simulate` does it; numba beside it."""
    num_tokens, num_experts, top_k = SIZES[0]
    kernels, bias_E = TorchKernels(DEVICE), np.zeros(num_experts)
    drawn_clock = clock if ON_GPU else processor_clock  # both contenders end on the host
    rows = []
    for distribution in DISTRIBUTIONS:
        draw = Draw(distribution, 1, num_tokens, np.zeros(num_experts, np.float32))
        runs: dict[str, Any] = {"torch": kernels.drawn_loads, "numba": numba_.drawn_loads}
        timings: Timings = {
            name: [drawn_clock(lambda run=run, draw=draw: run(draw, bias_E, top_k)) for _ in range(TURNS + 2)][2:]  # type: ignore[misc]
            for name, run in runs.items()
        }
        same = np.array_equal(*(run(draw, bias_E, top_k)[0] for run in runs.values()))
        rows.append([distribution, duration(timings["torch"]), duration(timings["numba"]), "yes" if same else "NO"])
    header = ["law", f"torch on {DEVICE.type}, ms", "numba, one thread, ms", "same loads"]
    return f"## Drawn scores, {SIZES[0]}, loads back on the host\n\n" + table(header, rows)


def compiled_section() -> str:
    """What the assembler says of the kernel."""
    rows = []
    for num_experts, top_k, dtype in itertools.product((64, 256, 512), (8,), ("fp32", "bf16")):
        needs = _triton_facts.resources(_triton_facts.compiled(num_experts, top_k, dtype))
        rows.append([f"({num_experts}, {top_k})", dtype, *(f"{number}" for number in needs)])
    header = ["E, K", "scores", "registers", "stack, bytes", "spilled, bytes", "instructions"]
    return "## The Triton kernel compiled for compute capability 9.0\n\n" + table(header, rows)


def name_of(dtype: torch.dtype) -> str:
    """Without the module."""
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    run_program(main)
