"""Foreign arrays to traces: score arrays, load counts, and lists of chosen experts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alflb.problem import check_count, check_top_k
from alflb.traces.arrays import TraceError, open_arrays, pick_array
from alflb.traces.format import LoadTrace, RouterTrace, drop_padding, valid

KEEP_ALL = "none"
"""Value of `ignore` that says that no id stands for padding."""


def convert_scores(
    path: str | os.PathLike[str],
    *,
    array: str | None,
    top_k: int,
    bias_array: str | None = None,
    padding_array: str | None = None,
    layer: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> RouterTrace:
    """A score array of a foreign file as a trace.

    Parameters
    ----------
    path : path
        A ``.npz``, ``.npy``, ``.pt``, ``.parquet``, ``.csv``, ``.tsv``, ``.json`` or ``.jsonl`` file.
    array, bias_array, padding_array : str, optional
        Names of the scores, of the bias in force, and of a boolean array that is True where a token is padding.
        `array` may be left out where the file holds one array only.
    top_k : int
        Experts per token of the model.
    layer : int, optional
        Index on the first axis of scores (layers, tokens, experts), and of a bias (layers, experts). Without it, a
        3-D array is (batches, tokens, experts): laid end to end, its batch size kept as ``batch_tokens``.
    metadata : mapping, optional
        What should be known about the trace: score_function, model, license, ...

    Raises
    ------
    TraceError
        If an array is missing or not as described, an option has no effect, or a token without K allowed experts is
        not marked as padding.
    """
    arrays = open_arrays(path)
    notes = _own_metadata(metadata)
    scores = pick_array(path, arrays, array)
    bias = pick_array(path, arrays, bias_array) if bias_array else None
    padding = pick_array(path, arrays, padding_array) if padding_array else None
    if layer is None and scores.ndim == 3:
        if padding is None:
            notes.setdefault("batch_tokens", int(scores.shape[1]))
        scores = scores.reshape(-1, scores.shape[-1])
    scores = _layer(path, scores, layer, 0, notes)
    if layer is not None:
        bias, padding = (part[layer] if part is not None and part.ndim == 2 else part for part in (bias, padding))
    if padding is not None:
        scores, _ = valid(path, lambda: drop_padding(scores, padding.reshape(-1)))
    return valid(path, lambda: RouterTrace(scores, top_k, bias, notes))


def convert_loads(
    path: str | os.PathLike[str],
    *,
    array: str | None,
    top_k: int,
    layer: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> LoadTrace:
    """Load counts as a load trace.

    Parameters
    ----------
    path : path
        A file of a kind that `convert_scores` reads.
    array : str, optional
        Name of the counts (batches, experts) or (batches, layers, experts); columns of a table as ``expert_*``.
    top_k : int
        Experts per token of the model.
    layer : int, optional
        Index on the middle axis of a 3-D array.
    metadata : mapping, optional
        What should be known about the trace.

    Raises
    ------
    TraceError
        If the array is missing, the counts are impossible for top-K routing, or `layer` has no effect.
    """
    counts = pick_array(path, open_arrays(path), array)
    notes = _own_metadata(metadata)
    counts = _layer(path, counts, layer, 1, notes)
    return valid(path, lambda: LoadTrace(counts, top_k, notes))


def convert_experts(
    path: str | os.PathLike[str],
    *,
    array: str | None,
    top_k: int,
    num_experts: int,
    layer: int | None = None,
    batch_tokens: int | None = None,
    ignore: int | str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> LoadTrace:
    """Lists of chosen experts, counted, as a load trace.

    Parameters
    ----------
    path : path
        A file of a kind that `convert_scores` reads.
    array : str, optional
        Name of the expert indices (tokens, K) or (tokens, layers, K).
    top_k, num_experts : int
        Of the model.
    layer : int, optional
        Index on the middle axis of a 3-D array.
    batch_tokens : int, optional
        Count in blocks of this many tokens (default: all in one). An incomplete last block is left out, and its
        length kept in the metadata as ``tokens_left_out``.
    ignore : int or "none", optional
        Id that stands for padding, e.g. -1: tokens that list nothing else are dropped. "none" says that every id is
        an expert, which must be said where -1 in the array's own dtype would be a valid id (255 of 256 experts in
        uint8).
    metadata : mapping, optional
        What should be known about the trace.

    Raises
    ------
    TraceError
        If a token does not list K different experts, an id is out of range, or an option has no effect.
    """
    experts = pick_array(path, open_arrays(path), array)
    notes = _own_metadata(metadata)
    chosen = _layer(path, experts, layer, 1, notes)

    def count() -> LoadTrace:
        check_top_k(top_k, check_count(num_experts, "num_experts"))
        experts_TK = _checked_experts(chosen, top_k, num_experts, ignore)
        if batch_tokens is None:
            return LoadTrace(_count_blocks(experts_TK, num_experts, len(experts_TK)), top_k, notes)
        loads_NE = _count_blocks(experts_TK, num_experts, check_count(batch_tokens, "batch_tokens"))
        blocks = {"batch_tokens": batch_tokens, "tokens_left_out": len(experts_TK) % batch_tokens}
        return LoadTrace(loads_NE, top_k, {**blocks, **notes})

    return valid(path, count)


def _own_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy, without keys that the format writes itself: they would be overwritten in silence."""
    notes = dict(metadata or {})
    for key in ("format", "version", "top_k"):
        if key in notes:
            raise ValueError(f"metadata has {key}, which the trace format sets itself; leave it out")
    return notes


def _layer(
    path: str | os.PathLike[str], values: NDArray[Any], layer: int | None, axis: int, notes: dict[str, Any]
) -> NDArray[Any]:
    """One layer of a 3-D array, noted in the metadata; an array without layers as it is."""
    if values.ndim != 3:
        if layer is not None:
            raise TraceError(
                f"{path}: layer is {layer}, but the array has shape {values.shape}, no layers; leave it out"
            )
        return values
    num_layers = values.shape[axis]
    if layer is None or not 0 <= layer < num_layers:
        raise TraceError(f"{path}: the array has shape {values.shape}; choose a layer from 0 to {num_layers - 1}")
    notes.setdefault("layer", layer)
    chosen: NDArray[Any] = values.take(layer, axis)
    return chosen


def _checked_experts(
    experts: NDArray[Any], top_k: int, num_experts: int, ignore: int | str | None
) -> NDArray[np.integer[Any]]:
    """Expert indices of the tokens that are no padding, or ValueError."""
    if experts.dtype.kind not in "iu" or experts.ndim != 2 or experts.size == 0:
        raise ValueError(
            f"chosen experts have dtype {experts.dtype} and shape {experts.shape}; they must be integers (tokens, K)"
        )
    if experts.shape[1] != top_k:
        raise ValueError(f"the array lists {experts.shape[1]} experts per token but top_k is {top_k}; make them agree")
    experts_TK = experts if ignore == KEEP_ALL else _without_ignored(experts, num_experts, ignore)
    outside = np.argwhere((experts_TK < 0) | (experts_TK >= num_experts))
    if len(outside):
        token, pick = outside[0]
        raise ValueError(
            f"chosen experts lie outside 0..{num_experts - 1}: token {token} lists {experts_TK[token, pick]}; "
            "check num_experts, or name the id that stands for padding with ignore (--ignore)"
        )
    ordered = np.sort(experts_TK, axis=1)
    twice = np.argwhere(ordered[:, 1:] == ordered[:, :-1])
    if len(twice):
        token, pick = twice[0]
        raise ValueError(
            f"token {token} lists expert {ordered[token, pick]} more than once; if that id stands for padding, name it "
            "with ignore (--ignore)"
        )
    return experts_TK


def _without_ignored(experts_TK: NDArray[Any], num_experts: int, ignore: int | str | None) -> NDArray[Any]:
    if ignore is None:
        largest = int(np.iinfo(experts_TK.dtype).max)
        if largest == num_experts - 1 and np.any(experts_TK == largest):
            raise ValueError(
                f"{largest} in {experts_TK.dtype} is either expert {largest} or a padding id of -1; say which with "
                f"ignore (--ignore): {largest}, or {KEEP_ALL!r}"
            )
        return experts_TK
    if not isinstance(ignore, int) or isinstance(ignore, bool):
        raise ValueError(f"ignore is {ignore!r}; pass the id that stands for padding, or {KEEP_ALL!r}")
    kept = experts_TK[np.any(experts_TK != ignore, axis=1)]
    if len(kept) == 0:
        raise ValueError(f"every token lists only {ignore}, which is ignored; check ignore")
    return kept


def _count_blocks(experts_TK: NDArray[np.integer[Any]], num_experts: int, batch_tokens: int) -> NDArray[np.int64]:
    """Tokens per expert in consecutive blocks; an incomplete last block is left out."""
    num_batches = len(experts_TK) // batch_tokens
    if num_batches == 0:
        raise ValueError(f"batch_tokens is {batch_tokens} but there are {len(experts_TK)} tokens; choose fewer")
    blocks = experts_TK[: num_batches * batch_tokens].reshape(num_batches, -1)
    return np.stack([np.bincount(block, minlength=num_experts) for block in blocks])
