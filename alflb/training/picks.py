"""Counting picks: int64 tokens per expert on the device, and how many picks cannot be right.

Nothing here waits for the device. What only the values can show (an expert that does not exist, a token that picks one
expert twice) is counted as faulty, and refused when the counts are read.
"""

from __future__ import annotations

from typing import Any

import torch


class PickCounter:
    """Tokens per expert of one layer since the last `clear`, each device apart.

    Parameters
    ----------
    name : str
        The layer's name, for messages.
    num_experts : int

    Examples
    --------
    >>> counter = PickCounter("mlp", num_experts=3)
    >>> counter.add(torch.tensor([[0, 2], [2, 1]]))
    >>> counter.total(torch.device("cpu")).tolist()  # the last number counts faulty picks
    [1, 1, 2, 0]
    >>> counter.add(torch.tensor([[True, False, True]]))  # a routing map
    >>> counter.total(torch.device("cpu")).tolist()
    [2, 1, 3, 0]
    """

    def __init__(self, name: str, num_experts: int) -> None:
        self.name = name
        self.num_experts = num_experts
        self.top_k: int | None = None
        """Picks per token, known once indices have been counted."""
        self._counts: dict[torch.device, torch.Tensor] = {}

    def add(self, picks: torch.Tensor, real_T: torch.Tensor | None = None) -> None:
        """Count the picks of one forward pass.

        Parameters
        ----------
        picks : torch.Tensor
            Integers of shape (..., K), or a bool routing map of shape (..., E).
        real_T : bool torch.Tensor, shape (T,), optional
            False for padding, which is not counted; ignored where T is not the number of tokens routed here.

        Raises
        ------
        ValueError
            For anything else, and for another K than before.
        """
        if not isinstance(picks, torch.Tensor) or picks.is_floating_point() or picks.is_complex():
            raise ValueError(f"the picks of {self.name} are {_kind(picks)}; {_HOW}")
        if picks.numel() == 0:
            return
        picks = picks.detach()
        rows = self._map_rows(picks) if picks.dtype == torch.bool else self._index_rows(picks)
        if real_T is not None and len(real_T) != len(rows):
            real_T = None
        counts = self._on(picks.device)
        if picks.dtype == torch.bool:
            _add_map(counts, rows, real_T)
        else:
            _add_indices(counts, rows, real_T)

    def add_loads(self, loads: Any) -> None:
        """Add tokens per expert that were counted elsewhere: E whole numbers, of any dtype that holds them."""
        try:
            load_E = torch.as_tensor(loads).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"loads of {self.name} cannot be read as numbers ({error})") from None
        if load_E.shape != (self.num_experts,) or load_E.dtype == torch.bool or load_E.is_complex():
            raise ValueError(f"loads of {self.name} are {_kind(load_E)}; pass {self.num_experts} counts of tokens")
        counts = self._on(load_E.device)
        whole_E = load_E.nan_to_num(nan=-1.0, posinf=-1.0).long()
        counts[:-1] += whole_E
        counts[-1] += ((whole_E < 0) | (whole_E != load_E)).sum()

    def total(self, device: torch.device) -> torch.Tensor:
        """Loads of all devices, and the number of faulty picks, on one device; shape (E + 1,)."""
        total = _zeros(self.num_experts + 1, device)
        for counts in self._counts.values():
            total += counts.to(device)
        return total

    @property
    def device(self) -> torch.device | None:
        """Where the first counts are; None if nothing has been counted."""
        return next(iter(self._counts), None)

    def clear(self) -> None:
        """Start from zero."""
        self._counts.clear()

    def _map_rows(self, picks: torch.Tensor) -> torch.Tensor:
        if picks.shape[-1] != self.num_experts:
            raise ValueError(
                f"the picks of {self.name} are {_kind(picks)}; a routing map has one column per expert, here "
                f"{self.num_experts}"
            )
        return picks.reshape(-1, self.num_experts)

    def _index_rows(self, picks: torch.Tensor) -> torch.Tensor:
        top_k = picks.shape[-1] if picks.ndim > 1 else 1
        if self.top_k is None:
            self.top_k = top_k
        if top_k != self.top_k:
            raise ValueError(
                f"the picks of {self.name} are {_kind(picks)}, {top_k} per token, after {self.top_k} per token before"
            )
        return picks.reshape(-1, top_k).long()

    def _on(self, device: torch.device) -> torch.Tensor:
        if device not in self._counts:
            self._counts[device] = _zeros(self.num_experts + 1, device)
        return self._counts[device]


def _add_indices(counts: torch.Tensor, rows_TK: torch.Tensor, real_T: torch.Tensor | None) -> None:
    """Add each row's experts; those that do not exist and those that a row repeats are faulty."""
    faulty = len(counts) - 1
    ordered = rows_TK.sort(dim=1).values
    repeated = torch.zeros_like(rows_TK, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    ordered = torch.where((ordered < 0) | (ordered >= faulty) | repeated, faulty, ordered)
    weight = torch.ones_like(ordered) if real_T is None else real_T[:, None].expand_as(ordered).long()
    # not bincount, which on CUDA waits for the device to know its size
    counts.scatter_add_(0, ordered.flatten(), weight.flatten())


def _add_map(counts: torch.Tensor, rows_TE: torch.Tensor, real_T: torch.Tensor | None) -> None:
    """Add a routing map; a row with another number of picks than the first is faulty."""
    if real_T is not None:
        rows_TE = rows_TE & real_T[:, None]
    picks_T = rows_TE.sum(dim=1)
    odd_T = picks_T != picks_T.max()
    counts[:-1] += rows_TE.sum(dim=0)
    counts[-1] += (odd_T if real_T is None else odd_T & real_T).sum()


def _zeros(size: int, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # a tensor made in inference mode could not be added to outside of it
        return torch.zeros(size, dtype=torch.int64, device=device)


def _kind(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)


_HOW = (
    "pass the indices of the chosen experts, integers (..., K), or a routing map, bool (..., E). "
    "If they are weights or scores, describe_router points at the wrong argument or output"
)
