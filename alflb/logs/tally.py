"""Loads that come in pieces: by layer, step, rank and micro-batch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from alflb.logs.record import Record


class Tally:
    """Adds up loads by layer and step.

    Examples
    --------
    >>> tally = Tally()
    >>> for rank_load_E in ([3, 1], [2, 2]):
    ...     tally.add("layer_00", 7, np.array(rank_load_E))
    >>> tally.records(top_k=1)["layer_00"].load_NE.tolist()
    [[5, 3]]
    """

    def __init__(self) -> None:
        self._loads: dict[str, dict[int, NDArray[np.int64]]] = {}

    def add(self, layer: str, step: int, load_E: NDArray[np.integer]) -> None:
        """Add a part of a layer's load at a step; ValueError if it has another number of experts than before."""
        steps = self._loads.setdefault(layer, {})
        known = next(iter(steps.values()), load_E)
        if load_E.shape != known.shape:
            raise ValueError(f"{layer} has {len(load_E)} experts at step {step}, and {len(known)} before")
        steps[step] = steps.get(step, 0) + load_E.astype(np.int64)

    def records(self, top_k: int | None, notes: Iterable[str] = ()) -> dict[str, Record]:
        """The records of all layers that saw tokens; steps without any are left out."""
        found = {}
        for layer in sorted(self._loads):
            kept = {step: load_E for step, load_E in sorted(self._loads[layer].items()) if load_E.any()}
            if kept:
                step_N = np.fromiter(kept, dtype=np.int64)
                found[layer] = Record(np.stack(list(kept.values())), step_N, top_k=top_k, notes=tuple(notes))
        if not found:
            raise ValueError("it counts no token in any layer")
        return found


def as_picks(experts: object, num_experts: int, where: str) -> NDArray[np.int64]:
    """Chosen experts as an array (tokens, K); ValueError if they cannot be that."""
    try:
        experts_TK = np.asarray(experts)
    except ValueError:  # rows of different length
        experts_TK = np.array([], dtype=object)
    if experts_TK.size == 0 and experts_TK.dtype.kind != "O":
        return np.zeros((0, 1), dtype=np.int64)
    if experts_TK.ndim != 2 or experts_TK.dtype.kind not in "iu":
        raise ValueError(f"{where}: the chosen experts are not a table of whole numbers, K per token")
    outside = experts_TK[(experts_TK < 0) | (experts_TK >= num_experts)]
    if outside.size:
        raise ValueError(f"{where}: a token chose expert {outside[0]} of {num_experts}; check num_experts (--experts)")
    ordered = np.sort(experts_TK, axis=1)
    if np.any(ordered[:, 1:] == ordered[:, :-1]):
        raise ValueError(f"{where}: a token chose one expert twice")
    return experts_TK.astype(np.int64)


def count(experts_TK: NDArray[np.int64], num_experts: int) -> NDArray[np.int64]:
    """Tokens per expert."""
    return np.bincount(experts_TK.ravel(), minlength=num_experts)
