"""``alflb diagnose`` and ``capture``: what a training log shows, and what a model's routers say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alflb.cli._arguments import (
    JsonOption,
    LogArgument,
    LogBiasOption,
    LogExpertsOption,
    LogLoadsOption,
    LogTopKOption,
)
from alflb.cli._console import conclude, out, plain, print_json, reports_errors
from alflb.cli._layers import print_layers

if TYPE_CHECKING:
    import torch

    from alflb.logs import Record


@reports_errors
def diagnose(
    log: LogArgument,
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a global batch. Default: those of the first step.")
    ] = None,
    top_k: LogTopKOption = None,
    experts: LogExpertsOption = None,
    loads: LogLoadsOption = None,
    bias: LogBiasOption = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Balance of the ranks of expert parallelism instead of experts.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """How balanced a run was, and whether its loads and biases show a fault; exit code 1 if they do.

    Logs are recognized by their content: of alflb's TrainingLog, tables of W&B or TensorBoard (CSV, JSON lines),
    Megatron's router trace, SGLang's and vLLM's expert counts, and responses with routed experts.
    """
    from alflb.logs import balance_of, percentiles, read_log
    from alflb.training.diagnosis import diagnose as diagnose_record

    records = read_log(log, top_k=top_k, num_experts=experts, batch_tokens=batch_tokens, loads=loads, bias=bias)
    found = {
        layer: diagnose_record(record.load_NE, record.bias_NE, num_picks=_num_picks(record, batch_tokens))
        for layer, record in records.items()
    }
    balance = {layer: balance_of(record, ranks)._asdict() for layer, record in records.items()}
    over_layers = percentiles(of_layer["max_vio"] for of_layer in balance.values())
    if as_json:
        layers = {
            layer: {**balance[layer], "suspicions": [vars(one) for one in found[layer]], "notes": record.notes}
            for layer, record in records.items()
        }
        print_json({"layers": layers, "max_vio_over_layers": over_layers})
    else:
        _print_balance(balance, over_layers, ranks)
        _print_suspicions(found)
        _print_notes(records)
    if any(found.values()):
        raise typer.Exit(1)


@reports_errors
def capture(
    model: Annotated[str, typer.Argument(help="A model of transformers: a folder, or a name on the hub.")],
    text: Annotated[Path, typer.Option(help="Text file to run it on.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for one trace per layer.")],
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens of the text to use, at most.")] = 16_384,
    length: Annotated[int, typer.Option(min=1, help="Tokens per sequence.")] = 1024,
) -> None:
    """Keep the scores, bias, K and groups of every router of a model on a text, confirmed by its picks."""
    from alflb.traces import write_trace
    from alflb.training import capture as capture_routers

    network, tokenizer = _load(model)
    ids = tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"][:tokens]
    if not ids:
        raise ValueError(f"{text} holds no tokens; pass a text file")
    traces = capture_routers(network, _sequences(ids, length))
    out_folder.mkdir(parents=True, exist_ok=True)
    for number, (layer, trace) in enumerate(traces.items()):
        path = out_folder / f"router_{number:02d}.npz"
        write_trace(path, trace)
        facts = f"{len(trace.scores_TE)} tokens, {trace.metadata['score_function']}"
        out.print(f"{plain(str(path))}: {plain(layer)}, {facts}")
    conclude(f"Look at one of them: alflb inspect {path}")


def _load(name: str) -> tuple[Any, Any]:
    """A model and its tokenizer."""
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ModuleNotFoundError:
        raise ValueError("capture needs transformers: pip install 'alflb[models]'") from None
    return AutoModelForCausalLM.from_pretrained(name, dtype="auto"), AutoTokenizer.from_pretrained(name)


def _sequences(ids: list[int], length: int) -> Iterator[torch.Tensor]:
    """The text in consecutive sequences, the last one shorter."""
    import torch

    for start in range(0, len(ids), length):
        yield torch.tensor([ids[start : start + length]])


def _num_picks(record: Record, batch_tokens: int | None) -> int:
    """Picks of a global batch, K T; of the first step if the user does not say how many tokens it has."""
    if batch_tokens is None:
        return int(record.load_NE[0].sum())
    if record.top_k is None:
        raise ValueError("--batch-tokens needs --top-k, since the log does not say how many experts a token takes")
    return batch_tokens * record.top_k


def _print_balance(
    balance: Mapping[str, Mapping[str, float]], over_layers: Mapping[str, float], ranks: int | None
) -> None:
    """A table of the layers, and MaxVio over them."""
    title = "experts" if ranks is None else f"{ranks} ranks, each with consecutive experts"
    columns = ("num_steps", "min_vio", "avg_vio", "max_vio", "max_vio_global")
    print_layers(title, balance, columns)
    spread = ", ".join(f"{name} {value:.3g}" for name, value in over_layers.items())
    out.print(f"MaxVio over layers: {spread}", highlight=False)


def _print_notes(records: Mapping[str, Record]) -> None:
    """What the reader decided, once for all layers that share it."""
    for note in dict.fromkeys(note for record in records.values() for note in record.notes):
        out.print(f"note: {plain(note)}", soft_wrap=True, highlight=False)
    if all(record.bias_NE is None for record in records.values()):
        out.print("note: without biases only the counts were checked", highlight=False)


def _print_suspicions(found: dict[str, list[Any]]) -> None:
    for layer, suspicions in found.items():
        for suspicion in suspicions:
            out.print(f"{plain(layer)}: {suspicion.check}: {plain(suspicion.evidence)}")
            out.print(f"  likely: {plain(suspicion.likely_causes)}")
    faulty = sum(bool(suspicions) for suspicions in found.values())
    out.print(f"{len(found)} layers, {faulty} with something that a healthy run does not show.")
