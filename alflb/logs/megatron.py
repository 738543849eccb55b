"""Megatron-LM's traces of routers (``--moe-routing-trace-path``): one JSON line per step, layer and micro-batch.

Every rank writes ``router_trace_rank{rank}.jsonl``. Sidecars that hold logits or router weights say how many experts
there are; without them the user does. Format: ``megatron/core/transformer/moe/router_trace.py`` of August 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alflb.logs.hints import Hints
from alflb.logs.record import Record
from alflb.logs.tally import Tally, as_picks, count
from alflb.traces.arrays import read_value

_KEYS = {"step", "layer", "rank", "topk", "num_tokens", "top_indices"}
_FEWEST_TOKENS = 16
"""Two ranks that chose the same experts for so many tokens saw the same tokens."""

Picks = dict[tuple[str, int], dict[int, list[NDArray[np.int64]]]]
"""Chosen experts by layer and step, then by rank: a list of micro-batches."""


def recognizes(value: Any) -> bool:
    """Whether a parsed file is such a trace."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and value[0].keys() >= _KEYS


def read(files: Mapping[Path, Any], hints: Hints) -> dict[str, Record]:
    """Loads by layer and step, summed over the ranks' files; ranks that traced the same tokens count once."""
    picks: Picks = {}
    top_ks = set()
    num_experts = hints.experts_of(_num_experts(files), next(iter(files)).parent)
    for path, records in files.items():
        for number, record in enumerate(records, start=1):
            where = f"{path.name}, record {number}"
            chosen = as_picks(_checked(record, where)["top_indices"], num_experts, where)
            of_rank = picks.setdefault((_label(record), record["step"]), {})
            of_rank.setdefault(record["rank"], []).append(chosen)
            top_ks.add(record["topk"])
    if len(top_ks) > 1:
        raise ValueError(f"it has records of {sorted(top_ks)} experts per token; all layers should have one number")
    tally, num_copies = Tally(), 0
    for (layer, step), of_rank in picks.items():
        distinct = _distinct(of_rank)
        num_copies += len(of_rank) - len(distinct)
        for experts_TK in distinct:
            tally.add(layer, step, count(experts_TK, num_experts))
    notes = (f"ranks that traced the same tokens count once ({num_copies} cases)",) if num_copies else ()
    return tally.records(top_ks.pop(), notes)


def _checked(record: Any, where: str) -> dict[str, Any]:
    """One record, if it is whole."""
    if not isinstance(record, dict) or not record.keys() >= _KEYS:
        raise ValueError(f"{where} lacks {', '.join(sorted(_KEYS - set(record)))}")
    for key in ("step", "layer", "rank", "topk"):
        if not isinstance(record[key], int):
            raise ValueError(f"{where}: {key} is {record[key]!r}, not a whole number")
    rows = record["top_indices"]
    if not isinstance(rows, list) or len(rows) != record["num_tokens"]:
        raise ValueError(f"{where} does not list the experts of {record['num_tokens']} tokens; it is cut off")
    if any(not isinstance(row, list) or len(row) != record["topk"] for row in rows):
        raise ValueError(f"{where}: not every token has {record['topk']} experts")
    return record


def _label(record: Mapping[str, Any]) -> str:
    """The layer's name; layers of a multi-token prediction head have the head's number too."""
    head = f"mtp_{record['mtp_idx']:02d}_" if "mtp_idx" in record else ""
    return f"{head}layer_{record['layer']:02d}"


def _num_experts(files: Mapping[Path, Any]) -> int | None:
    """How many experts the sidecars say there are."""
    for path, records in files.items():
        for record in records:
            if isinstance(record, dict) and "logit_shape" in record:
                return int(record["logit_shape"][-1])
        weights = path.with_name(path.name.replace("router_trace", "router_state")).with_suffix(".pt")
        if weights.exists():
            return next(len(layer["weight"]) for layer in read_value(weights).values())
    return None


def _distinct(of_rank: Mapping[int, list[NDArray[np.int64]]]) -> list[NDArray[np.int64]]:
    """The chosen experts of ranks that saw different tokens; tensor-parallel ranks may have seen the same ones."""
    found: dict[bytes | int, NDArray[np.int64]] = {}
    for rank, micro_batches in of_rank.items():
        experts_TK = np.concatenate(micro_batches)
        found.setdefault(experts_TK.tobytes() if len(experts_TK) >= _FEWEST_TOKENS else rank, experts_TK)
    return list(found.values())
