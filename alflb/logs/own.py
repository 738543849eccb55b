"""The log that `alflb.training.TrainingLog` writes: a folder per layer, and in it one load trace per span of steps.

Each file is a load trace (`alflb.traces.format`), which any command of alflb reads, with two more arrays:

========  =================  ===============================================================
key       dtype, shape       meaning
========  =================  ===============================================================
``bias``  f8, (N + 1, E)     the bias in force at each step of the file, and after the last
``step``  i8, (N,)           number of each step
========  =================  ===============================================================
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb.logs.record import Record
from alflb.traces.arrays import TraceError, read_arrays
from alflb.traces.format import LoadTrace, read_trace, valid

PATTERN = "step_*.npz"
"""Names of the files in a layer's folder."""


def read_folder(folder: Path) -> dict[str, Record]:
    """The records of every layer below a folder; empty if it holds no such log."""
    layers: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob(PATTERN)):
        layers.setdefault(file.parent.relative_to(folder).as_posix(), []).append(file)
    return {folder.name if label == "." else label: _read_layer(files) for label, files in layers.items()}


def read_file(path: Path) -> Record:
    """A load trace, with the biases and step numbers that it may have."""
    trace = read_trace(path)
    if not isinstance(trace, LoadTrace):
        raise TraceError(f"{path} records scores; a log holds loads (try 'alflb inspect' or 'alflb advise')")
    arrays = read_arrays(path)
    bias, step = arrays.get("bias"), arrays.get("step", np.arange(1, len(trace.loads_NE) + 1))
    if bias is not None and (bias.dtype.kind != "f" or not np.isfinite(bias).all()):
        raise TraceError(f"{path}: bias is {bias.dtype}, or not finite; floating-point numbers are needed")
    if step.dtype.kind not in "iu":
        raise TraceError(f"{path}: step is {step.dtype}; integers are needed")
    bias_NE = None if bias is None else bias.astype(np.float64)
    return valid(path, lambda: Record(trace.loads_NE, step.astype(np.int64), bias_NE, trace.top_k))


class _Part(NamedTuple):
    """One file of a layer."""

    load_NE: NDArray[np.int64]
    bias_NE: NDArray[np.float64]
    step_N: NDArray[np.int64]

    def before(self, step: int) -> _Part:
        """What was recorded before a step: a resumed run takes some steps again."""
        kept = int(np.searchsorted(self.step_N, step))
        return _Part(self.load_NE[:kept], self.bias_NE[: kept + 1], self.step_N[:kept])


def _read_layer(files: Sequence[Path]) -> Record:
    """The files of one layer, laid end to end."""
    records = [read_file(file) for file in files]
    parts = [_Part(one.load_NE, one.bias_NE, one.step_N) for one in records if one.bias_NE is not None]
    if len(parts) < len(files):
        raise TraceError(f"{files[0].parent}: some files hold no biases; write all with alflb.training.TrainingLog")
    parts = [*(part.before(later.step_N[0]) for part, later in itertools.pairwise(parts)), parts[-1]]
    for earlier, later, file in zip(parts, parts[1:], files[1:]):
        if not np.array_equal(earlier.bias_NE[-1], later.bias_NE[0]):
            raise TraceError(
                f"{file} does not go on where the file before it ends; steps are missing or runs are mixed"
            )
    return valid(
        files[0].parent,
        lambda: Record(
            np.concatenate([part.load_NE for part in parts]),
            np.concatenate([part.step_N for part in parts]),
            np.concatenate([parts[0].bias_NE[:1], *(part.bias_NE[1:] for part in parts)]),
            records[0].top_k,
        ),
    )
