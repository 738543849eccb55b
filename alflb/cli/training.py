"""``alflb diagnose`` and ``capture``: what a training log shows, and what a model's routers say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alflb.cli._arguments import JsonOption
from alflb.cli._console import conclude, out, plain, print_json, reports_errors

if TYPE_CHECKING:
    import torch


@reports_errors
def diagnose(
    log: Annotated[
        Path, typer.Argument(help="Folder that alflb.training.TrainingLog wrote, one layer's folder in it, or a file.")
    ],
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a global batch. Default: those of the first step.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Whether the loads and biases of a training run show a fault; exit code 1 if they do."""
    from alflb.training.diagnosis import diagnose as diagnose_record
    from alflb.training.log import read_log

    found: dict[str, list[Any]] = {}
    for layer, record in read_log(log).items():
        num_picks = int(record.load_NE[0].sum()) if batch_tokens is None else batch_tokens * record.top_k
        found[layer] = diagnose_record(record.load_NE, record.bias_NE, num_picks=num_picks)
    if as_json:
        print_json({layer: [vars(suspicion) for suspicion in layer_found] for layer, layer_found in found.items()})
    else:
        _print_suspicions(found)
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


def _print_suspicions(found: dict[str, list[Any]]) -> None:
    for layer, suspicions in found.items():
        for suspicion in suspicions:
            out.print(f"{plain(layer)}: {suspicion.check}: {plain(suspicion.evidence)}")
            out.print(f"  likely: {plain(suspicion.likely_causes)}")
    faulty = sum(bool(suspicions) for suspicions in found.values())
    out.print(f"{len(found)} layers, {faulty} with something that a healthy run does not show.")
