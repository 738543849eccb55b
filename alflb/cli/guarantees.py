"""``alflb verify``, ``regret`` and ``schedules``: what is guaranteed, what was lost, and how steps may decay."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from alflb.cli._arguments import (
    ArrayOption,
    BatchTokensOption,
    ExpertsOption,
    JsonOption,
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
)
from alflb.cli._console import (
    announce_compilation,
    conclude,
    out,
    plain,
    print_facts,
    print_json,
    progress_bar,
    reports_errors,
    spinner,
)
from alflb.cli._sentences import UNITS, of_regret, of_verification

if TYPE_CHECKING:
    from alflb.verdict import Verdict

FigureOption = Annotated[Path | None, typer.Option(help="Draw a figure: FIGURE.png and FIGURE.svg.")]


@reports_errors
def verify(
    trace: TraceArgument = None,
    array: ArrayOption = None,
    top_k: TopKOption = None,
    batch_tokens: Annotated[
        int | None, typer.Option("--batch-tokens", "--tokens", help="Use the first tokens only. Default: all of them.")
    ] = None,
    rule: RuleOption = "sign",
    step_size: StepSizeOption = None,
    schedule: ScheduleOption = None,
    warm_up: WarmUpOption = None,
    num_steps: StepsOption = 1000,
    as_json: JsonOption = False,
) -> None:
    """Hold claims C1, C2, C4, C5 and C6 against a run on one batch: bound, observed, ratio, and what is vacuous."""
    import alflb

    opened = open_trace(trace, array, top_k)
    if batch_tokens is not None and not 1 <= batch_tokens <= len(opened.scores_TE):
        raise ValueError(f"--batch-tokens is {batch_tokens}; the trace has {len(opened.scores_TE)} tokens")
    problem = alflb.AssignmentProblem(opened.scores_TE[:batch_tokens], opened.top_k)
    balancer = open_rule(rule, step_size, schedule, warm_up, num_steps)
    announce_compilation()
    with progress_bar() as progress:
        progress.begin("simulating", num_steps)
        run = alflb.simulate(
            alflb.Static(problem.scores_TE),
            balancer,
            top_k=problem.top_k,
            num_steps=num_steps,
            on_step=lambda t: progress.advance(1),
        )
    with spinner("computing the bounds"):
        verdicts = alflb.verify_balance(problem, run)
    if as_json:
        print_json([{**asdict(one), "bound": float(one.bound), "ratio": one.ratio} for one in verdicts])
    else:
        _print_verdicts(verdicts, f"{balancer!r}, {num_steps:,} steps")
        conclude(of_verification(verdicts))
    if not all(one.holds for one in verdicts):
        raise SystemExit(1)


def _print_verdicts(verdicts: list[Verdict], title: str) -> None:
    table = Table(title=plain(title), title_justify="left", box=None, pad_edge=False)
    table.add_column("claim", no_wrap=True)
    table.add_column("what is bounded", overflow="fold")
    for name in ("observed", "bound", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for one in verdicts:
        words = "[green]holds[/]" if one.holds else "[bold red]FAILS[/]"
        if one.vacuous:
            words += f", [bold red]vacuous[/]: {plain(one.vacuous)}"
        numbers = [f"{float(one.measured):.3g}", f"{float(one.bound):.3g}", f"{one.ratio:.2g}"]
        table.add_row(one.claim, plain(one.statement), *numbers, words)
    out.print(table)


@reports_errors
def regret(
    trace: TraceArgument = None,
    stream: StreamOption = "trace",
    order: OrderOption = None,
    array: ArrayOption = None,
    batch_tokens: BatchTokensOption = 512,
    num_experts: ExpertsOption = None,
    top_k: TopKOption = None,
    rule: RuleOption = "sign",
    step_size: StepSizeOption = None,
    schedule: ScheduleOption = None,
    warm_up: WarmUpOption = None,
    num_steps: StepsOption = 200,
    seed: StreamSeedOption = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Find the comparator in memory that does not grow with the run.")
    ] = False,
    figure: FigureOption = None,
    as_json: JsonOption = False,
) -> None:
    """The regret of a run against the best bias fixed in hindsight, with a figure on request."""
    import alflb
    from alflb.io import require_writable_file

    if figure:
        require_writable_file(figure.with_suffix(".png"))
    source, picks = open_stream(stream, trace, array, top_k, batch_tokens, num_experts, order)
    balancer = open_rule(rule, step_size, schedule, warm_up, num_steps)
    announce_compilation()
    with progress_bar() as progress:
        progress.begin("simulating", num_steps)
        run = alflb.simulate(
            source,
            balancer,
            top_k=picks,
            num_steps=num_steps,
            seed=pick_seed(seed, source),
            on_step=lambda t: progress.advance(1),
        )
    with spinner("solving all batches as one problem"):
        found = alflb.regret(run, source, streaming=streaming)
    facts = {
        "rule": repr(balancer),
        "stream": type(source).__name__,
        "num_steps": num_steps,
        "regret": found.final,
        "uncertainty": found.uncertainty,
        "exponent": found.exponent,
        "regret_N": found.regret_N.tolist(),
    }
    sentence = of_regret(found.final, num_steps, found.exponent, found.uncertainty)
    print_facts(facts, as_json, "Regret in hindsight", UNITS, sentence)
    if figure:
        from alflb.plotting import save_figure

        drawn = save_figure(alflb.plot_regret({str(balancer): found}), figure.with_suffix(""))
        if not as_json:
            out.print(f"figure: {plain(str(drawn[0]))}", soft_wrap=True, highlight=False)


@reports_errors
def schedules(
    step_size: Annotated[float, typer.Option(help="Step size u, score units per step.")] = 1e-3,
    num_steps: StepsOption = 1000,
    plot: Annotated[Path | None, typer.Option(help="Draw all of them: PLOT.png and PLOT.svg.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The step-size schedules: each at a few steps of a run, with a figure on request."""
    from alflb.schedules import SCHEDULES, make_schedule, schedule_names

    steps = sorted({1, 10, max(1, num_steps // 2), num_steps})
    values = {name: make_schedule(name, step_size, num_steps) for name in schedule_names()}
    if as_json:
        print_json({name: {str(t): schedule(t) for t in steps} for name, schedule in values.items()})
    else:
        table = Table(title="Step size at step n, score units per step", title_justify="left", box=None, pad_edge=False)
        table.add_column("schedule", style="cyan", no_wrap=True)
        for t in steps:
            table.add_column(f"n = {t:,}", justify="right", no_wrap=True)
        table.add_column("what it is", overflow="fold")
        for name, schedule in values.items():
            summary = (SCHEDULES.get(name).__doc__ or "").strip().splitlines()[0]
            table.add_row(name, *(f"{schedule(t):.3g}" for t in steps), plain(summary))
        out.print(table)
        conclude("Use one by --schedule NAME, or pass any function of the step number to make_rule.")
    if plot:
        from alflb.io import require_writable_file
        from alflb.plotting import save_figure
        from alflb.studies.figures import plot_schedules

        require_writable_file(plot.with_suffix(".png"))
        drawn = save_figure(plot_schedules(values, num_steps), plot.with_suffix(""))
        if not as_json:
            out.print(f"figure: {plain(str(drawn[0]))}", soft_wrap=True, highlight=False)
