"""Arguments and options that several commands share, and how they become traces and streams."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from alflb.streams import Stream
    from alflb.traces import RouterTrace


TraceArgument = Annotated[
    Path | None, typer.Argument(help="Trace file. Default: the real router trace that ships with alflb.")
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
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


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
    name: str, path: Path | None, array: str | None, top_k: int | None, tokens: int, experts: int, order: str
) -> tuple[Stream, int]:
    """The stream a command line describes, and its top-k."""
    from alflb.streams import make_stream

    if name == "trace":
        trace = open_trace(path, array, top_k)
        return make_stream("trace", trace=trace, num_tokens=tokens, order=order), trace.top_k
    if path is not None:
        raise ValueError(f"stream {name!r} is synthetic; leave out the trace file, or use --stream trace")
    return make_stream(name, num_tokens=tokens, num_experts=experts), 8 if top_k is None else top_k
