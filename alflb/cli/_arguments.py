"""Arguments and options that several commands share, and how they become traces, streams and rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from alflb.rules import Rule
    from alflb.streams import RegisteredStream
    from alflb.traces import RouterTrace


def _names(kind: str) -> list[str]:
    """What can be chosen; looked up only on demand, since it takes about 1 s."""
    import alflb
    from alflb.exact import method_names
    from alflb.streams.trace import ORDERS

    listings: dict[str, Callable[[], list[str]]] = {
        "rules": alflb.rule_names,
        "streams": alflb.stream_names,
        "schedules": alflb.schedule_names,
        "methods": method_names,
        "backends": alflb.backend_names,
        "orders": lambda: list(ORDERS),
    }
    return listings[kind]()


def _completer(kind: str) -> Callable[[str], list[str]]:
    return lambda incomplete: [name for name in _names(kind) if name.startswith(incomplete)]


class ListingCommand(TyperCommand):
    """A command in whose help `{rules}`, `{streams}` and so on stand for the names that can be chosen."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, with the names filled in."""
        parameters: list[Any] = super().get_params(ctx)
        for one in parameters:
            text = getattr(one, "help", None) or ""
            for kind in ("rules", "streams", "schedules", "methods", "backends", "orders"):
                if f"{{{kind}}}" in text:
                    text = text.replace(f"{{{kind}}}", ", ".join(_names(kind)))
                    one.help = text
        return parameters


TraceArgument = Annotated[
    Path | None,
    typer.Argument(help="Trace file; for inspect, solve and advise also a folder. Default: the shipped trace."),
]
JobsOption = Annotated[int, typer.Option(min=1, help="Run cells in this many processes (extra: cluster).")]
SchedulerOption = Annotated[
    str | None, typer.Option(help="Run cells on this Dask cluster, e.g. tcp://host:8786 (extra: cluster).")
]
ArrayOption = Annotated[
    str | None, typer.Option(help="Which array of a foreign file holds the scores; columns as 'expert_*'.")
]
TopKOption = Annotated[
    int | None, typer.Option(help="Experts per token. Default: what the trace says; 8 for synthetic streams.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Chooses the tokens of random streams.")]
StreamSeedOption = Annotated[int | None, typer.Option(min=0, help="Chooses the tokens of a random stream. Default: 0.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
StreamOption = Annotated[
    str, typer.Option(help="Score stream: {streams}.", autocompletion=_completer("streams"), show_default=True)
]
OrderOption = Annotated[
    str | None,
    typer.Option(help="Order of a trace's tokens: {orders}. Default: text.", autocompletion=_completer("orders")),
]
BatchTokensOption = Annotated[int, typer.Option("--batch-tokens", "--tokens", help="Tokens per batch.")]
ExpertsOption = Annotated[
    int | None, typer.Option("--num-experts", "--experts", help="Experts of a synthetic stream. Default: 64.")
]
LogArgument = Annotated[
    Path, typer.Argument(help="A log: a folder of alflb's TrainingLog, or a file or folder of another tool.")
]
LogTopKOption = Annotated[int | None, typer.Option(min=1, help="Experts per token, where the log does not say.")]
LogExpertsOption = Annotated[int | None, typer.Option(min=1, help="Number of experts, where the log does not say.")]
LogLoadsOption = Annotated[
    str | None, typer.Option(help="Tables: which series hold loads, as '*tokens*', where several could.")
]
LogBiasOption = Annotated[str | None, typer.Option(help="Tables: which series hold biases, as '*bias*', likewise.")]
RuleOption = Annotated[str, typer.Option(help="Balancing rule: {rules}.", autocompletion=_completer("rules"))]
StepSizeOption = Annotated[
    float | None, typer.Option(help="Step size u, score units per step. Default: 0.001, for rules that have one.")
]
ScheduleOption = Annotated[
    str | None,
    typer.Option(help="Step-size schedule: {schedules}. Default: constant.", autocompletion=_completer("schedules")),
]
WarmUpOption = Annotated[int | None, typer.Option(min=1, help="Steps of linear warm-up. Default: none.")]
StepsOption = Annotated[int, typer.Option("--num-steps", "--steps", help="Number of steps N.")]
MethodOption = Annotated[
    str, typer.Option(help="Solver: auto, which is screen, or {methods}.", autocompletion=_completer("methods"))
]
BackendOption = Annotated[
    str, typer.Option(help="Kernels: {backends}; torch:cuda for a GPU.", autocompletion=_completer("backends"))
]


def open_trace(path: Path | None, array: str | None, top_k: int | None) -> RouterTrace:
    """Read the trace that a command line names; without a path, the shipped one."""
    from dataclasses import replace

    from alflb.traces import load_router_trace, open_scores

    if path is not None:
        return open_scores(path, array=array, top_k=top_k)
    if array is not None:
        raise ValueError("--array needs a file to look in; give a TRACE")
    shipped = load_router_trace()
    return shipped if top_k is None else replace(shipped, top_k=top_k)


def open_stream(
    name: str,
    path: Path | None,
    array: str | None,
    top_k: int | None,
    num_tokens: int,
    num_experts: int | None,
    order: str | None,
) -> tuple[RegisteredStream, int]:
    """The stream a command line describes, and its top-k; what a stream does not use is refused."""
    from alflb.streams import STREAMS, make_stream

    if STREAMS.get(name).replays_a_trace:
        refuse_unused("on a trace, whose experts are given", **{"--num-experts": num_experts})
        trace = open_trace(path, array, top_k)
        return make_stream(name, trace=trace, num_tokens=num_tokens, order=order or "text"), trace.top_k
    if path is not None:
        raise ValueError(f"stream {name!r} is synthetic; leave out the trace file, or use --stream trace")
    refuse_unused(f"on the synthetic stream {name!r}", **{"--array": array, "--order": order})
    stream = make_stream(name, num_tokens=num_tokens, num_experts=64 if num_experts is None else num_experts)
    return stream, 8 if top_k is None else top_k


def pick_seed(seed: int | None, stream: RegisteredStream) -> int:
    """The seed to run with; one that changes nothing is refused."""
    if not stream.is_random:
        refuse_unused("on a trace in the order of its text", **{"--seed": seed})
    return 0 if seed is None else seed


def open_rule(name: str, step_size: float | None, schedule: str | None, warm_up: int | None, num_steps: int) -> Rule:
    """The rule a command line describes; step sizes are refused for a rule that has none."""
    from alflb.rules import RULES, make_rule
    from alflb.schedules import make_schedule

    if not RULES.get(name).takes_schedule:
        given = {"--step-size": step_size, "--schedule": schedule, "--warm-up": warm_up}
        refuse_unused(f"with the rule {name!r}, which has no step size", **given)
        return make_rule(name)
    steps = make_schedule(
        schedule or "constant", 1e-3 if step_size is None else step_size, num_steps, warm_up=warm_up or 0
    )
    return make_rule(name, steps)


def refuse_unused(where: str, **options: object) -> None:
    """ValueError for the first option that was given although it has no effect."""
    for option, value in options.items():
        if value is not None:
            raise ValueError(f"{option} has no effect {where}; leave it out")
