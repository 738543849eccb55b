"""The trace file format, version 1: what a router said (scores) or did (loads), with enough words to use it.

A trace is a ``.npz`` archive without pickled objects:

===================  =================  =====================================================================
key                  dtype, shape       meaning
===================  =================  =====================================================================
``metadata``         unicode, ()        JSON object, see below; ``format`` and ``version`` identify the file
``scores``           f2 f4 f8, (T, E)   scores of every token for every expert, before the bias, in text order
``bias``             f4 f8, (E,)        optional: the bias in force when the scores were taken, added to them
``padding``          bool, (T,)         optional: True where a row is padding; such rows are dropped on reading
``document_starts``  integer, (D,)      optional: first row of each document, from 0, increasing
``loads``            integer, (N, E)    instead of scores: tokens per expert in each of N batches
===================  =================  =====================================================================

Metadata keys: ``format`` = "alflb-trace", ``version`` = 1, ``top_k`` (int), ``score_function`` ("sigmoid",
"softmax", ...), and any of ``batch_tokens`` (tokens per batch of the run), ``n_group`` and ``topk_group``
(group-limited routing), ``model``, ``layer``, ``step``, ``source``, ``license``, ``description``. Exactly one of
``scores`` and ``loads`` is present.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from alflb.io import atomic_write
from alflb.problem import FloatArray, check_bias, check_count, check_enough_experts, check_scores, check_top_k
from alflb.traces.arrays import StoredArray, TraceError, open_arrays, pick_array

R = TypeVar("R")

FORMAT = "alflb-trace"
VERSION = 1

_MAX_COUNT = 2**53
"""Largest load that float64 arithmetic still counts exactly."""


@dataclass(frozen=True, eq=False)
class RouterTrace:
    """Scores of a real router, one row per token, in the order of the text.

    Parameters
    ----------
    scores_TE : array of float32 or float64, shape (T, E)
        Scores before the bias; -inf forbids a pair, and each token needs at least K experts that are not forbidden.
        float16 is widened to float32, which is exact.
    top_k : int
        Experts per token of the model.
    bias_E : array, shape (E,), optional
        Bias in force, added to the scores before top-K.
    metadata : mapping
        Free-form provenance (model, layer, step, license, ...), JSON values. ``n_group`` and ``topk_group`` say that
        the router first chooses ``topk_group`` of ``n_group`` groups of consecutive experts.
    document_starts_D : integer array, shape (D,), optional
        First row of each document: 0, then increasing.

    Raises
    ------
    ValueError
        If an array or a number is not as described.

    Examples
    --------
    >>> trace = RouterTrace(np.eye(4), top_k=1, metadata={"n_group": 2, "topk_group": 1})
    >>> trace.is_grouped
    True
    """

    scores_TE: FloatArray
    top_k: int
    bias_E: NDArray[np.float64] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    document_starts_D: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        scores_TE = check_scores(_widened(self.scores_TE))
        object.__setattr__(self, "scores_TE", scores_TE)
        object.__setattr__(self, "top_k", check_top_k(self.top_k, scores_TE.shape[1]))
        check_enough_experts(scores_TE, self.top_k, "scores")
        if self.bias_E is not None:
            object.__setattr__(self, "bias_E", check_bias(self.bias_E, scores_TE.shape[1]))
        if self.document_starts_D is not None:
            object.__setattr__(self, "document_starts_D", _checked_starts(self.document_starts_D, len(scores_TE)))
        _check_groups(self.metadata, scores_TE.shape[1], self.top_k)

    @property
    def is_grouped(self) -> bool:
        """Whether the router chooses among some groups of experts only, so that plain top-K is not what it does."""
        groups = self.metadata.get("n_group")
        return groups is not None and self.metadata["topk_group"] < groups


@dataclass(frozen=True, eq=False)
class LoadTrace:
    """Tokens per expert in each batch of a real run, where the scores were not kept.

    Parameters
    ----------
    loads_NE : integer array, shape (N, E)
        Tokens per expert and batch; each row sums to K times the tokens of the batch, and no expert has more tokens
        than the batch. Floating-point counts are taken where all are whole and the dtype can count that far.
    top_k : int
        Experts per token of the model.
    metadata : mapping
        Free-form provenance, JSON values.

    Raises
    ------
    ValueError
        If the loads are not possible counts of top-K routing.
    """

    loads_NE: NDArray[np.int64]
    top_k: int
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        loads_NE = _whole_counts(np.asarray(self.loads_NE))
        top_k = check_top_k(self.top_k, loads_NE.shape[1])
        picks_N = loads_NE.sum(axis=1)
        if np.any(picks_N == 0) or np.any(picks_N % top_k):
            raise ValueError(f"loads: every row must sum to a positive multiple of top_k = {top_k}")
        impossible = np.argwhere(loads_NE > picks_N[:, None] // top_k)
        if len(impossible):
            batch, expert = impossible[0]
            raise ValueError(
                f"loads: batch {batch} has {picks_N[batch] // top_k} tokens at top_k = {top_k}, but expert {expert} "
                f"has {loads_NE[batch, expert]}; an expert takes a token at most once, so check top_k"
            )
        object.__setattr__(self, "loads_NE", loads_NE)
        object.__setattr__(self, "top_k", top_k)


def read_trace(path: str | os.PathLike[str]) -> RouterTrace | LoadTrace:
    """Read and validate a trace file; pickled arrays are never loaded, other arrays in the file are not read.

    Rows marked as padding are dropped; ``batch_tokens`` goes with them, since batches then differ in length.

    Raises
    ------
    TraceError
        If the file is missing, damaged, foreign, or holds invalid arrays.
    MemoryError
        If an array does not fit into memory.
    """
    return _trace(path, open_arrays(path))


def write_trace(path: str | os.PathLike[str], trace: RouterTrace | LoadTrace) -> None:
    """Write a trace file atomically, compressed.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "tiny.npz"
    >>> write_trace(path, RouterTrace(np.eye(3), top_k=1, metadata={"model": "identity"}))
    >>> read_trace(path).metadata["model"]
    'identity'
    """
    metadata = {**trace.metadata, "format": FORMAT, "version": VERSION, "top_k": trace.top_k}
    try:
        text = json.dumps(metadata, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata cannot be written as JSON ({error}); pass text, finite numbers, lists") from None
    arrays: dict[str, NDArray[Any]] = {"metadata": np.array(text)}
    if isinstance(trace, LoadTrace):
        arrays["loads"] = trace.loads_NE
    else:
        arrays["scores"] = trace.scores_TE
        if trace.bias_E is not None:
            arrays["bias"] = trace.bias_E
        if trace.document_starts_D is not None:
            arrays["document_starts"] = trace.document_starts_D
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def open_scores(
    path: str | os.PathLike[str], *, array: str | None = None, top_k: int | None = None, grouped: bool = False
) -> RouterTrace:
    """Scores from any file that has them: a trace, or one array of a foreign file (`alflb.traces.convert`).

    Parameters
    ----------
    path : path
    array : str, optional
        Name of the (T, E) array in a foreign file; a trace's own arrays are known and cannot be chosen, or its padding
        and its groups would be passed over.
    top_k : int, optional
        Overrides the trace's own; needed where the file does not say.
    grouped : bool
        Accept group-limited routing too. By default it is refused: what plain top-K can do, a grouped router cannot.

    Raises
    ------
    TraceError
        If the file has no scores, more than one candidate and `array` does not choose, or is a trace and `array` names
        a part of it.
    MemoryError
        If the scores do not fit into memory.
    """
    arrays = open_arrays(path)
    if "metadata" in arrays and array in ("scores", "loads"):
        raise TraceError(f"{path} is a trace: array (--array) has no effect on it; leave it out")
    if array is not None or "metadata" not in arrays:
        scores = pick_array(path, arrays, array)
        if top_k is None:
            raise TraceError(f"{path} does not say how many experts a token takes; say it with top_k (--top-k)")
        return valid(path, lambda: RouterTrace(scores, top_k))
    if "loads" in arrays and "scores" not in arrays:
        raise TraceError(f"{path} records loads only; scores are needed here (try 'alflb inspect')")
    trace = _trace(path, arrays)
    assert isinstance(trace, RouterTrace)
    if trace.is_grouped and not grouped:
        raise TraceError(
            f"{path} is from a router that first chooses {trace.metadata['topk_group']} of "
            f"{trace.metadata['n_group']} groups of experts; only plain top-K routing is supported here"
        )
    return trace if top_k is None else valid(path, lambda: replace(trace, top_k=top_k))


def _trace(path: str | os.PathLike[str], arrays: Mapping[str, StoredArray]) -> RouterTrace | LoadTrace:
    metadata = _metadata(path, arrays)
    if ("scores" in arrays) == ("loads" in arrays):
        raise TraceError(f"{path}: needs exactly one of the arrays 'scores' and 'loads'")
    top_k = valid(path, lambda: check_count(metadata.get("top_k"), "metadata top_k"))
    if "loads" in arrays:
        loads_NE = arrays["loads"].read()
        return valid(path, lambda: LoadTrace(loads_NE, top_k, metadata))
    scores, starts = arrays["scores"].read(), _read(arrays, "document_starts")
    padding, bias_E = _read(arrays, "padding"), _read(arrays, "bias")
    if padding is not None:
        scores, starts = valid(path, lambda: drop_padding(scores, padding, starts))
        metadata.pop("batch_tokens", None)
    return valid(path, lambda: RouterTrace(scores, top_k, bias_E, metadata, starts))


def drop_padding(
    scores: NDArray[Any], padding: NDArray[Any], document_starts: NDArray[Any] | None = None
) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """Scores without the rows that `padding` marks, and the documents' first rows among those that stay.

    Raises
    ------
    ValueError
        If `padding` is not boolean with one entry per row, or nothing is left.
    """
    if padding.dtype != np.bool_ or padding.shape != scores.shape[:1]:
        raise ValueError(
            f"padding has dtype {padding.dtype} and shape {padding.shape}; pass one boolean per token, True where it "
            f"is padding, shape {scores.shape[:1]}"
        )
    kept = ~padding
    if not kept.any():
        raise ValueError("padding marks every token; invert the mask if it marks the real ones")
    if document_starts is None:
        return scores[kept], None
    starts = _checked_starts(document_starts, len(scores))
    kept_before = np.concatenate([[0], np.cumsum(kept)])
    begins, ends = kept_before[starts], kept_before[np.append(starts[1:], len(kept))]
    return scores[kept], begins[begins < ends]  # documents of padding only are gone


def _read(arrays: Mapping[str, StoredArray], name: str) -> NDArray[Any] | None:
    return arrays[name].read() if name in arrays else None


def _widened(scores: Any) -> Any:
    """float16 as float32; anything else as it is."""
    return scores.astype(np.float32) if getattr(scores, "dtype", None) == np.float16 else scores


def _checked_starts(starts: NDArray[Any], num_tokens: int) -> NDArray[np.int64]:
    starts = np.asarray(starts)
    is_valid = starts.ndim == 1 and starts.dtype.kind in "iu" and starts.size > 0
    if not is_valid or starts[0] != 0 or np.any(starts[1:] <= starts[:-1]) or starts[-1] >= num_tokens:
        raise ValueError(f"document_starts must be increasing integers from 0 to at most {num_tokens - 1}")
    return starts.astype(np.int64)


def _check_groups(metadata: Mapping[str, Any], num_experts: int, top_k: int) -> None:
    if ("n_group" in metadata) != ("topk_group" in metadata):
        raise ValueError("metadata has one of n_group and topk_group; give both or none")
    if metadata.get("n_group") is None and metadata.get("topk_group") is None:
        return
    groups = check_count(metadata["n_group"], "metadata n_group")
    chosen = check_count(metadata["topk_group"], "metadata topk_group")
    if num_experts % groups or chosen > groups or top_k > chosen * (num_experts // groups):
        raise ValueError(
            f"metadata says {chosen} of {groups} groups, which does not fit {num_experts} experts and top_k = {top_k}"
        )


def _whole_counts(loads: NDArray[Any]) -> NDArray[np.int64]:
    """Loads as int64, or ValueError; floats above what their dtype counts exactly may have been rounded."""
    if loads.ndim != 2 or loads.size == 0 or loads.dtype.kind not in "iuf":
        raise ValueError(f"loads has dtype {loads.dtype} and shape {loads.shape}; pass integers (batches, experts)")
    largest = _MAX_COUNT
    if loads.dtype.kind == "f":
        largest = min(largest, 2 ** (np.finfo(loads.dtype).nmant + 1))
        if not np.all(loads == np.rint(loads)):
            raise ValueError(f"loads has dtype {loads.dtype} and entries that are not whole; pass tokens per expert")
    if not (loads.min() >= 0 and loads.max() <= largest):
        raise ValueError(f"loads holds counts outside 0..{largest}, which {loads.dtype} cannot count; pass integers")
    return loads.astype(np.int64)


def _metadata(path: str | os.PathLike[str], arrays: Mapping[str, StoredArray]) -> dict[str, Any]:
    listing = ", ".join(arrays) or "one array without a name"
    foreign = TraceError(
        f"{path} is not an alflb trace (it has {listing}); convert it with 'alflb convert', or name one array of it"
    )
    if "metadata" not in arrays or arrays["metadata"].shape != ():
        raise foreign
    text = arrays["metadata"].read()
    if text.dtype.kind != "U":
        raise foreign
    try:
        metadata = json.loads(str(text), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}: metadata is not JSON ({error})") from None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise foreign
    if metadata.get("version") != VERSION:
        raise TraceError(f"{path} has trace version {metadata.get('version')!r}; this alflb reads version {VERSION}")
    return metadata


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is no JSON")


def valid(path: str | os.PathLike[str], make: Callable[[], R]) -> R:
    """What `make` returns; its ValueError becomes a TraceError that names the file."""
    try:
        return make()
    except ValueError as error:
        raise TraceError(f"{path}: {error}") from None
