"""``alflb simulate``, ``solve`` and ``advise``: one run, one optimum, one recommendation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alflb.cli._arguments import (
    ArrayOption,
    BackendOption,
    BatchTokensOption,
    ExpertsOption,
    JsonOption,
    LogBiasOption,
    LogLoadsOption,
    MethodOption,
    OrderOption,
    RuleOption,
    ScheduleOption,
    StepSizeOption,
    StepsOption,
    StreamOption,
    StreamSeedOption,
    TopKOption,
    TraceArgument,
    WarmUpOption,
    open_rule,
    open_stream,
    open_trace,
    pick_seed,
    refuse_unused,
)
from alflb.cli._console import announce_compilation, print_facts, print_json, progress_bar, reports_errors, spinner
from alflb.cli._layers import describe_layers
from alflb.cli._sentences import UNITS, log_facts, of_advice, of_log, of_run, of_solution

if TYPE_CHECKING:
    from alflb.advice import Advice
    from alflb.advice_log import LogAdvice
    from alflb.exact import AssignmentSolution
    from alflb.io import Row
    from alflb.problem import AssignmentProblem
    from alflb.rules import Rule
    from alflb.streams import Stream
    from alflb.trajectory import Trajectory

_SOLVING = 3
"""Memory that solving takes beside the scores, as a multiple of theirs (measured: 2.9 at top-6 of 64)."""


@reports_errors
def simulate(
    trace: TraceArgument = None,
    stream: StreamOption = "trace",
    order: OrderOption = None,
    static: Annotated[bool, typer.Option("--static", help="Repeat the first batch at every step.")] = False,
    array: ArrayOption = None,
    batch_tokens: BatchTokensOption = 2048,
    num_experts: ExpertsOption = None,
    top_k: TopKOption = None,
    rule: RuleOption = "sign",
    step_size: StepSizeOption = None,
    schedule: ScheduleOption = None,
    warm_up: WarmUpOption = None,
    num_steps: StepsOption = 1000,
    seed: StreamSeedOption = None,
    backend: BackendOption = "numba",
    out_file: Annotated[Path | None, typer.Option("--out", help="Save the run (.npz): biases, loads, series.")] = None,
    as_json: JsonOption = False,
) -> None:
    """One run of ALF-LB on a trace or a synthetic stream: how balanced, how soon, and what sampling alone leaves."""
    import alflb
    from alflb.io import require_writable_file

    if out_file:
        require_writable_file(out_file)
    source, picks = open_stream(stream, trace, array, top_k, batch_tokens, num_experts, order)
    start = pick_seed(seed, source)
    batches = alflb.Static(next(source.batches(start))) if static else source
    balancer = open_rule(rule, step_size, schedule, warm_up, num_steps)
    announce_compilation()
    with progress_bar() as progress:
        progress.begin("simulating", num_steps)
        run = alflb.simulate(
            batches,
            balancer,
            top_k=picks,
            num_steps=num_steps,
            seed=start,
            backend=backend,
            observers=alflb.make_observers("affinity"),
            on_step=lambda t: progress.advance(1),
        )
    if out_file:
        run.save(out_file)
    facts = _run_facts(run, balancer, batches, picks)
    print_facts(facts, as_json, "Run", UNITS, of_run(facts))


def _run_facts(run: Trajectory, rule: Rule, stream: Stream, top_k: int) -> dict[str, Any]:
    """What is quoted of a run, and the floor that sampling sets to its MaxVio."""
    import alflb
    from alflb.bounds import sampling_max_vio
    from alflb.metrics import settled_from

    tail = max(1, run.num_steps // 5)
    numbers = alflb.summary(run, tail=tail)
    level = 1.1 * float(numbers["max_vio_tail"] or 0.0)
    smooth_N = _running_mean(alflb.max_vio(run), tail // 4)
    static = bool(run.meta["static"])
    cycle = alflb.find_cycle(run) if static else None
    return {
        "rule": repr(rule),
        "stream": type(stream).__name__,
        "top_k": top_k,
        "num_tokens": stream.num_tokens,
        "static": static,
        **numbers,
        "max_vio_sampling_floor": 0.0 if static else sampling_max_vio(stream.num_tokens, top_k, stream.num_experts),
        "steady_from": settled_from(smooth_N, level),
        "affinity_final": float(run.series["affinity"][-1]),
        **({"cycle": cycle._asdict() if cycle else None} if static else {}),
    }


def _running_mean(values: Any, width: int) -> Any:
    """Means over the last `width` values: one batch alone says little."""
    import numpy as np

    width = max(1, width)
    total_N = np.concatenate([[0.0], np.cumsum(values)])
    first_N = np.maximum(np.arange(len(values)) + 1 - width, 0)
    return (total_N[1:] - total_N[first_N]) / (np.arange(len(values)) + 1 - first_N)


@reports_errors
def solve(
    trace: TraceArgument = None,
    top_k: TopKOption = None,
    array: ArrayOption = None,
    method: MethodOption = "auto",
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
    facts = describe_solution(problem, solution)
    print_facts(facts, as_json, "Certified optimum", UNITS, of_solution(solution, facts["max_vio_bias_0"]))


def _solved(
    path: Path | None, array: str | None, top_k: int | None, method: str
) -> tuple[AssignmentProblem, AssignmentSolution]:
    from alflb.exact import recertify, solve_exact
    from alflb.free_memory import require_memory
    from alflb.problem import AssignmentProblem

    opened = open_trace(path, array, top_k)
    problem = AssignmentProblem(opened.scores_TE, opened.top_k)
    size = f"{problem.num_tokens} x {problem.num_experts}"
    require_memory(_SOLVING * problem.scores_TE.nbytes, f"solving {size}")
    announce_compilation()
    with spinner(f"solving {size}, top-{problem.top_k}"):
        return problem, recertify(problem, solve_exact(problem, method=method))


@reports_errors
def advise(
    trace: TraceArgument = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            "--batch-tokens",
            "--tokens",
            help="Tokens whose loads one bias update sees, all ranks together. Needed for scores.",
        ),
    ] = None,
    array: ArrayOption = None,
    top_k: TopKOption = None,
    num_steps: Annotated[
        int | None,
        typer.Option("--num-steps", "--steps", help="Length of the run, for a first phase where one is needed."),
    ] = None,
    excess: Annotated[
        float | None,
        typer.Option(help="Accepted rise of MaxVio over the sampling floor, as a share of it. Default: 0.05."),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(help="Instead of scores: a run saved by simulate --out, or a log as 'alflb diagnose' reads it."),
    ] = None,
    loads: LogLoadsOption = None,
    bias: LogBiasOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recommend a step size for the sign rule from a sample of a router's scores (default: the shipped trace).

    A folder of traces, one per layer, gets the advice for each, and the layer that needs the smallest steps.
    With --log, the biases and loads of a run tell whether its step size was right. Of a log that holds shares
    instead of tokens, give --batch-tokens and --top-k.
    """
    if log is not None:
        given = {"TRACE": trace, "--array": array, "--num-steps": num_steps, "--excess": excess}
        refuse_unused("with --log", **given)
        hints = {"top_k": top_k, "batch_tokens": batch_tokens, "loads": loads, "bias": bias}
        _print_log_advice(_advice_from_log(log, hints), as_json)
        return
    refuse_unused("without --log", **{"--loads": loads, "--bias": bias})
    if batch_tokens is None:
        raise ValueError("--batch-tokens is missing; give the tokens of one bias update, all ranks together")
    if trace is not None and trace.is_dir():
        columns = (
            "step_size",
            "max_vio",
            "max_vio_floor",
            "arrival_steps",
            "num_steps",
            "first_step_size",
            "first_steps",
        )
        describe_layers(
            trace,
            lambda path: _advice_facts(_advice(path, array, top_k, batch_tokens, num_steps, excess), num_steps),
            lambda facts: -float(facts["step_size"]),
            columns,
            as_json=as_json,
        )
        return
    found = _advice(trace, array, top_k, batch_tokens, num_steps, excess)
    title = f"sign rule, batches of {batch_tokens:,} tokens"
    print_facts(_advice_facts(found, num_steps), as_json, title, UNITS, of_advice(found, num_steps))


def _advice(
    path: Path | None,
    array: str | None,
    top_k: int | None,
    batch_tokens: int,
    num_steps: int | None,
    excess: float | None,
) -> Advice:
    from alflb.advice import advise as recommend

    sample = open_trace(path, array, top_k)
    announce_compilation()
    with spinner("solving the sample exactly"):
        return recommend(
            sample.scores_TE,
            sample.top_k,
            batch_tokens=batch_tokens,
            num_steps=num_steps,
            excess=0.05 if excess is None else excess,
        )


def _advice_from_log(path: Path, hints: dict[str, Any]) -> dict[str, LogAdvice]:
    """Advice for each layer of a log, or for a saved run."""
    from alflb.advice_log import advise_from_log
    from alflb.logs import read_log
    from alflb.traces import read_arrays
    from alflb.trajectory import Trajectory

    if path.is_file() and path.suffix == ".npz" and "load" in read_arrays(path):
        refuse_unused("on a saved run", **{f"--{name.replace('_', '-')}": value for name, value in hints.items()})
        run = Trajectory.load(path)
        return {path.name: advise_from_log(run.bias_NE, run.load_NE, target=run.target_E)}
    found = {}
    for name, layer in read_log(path, **hints).items():
        if layer.bias_NE is None:
            reason = layer.notes[-1] if layer.notes else "it holds loads only"
            raise ValueError(f"{path}: advice needs the biases of consecutive steps beside the loads ({reason})")
        try:
            found[name] = advise_from_log(layer.bias_NE, layer.load_NE)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return found


def _print_log_advice(found: dict[str, LogAdvice], as_json: bool) -> None:
    if as_json:
        print_json({name: log_facts(one) for name, one in found.items()})
        return
    for name, one in found.items():
        print_facts(log_facts(one), False, name, UNITS, of_log(one))


def _advice_facts(found: Advice, num_steps: int | None) -> Row:
    return {
        "step_size": found.step_size,
        "max_vio": found.max_vio,
        "max_vio_floor": found.max_vio_floor,
        "arrival_steps": found.arrival_steps,
        **({} if num_steps is None else {"num_steps": num_steps}),
        "first_step_size": found.first_step_size,
        "first_steps": found.first_steps,
        "bias_distance": found.bias_distance,
        "stiffest_mode": float(found.curvatures[-1]),
        "softest_mode": float(found.curvatures[0]),
    }


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
