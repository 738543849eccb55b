"""What a run leaves behind, in memory and in a file."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alflb.io import atomic_write
from alflb.traces import read_arrays


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The record of a run: biases, loads and per-step numbers, never scores or assignments.

    ``bias_NE[n]`` produced ``load_NE[n]``; the last bias has produced nothing yet, hence one row more.
    """

    bias_NE: NDArray[np.float64]
    """Biases, shape (N + 1, E), score units."""
    load_NE: NDArray[np.int64]
    """Tokens per expert, shape (N, E)."""
    target_E: NDArray[np.float64]
    """Target loads, tokens."""
    series: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """One array of shape (N,) per observer."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """num_tokens, top_k, seed, stream, rule, backend, and static (whether every batch was the same one)."""

    @property
    def num_steps(self) -> int:
        """N, the number of steps."""
        return len(self.load_NE)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one ``.npz``, atomically."""
        with atomic_write(path) as file:
            file.write(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of the file that `save` writes: the same bytes for the same run."""
        arrays: dict[str, NDArray[Any]] = {
            "bias": self.bias_NE,
            "load": self.load_NE,
            "target": self.target_E,
            "meta": np.array(json.dumps(dict(self.meta), sort_keys=True)),
            **{f"series/{name}": values for name, values in self.series.items()},
        }
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
        return content.getvalue()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectory:
        """Read what `save` wrote; ValueError for any other file."""
        arrays = read_arrays(path)
        missing = {"bias", "load", "target", "meta"} - set(arrays)
        if missing:
            raise ValueError(f"{path} is not a saved trajectory: it lacks {', '.join(sorted(missing))}")
        bias_NE, load_NE, target_E = arrays["bias"], arrays["load"], arrays["target"]
        series = {name.removeprefix("series/"): values for name, values in arrays.items() if name.startswith("series/")}
        num_steps, num_experts = load_NE.shape if load_NE.ndim == 2 else (-1, -1)
        fits = bias_NE.shape == (num_steps + 1, num_experts) and target_E.shape == (num_experts,)
        if not fits or any(values.shape != (num_steps,) for values in series.values()):
            raise ValueError(f"{path} is not a saved trajectory: its arrays do not fit together")
        try:
            meta = json.loads(str(arrays["meta"]))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a saved trajectory: meta is not JSON ({error})") from None
        if not isinstance(meta, dict):
            raise ValueError(f"{path} is not a saved trajectory: meta is not a JSON object")
        return cls(bias_NE, load_NE, target_E, series, meta)


def check_trajectory(run: object) -> None:
    """Raise ValueError, saying what to pass, if `run` is not a `Trajectory`.

    Examples
    --------
    >>> check_trajectory([1, 2])
    Traceback (most recent call last):
    ...
    ValueError: run is of type list; pass what alflb.simulate returned
    """
    if not isinstance(run, Trajectory):
        raise ValueError(f"run is of type {type(run).__name__}; pass what alflb.simulate returned")
