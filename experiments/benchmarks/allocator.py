"""How long biased top-K takes: alflb against its peers and against one read of the scores, one thread each.

Every contender starts from float scores and a bias and ends with the K experts of each token and the load of
each expert (``alflb loads``: the loads and the dual sum only). Contenders take turns, so that a busy machine
slows all of them; figures are medians with the range in parentheses, and ratios are of medians of the same turns.
The floor is ``scores.max()``, one pass over the scores by numpy's vector code.

Run ``python -m experiments.benchmarks.allocator``; it writes docs/benchmarks/allocator.md. torch, faiss and
onnxruntime (with onnx) are compared where they are installed.
"""

from __future__ import annotations

import os

for _variable in ("ALFLB_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"  # read once, when the libraries below are imported

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alflb.cli._console import run_program
from alflb.kernels import numba_
from alflb.kernels.counting import LoadCounter
from alflb.kernels.draws import DISTRIBUTIONS, Draw
from experiments.benchmarks._bench import (
    MODELS,
    Contender,
    duration,
    machine,
    ratio,
    scaling_figure,
    table,
    take_turns,
    write_page,
)

SIZES = [(65536, 64, 8), (65536, 256, 8), (16384, 512, 8)]
TURNS = 15
SECONDS_A_CONTENDER = 2.0
"""Slow contenders get fewer turns, at least three."""

FLOOR = "one read (floor)"

Array = NDArray[Any]
Size = tuple[int, int, int]

compare = partial(take_turns, turns=TURNS, seconds_each=SECONDS_A_CONTENDER / 2)


def main() -> None:
    """Measure everything and write the page."""
    scaling = {
        "T": measure([(tokens, 64, 8) for tokens in (4096, 16384, 65536, 262144)]),
        "E": measure([(16384, experts, 8) for experts in (16, 32, 64, 128, 256, 512)]),
        "K": measure([(16384, 256, top_k) for top_k in (1, 2, 4, 8, 16, 32, 48, 64)]),
    }
    sections = [
        "# The allocator's speed",
        __doc__.split("\n\n")[1],
        machine("llvmlite", "torch", "faiss-cpu", "onnxruntime"),
        *(peers_section(dtype) for dtype in (np.float32, np.float64)),
        models_section(),
        small_batches_section(),
        threads_section(),
        *(scaling_section(name, measured) for name, measured in scaling.items()),
        draws_section(),
        fixed_scores_section(),
    ]
    labels = {
        "T": "tokens T (E = 64, K = 8)",
        "E": "experts E (T = 16,384, K = 8)",
        "K": "picks K (T = 16,384, E = 256)",
    }
    panels = {labels[name]: curves(measured, "TEK".index(name)) for name, measured in scaling.items()}
    write_page("allocator", sections, scaling_figure(panels, FLOOR, "seconds, median"))


# --------------------------------------------------------------------------------------------- contenders


def alflb_contenders(scores_TE: Array, bias_E: Array, top_k: int) -> dict[str, Contender]:
    """The floor and alflb's own two operations."""
    return {
        FLOOR: lambda: scores_TE.max(),
        "alflb loads": lambda: numba_.loads(scores_TE, bias_E, top_k),
        "alflb allocate": lambda: numba_.allocate(scores_TE, bias_E, top_k),
    }


def numpy_contender(scores_TE: Array, bias_E: Array, top_k: int) -> Contender:
    """Argpartition and bincount."""
    cut = scores_TE.shape[1] - top_k

    def run() -> object:
        experts_TK = np.argpartition(scores_TE + bias_E, cut, axis=1)[:, cut:]
        return experts_TK, np.bincount(experts_TK.ravel(), minlength=scores_TE.shape[1])

    return run


def torch_contender(scores_TE: Array, bias_E: Array, top_k: int) -> Contender:
    """torch.topk and bincount."""
    import torch

    torch.set_num_threads(1)
    scores, bias = torch.from_numpy(scores_TE), torch.from_numpy(bias_E)

    def run() -> object:
        experts_TK = torch.topk(scores + bias, top_k, dim=1, sorted=False).indices
        return experts_TK, torch.bincount(experts_TK.ravel(), minlength=scores.shape[1])

    return run


def faiss_contender(scores_TE: Array, bias_E: Array, top_k: int) -> Contender:
    """Faiss's k-selection by one heap a row, float32 only."""
    import faiss

    if scores_TE.dtype != np.float32:
        raise ImportError("faiss selects in float32 only")
    faiss.omp_set_num_threads(1)
    num_tokens, num_experts = scores_TE.shape

    def run() -> object:
        values_TK = np.empty((num_tokens, top_k), np.float32)
        experts_TK = np.empty((num_tokens, top_k), np.int64)
        heaps = faiss.float_minheap_array_t()
        heaps.nh, heaps.k = num_tokens, top_k
        heaps.val, heaps.ids = faiss.swig_ptr(values_TK), faiss.swig_ptr(experts_TK)
        biased_TE = scores_TE + bias_E
        heaps.heapify()
        heaps.addn(num_experts, faiss.swig_ptr(biased_TE))
        return experts_TK, np.bincount(experts_TK.ravel(), minlength=num_experts)

    return run


def onnxruntime_contender(scores_TE: Array, bias_E: Array, top_k: int) -> Contender:
    """An onnxruntime graph of Add and TopK, and bincount."""
    import onnxruntime
    from onnx import TensorProto, helper

    kind = TensorProto.FLOAT if scores_TE.dtype == np.float32 else TensorProto.DOUBLE
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["scores", "bias"], ["biased"]),
            helper.make_node("TopK", ["biased", "k"], ["values", "experts"], axis=1, sorted=0),
        ],
        "router",
        [
            helper.make_tensor_value_info("scores", kind, scores_TE.shape),
            helper.make_tensor_value_info("bias", kind, bias_E.shape),
        ],
        [helper.make_tensor_value_info("experts", TensorProto.INT64, (len(scores_TE), top_k))],
        [helper.make_tensor("k", TensorProto.INT64, [1], [top_k])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run() -> object:
        (experts_TK,) = session.run(["experts"], {"scores": scores_TE, "bias": bias_E})
        return experts_TK, np.bincount(experts_TK.ravel(), minlength=scores_TE.shape[1])

    return run


PEERS = {
    "numpy argpartition": numpy_contender,
    "torch.topk": torch_contender,
    "faiss heaps": faiss_contender,
    "onnxruntime TopK": onnxruntime_contender,
}


# --------------------------------------------------------------------------------------------- sections


def peers_section(dtype: type[np.floating[Any]]) -> str:
    """All contenders at the three sizes."""
    rows, skipped = [], set()
    for size in SIZES:
        scores_TE, bias_E = instance(*size, dtype)
        contenders = alflb_contenders(scores_TE, bias_E, size[2])
        for name, make in PEERS.items():
            try:
                contenders[name] = make(scores_TE, bias_E, size[2])
            except (ImportError, RuntimeError) as error:
                skipped.add(f"{name} skipped: {error}")
        timings = compare(contenders)
        check_loads(contenders)
        rows += [
            [
                f"{size}",
                name,
                duration(times),
                ratio(times, timings[FLOOR]),
                ratio(times, timings["alflb allocate"]),
            ]
            for name, times in timings.items()
        ]
    header = ["T, E, K", "contender", "time", "of one read", "of alflb allocate"]
    return "\n\n".join([f"## Against peers, {dtype.__name__}", table(header, rows), *sorted(skipped)])


def models_section() -> str:
    """The expert counts and picks of real models."""
    sizes = {name: (16384, *model) for name, model in MODELS.items()}
    rows = []
    for name, size in sizes.items():
        scores_TE, bias_E = instance(*size, np.float32)
        contenders = alflb_contenders(scores_TE, bias_E, size[2])
        contenders["numpy argpartition"] = numpy_contender(scores_TE, bias_E, size[2])
        timings = compare(contenders)
        rows.append([name, f"{size[1]}, {size[2]}", *(duration(times) for times in timings.values())])
        rows[-1] += [ratio(timings[one], timings[FLOOR]) for one in ("alflb loads", "alflb allocate")]
    header = ["model", "E, K", "one read", "loads", "allocate", "numpy argpartition"]
    header += ["loads of one read", "allocate of one read"]
    return "## Real models, T = 16,384, float32\n\n" + table(header, rows)


def small_batches_section() -> str:
    """What a call costs whatever its size."""
    rows = []
    for size in ((256, 8, 2), (256, 64, 8), (1024, 64, 8)):
        scores_TE, bias_E = instance(*size, np.float32)
        contenders = alflb_contenders(scores_TE, bias_E, size[2])
        contenders["numpy argpartition"] = numpy_contender(scores_TE, bias_E, size[2])
        timings = compare(contenders)
        rows.append([f"{size}", *(duration(timings[name]) for name in contenders if name != FLOOR)])
    return "## Small batches, float32\n\n" + table(["T, E, K", "loads", "allocate", "numpy argpartition"], rows)


def threads_section() -> str:
    """Alflb with one thread and with two."""
    rows = []
    for size in SIZES:
        scores_TE, bias_E = instance(*size, np.float32)
        contenders = {f"{count}": with_threads(count, scores_TE, bias_E, size[2]) for count in (1, 2)}
        timings = compare(contenders)
        rows.append([f"{size}", *(duration(timings[name]) for name in "12"), ratio(timings["1"], timings["2"])])
    caution = "This says something only if nothing else ran: compare the load average above."
    return f"## Two threads, float32, loads\n\n{caution}\n\n" + table(["T, E, K", "one", "two", "speed-up"], rows)


def with_threads(count: int, scores_TE: Array, bias_E: Array, top_k: int) -> Contender:
    """Loads by so many threads."""

    def run() -> object:
        os.environ["ALFLB_NUM_THREADS"] = str(count)
        try:
            return numba_.loads(scores_TE, bias_E, top_k)
        finally:
            os.environ["ALFLB_NUM_THREADS"] = "1"

    return run


def measure(sizes: Iterable[Size]) -> dict[Size, dict[str, list[float]]]:
    """Timings of the floor and of alflb at each size."""
    return {size: compare(alflb_contenders(*instance(*size, np.float32), size[2])) for size in sizes}


def scaling_section(name: str, measured: dict[Size, dict[str, list[float]]]) -> str:
    """Alflb over the floor as one size grows."""
    rows = []
    for size, timings in measured.items():
        rows.append([f"{size}", *(duration(times) for times in timings.values())])
        rows[-1] += [ratio(timings[contender], timings[FLOOR]) for contender in ("alflb loads", "alflb allocate")]
    header = ["T, E, K", "one read", "loads", "allocate", "loads of one read", "allocate of one read"]
    return f"## Scaling in {name}, float32\n\n" + table(header, rows)


def curves(measured: dict[Size, dict[str, list[float]]], axis: int) -> dict[str, tuple[list[float], list[float]]]:
    """Medians of each contender against the size on one axis."""
    sizes = [float(size[axis]) for size in measured]
    names = next(iter(measured.values()))
    return {name: (sizes, [float(np.median(timings[name])) for timings in measured.values()]) for name in names}


def draws_section() -> str:
    """Drawing and routing together, and what drawing alone costs numpy."""
    num_tokens, num_experts, top_k = SIZES[0]
    rng = np.random.default_rng(0)
    shape = (num_tokens, num_experts)
    numpy_draws: dict[str, Contender] = {
        "uniform": lambda: rng.random(shape, dtype=np.float32),
        "logistic": lambda: rng.logistic(size=shape),
        "gumbel": lambda: rng.gumbel(size=shape),
        "normal": lambda: rng.standard_normal(shape, dtype=np.float32),
    }
    rows = []
    for distribution in DISTRIBUTIONS:
        draw = Draw(distribution, 1, num_tokens, np.zeros(num_experts, np.float32))
        timings = compare(
            {
                "fused": lambda draw=draw: numba_.drawn_loads(draw, np.zeros(num_experts), top_k),  # type: ignore[misc]
                "draw": lambda draw=draw: draw.scores(),  # type: ignore[misc]
                "numpy": numpy_draws[distribution],
            }
        )
        billion = float(np.median(timings["fused"])) * 1e9 / num_tokens
        rows.append([distribution, *(duration(times) for times in timings.values()), duration([billion])])
    header = ["law", "draw and route", "draw", "numpy draws", "draw and route 10^9 tokens"]
    return f"## Drawn scores, {SIZES[0]}, float32 (numpy: logistic and gumbel in float64)\n\n" + table(header, rows)


def fixed_scores_section() -> str:
    """The same scores routed again and again while the sign rule moves the bias: lazily and in full."""
    rows = []
    for size in SIZES[:2]:
        scores_TE, _ = instance(*size, np.float32)
        scores_TE.flags.writeable = False
        for step_size in (1e-5, 1e-4, 1e-3):
            bias_NE = sign_walk(scores_TE, size[2], step_size)
            lazy, full = (walk(count, bias_NE) for count in (LoadCounter(numba_, size[2]).loads, full_loads(size[2])))
            timings = compare({"lazy": partial(lazy, scores_TE), "full": partial(full, scores_TE)})
            per_step = {name: [seconds / len(bias_NE) for seconds in times] for name, times in timings.items()}
            row = [duration(times) for times in per_step.values()]
            rows.append([f"{size}", f"{step_size:g}", *row, ratio(per_step["full"], per_step["lazy"])])
    header = ["T, E, K", "step size", "lazy, per step", "all tokens, per step", "speed-up"]
    return "## Fixed scores, float32\n\n" + table(header, rows)


def sign_walk(scores_TE: Array, top_k: int, step_size: float) -> Array:
    """Biases of some steps of the sign rule, from zero."""
    target = top_k * scores_TE.shape[0] / scores_TE.shape[1]
    biases = [np.zeros(scores_TE.shape[1])]
    for _ in range(60):
        load_E, _ = numba_.loads(scores_TE, biases[-1], top_k)
        biases.append(biases[-1] + step_size * np.sign(target - load_E))
    return np.array(biases)


def full_loads(top_k: int) -> Callable[[Array, Array], Array]:
    """Loads of all tokens, whatever was known before."""
    return lambda scores_TE, bias_E: numba_.loads(scores_TE, bias_E, top_k)[0]


def walk(count: Callable[[Array, Array], Array], bias_NE: Array) -> Callable[[Array], object]:
    """Count the loads at one bias after the other."""
    return lambda scores_TE: [count(scores_TE, bias_E) for bias_E in bias_NE]


# --------------------------------------------------------------------------------------------- measuring


def instance(num_tokens: int, num_experts: int, top_k: int, dtype: type[np.floating[Any]]) -> tuple[Array, Array]:
    """Sigmoid scores of Gaussian logits, as routers have them, and a small bias."""
    rng = np.random.default_rng(num_tokens + num_experts + top_k)
    logits_TE = rng.standard_normal((num_tokens, num_experts))
    return (1 / (1 + np.exp(-logits_TE))).astype(dtype), (0.01 * rng.standard_normal(num_experts)).astype(dtype)


def check_loads(contenders: dict[str, Contender]) -> None:
    """All contenders must count the same loads, or the comparison is void."""
    expected = np.asarray(contenders["alflb allocate"]()[1])  # type: ignore[index]
    for name in PEERS.keys() & contenders.keys():
        load_E = np.asarray(contenders[name]()[1])  # type: ignore[index]
        moved = int(np.abs(load_E - expected).sum())
        if moved > 1e-4 * expected.sum():  # ties at the bar may go to another expert
            raise AssertionError(f"{name} counts other loads: {moved} picks differ")


if __name__ == "__main__":
    run_program(main)
