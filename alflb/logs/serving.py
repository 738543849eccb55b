"""Loads that inference engines keep: SGLang's recorder, vLLM's expert load, and the experts of each response.

======================================  ==============================================================================
source                                  what is read
======================================  ==============================================================================
SGLang ``expert_distribution_recorder`` ``logical_count``, shape (steps, layers, experts), of the modes "stat" and
                                        "stat_approx"; ``records`` of "per_pass" and "per_token", one file per rank
vLLM ``EplbState``                      ``expert_load_window`` (steps, layers, experts) or ``expert_load_pass`` (layers,
                                        experts), with ``physical_to_logical_map`` if experts are replicated
both, ``return_routed_experts``         ``routed_experts`` of responses: lists (tokens, layers, K), or base64 of an
                                        ``.npy`` file (vLLM) or of int32 numbers (SGLang). Each response is a step.
======================================  ==============================================================================
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alflb.logs.hints import Hints
from alflb.logs.record import Record
from alflb.logs.tally import Tally, as_picks, count

_COUNTS = ("logical_count", "expert_load_window", "expert_load_pass", "expert_load")
"""Arrays of counts: (layers, experts), or one such table per step."""
_MAP = "physical_to_logical_map"
_ROUTED = "routed_experts"


def recognizes_counts(value: Any) -> bool:
    """Whether a parsed file holds counts of an engine's load balancer."""
    return isinstance(value, dict) and (any(name in value for name in _COUNTS) or f"last_{_MAP}" in value)


def read_counts(files: Mapping[Path, Any], hints: Hints) -> dict[str, Record]:
    """Loads by layer and step; of SGLang's detailed records, summed over the ranks' files by forward pass."""
    tally = Tally()
    for path, value in files.items():
        if f"last_{_MAP}" in value:
            for record in value.get("records", []):
                _add(tally, _detailed(record, value[f"last_{_MAP}"], path), int(record["forward_pass_id"]))
            continue
        name = next(name for name in _COUNTS if name in value)
        counts = _numbers(value[name], f"{path.name}: {name}")
        steps = counts[None] if counts.ndim == 2 else counts
        if steps.ndim != 3:
            raise ValueError(f"{path.name}: {name} has shape {counts.shape}; (steps, layers, experts) is needed")
        for number, counts_LE in enumerate(steps, start=1):
            _add(tally, _logical(counts_LE, value.get(_MAP), path), number)
    return {layer: record.checked(hints.top_k, hints.num_experts) for layer, record in tally.records(None).items()}


def recognizes_responses(value: Any) -> bool:
    """Whether a parsed file holds responses with the experts that each token chose."""
    return next(_routed(value), None) is not None


def read_responses(files: Mapping[Path, Any], hints: Hints) -> dict[str, Record]:
    """Loads by layer; every response is a step."""
    tally, step, top_k = Tally(), 0, hints.top_k
    num_experts = hints.experts_of(None, next(iter(files)))
    for path, value in files.items():
        for routed, response in _routed(value):
            step += 1
            where = f"{path.name}, response {step}"
            experts_TLK = _experts_of(routed, response, hints, where)
            if top_k not in (None, experts_TLK.shape[2]):
                raise ValueError(f"{where} lists {experts_TLK.shape[2]} experts per token; elsewhere there are {top_k}")
            top_k = experts_TLK.shape[2]
            for layer in range(experts_TLK.shape[1]):
                experts_TK = experts_TLK[:, layer]
                if top_k > 1 and not experts_TK.any():
                    continue  # a dense layer, whose place in the table is left at zero
                tally.add(_label(layer), step, count(as_picks(experts_TK, num_experts, where), num_experts))
    return tally.records(top_k)


def _add(tally: Tally, counts_LE: NDArray[np.int64], step: int) -> None:
    for layer, load_E in enumerate(counts_LE):
        tally.add(_label(layer), step, load_E)


def _label(layer: int) -> str:
    return f"layer_{layer:02d}"


def _detailed(record: Any, physical_to_logical: Any, path: Path) -> NDArray[np.int64]:
    """The counts of one forward pass on one rank."""
    if not isinstance(record, dict) or "global_physical_count" not in record or "forward_pass_id" not in record:
        raise ValueError(f"{path.name}: a record lacks global_physical_count or forward_pass_id")
    counts = _numbers(record["global_physical_count"], f"{path.name}: global_physical_count")
    return _logical(counts, physical_to_logical, path)


def _logical(counts: NDArray[np.int64], physical_to_logical: Any, path: Path) -> NDArray[np.int64]:
    """Counts of the model's experts from those of their replicas."""
    if physical_to_logical is None:
        return counts
    logical = _numbers(physical_to_logical, f"{path.name}: {_MAP}")
    if logical.shape != counts.shape:
        raise ValueError(f"{path.name}: counts have shape {counts.shape} and {_MAP} {logical.shape}; they should agree")
    total = np.zeros((len(counts), int(logical.max()) + 1), dtype=np.int64)
    np.add.at(total, (np.arange(len(counts))[:, None], logical), counts)
    return total


def _numbers(value: Any, what: str) -> NDArray[np.int64]:
    """Whole numbers that are not negative."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different length
        array = np.array([], dtype=object)
    if array.dtype.kind not in "iuf" or array.ndim < 2 or array.size == 0:
        raise ValueError(f"{what} is not a table of numbers")
    if not np.isfinite(array).all() or array.min() < 0 or np.any(array != np.rint(array)):
        raise ValueError(f"{what} holds numbers that are no counts of tokens")
    return array.astype(np.int64)


def _routed(value: Any, response: Mapping[str, Any] | None = None) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Every list of chosen experts in a file, with the response around it."""
    if isinstance(value, dict):
        outer = {**(response or {}), **{key: entry for key, entry in value.items() if isinstance(entry, int)}}
        for key, entry in value.items():
            if key == _ROUTED and entry is not None:
                yield entry, outer
            else:
                yield from _routed(entry, outer)
    elif isinstance(value, list):
        for entry in value:
            if isinstance(entry, (dict, list)):
                yield from _routed(entry, response)


def _experts_of(routed: Any, response: Mapping[str, Any], hints: Hints, where: str) -> NDArray[np.integer]:
    """Chosen experts as an array (tokens, layers, K)."""
    if isinstance(routed, str):
        try:
            content = base64.b64decode(routed, validate=True)
        except binascii.Error:
            raise ValueError(f"{where}: {_ROUTED} is text, but not base64") from None
        if not content.startswith(b"\x93NUMPY"):
            return _of_int32(content, response, hints, where)
        routed = _in_npy(content, where)
    try:
        experts = np.asarray(routed)
    except ValueError:  # rows of different length
        experts = np.array([], dtype=object)
    if experts.ndim != 3 or experts.dtype.kind not in "iu" or experts.size == 0:
        raise ValueError(f"{where}: {_ROUTED} is not a table (tokens, layers, K) of whole numbers")
    return experts


def _in_npy(content: bytes, where: str) -> NDArray[Any]:
    """The array of an ``.npy`` file."""
    try:
        array: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError, OverflowError) as error:
        raise ValueError(f"{where}: {_ROUTED} is a damaged .npy file ({error})") from None
    return array


def _of_int32(content: bytes, response: Mapping[str, Any], hints: Hints, where: str) -> NDArray[np.integer]:
    """SGLang's form, which does not say its shape: K is told, tokens are counted by the response itself."""
    tokens = sum(int(response[name]) for name in ("prompt_tokens", "completion_tokens") if name in response) - 1
    if hints.top_k is None or tokens < 1:
        raise ValueError(
            f"{where}: {_ROUTED} is plain int32 numbers: pass top_k (--top-k), and keep prompt_tokens and "
            "completion_tokens beside them, to know their shape"
        )
    if len(content) % (4 * tokens * hints.top_k):
        raise ValueError(
            f"{where}: {_ROUTED} holds {len(content)} bytes, which {tokens} tokens of {hints.top_k} experts do not "
            "divide; check top_k (--top-k)"
        )
    return np.frombuffer(content, dtype="<i4").reshape(tokens, -1, hints.top_k)
