"""``alflb inspect`` and ``convert``: what is in a file, and how to make a trace of it."""

from __future__ import annotations

import inspect as inspect_module
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alflb.cli._arguments import ArrayOption, JsonOption, TopKOption, TraceArgument, open_trace
from alflb.cli._console import conclude, out, plain, print_facts, reports_errors
from alflb.cli._layers import describe_layers
from alflb.cli._sentences import UNITS, of_loads, of_trace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from alflb.io import Row
    from alflb.traces import LoadTrace, RouterTrace

_MAX_VIO = ("max_vio_global", "max_vio_own_bias", "max_vio_bias_0")


@reports_errors
def inspect(
    trace: TraceArgument = None, array: ArrayOption = None, top_k: TopKOption = None, as_json: JsonOption = False
) -> None:
    """What is in a trace: shapes, score histogram, ties at the top-K boundary, load at bias 0.

    Of a folder of traces, one per layer: MaxVio of each, and the layer where it is largest.
    """
    from alflb.cli.describe import histogram
    from alflb.traces import RouterTrace

    if trace is not None and trace.is_dir():
        describe_layers(
            trace,
            lambda path: _facts(_open_any(path, array, top_k)),
            _imbalance,
            ("num_tokens", "num_experts", "top_k", *_MAX_VIO),
            as_json=as_json,
        )
        return
    opened = _open_any(trace, array, top_k)
    facts = _facts(opened)
    print_facts(facts, as_json, str(trace or "shipped trace"), UNITS)
    if as_json:
        return
    if isinstance(opened, RouterTrace):
        counted = histogram(opened.scores_TE, bins=16)
        if counted is not None:
            _print_histogram(*counted)
    conclude(of_trace(facts) if isinstance(opened, RouterTrace) else of_loads(facts))


@reports_errors
def convert(
    source: Annotated[
        Path, typer.Argument(help="A file with router data: .npz, .npy, .pt, .parquet, .csv, .tsv, .json or .jsonl.")
    ],
    target: Annotated[Path, typer.Argument(help="The trace file to write (.npz).")],
    top_k: Annotated[int, typer.Option(help="Experts per token.")],
    array: Annotated[
        str | None, typer.Option(help="Array to convert: scores, load counts or chosen experts; columns as 'expert_*'.")
    ] = None,
    kind: Annotated[str, typer.Option(help="What the array holds: scores, loads or experts.")] = "scores",
    bias_array: Annotated[str | None, typer.Option(help="Scores: array with the bias in force.")] = None,
    padding_array: Annotated[
        str | None, typer.Option(help="Scores: boolean array, true where a token is padding and is left out.")
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(help="Index on the layers of a 3-D array: the first axis of scores, the middle one of others."),
    ] = None,
    num_experts: Annotated[
        int | None, typer.Option("--num-experts", "--experts", help="Experts: how many the model has.")
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option("--batch-tokens", "--tokens", help="Experts: count in blocks of this many tokens.")
    ] = None,
    ignore: Annotated[
        str | None, typer.Option(help="Experts: id that stands for padding, e.g. -1, or none for no such id.")
    ] = None,
    meta: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for the metadata, repeatable: score_function=sigmoid")
    ] = None,
) -> None:
    """Turn foreign router data into a trace file."""
    from alflb.io import require_writable_file
    from alflb.registry import unknown_name
    from alflb.traces import convert_experts, convert_loads, convert_scores, write_trace

    require_writable_file(target)
    converters: dict[str, Callable[..., RouterTrace | LoadTrace]] = {
        "scores": convert_scores,
        "loads": convert_loads,
        "experts": convert_experts,
    }
    if kind not in converters:
        raise unknown_name("kind", kind, converters)
    options = {
        "bias_array": bias_array,
        "padding_array": padding_array,
        "layer": layer,
        "num_experts": num_experts,
        "batch_tokens": batch_tokens,
        "ignore": _parse_ignore(ignore),
    }
    given = {name: value for name, value in options.items() if value is not None}
    _check_options(kind, converters[kind], given)
    made = converters[kind](source, array=array, top_k=top_k, metadata=_parse_metadata(meta or []), **given)
    write_trace(target, made)
    left_out = made.metadata.get("tokens_left_out")
    note = f" (the last {left_out} tokens do not fill a batch and are left out)" if left_out else ""
    out.print(f"wrote {plain(str(target))}{note}", soft_wrap=True, highlight=False)
    conclude(f"Look at it: alflb inspect {target}")


def _facts(opened: RouterTrace | LoadTrace) -> Row:
    from alflb.cli.describe import describe_loads, describe_trace
    from alflb.traces import LoadTrace

    return describe_loads(opened) if isinstance(opened, LoadTrace) else describe_trace(opened)


def _imbalance(facts: Row) -> float:
    """MaxVio as the router was run: of its loads, else with its own bias, else without one."""
    return next((float(facts[name]) for name in _MAX_VIO if name in facts), 0.0)


def _open_any(path: Path | None, array: str | None, top_k: int | None) -> RouterTrace | LoadTrace:
    """A trace of either kind; group-limited scores too."""
    from alflb.traces import open_arrays, open_scores, read_trace

    if path is not None and array is None:
        members = open_arrays(path)
        if {"metadata", "loads"} <= set(members) and "scores" not in members:
            if top_k is not None:
                raise ValueError("--top-k has no effect on recorded loads; leave it out")
            return read_trace(path)
    return open_trace(path, array, top_k) if path is None else open_scores(path, array=array, top_k=top_k, grouped=True)


def _check_options(kind: str, converter: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Refuse options that the converter of this kind does not take, and ask for those it needs."""
    parameters = inspect_module.signature(converter).parameters
    for name in given:
        if name not in parameters:
            raise ValueError(
                f"--{name.replace('_', '-')} has no effect with kind {kind!r}; leave it out, or choose another --kind"
            )
    if "num_experts" in parameters and "num_experts" not in given:
        raise ValueError(f"kind {kind!r} needs --num-experts, the number of experts of the model")


def _parse_ignore(text: str | None) -> int | str | None:
    if text is None or text == "none":
        return text
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"--ignore is {text!r}; give an expert id, e.g. -1, or none") from None


def _parse_metadata(items: list[str]) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise ValueError(f"--meta is {item!r}; write KEY=VALUE")
        if key in metadata:
            raise ValueError(f"--meta gives {key!r} twice; give it once")
        try:
            metadata[key] = json.loads(value)
        except (ValueError, RecursionError):
            metadata[key] = value
    return metadata


def _print_histogram(counts: NDArray[np.int64], edges: NDArray[np.float64]) -> None:
    block = "█" if out.encoding.startswith("utf") else "#"
    out.print("\nscores")
    for count, low in zip(counts, edges):
        bar = block * round(40 * int(count) / int(counts.max()))
        out.print(f"  {low:10.4g}  {bar} {count}", highlight=False)
