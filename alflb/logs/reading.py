"""One function for every log: what wrote it is recognized by its content."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from alflb.logs import megatron, own, serving, tables
from alflb.logs.hints import Hints
from alflb.logs.record import Record
from alflb.traces.arrays import TraceError, open_arrays, read_value

Files = Mapping[Path, Any]


class Format(NamedTuple):
    """A kind of foreign log."""

    name: str
    recognizes: Callable[[Any], bool]
    """Whether a parsed file is of this kind."""
    read: Callable[[Files, Hints], dict[str, Record]]
    names_series: bool = False
    """Whether its series have names, so that hints can choose among them."""


FORMATS = (
    Format("Megatron's router trace", megatron.recognizes, megatron.read),
    Format("counts of an inference engine", serving.recognizes_counts, serving.read_counts),
    Format("responses with routed experts", serving.recognizes_responses, serving.read_responses),
    Format("a table of scalars", tables.recognizes, tables.read, names_series=True),
)
"""Tried in this order."""

_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".pt", ".npz")


def read_log(
    path: str | os.PathLike[str],
    *,
    top_k: int | None = None,
    num_experts: int | None = None,
    batch_tokens: int | None = None,
    loads: str | None = None,
    bias: str | None = None,
) -> dict[str, Record]:
    r"""The records of a log by layer, whoever wrote it.

    A log is a folder that `alflb.training.TrainingLog` wrote, or one layer's folder in it, or a load trace; Megatron's
    router trace (`alflb.logs.megatron`); a dump of SGLang or vLLM, or responses with the experts of each token
    (`alflb.logs.serving`); or a table of scalars as W&B and TensorBoard export it (`alflb.logs.tables`). Several ranks'
    files are in one folder.

    Parameters
    ----------
    path : path
        A file, or a folder of files of one kind.
    top_k : int, optional
        Experts per token, where the log does not say; compared where it does.
    num_experts : int, optional
        Number of experts, likewise.
    batch_tokens : int, optional
        Tokens of a global batch, for tables that hold shares of loads.
    loads, bias : str, optional
        Names of the series in a table that hold loads and biases, as patterns with wildcards ("*tokens*"), where
        several could be meant.

    Returns
    -------
    dict of str to Record

    Raises
    ------
    TraceError
        If nothing is recognized, a file is damaged, or values are missing or impossible.
    ValueError
        For an argument out of range.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "export.csv"
    >>> lines = ["step,layer_1/load/expert_0,layer_1/load/expert_1", "1,3,5", "2,4,4"]
    >>> _ = file.write_text("\n".join(lines))
    >>> read_log(file)["layer_01"].load_NE.tolist()
    [[3, 5], [4, 4]]
    """
    path, hints = Path(path), Hints(top_k, num_experts, batch_tokens, loads, bias)
    try:
        found = _read(path, hints)
        return {layer: record.checked(top_k, num_experts) for layer, record in found.items()}
    except (TraceError, MemoryError):
        raise
    except ValueError as error:
        raise TraceError(f"{path}: {' '.join(str(error).split())}") from None
    except Exception as error:  # whatever odd values in a foreign file lead to
        raise TraceError(f"{path} cannot be read as a log ({type(error).__name__}: {error}); is it whole?") from None


def _read(path: Path, hints: Hints) -> dict[str, Record]:
    if path.is_dir():
        records = own.read_folder(path)
        if records:
            _refuse_patterns(hints)
            return records
        return _foreign(_parsed(path), path, hints)
    if _is_trace(path):
        _refuse_patterns(hints)
        return {path.stem: own.read_file(path)}
    return _foreign({path: _value(path)}, path, hints)


def _foreign(files: Files, path: Path, hints: Hints) -> dict[str, Record]:
    """Files of one of the foreign formats."""
    for kind in FORMATS:
        own_files = {file: value for file, value in files.items() if kind.recognizes(value)}
        if own_files:
            if not kind.names_series:
                _refuse_patterns(hints)
            return kind.read(own_files, hints)
    known = ", ".join(kind.name for kind in FORMATS)
    raise ValueError(
        f"no log is recognized in it. Known are logs of alflb.training.TrainingLog, {known}; lists of chosen experts "
        "and plain arrays of loads become a load trace by 'alflb convert'"
    )


def _parsed(folder: Path) -> dict[Path, Any]:
    """The files of a folder that may be a log."""
    names = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES and not file.name.startswith("."))
    return {file: read_value(file) for file in names}


def _value(path: Path) -> Any:
    """The content of one file; of the text that engines print, an explanation."""
    try:
        return read_value(path)
    except TraceError:
        _explain_printed_balance(path)
        raise


def _explain_printed_balance(path: Path) -> None:
    """ValueError for the log lines of vLLM and SGLang, which say how balanced devices are, and no loads."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(1 << 20)
    if b"EPLB step" in start or b"[Expert Balancedness]" in start:
        raise ValueError(
            "these lines give the balancedness of devices, mean over largest load (MaxVio of devices is 1 / it - 1), "
            "and no loads of experts; record those by SGLang's expert_distribution_recorder, or by responses with "
            "return_routed_experts"
        )


def _is_trace(path: Path) -> bool:
    """Whether a file is in alflb's own format."""
    return path.suffix == ".npz" and {"metadata", "loads"} <= set(open_arrays(path))


def _refuse_patterns(hints: Hints) -> None:
    for name in ("loads", "bias"):
        if getattr(hints, name) is not None:
            raise ValueError(f"{name} (--{name}) chooses among series with names, which this log does not have")
