"""Summing counts over ranks: layers are matched by name, so ranks may hold different ones (pipeline stages)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Facts = Mapping[str, NDArray[np.float64]]
"""The biases of one rank's layers by name."""


class Exchange:
    """One rank's part in the sums of a process group.

    The ranks compare their layers, once, before the first sum. From then on there is one all-reduce per call.
    """

    def __init__(self, process_group: Any) -> None:
        self._group = process_group
        self._sizes: dict[str, int] | None = None

    def forget(self) -> None:
        """Compare the layers again before the next sum."""
        self._sizes = None

    def sum(
        self, counts: Mapping[str, torch.Tensor], biases: Facts, progress: str
    ) -> tuple[torch.Tensor, dict[str, int]]:
        """Every layer's counts summed over the group, one vector, and how many are whose; of the layers of all ranks.

        Parameters
        ----------
        counts : mapping of str to int64 torch.Tensor
            This rank's counts, all on one device.
        biases : mapping of str to array
            The biases of the same layers, which must be equal wherever a layer is held.
        progress : str
            Rule and step number, which must be the same on all ranks.

        Raises
        ------
        ValueError
            On every rank, if two ranks do not fit together.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return _flatten(counts), {name: count.numel() for name, count in counts.items()}
        if self._sizes is None:
            self._sizes = self._agree(counts, biases, progress)
        device = next((count.device for count in counts.values()), self._default_device())
        missing = {name: torch.zeros(size, dtype=torch.int64, device=device) for name, size in self._sizes.items()}
        flat = _flatten({**missing, **counts})
        torch.distributed.all_reduce(flat, group=self._group)
        return flat, self._sizes

    def _agree(self, counts: Mapping[str, torch.Tensor], biases: Facts, progress: str) -> dict[str, int]:
        """The layers of all ranks and the length of their counts, in one order."""
        mine = {name: (count.numel(), biases[name]) for name, count in counts.items()}
        everyone: list[Any] = [None] * torch.distributed.get_world_size(self._group)
        torch.distributed.all_gather_object(everyone, (progress, mine), group=self._group)
        return merge_layers(everyone)

    def _default_device(self) -> torch.device:
        """Where the tensors of the group live, for a rank without layers."""
        on_gpu = "nccl" in str(torch.distributed.get_backend(self._group))
        return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def merge_layers(ranks: Sequence[tuple[str, Mapping[str, tuple[int, NDArray[np.float64]]]]]) -> dict[str, int]:
    """Length of every layer's counts by name, sorted; ValueError if two ranks contradict each other.

    Examples
    --------
    >>> bias_E = np.zeros(2)
    >>> merge_layers([("sign", {"b": (3, bias_E)}), ("sign", {"a": (3, bias_E)})])
    {'a': 3, 'b': 3}
    >>> merge_layers([("sign", {"a": (3, bias_E)}), ("sign", {"a": (3, bias_E + 0.5)})])
    Traceback (most recent call last):
    ...
    ValueError: ranks 0 and 1 of the process group have different biases in layer 'a', by up to 0.5; ...
    """
    first: dict[str, tuple[int, int, NDArray[np.float64]]] = {}
    for rank, (progress, layers) in enumerate(ranks):
        if progress != ranks[0][0]:
            raise ValueError(
                f"ranks 0 and {rank} of the process group are at different points: {ranks[0][0]} and {progress}; load "
                "the same balancer state on all ranks"
            )
        for name, (size, bias_E) in layers.items():
            other, other_size, other_E = first.setdefault(name, (rank, size, bias_E))
            if size != other_size:
                raise ValueError(
                    f"ranks {other} and {rank} of the process group have {len(other_E)} and {len(bias_E)} experts in "
                    f"layer {name!r}; {_STAGES}"
                )
            if not np.array_equal(bias_E, other_E):
                raise ValueError(
                    f"ranks {other} and {rank} of the process group have different biases in layer {name!r}, by up to "
                    f"{np.abs(bias_E - other_E).max():.4g}; load the same checkpoint on all ranks. {_STAGES}"
                )
    return {name: first[name][1] for name in sorted(first)}


_STAGES = "If they are pipeline stages that give their layers the same names, pass the process_group of each stage"


def _flatten(counts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(counts.values())) if counts else torch.zeros(0, dtype=torch.int64)


def unflatten(flat: torch.Tensor, sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """The parts of a vector by name."""
    return dict(zip(sizes, flat.split(list(sizes.values()))))
