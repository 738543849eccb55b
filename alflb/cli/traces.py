"""``alflb inspect`` and ``convert``: what is in a file, and how to make a trace of it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alflb.cli._arguments import ArrayOption, JsonOption, TopKOption, TraceArgument, open_trace
from alflb.cli._console import out, print_facts, reports_errors

if TYPE_CHECKING:
    import numpy as np

    from alflb.traces import LoadTrace, RouterTrace


@reports_errors
def inspect(
    trace: TraceArgument = None, array: ArrayOption = None, top_k: TopKOption = None, as_json: JsonOption = False
) -> None:
    """What is in a trace: shapes, score histogram, ties at the top-K boundary, load at bias 0."""
    from alflb.cli.describe import describe_loads, describe_trace
    from alflb.traces import LoadTrace, read_trace
    from alflb.traces.format import read_arrays

    if trace is not None and array is None and "loads" in read_arrays(trace):
        opened = read_trace(trace)
        assert isinstance(opened, LoadTrace)
        print_facts(describe_loads(opened), as_json, str(trace))
        return
    scores = open_trace(trace, array, top_k)
    facts = describe_trace(scores)
    print_facts(facts, as_json, str(trace or "shipped trace"))
    if not as_json:
        _print_histogram(scores.scores_TE)


@reports_errors
def convert(
    source: Annotated[Path, typer.Argument(help="A .npz or .npy file with router data.")],
    target: Annotated[Path, typer.Argument(help="The trace file to write (.npz).")],
    top_k: Annotated[int, typer.Option(help="Experts per token.")],
    array: Annotated[str | None, typer.Option(help="Array to convert: scores, load counts or chosen experts.")] = None,
    kind: Annotated[str, typer.Option(help="What the array holds: scores, loads or experts.")] = "scores",
    bias_array: Annotated[str | None, typer.Option(help="Array with the bias in force (scores only).")] = None,
    layer: Annotated[int | None, typer.Option(help="Layer: index on the middle axis of a 3-D array of loads.")] = None,
    experts: Annotated[int | None, typer.Option(help="Number of experts (needed for chosen experts).")] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Tokens per batch, to count chosen experts.")] = None,
    meta: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for the metadata, repeatable: score_function=sigmoid")
    ] = None,
) -> None:
    """Turn foreign router data into a trace file."""
    from alflb.registry import unknown_name
    from alflb.traces import convert_loads, convert_scores, write_trace

    metadata = _parse_metadata(meta or [])
    made: RouterTrace | LoadTrace
    if kind == "scores":
        made = convert_scores(source, array=array, top_k=top_k, bias_array=bias_array, metadata=metadata)
    elif kind == "loads":
        made = convert_loads(source, array=array, top_k=top_k, layer=layer, metadata=metadata)
    elif kind == "experts":
        if experts is None:
            raise ValueError("kind 'experts' needs --experts, the number of experts of the model")
        made = convert_loads(
            source,
            array=array,
            top_k=top_k,
            layer=layer,
            num_experts=experts,
            batch_tokens=batch_tokens,
            metadata=metadata,
        )
    else:
        raise unknown_name("kind", kind, ("scores", "loads", "experts"))
    write_trace(target, made)
    out.print(f"wrote {target}", soft_wrap=True, highlight=False)


def _parse_metadata(items: list[str]) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise ValueError(f"--meta is {item!r}; write KEY=VALUE")
        with contextlib.suppress(json.JSONDecodeError):
            metadata[key] = json.loads(value)
            continue
        metadata[key] = value
    return metadata


def _print_histogram(scores_TE: np.ndarray[Any, Any]) -> None:
    import numpy as np

    values = scores_TE[np.isfinite(scores_TE)]
    counts, edges = np.histogram(values, bins=16)
    out.print("\nscores")
    for count, low in zip(counts, edges):
        bar = "█" * round(40 * int(count) / int(counts.max()))
        out.print(f"  {low:10.4g}  {bar} {count}", highlight=False)
