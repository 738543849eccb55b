"""Counting scores for a rule that works on bins: tokens per expert and bin, on the device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from alflb.rules.binned_qb import BinnedQuantileBalancing


class ScoreBins:
    """What `BinnedQuantileBalancing.count` counts, of tensors, added up over forward passes.

    Parameters
    ----------
    rule : BinnedQuantileBalancing
    num_experts : int
    """

    def __init__(self, rule: BinnedQuantileBalancing, num_experts: int) -> None:
        self._rule = rule
        self._num_experts = num_experts
        self._counts: dict[torch.device, torch.Tensor] = {}

    def add(
        self, biased: torch.Tensor, picks: torch.Tensor, bias_E: NDArray[np.float64], real_T: torch.Tensor | None
    ) -> None:
        """Count one forward pass.

        Parameters
        ----------
        biased : torch.Tensor, shape (..., E)
            Scores + bias, which the router ranks; -inf where a pair is forbidden.
        picks : torch.Tensor, shape (..., K)
        bias_E : array, shape (E,)
            The bias in there.
        real_T : bool torch.Tensor, optional
            False for padding.
        """
        top_k, num_experts = picks.shape[-1], self._num_experts
        biased_TE = biased.detach().reshape(-1, num_experts).float()
        if top_k == num_experts or not len(biased_TE):
            return
        alpha_T1 = biased_TE.topk(top_k + 1, dim=1).values[:, -1:]
        lack_TE = alpha_T1 - (biased_TE - torch.as_tensor(bias_E, dtype=torch.float32, device=biased_TE.device))
        low, width = self._rule.bin_range(bias_E)
        place_TE = ((lack_TE - low) / width).nan_to_num(nan=0.0).clamp(0, self._rule.bins - 1).long()
        counted_TE = lack_TE.isfinite()
        if real_T is not None and len(real_T) == len(biased_TE):
            counted_TE &= real_T[:, None]
        flat_TE = place_TE + self._rule.bins * torch.arange(num_experts, device=biased_TE.device)
        self._on(biased_TE.device).scatter_add_(0, flat_TE.flatten(), counted_TE.flatten().long())

    def total(self, device: torch.device) -> torch.Tensor:
        """Counts of all devices on one, shape (E B,)."""
        total = self._zeros(device)
        for counts in self._counts.values():
            total += counts.to(device)
        return total

    def clear(self) -> None:
        """Start from zero."""
        self._counts.clear()

    def _on(self, device: torch.device) -> torch.Tensor:
        if device not in self._counts:
            self._counts[device] = self._zeros(device)
        return self._counts[device]

    def _zeros(self, device: torch.device) -> torch.Tensor:
        with torch.inference_mode(False):  # a tensor made in inference mode could not be added to outside of it
            return torch.zeros(self._num_experts * self._rule.bins, dtype=torch.int64, device=device)
