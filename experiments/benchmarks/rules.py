"""What a step of each rule costs: CPU time of the rule's own work on one batch, one thread, against routing the batch.

Measured is `step`, from the bias and memory that 20 steps on the stream have led to. Rules take turns, and CPU time is
taken, so that a busy machine disturbs little; the table gives medians. What the times leave out, and what matters more
on a cluster, is stated beside them: the numbers that devices must exchange at each step.

Run ``python -m experiments.benchmarks.rules``; it writes docs/benchmarks/rules.md.
"""

from __future__ import annotations

import os

for _variable in ("ALFLB_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"  # read once, when the libraries below are imported

import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from alflb import make_rule, make_stream, rule_names
from alflb.cli._console import run_program
from alflb.kernels import numba_
from alflb.problem import target_load_E
from alflb.rules import RULES, Observation, Sight
from experiments.benchmarks._bench import machine, table, write_page

SIZES = [(1024, 32, 4), (4096, 64, 8)]
WARM_UP = 20
TURNS = 15
ROUTING = "routing the batch"

EXCHANGED = {
    Sight.LOADS: "E loads",
    Sight.SCORES_AFTER_ROUTING: "T E scores",
    Sight.SCORES_BEFORE_ROUTING: "T E scores, before routing",
}
"""Numbers that devices exchange per step, unless the rule itself says otherwise."""


def main() -> None:
    """Measure, print and write the table."""
    columns = {size: _milliseconds(size) for size in SIZES}
    names = sorted(columns[SIZES[-1]], key=lambda name: columns[SIZES[-1]][name])
    rows = []
    for name in names:
        times = [columns[size][name] for size in SIZES]
        shares = [f"{columns[size][name] / columns[size][ROUTING]:.2g}" for size in SIZES]
        cells = [name, "-", "-"]
        if name != ROUTING:
            rule = RULES.get(name)
            cells = [f"`{name}`", rule.sees.value, rule.exchanged or EXCHANGED[rule.sees]]
        rows.append(cells + [word for time_, share in zip(times, shares) for word in (f"{time_:.3g}", share)])
        print(*rows[-1], sep=" | ", flush=True)
    header = ["rule", "sees", "exchanged a step"]
    header += [word for size in SIZES for word in (f"{', '.join(map(str, size))}: ms", "x routing")]
    write_page(
        "rules",
        [
            "# What a step of each rule costs",
            "Written by `python -m experiments.benchmarks.rules`; its docstring says what is measured. CPU\n"
            'milliseconds, median, for T tokens, E experts and K picks of the `linear_router` stream; "x routing":\n'
            "multiples of routing the batch.",
            machine() + " One thread.",
            table(header, rows),
        ],
    )


def _milliseconds(size: tuple[int, int, int]) -> dict[str, float]:
    """Median CPU time of every rule's work on one batch."""
    tokens, experts, top_k = size
    stream = make_stream("linear_router", num_tokens=tokens, num_experts=experts)
    batches = list(itertools.islice(stream.batches(0), WARM_UP + 1))
    work = {name: _step_of(name, batches, top_k) for name in rule_names()}
    work[ROUTING] = partial(numba_.loads, batches[-1], np.zeros(experts), top_k)
    timings: dict[str, list[float]] = {name: [] for name in work}
    for _, (name, call) in itertools.product(range(TURNS), work.items()):
        timings[name].append(_cpu_seconds(call))
    return {name: 1e3 * statistics.median(seconds) for name, seconds in timings.items()}


def _step_of(name: str, batches: list[Any], top_k: int) -> Callable[[], object]:
    """The rule's work on the last batch, after the others."""
    rule = make_rule(name)
    tokens, experts = batches[0].shape
    target_E, bias_E, state = target_load_E(tokens, experts, top_k), np.zeros(experts), rule.init(experts)
    for t, batch in enumerate(batches, 1):
        load_E = numba_.loads(batch, bias_E, top_k)[0]
        seen = Observation(t, target_E, load_E=load_E, scores_TE=batch, top_k=top_k)
        step = partial(rule.step, bias_E, seen, state)
        if t < len(batches):
            bias_E, state = step()
    return step


def _cpu_seconds(call: Callable[[], object]) -> float:
    """CPU time of a call, from as many calls as make it measurable."""
    calls = 1
    while True:
        start = time.process_time()
        for _ in range(calls):
            call()
        spent = time.process_time() - start
        if spent > 0.005:
            return spent / calls
        calls *= 4


if __name__ == "__main__":
    run_program(main)
