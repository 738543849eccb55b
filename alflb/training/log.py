"""Writes loads and biases of every layer and step, to be read by `alflb.logs.read_log`; files: `alflb.logs.own`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from alflb.io import atomic_write
from alflb.problem import check_count
from alflb.traces.format import FORMAT, VERSION
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
    >>> from alflb.logs import read_log
    >>> from alflb.training import LoadBalancer
    >>> folder = tempfile.mkdtemp()
    >>> with TrainingLog(folder) as log:
    ...     balancer = LoadBalancer.for_layers([2], 1, "sign", 0.5, on_step=log)
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
