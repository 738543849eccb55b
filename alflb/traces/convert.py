"""Foreign arrays to traces: score arrays, load counts, and lists of chosen experts."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alflb.problem import check_count
from alflb.traces.format import LoadTrace, RouterTrace, TraceError, pick_array, read_arrays


def convert_scores(
    path: str | os.PathLike[str],
    *,
    array: str | None,
    top_k: int,
    bias_array: str | None = None,
    metadata: dict[str, Any] | None = None,
) -> RouterTrace:
    """A score array of a foreign file as a trace.

    A 3-D array (batches, tokens, experts) is laid end to end and its batch size kept as ``batch_tokens``.

    Parameters
    ----------
    path : path
        A ``.npz`` or ``.npy`` file.
    array, bias_array : str, optional
        Names of the score array, and of the bias in force, in that file.
    top_k : int
    metadata : dict, optional
        What should be known about the trace: score_function, model, layer, license, ...

    Raises
    ------
    TraceError
        If an array is missing or is not what it should be.
    """
    arrays = read_arrays(path)
    scores = pick_array(path, arrays, array)
    metadata = dict(metadata or {})
    if scores.ndim == 3:
        metadata.setdefault("batch_tokens", int(scores.shape[1]))
        scores = scores.reshape(-1, scores.shape[-1])
    bias = pick_array(path, arrays, bias_array) if bias_array else None
    return _made(path, lambda: RouterTrace(scores, top_k, bias, metadata))


def convert_loads(
    path: str | os.PathLike[str],
    *,
    array: str | None,
    top_k: int,
    layer: int | None = None,
    num_experts: int | None = None,
    batch_tokens: int | None = None,
    metadata: dict[str, Any] | None = None,
) -> LoadTrace:
    """Load counts, or lists of chosen experts, as a load trace.

    Parameters
    ----------
    path : path
    array : str, optional
        Counts (batches, experts) or (batches, layers, experts); or, when `num_experts` is given, expert indices
        (tokens, K) or (tokens, layers, K), which are counted in blocks of `batch_tokens`.
    top_k : int
    layer : int, optional
        Index on the middle axis of a 3-D array.
    num_experts, batch_tokens : int, optional
        Say that the array lists chosen experts, and how many tokens make a batch (default: all).

    Raises
    ------
    TraceError
        If an array is missing or is not what it should be.
    """
    values = _layer(path, pick_array(path, read_arrays(path), array), layer)
    if num_experts is not None:
        values = _made(path, lambda: _count_blocks(values, num_experts, batch_tokens or len(values)))
    return _made(path, lambda: LoadTrace(values, top_k, dict(metadata or {})))


def _layer(path: str | os.PathLike[str], values: NDArray[Any], layer: int | None) -> NDArray[Any]:
    if values.ndim != 3:
        return values
    if layer is None or not 0 <= layer < values.shape[1]:
        raise TraceError(f"{path}: the array has shape {values.shape}; choose a layer from 0 to {values.shape[1] - 1}")
    chosen: NDArray[Any] = values[:, layer]
    return chosen


def _count_blocks(experts_TK: NDArray[Any], num_experts: int, batch_tokens: int) -> NDArray[np.int64]:
    """Tokens per expert in consecutive blocks; an incomplete last block is left out."""
    check_count(num_experts, "num_experts")
    num_batches = len(experts_TK) // check_count(batch_tokens, "batch_tokens")
    if experts_TK.dtype.kind not in "iu" or experts_TK.ndim != 2 or num_batches == 0:
        raise ValueError(f"chosen experts must be integers (tokens, K) with at least {batch_tokens} tokens")
    if experts_TK.min() < 0 or experts_TK.max() >= num_experts:
        raise ValueError(f"chosen experts lie outside 0..{num_experts - 1}; check num_experts")
    blocks = experts_TK[: num_batches * batch_tokens].reshape(num_batches, -1).astype(np.int64)
    return np.stack([np.bincount(block, minlength=num_experts) for block in blocks])


def _made(path: str | os.PathLike[str], make: Any) -> Any:
    try:
        return make()
    except ValueError as error:
        raise TraceError(f"{path}: {error}") from None
