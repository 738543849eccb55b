"""The trace file format, version 1: what a router said (scores) or did (loads), with enough words to use it.

A trace is a ``.npz`` archive without pickled objects:

==============  =================  ==========================================================================
key             dtype, shape       meaning
==============  =================  ==========================================================================
``metadata``    unicode, ()        JSON object, see below; ``format`` and ``version`` identify the file
``scores``      f2 f4 f8, (T, E)   scores of every token for every expert, before the bias, in text order
``bias``        f4 f8, (E,)        optional: the bias in force when the scores were taken, added to them
``loads``       integer, (N, E)    instead of scores: tokens per expert in each of N batches
==============  =================  ==========================================================================

Metadata keys: ``format`` = "alflb-trace", ``version`` = 1, ``top_k`` (int), ``score_function`` ("sigmoid",
"softmax", ...), and any of ``batch_tokens`` (tokens per batch of the run), ``model``, ``layer``, ``step``,
``source``, ``license``, ``description``. Exactly one of ``scores`` and ``loads`` is present.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alflb.io import atomic_write
from alflb.problem import FloatArray, check_bias, check_count, check_scores, check_top_k

FORMAT = "alflb-trace"
VERSION = 1

_MAX_COUNT = 2**53
"""Largest load that float64 arithmetic still counts exactly."""


class TraceError(ValueError):
    """A file that is not a whole, valid trace; the message names the file and the mend."""


@dataclass(frozen=True, eq=False)
class RouterTrace:
    """Scores of a real router, one row a token, in the order of the text.

    Parameters
    ----------
    scores_TE : array of float32 or float64, shape (T, E)
        Scores before the bias. float16 files are widened to float32, which is exact.
    top_k : int
        Experts per token of the model.
    bias_E : array, shape (E,), optional
        Bias in force, added to the scores before top-K.
    metadata : mapping
        Free-form provenance (model, layer, step, license, ...).
    """

    scores_TE: FloatArray
    top_k: int
    bias_E: NDArray[np.float64] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        scores = np.asarray(self.scores_TE)
        if scores.dtype == np.float16:
            scores = scores.astype(np.float32)
        scores_TE = check_scores(scores)
        object.__setattr__(self, "scores_TE", scores_TE)
        object.__setattr__(self, "top_k", check_top_k(self.top_k, scores_TE.shape[1]))
        if self.bias_E is not None:
            object.__setattr__(self, "bias_E", check_bias(self.bias_E, scores_TE.shape[1]))


@dataclass(frozen=True, eq=False)
class LoadTrace:
    """Tokens per expert in each batch of a real run, where the scores were not kept.

    Parameters
    ----------
    loads_NE : integer array, shape (N, E)
        Tokens per expert and batch; each row sums to K times the tokens of the batch.
    top_k : int
        Experts per token of the model.
    metadata : mapping
        Free-form provenance.
    """

    loads_NE: NDArray[np.int64]
    top_k: int
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        loads = np.asarray(self.loads_NE)
        if loads.dtype.kind not in "iu" or loads.ndim != 2 or loads.size == 0:
            raise ValueError(f"loads has dtype {loads.dtype} and shape {loads.shape}; pass integers (batches, experts)")
        if loads.min() < 0 or loads.max() > _MAX_COUNT:
            raise ValueError(f"loads holds counts outside 0..{_MAX_COUNT}; pass tokens per expert")
        top_k = check_top_k(self.top_k, loads.shape[1])
        picks_N = loads.sum(axis=1, dtype=np.int64)
        if np.any(picks_N == 0) or np.any(picks_N % top_k):
            raise ValueError(f"loads: every row must sum to a positive multiple of top_k = {top_k}")
        object.__setattr__(self, "loads_NE", loads.astype(np.int64))
        object.__setattr__(self, "top_k", top_k)


def read_trace(path: str | os.PathLike[str]) -> RouterTrace | LoadTrace:
    """Read and validate a trace file; pickled arrays are never loaded.

    Raises
    ------
    TraceError
        If the file is missing, truncated, foreign, or holds invalid arrays.
    """
    arrays = read_arrays(path)
    metadata = _metadata(path, arrays)
    try:
        top_k = check_count(metadata.get("top_k"), "metadata top_k")
        if ("scores" in arrays) == ("loads" in arrays):
            raise ValueError("needs exactly one of the arrays 'scores' and 'loads'")
        if "loads" in arrays:
            return LoadTrace(arrays["loads"], top_k, metadata)
        return RouterTrace(arrays["scores"], top_k, arrays.get("bias"), metadata)
    except ValueError as error:
        raise TraceError(f"{path}: {error}") from None


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
    arrays: dict[str, NDArray[Any]] = {"metadata": np.array(json.dumps(metadata, sort_keys=True))}
    if isinstance(trace, LoadTrace):
        arrays["loads"] = trace.loads_NE
    else:
        arrays["scores"] = trace.scores_TE
        if trace.bias_E is not None:
            arrays["bias"] = trace.bias_E
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def open_scores(path: str | os.PathLike[str], *, array: str | None = None, top_k: int | None = None) -> RouterTrace:
    """Scores from any file that has them: a trace, one array of a foreign ``.npz``, or a ``.npy``.

    Parameters
    ----------
    path : path
    array : str, optional
        Name of the (T, E) array in a foreign ``.npz``.
    top_k : int, optional
        Overrides the trace's own; needed where the file does not say.

    Raises
    ------
    TraceError
        If the file has no scores, or more than one candidate and `array` does not choose.
    """
    arrays = read_arrays(path)
    if array is None and "metadata" in arrays:
        trace = read_trace(path)
        if isinstance(trace, LoadTrace):
            raise TraceError(f"{path} records loads only; scores are needed here (try 'alflb inspect')")
        if top_k is None:
            return trace
        scores, bias, metadata = trace.scores_TE, trace.bias_E, dict(trace.metadata)
    else:
        scores, bias, metadata = pick_array(path, arrays, array), None, {}
    if top_k is None:
        raise TraceError(f"{path} does not say how many experts a token takes; say it with top_k (--top-k)")
    try:
        return RouterTrace(scores, top_k, bias, metadata)
    except ValueError as error:
        raise TraceError(f"{path}: {error}") from None


def read_arrays(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Every array of a ``.npz`` (or the one of a ``.npy``, under the name ""), or TraceError."""
    path = Path(path)
    if path.is_dir():
        raise TraceError(f"{path} is a folder; give a .npz or .npy file")
    try:
        with path.open("rb") as file:
            start = file.read(6)
            file.seek(0)
            if start != b"\x93NUMPY" and not start.startswith(b"PK"):
                raise ValueError("it starts like neither")  # np.load would take it for a pickle
            loaded = np.load(file, allow_pickle=False)
            members = {"": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
        return {name: values for name, values in members.items() if isinstance(values, np.ndarray)}
    except FileNotFoundError:
        raise TraceError(f"{path} does not exist; check the path") from None
    except PermissionError:
        raise TraceError(f"{path} may not be read; check its permissions") from None
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        if "allow_pickle" in str(error) or "pickled" in str(error):
            reason = "it holds pickled Python objects, which are never loaded; save plain numeric arrays instead"
        else:
            reason = f"it is not a whole .npz or .npy file ({error}); copy or download it again"
        raise TraceError(f"{path} cannot be read: {reason}") from None


def pick_array(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], name: str | None) -> NDArray[Any]:
    """The array called `name`, or the only one there is; TraceError lists what can be chosen."""
    if name is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    listing = ", ".join(f"{key} {values.shape}" for key, values in arrays.items() if key)
    if name is None:
        raise TraceError(f"{path} is not an alflb trace; name one of its arrays with array (--array): {listing}")
    if name not in arrays:
        raise TraceError(f"{path} has no array {name!r}; it has {listing or 'a single array without a name'}")
    return arrays[name]


def _metadata(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    listing = ", ".join(arrays) or "one array without a name"
    foreign = TraceError(
        f"{path} is not an alflb trace (it has {listing}); convert it with 'alflb convert', or name one array of it"
    )
    if "metadata" not in arrays or arrays["metadata"].dtype.kind != "U" or arrays["metadata"].shape != ():
        raise foreign
    try:
        metadata = json.loads(str(arrays["metadata"]))
    except json.JSONDecodeError as error:
        raise TraceError(f"{path}: metadata is not JSON ({error})") from None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise foreign
    if metadata.get("version") != VERSION:
        raise TraceError(f"{path} has trace version {metadata.get('version')!r}; this alflb reads version {VERSION}")
    return metadata
