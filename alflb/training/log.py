"""Loads and biases of every layer and step in files of the trace format, from where they can be diagnosed.

A log is a folder with one folder per layer, and in it one file per span of steps. Each file is a load trace
(`alflb.traces.format`), which any command of alflb reads, with two more arrays:

========  =================  ===============================================================
key       dtype, shape       meaning
========  =================  ===============================================================
``bias``  f8, (N + 1, E)     the bias in force at each step of the file, and after the last
``step``  i8, (N,)           number of each step
========  =================  ===============================================================
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb.io import atomic_write
from alflb.problem import check_count
from alflb.traces.arrays import TraceError, read_arrays
from alflb.traces.format import FORMAT, VERSION, LoadTrace, read_trace
from alflb.training.step_report import LayerReport, StepReport


class TrainingLog:
    """Writes what a `LoadBalancer` reports, if it is given as its `on_step`; on one rank of a group only.

    Parameters
    ----------
    folder : path
        Made if it does not exist. A run that is resumed may go on in the same folder: files are named by step.
    steps_per_file : int
        Steps kept in memory before they are written: 8 E (2 N + 1) bytes per layer for N steps.

    Examples
    --------
    >>> import tempfile
    >>> from alflb.training import LoadBalancer
    >>> folder = tempfile.mkdtemp()
    >>> with TrainingLog(folder) as log:
    ...     balancer = LoadBalancer.for_layers([2], top_k=1, schedule=0.5, on_step=log)
    ...     for _ in range(3):
    ...         balancer.add_loads("layer_00", [3, 1])
    ...         _ = balancer.step()
    >>> record = read_log(folder)["layer_00"]
    >>> record.load_NE.tolist(), record.bias_NE[:, 0].tolist()
    ([[3, 1], [3, 1], [3, 1]], [0.0, -0.5, -1.0, -1.5])
    """

    def __init__(self, folder: str | os.PathLike[str], steps_per_file: int = 1000) -> None:
        self.folder = Path(folder)
        self.steps_per_file = check_count(steps_per_file, "steps_per_file")
        self._pending: dict[str, list[tuple[int, LayerReport]]] = {}

    def __call__(self, report: StepReport) -> None:
        """Take one step's report."""
        for layer in report.layers:
            pending = self._pending.setdefault(layer.label, [])
            pending.append((report.step, layer))
            if len(pending) == self.steps_per_file:
                self._write(layer.label)

    def close(self) -> None:
        """Write what has not been written yet."""
        for label, pending in self._pending.items():
            if pending:
                self._write(label)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, label: str) -> None:
        """One file of a layer's pending steps."""
        pending, self._pending[label] = self._pending[label], []
        steps = [step for step, _ in pending]
        layers = [layer for _, layer in pending]
        bias_NE = np.stack([layers[0].previous_bias_E, *(layer.bias_E for layer in layers)])
        load_NE = np.stack([layer.load_E for layer in layers])
        metadata = {"format": FORMAT, "version": VERSION, "top_k": layers[0].top_k or 1, "layer": layers[0].name}
        folder = self.folder / label
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / f"step_{steps[0]:09d}.npz") as file:
            np.savez_compressed(
                file, metadata=np.array(json.dumps(metadata)), loads=load_NE, bias=bias_NE, step=np.array(steps)
            )


class Record(NamedTuple):
    """Loads and biases of one layer, row n of the loads moved row n of the biases to row n + 1."""

    load_NE: NDArray[np.int64]
    bias_NE: NDArray[np.float64]
    top_k: int


def read_log(path: str | os.PathLike[str]) -> dict[str, Record]:
    """The records of a log by layer: of a folder that `TrainingLog` wrote, of one layer's folder, or of one file.

    Raises
    ------
    TraceError
        If there is none, a file is damaged, or steps are missing between files.
    """
    path = Path(path)
    if not path.is_dir():
        return {path.stem: _read_layer([path])}
    layers: dict[str, list[Path]] = {}
    for file in sorted(path.rglob("step_*.npz")):
        layers.setdefault(file.parent.relative_to(path).as_posix(), []).append(file)
    if not layers:
        raise TraceError(f"{path} holds no training log (step_*.npz); write one with alflb.training.TrainingLog")
    return {path.name if label == "." else label: _read_layer(files) for label, files in layers.items()}


class _Part(NamedTuple):
    """One file of a layer."""

    load_NE: NDArray[np.int64]
    bias_NE: NDArray[np.float64]
    step_N: NDArray[np.int64]
    top_k: int

    def before(self, step: int) -> _Part:
        """What was recorded before a step: a resumed run takes some steps again."""
        kept = int(np.searchsorted(self.step_N, step))
        return self._replace(load_NE=self.load_NE[:kept], bias_NE=self.bias_NE[: kept + 1], step_N=self.step_N[:kept])


def _read_layer(files: Sequence[Path]) -> Record:
    """The files of one layer, laid end to end."""
    parts = [_read_file(file) for file in files]
    parts = [*(part.before(later.step_N[0]) for part, later in itertools.pairwise(parts)), parts[-1]]
    for earlier, later, file in zip(parts, parts[1:], files[1:]):
        if not np.array_equal(earlier.bias_NE[-1], later.bias_NE[0]):
            raise TraceError(
                f"{file} does not go on where the file before it ends; steps are missing or runs are mixed"
            )
    load_NE = np.concatenate([part.load_NE for part in parts])
    bias_NE = np.concatenate([parts[0].bias_NE[:1], *(part.bias_NE[1:] for part in parts)])
    return Record(load_NE, bias_NE, parts[0].top_k)


def _read_file(path: Path) -> _Part:
    """One file, checked."""
    trace = read_trace(path)
    arrays = read_arrays(path)
    if not isinstance(trace, LoadTrace) or "bias" not in arrays:
        raise TraceError(f"{path} does not record loads and biases; write them with alflb.training.TrainingLog")
    steps = arrays.get("step", np.arange(1, len(trace.loads_NE) + 1))
    shape = (len(trace.loads_NE) + 1, trace.loads_NE.shape[1])
    bias_NE = arrays["bias"]
    if bias_NE.shape != shape or bias_NE.dtype.kind != "f" or len(steps) != len(trace.loads_NE):
        raise TraceError(f"{path}: bias has shape {bias_NE.shape} and step {steps.shape}; bias should have {shape}")
    return _Part(trace.loads_NE, bias_NE.astype(np.float64), steps.astype(np.int64), trace.top_k)
