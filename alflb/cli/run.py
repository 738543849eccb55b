"""``alflb simulate``, ``solve`` and ``advise``: one run, one optimum, one recommendation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alflb.cli._arguments import (
    ArrayOption,
    JsonOption,
    SeedOption,
    TopKOption,
    TraceArgument,
    open_stream,
    open_trace,
)
from alflb.cli._console import print_facts, progress_bar, reports_errors, spinner

if TYPE_CHECKING:
    from alflb.exact import AssignmentSolution


@reports_errors
def simulate(
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
    source, picks = open_stream(stream, trace, array, top_k, tokens, experts, order)
    if static:
        source = alflb.Static(next(source.batches(seed)))
    steps_by = alflb.make_schedule(schedule, step_size, steps, warm_up=warm_up)
    balancer = alflb.make_rule(rule, steps_by if RULES.get(rule).takes_schedule else None)
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
    """The exact optimum of balanced top-K assignment, with the certificate that proves it."""
    from alflb.cli.describe import describe_solution
    from alflb.exact import recertify, solve_exact
    from alflb.io import require_writable_file
    from alflb.problem import AssignmentProblem

    if out_file:
        require_writable_file(out_file)
    opened = open_trace(trace, array, top_k)
    problem = AssignmentProblem(opened.scores_TE, opened.top_k)
    with spinner(f"solving {problem.num_tokens} x {problem.num_experts}, top-{problem.top_k}"):
        solution = recertify(problem, solve_exact(problem, method=method))
    if out_file:
        _save_solution(out_file, solution)
    print_facts(describe_solution(problem, solution), as_json, "Certified optimum")


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
    """Recommend a step size for the sign rule from a sample of a router's scores (default: the shipped trace)."""
    from alflb.advice import advise as recommend

    sample = open_trace(trace, array, top_k)
    with spinner("solving the sample exactly"):
        advice = recommend(sample.scores_TE, sample.top_k, batch_tokens=batch_tokens, num_steps=steps, excess=excess)
    facts: dict[str, Any] = {
        "step_size": advice.step_size,
        "max_vio": advice.max_vio,
        "max_vio_floor": advice.max_vio_floor,
        "arrival_steps": advice.arrival_steps,
        "first_step_size": advice.first_step_size,
        "first_steps": advice.first_steps,
        "bias_distance": advice.bias_distance,
        "stiffest_mode": float(advice.curvatures[-1]),
        "softest_mode": float(advice.curvatures[0]),
    }
    print_facts(facts, as_json, f"sign rule, batches of {batch_tokens:,} tokens")


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
