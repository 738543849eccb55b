"""``alflb simulate``, ``solve`` and ``advise``: one run, one optimum, one recommendation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alflb.cli._arguments import (
    ArrayOption,
    JsonOption,
    SeedOption,
    TopKOption,
    TraceArgument,
    open_stream,
    open_trace,
    refuse_given,
)
from alflb.cli._console import print_facts, progress_bar, reports_errors, spinner
from alflb.cli._layers import describe_layers

if TYPE_CHECKING:
    from alflb.exact import AssignmentSolution
    from alflb.io import Row
    from alflb.problem import AssignmentProblem

_SOLVING = 3
"""Memory that solving takes beside the scores, as a multiple of theirs (measured: 2.9 at top-6 of 64)."""


@reports_errors
def simulate(
    context: typer.Context,
    trace: TraceArgument = None,
    stream: Annotated[
        str, typer.Option(help="Score stream, e.g. trace, gumbel or drift; a wrong name lists all.")
    ] = "trace",
    order: Annotated[
        str, typer.Option(help="Order of a trace's tokens: text, batches (whole, in random order) or shuffled.")
    ] = "text",
    static: Annotated[bool, typer.Option("--static", help="Repeat the first batch at every step.")] = False,
    array: ArrayOption = None,
    tokens: Annotated[int, typer.Option(help="Tokens per batch.")] = 2048,
    experts: Annotated[int, typer.Option(help="Experts of a synthetic stream.")] = 64,
    top_k: TopKOption = None,
    rule: Annotated[
        str, typer.Option(help="Balancing rule, e.g. sign or proportional; a wrong name lists all.")
    ] = "sign",
    step_size: Annotated[float, typer.Option(help="Step size u, score units per step.")] = 1e-3,
    schedule: Annotated[
        str, typer.Option(help="Step-size schedule, e.g. constant or inverse_sqrt; a wrong name lists all.")
    ] = "constant",
    warm_up: Annotated[int, typer.Option(help="Steps of linear warm-up.")] = 0,
    steps: Annotated[int, typer.Option(help="Number of steps N.")] = 1000,
    seed: SeedOption = 0,
    backend: Annotated[str, typer.Option(help="Kernels: numba, torch, torch:cuda, or reference (slow).")] = "numba",
    out_file: Annotated[Path | None, typer.Option("--out", help="Save the run (.npz): biases, loads, series.")] = None,
    as_json: JsonOption = False,
) -> None:
    """One run of ALF-LB on a trace or a synthetic stream, summarized."""
    import alflb
    from alflb.io import require_writable_file
    from alflb.rules import RULES

    if out_file:
        require_writable_file(out_file)
    refuse_given(context, ["experts"] if stream == "trace" else ["order", "array"], f"--stream {stream}")
    takes_schedule = RULES.get(rule).takes_schedule
    if not takes_schedule:
        refuse_given(context, ["step_size", "schedule", "warm_up"], f"--rule {rule}, which takes no step size")
    source, picks = open_stream(stream, trace, array, top_k, tokens, experts, order)
    if static:
        source = alflb.Static(next(source.batches(seed)))
    steps_by = alflb.make_schedule(schedule, step_size, steps, warm_up=warm_up)
    balancer = alflb.make_rule(rule, steps_by if takes_schedule else None)
    with progress_bar() as progress:
        progress.begin("simulating", steps)
        run = alflb.simulate(
            source,
            balancer,
            top_k=picks,
            num_steps=steps,
            seed=seed,
            backend=backend,
            observers=alflb.make_observers("affinity"),
            on_step=lambda t: progress.advance(1),
        )
    facts = {"rule": repr(balancer), "stream": type(source).__name__, "top_k": picks, "num_tokens": source.num_tokens}
    facts |= {**alflb.summary(run, tail=max(1, steps // 5)), "affinity_final": float(run.series["affinity"][-1])}
    if run.meta["static"]:
        cycle = alflb.find_cycle(run)
        facts["cycle"] = cycle._asdict() if cycle else None
    if out_file:
        run.save(out_file)
    print_facts(facts, as_json, "Run")


@reports_errors
def solve(
    trace: TraceArgument = None,
    top_k: TopKOption = None,
    array: ArrayOption = None,
    method: Annotated[str, typer.Option(help="Solver: auto, or one by name; a wrong name lists all.")] = "auto",
    out_file: Annotated[Path | None, typer.Option("--out", help="Save bias_E, value and the plan (.npz).")] = None,
    as_json: JsonOption = False,
) -> None:
    """The exact optimum of balanced top-K assignment, with the certificate that proves it.

    Of a folder of traces, one per layer: the optimum of each, and the layer that is least balanced without a bias.
    """
    from alflb.cli.describe import describe_solution
    from alflb.io import require_writable_file

    if trace is not None and trace.is_dir():
        if out_file:
            raise ValueError("--out saves one solution; give one trace with it, not a folder")
        describe_layers(
            trace,
            lambda path: describe_solution(*_solved(path, array, top_k, method)),
            lambda facts: float(facts["max_vio_bias_0"]),
            ("num_tokens", "num_experts", "top_k", "value", "unbalanced_topk_affinity", "max_vio_bias_0"),
            as_json=as_json,
        )
        return
    if out_file:
        require_writable_file(out_file)
    problem, solution = _solved(trace, array, top_k, method)
    if out_file:
        _save_solution(out_file, solution)
    print_facts(describe_solution(problem, solution), as_json, "Certified optimum")


def _solved(
    path: Path | None, array: str | None, top_k: int | None, method: str
) -> tuple[AssignmentProblem, AssignmentSolution]:
    from alflb.exact import recertify, solve_exact
    from alflb.memory import require_memory
    from alflb.problem import AssignmentProblem

    opened = open_trace(path, array, top_k)
    problem = AssignmentProblem(opened.scores_TE, opened.top_k)
    size = f"{problem.num_tokens} x {problem.num_experts}"
    require_memory(_SOLVING * problem.scores_TE.nbytes, f"solving {size}")
    with spinner(f"solving {size}, top-{problem.top_k}"):
        return problem, recertify(problem, solve_exact(problem, method=method))


@reports_errors
def advise(
    batch_tokens: Annotated[int, typer.Option(help="Tokens whose loads one bias update sees, all ranks together.")],
    trace: TraceArgument = None,
    array: ArrayOption = None,
    top_k: TopKOption = None,
    steps: Annotated[int | None, typer.Option(help="Length of the run, for a first phase where one is needed.")] = None,
    excess: Annotated[
        float, typer.Option(help="Accepted rise of MaxVio over the sampling floor, a share of it.")
    ] = 0.05,
    as_json: JsonOption = False,
) -> None:
    """Recommend a step size for the sign rule from a sample of a router's scores (default: the shipped trace).

    Of a folder of traces, one per layer: the advice for each, and the layer that needs the smallest steps.
    """
    from alflb.advice import advise as recommend

    def advice(path: Path | None) -> Row:
        sample = open_trace(path, array, top_k)
        with spinner("solving the sample exactly"):
            found = recommend(sample.scores_TE, sample.top_k, batch_tokens=batch_tokens, num_steps=steps, excess=excess)
        return {
            "step_size": found.step_size,
            "max_vio": found.max_vio,
            "max_vio_floor": found.max_vio_floor,
            "arrival_steps": found.arrival_steps,
            "first_step_size": found.first_step_size,
            "first_steps": found.first_steps,
            "bias_distance": found.bias_distance,
            "stiffest_mode": float(found.curvatures[-1]),
            "softest_mode": float(found.curvatures[0]),
        }

    if trace is not None and trace.is_dir():
        columns = ("step_size", "max_vio", "max_vio_floor", "arrival_steps")
        describe_layers(trace, advice, lambda facts: -float(facts["step_size"]), columns, as_json=as_json)
        return
    print_facts(advice(trace), as_json, f"sign rule, batches of {batch_tokens:,} tokens")


def _save_solution(path: Path, solution: AssignmentSolution) -> None:
    import numpy as np

    from alflb.io import atomic_write

    plan = solution.plan
    assert plan is not None  # only problems read in batches have none
    with atomic_write(path) as file:
        np.savez_compressed(
            file,
            value=solution.value,
            bias_E=solution.bias_E,
            plan_indptr=plan.indptr,
            plan_experts=plan.indices,
            plan_amounts=plan.data,
        )
